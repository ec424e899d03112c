"""The kinds of feature, each with its feasible changes and its place among the model's columns.

A feature is declared in raw units. ``column`` or ``columns`` give its place, and are ``None`` until the action set is encoded. All kinds
are frozen and checked at construction.
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.actions.curves import NumberEncoder
from cfptq.actions.validation import (
    Level,
    parse_column_number,
    parse_finite_number,
    parse_levels,
    parse_number,
    parse_pair,
    to_float32,
    to_python_value,
)
from cfptq.errors import ActionSetError
from cfptq.io.arguments import is_finite_number
from cfptq.io.suggestions import did_you_mean

INFREQUENT = "(infrequent)"
"""Level that stands for all categories that an encoder merges, where it reads any unknown text as one of them."""

_MAX_WHOLE = 2**63  # Whole numbers from here on can be neither levels nor values, because int64 does not hold them.


class Mutability(StrEnum):
    """Directions in which an action may change a feature."""

    FREE = "free"
    """Both directions."""
    IMMUTABLE = "immutable"
    """No direction (eq. 8)."""
    INCREASE = "increase"
    """Only up, or towards later levels."""
    DECREASE = "decrease"
    """Only down, or towards earlier levels."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a numeric feature over the training rows that have a value, in raw units.

    Attributes:
        mean: mean.
        std: population standard deviation.
        mad: median absolute deviation from the median.
        minimum: least observed value.
        maximum: greatest observed value.
        missing: share of rows without a value, between 0 and 1. Default: 0.
    """

    mean: float
    std: float
    mad: float
    minimum: float
    maximum: float
    missing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "std", "mad", "minimum", "maximum", "missing"):
            value = parse_finite_number(getattr(self, name), f"statistics: {name}")
            object.__setattr__(self, name, value)
        if self.std < 0 or self.mad < 0:
            raise ActionSetError(f"statistics: std and mad must be at least 0, got {self.std:g} and {self.mad:g}.")
        if self.minimum > self.maximum:
            raise ActionSetError(f"statistics: minimum must be at most maximum ({self.maximum:g}), got {self.minimum:g}.")
        if not 0 <= self.missing <= 1:
            raise ActionSetError(f"statistics: missing must be a share between 0 and 1, got {self.missing:g}.")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Base of all kinds of feature.

    Attributes:
        name: name of the column in the DataFrame.
        mutability: directions in which an action may change the feature. Default: both.
        effort: factor on the cost of a change, above 0. Default: 1.
        fill: raw value that the encoder puts in place of a missing one. Default: ``None``, no such rule.
        indicator: index of the column that tells whether the value is missing. A missing value then stays missing. Default: ``None``.
        indicator_values: values of that column for a present and for a missing value. Default: ``(0.0, 1.0)``.
    """

    name: str = field(kw_only=False)
    mutability: Mutability = Mutability.FREE
    effort: float = 1.0
    fill: Level = None
    indicator: int | None = None
    indicator_values: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ActionSetError(f"The name of a feature must be a non-empty string, got {self.name!r}. Rename the column.")
        try:
            mutability = Mutability(self.mutability)
        except ValueError:
            known = [m.value for m in Mutability]
            raise ActionSetError(
                f"{self.name}: mutability must be one of {', '.join(known)}, got {self.mutability!r}"
                f"{did_you_mean(str(self.mutability), known)}."
            ) from None
        object.__setattr__(self, "mutability", mutability)
        effort = parse_finite_number(self.effort, f"{self.name}: effort")
        if effort <= 0:
            raise ActionSetError(f"{self.name}: effort must be above 0, got {effort:g}. Declare the feature immutable to forbid changes.")
        object.__setattr__(self, "effort", effort)
        if self.indicator is not None:
            object.__setattr__(self, "indicator", parse_column_number(self.indicator, f"{self.name}: indicator"))
            label = f"{self.name}: indicator_values"
            present, missing = (parse_finite_number(side, label) for side in parse_pair(self.indicator_values, label))
            if not _is_below(present, missing):
                raise ActionSetError(f"{label} must be two float32 numbers, the first below the second, got {present:g} and {missing:g}.")
            object.__setattr__(self, "indicator_values", (present, missing))

    @property
    def kind(self) -> str:
        """Name of the kind in files and tables."""
        return type(self).__name__.lower()

    @property
    def is_immutable(self) -> bool:
        """True if no action may change the feature."""
        return self.mutability is Mutability.IMMUTABLE

    @property
    def immutable(self) -> bool:
        """Former name of ``is_immutable``."""
        return self.is_immutable

    @property
    def model_columns(self) -> tuple[int, ...]:
        """Columns of the model that show this feature's value, none before encoding."""
        raise TypeError("Feature is abstract. Construct a Continuous, Integer, Ordinal or Categorical.")

    @property
    def all_columns(self) -> tuple[int, ...]:
        """Columns of the model that show this feature, with the indicator of a missing value."""
        return self.model_columns if self.indicator is None else (*self.model_columns, self.indicator)


@dataclass(frozen=True, kw_only=True)
class Continuous(Feature):
    """A feature that is a real number.

    Attributes:
        bounds: declared ``(lowest, highest)`` in raw units. ``None`` keeps the observed range on a side, and ±inf leaves it open.
            A row outside declared bounds may stay or move towards them. The observed range is no rule.
        bounds_share: bounds as shares of the observed range. ``(0.0, 0.9)`` ends at 90 % of the way from minimum to maximum.
        statistics: statistics of the training rows, in raw units.
        column: index of the model's column, which holds ``(raw - offset) / scale``, of the curve's value if there is one.
        offset: offset in raw units. Default: 0.
        scale: scale in raw units, above 0. Default: 1.
        curve: increasing functions that the encoder applies before offset and scale, in this order. Costs are measured in the encoded
            column, behind the curve. Default: none.
    """

    bounds: tuple[float | None, float | None] = (None, None)
    bounds_share: tuple[float, float] | None = None
    statistics: Statistics | None = None
    column: int | None = None
    offset: float = 0.0
    scale: float = 1.0
    curve: tuple[NumberEncoder, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = parse_pair(self.bounds, f"{self.name}: bounds")
        low, high = (None if side is None else parse_number(side, f"{self.name}: bounds") for side in (low, high))
        if low is not None and high is not None and low > high:
            raise ActionSetError(f"{self.name}: the lower bound must be at most the upper bound {high:g}, got {low:g}.")
        object.__setattr__(self, "bounds", (low, high))
        if self.bounds_share is not None:
            if (low, high) != (None, None):
                raise ActionSetError(f"{self.name}: bounds and bounds_share exclude one another. Give one of them.")
            label = f"{self.name}: bounds_share"
            first, last = (parse_finite_number(side, label) for side in parse_pair(self.bounds_share, label))
            if first > last:
                raise ActionSetError(f"{self.name}: bounds_share must not start above its end {last:g}, got {first:g}.")
            object.__setattr__(self, "bounds_share", (first, last))
        if self.statistics is not None and not isinstance(self.statistics, Statistics):
            raise ActionSetError(
                f"{self.name}: statistics must be a mapping of mean, std, mad, minimum and maximum, got {self.statistics!r}."
            )
        if self.bounds_share is not None and self.statistics is None:
            raise ActionSetError(f"{self.name}: bounds_share needs the observed range. Give statistics, or bounds in raw units.")
        if self.fill is not None:
            object.__setattr__(self, "fill", parse_finite_number(self.fill, f"{self.name}: fill"))
        object.__setattr__(self, "offset", parse_finite_number(self.offset, f"{self.name}: offset"))
        object.__setattr__(self, "scale", parse_finite_number(self.scale, f"{self.name}: scale"))
        if self.scale <= 0:
            raise ActionSetError(f"{self.name}: scale must be above 0, got {self.scale:g}.")
        if self.column is not None:
            object.__setattr__(self, "column", parse_column_number(self.column, self.name))

    def encode_numbers(self, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the column's values for raw values, both ``(N,)``, in float64."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for curve in self.curve:
                raw = curve.encode(raw)
            return (raw - self.offset) / self.scale

    def decode_numbers(self, columns: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the raw values of the column's values, both ``(N,)``, in float64."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            raw: npt.NDArray[np.float64] = np.asarray(columns, dtype=np.float64) * self.scale + self.offset
            for curve in reversed(self.curve):
                raw = curve.decode(raw)
        return raw

    @property
    def declared_bounds(self) -> tuple[float, float]:
        """Declared bounds in raw units, ±inf where a side is open."""
        if self.bounds_share is not None and self.statistics is not None:
            width = self.statistics.maximum - self.statistics.minimum
            return tuple(self.statistics.minimum + share * width for share in self.bounds_share)  # type: ignore[return-value]
        low, high = self.bounds
        return (-math.inf if low is None else low, math.inf if high is None else high)

    @property
    def reachable_bounds(self) -> tuple[float, float]:
        """Bounds of an action in raw units. Sides without a declared bound have the observed range, if there is one."""
        low, high = self.declared_bounds
        if self.statistics is not None and self.bounds_share is None:
            if self.bounds[0] is None:
                low = min(self.statistics.minimum, high)
            if self.bounds[1] is None:
                high = max(self.statistics.maximum, low)
        return low, high

    @property
    def reach(self) -> tuple[float, float]:
        """Former name of ``reachable_bounds``."""
        return self.reachable_bounds

    @property
    def model_columns(self) -> tuple[int, ...]:
        return () if self.column is None else (self.column,)


@dataclass(frozen=True, kw_only=True)
class Integer(Continuous):
    """A feature that is a whole number in raw units, with the attributes of ``Continuous``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sizes()
        low, high = super().reachable_bounds
        if math.isfinite(low) and math.isfinite(high) and math.ceil(low) > math.floor(high):
            raise ActionSetError(f"{self.name}: no whole number lies between {low:g} and {high:g}. Widen the bounds.")

    def _check_sizes(self) -> None:
        """Check that every number of the feature is in the range of int64. An open bound is infinite."""
        numbers: dict[str, object] = {"offset": self.offset, "fill": self.fill}
        numbers |= {"lower bound": self.bounds[0], "upper bound": self.bounds[1]}
        if self.statistics is not None:
            numbers |= {f"statistics: {name}": getattr(self.statistics, name) for name in ("mean", "minimum", "maximum")}
        for name, value in numbers.items():
            if isinstance(value, int | float) and math.isfinite(value) and abs(value) >= _MAX_WHOLE:
                raise ActionSetError(
                    f"{self.name}: the {name} of a whole-number feature must be above -2^63 and below 2^63, got {value:g}. Correct it, or "
                    "declare the feature continuous."
                )

    @property
    def reachable_bounds(self) -> tuple[float, float]:
        """Bounds of an action in raw units, rounded inwards to whole numbers."""
        low, high = super().reachable_bounds
        return (math.ceil(low) if math.isfinite(low) else low, math.floor(high) if math.isfinite(high) else high)


@dataclass(frozen=True, kw_only=True)
class _LevelFeature(Feature):
    """A feature with finitely many values, which the model sees as one column of codes or as a one-hot group.

    Attributes:
        frequencies: share of training rows at each level. They and the share of missing rows sum to 1.
        column: index of the model's column that holds the codes.
        codes: value of ``column`` for each level.
        columns: index of the one-hot column of each level, ``None`` for a level that the encoder drops. All columns are off there.
        off: value of each of ``columns`` when it is off. Default: 0.
        on: value of each of ``columns`` when it is on. Default: 1.
        unknown: the encoder's treatment of an unlisted value, ``"error"``, ``"zeros"`` (all columns off), ``"merged"`` (as the level
            ``INFREQUENT``) or a code.
        missing_as: value that the encoder knows as missing where ``None`` is a state, ``"none"`` or ``"nan"``. Default: ``"none"``.
        merged: pairs of a raw value and the state that the encoder shows it as, for values that are no states. Default: none.
    """

    frequencies: tuple[float, ...] | None = None
    column: int | None = None
    codes: tuple[float, ...] | None = None
    columns: tuple[int | None, ...] | None = None
    off: tuple[float, ...] | None = None
    on: tuple[float, ...] | None = None
    unknown: str | float = "error"
    missing_as: str = "none"
    merged: tuple[tuple[Level, Level], ...] = ()

    @property
    def states(self) -> tuple[Level, ...]:
        """Values that the feature can take, in order. ``None`` is a missing value."""
        raise NotImplementedError

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """Rank of each state, or ``None`` if the feature has no order."""
        raise NotImplementedError

    @property
    def destinations(self) -> tuple[bool, ...]:
        """True for each state that an action may lead to. A missing value is never one of them."""
        raise NotImplementedError

    @property
    def model_columns(self) -> tuple[int, ...]:
        if self.columns is not None:
            return tuple(column for column in self.columns if column is not None)
        return () if self.column is None else (self.column,)

    @property
    def is_one_hot(self) -> bool:
        """True if the model sees a one-hot group."""
        return self.columns is not None

    def _check_levels(self, field_name: str) -> None:
        states = self.states
        if not states:
            raise ActionSetError(f"{self.name}: {field_name} must not be empty. Give the values that the feature can take.")
        for state in states:
            if (
                not (state is None or isinstance(state, str | int | float | bool))
                or (isinstance(state, float) and not math.isfinite(state))
                or (isinstance(state, int) and abs(state) >= _MAX_WHOLE)
            ):
                raise ActionSetError(
                    f"{self.name}: {field_name} must hold strings, finite numbers, booleans or None, got {reprlib.repr(state)}."
                )
        seen: set[Level] = set()
        for state in states:
            if state in seen:
                raise ActionSetError(f"{self.name}: {field_name} must hold different values, got {state!r} twice.")
            seen.add(state)
        if self.frequencies is not None:
            shares = tuple(parse_finite_number(share, f"{self.name}: frequencies") for share in self.frequencies)
            if len(shares) != len(states):
                raise ActionSetError(
                    f"{self.name}: frequencies must hold one share for each of the {len(states)} values, got {len(shares)}."
                )
            if min(shares) < 0 or sum(shares) > 1 + 1e-6:
                raise ActionSetError(f"{self.name}: frequencies must be shares that sum to at most 1, got {shares}.")
            object.__setattr__(self, "frequencies", shares)
        if self.fill is not None and self.fill not in states:
            raise ActionSetError(f"{self.name}: fill must be one of its {field_name} {list(states)}, got {self.fill!r}.")

    def _check_columns(self) -> None:
        count = len(self.states)
        if self.column is not None and self.columns is not None:
            raise ActionSetError(
                f"{self.name}: column and columns exclude one another. Give column with codes, or columns for a one-hot group."
            )
        if self.column is not None:
            object.__setattr__(self, "column", parse_column_number(self.column, self.name))
            codes = self.codes
            if codes is None:
                codes = self._default_codes()
            codes = tuple(parse_finite_number(code, f"{self.name}: codes") for code in codes)
            rounded = {to_float32(code) for code in codes}
            if len(codes) != count or len(rounded) != count or not all(map(math.isfinite, rounded)):
                raise ActionSetError(f"{self.name}: codes must be {count} different numbers in float32, one for each value, got {codes}.")
            object.__setattr__(self, "codes", codes)
        if self.columns is not None:
            columns = tuple(None if column is None else parse_column_number(column, self.name) for column in self.columns)
            if len(columns) != count:
                raise ActionSetError(
                    f"{self.name}: columns must hold one column for each of the {count} values, got {len(columns)}. "
                    "Give None for a value that the encoder drops."
                )
            placed = [column for column in columns if column is not None]
            if columns.count(None) > 1 or len(set(placed)) != len(placed) or not placed:
                raise ActionSetError(f"{self.name}: columns must differ, with at most one None, got {columns}.")
            object.__setattr__(self, "columns", columns)
            off = tuple(parse_finite_number(v, f"{self.name}: off") for v in (self.off or (0.0,) * count))
            on = tuple(parse_finite_number(v, f"{self.name}: on") for v in (self.on or (1.0,) * count))
            if len(off) != count or len(on) != count or not all(map(_is_below, off, on)):
                raise ActionSetError(f"{self.name}: off and on must hold one float32 number for each of the {count} columns, off below on.")
            object.__setattr__(self, "off", off)
            object.__setattr__(self, "on", on)
        is_code = is_finite_number(self.unknown) and math.isfinite(to_float32(float(self.unknown)))
        known = ("error", "zeros", "merged") if INFREQUENT in self.states else ("error", "zeros")
        if not (is_code or (isinstance(self.unknown, str) and self.unknown in known)):
            allowed = '"' + '", "'.join(known) + '"'
            raise ActionSetError(f"{self.name}: unknown must be {allowed} or a code that fits float32, got {self.unknown!r}.")
        object.__setattr__(self, "merged", tuple(self._parse_merged()))
        if self.missing_as not in ("none", "nan"):
            raise ActionSetError(f'{self.name}: missing_as must be "none" or "nan", got {self.missing_as!r}.')

    def _parse_merged(self) -> Iterator[tuple[Level, Level]]:
        seen = set(self.states)
        for entry in self.merged:
            value, state = parse_pair(entry, f"{self.name}: merged")
            if value in seen or state not in self.states:
                raise ActionSetError(
                    f"{self.name}: merged must hold pairs of a further raw value and one of {list(self.states)}, got {entry!r}."
                )
            seen.add(value)
            yield value, state

    def _default_codes(self) -> tuple[float, ...]:
        if all(isinstance(state, int | float) for state in self.states):
            return tuple(float(state) for state in self.states if state is not None)
        return tuple(float(place) for place in range(len(self.states)))


def _is_below(low: float, high: float) -> bool:
    """Return whether two numbers are finite and in order in float32 too."""
    return -math.inf < to_float32(low) < to_float32(high) < math.inf


@dataclass(frozen=True, kw_only=True)
class Ordinal(_LevelFeature):
    """A feature with a finite ordered domain (eq. 11).

    Attributes:
        domain: the values, lowest first.
        bounds: declared ``(lowest, highest)``, members of the domain or ``None`` for an open side. A row outside may stay.
        edges: inner edges of the bins to which an encoder maps raw numbers, of which ``domain`` holds one admissible value each.
            A value at an edge is in the bin above. Default: ``None``, the values themselves are the levels.
    """

    domain: tuple[Level, ...]
    bounds: tuple[Level, Level] = (None, None)
    edges: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.domain, set | frozenset):
            raise ActionSetError(f"{self.name}: domain must be a list in order, lowest first, got a set without an order.")
        object.__setattr__(self, "domain", parse_levels(self.domain, f"{self.name}: domain"))
        self._check_levels("domain")
        if None in self.domain[:-1]:
            raise ActionSetError(f"{self.name}: None (missing) has no place in an order. Put it last, or fill missing values.")
        low, high = parse_pair(self.bounds, f"{self.name}: bounds")
        low, high = to_python_value(low), to_python_value(high)
        for side in (low, high):
            if side is not None and side not in self.domain:
                raise ActionSetError(
                    f"{self.name}: a bound must be in its domain {list(self.domain)}, got {side!r}{did_you_mean(side, self.domain)}."
                )
        object.__setattr__(self, "bounds", (low, high))
        first, last = self._reachable_span()
        if first > last:
            raise ActionSetError(f"{self.name}: the lower bound must not come after the upper bound {high!r}, got {low!r}.")
        if self.edges is not None:
            edges = tuple(parse_finite_number(edge, f"{self.name}: edges") for edge in self.edges)
            if len(edges) != len(self.domain) - 1 or any(first >= last for first, last in itertools.pairwise(edges)):
                raise ActionSetError(f"{self.name}: edges must be {len(self.domain) - 1} numbers that rise, one between two values.")
            object.__setattr__(self, "edges", edges)
        self._check_columns()

    def _reachable_span(self) -> tuple[int, int]:
        low, high = self.bounds
        return (0 if low is None else self.domain.index(low), len(self.domain) - 1 if high is None else self.domain.index(high))

    @property
    def states(self) -> tuple[Level, ...]:
        return self.domain

    @property
    def ranks(self) -> tuple[int, ...] | None:
        return tuple(range(len(self.domain)))

    @property
    def destinations(self) -> tuple[bool, ...]:
        first, last = self._reachable_span()
        return tuple(first <= place <= last and state is not None for place, state in enumerate(self.domain))


@dataclass(frozen=True, kw_only=True)
class Categorical(_LevelFeature):
    """A feature with levels that have no order (eq. 12).

    Attributes:
        levels: the values.
        reachable: levels that an action may lead to. Default: ``None``, all levels. The row's own level is always feasible.
    """

    levels: tuple[Level, ...]
    reachable: tuple[Level, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", parse_levels(self.levels, f"{self.name}: levels"))
        self._check_levels("levels")
        if self.mutability in (Mutability.INCREASE, Mutability.DECREASE):
            raise ActionSetError(
                f"{self.name}: a categorical feature has no order, so it cannot only {self.mutability.value}. "
                "Declare it ordinal, with its values in order."
            )
        if self.reachable is not None:
            reachable = parse_levels(self.reachable, f"{self.name}: reachable")
            for level in reachable:
                if level not in self.levels:
                    meant = did_you_mean(level, self.levels)
                    raise ActionSetError(
                        f"{self.name}: a reachable level must be one of its levels {list(self.levels)}, got {level!r}{meant}."
                    )
            object.__setattr__(self, "reachable", reachable)
        self._check_columns()

    @property
    def states(self) -> tuple[Level, ...]:
        return self.levels

    @property
    def ranks(self) -> tuple[int, ...] | None:
        return None

    @property
    def destinations(self) -> tuple[bool, ...]:
        return tuple(level is not None and (self.reachable is None or level in self.reachable) for level in self.levels)


AnyFeature: TypeAlias = Continuous | Integer | Ordinal | Categorical
