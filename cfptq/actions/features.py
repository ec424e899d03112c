"""The kinds of feature a person can have, each with what may be changed about it and how the model sees it.

A feature is declared in raw units. ``column`` or ``columns`` say where the model sees it; they stay ``None`` until the action set is
encoded. All are frozen and checked when they are built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import Level, column_number, finite_number, level_tuple, number, pair, plain
from cfptq.errors import ActionSetError


class Mutability(StrEnum):
    """Which way a feature may move."""

    FREE = "free"
    """Both ways."""
    IMMUTABLE = "immutable"
    """Not at all: eq. 8."""
    INCREASE = "increase"
    """Only up, or towards later levels."""
    DECREASE = "decrease"
    """Only down, or towards earlier levels."""


@dataclass(frozen=True)
class Statistics:
    """What the training rows say about a numeric feature, in raw units, over the values that are present.

    Attributes:
        mean, std, mad: mean, population standard deviation, median absolute deviation from the median.
        minimum, maximum: the observed range.
        missing: share of rows without a value.
    """

    mean: float
    std: float
    mad: float
    minimum: float
    maximum: float
    missing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "std", "mad", "minimum", "maximum", "missing"):
            value = finite_number(getattr(self, name), f"statistics: {name}")
            object.__setattr__(self, name, value)
        if self.std < 0 or self.mad < 0:
            raise ActionSetError(f"statistics: std {self.std:g} and mad {self.mad:g} cannot be negative")
        if self.minimum > self.maximum:
            raise ActionSetError(f"statistics: minimum {self.minimum:g} is above maximum {self.maximum:g}")
        if not 0 <= self.missing <= 1:
            raise ActionSetError(f"statistics: missing is a share between 0 and 1, not {self.missing:g}")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What all kinds of feature share.

    Attributes:
        name: as in the DataFrame.
        mutability: which way it may move.
        effort: factor on the cost of changing it, > 0.
        fill: what the encoder puts in place of a missing value; ``None`` where it has no such rule.
    """

    name: str = field(kw_only=False)
    mutability: Mutability = Mutability.FREE
    effort: float = 1.0
    fill: Level = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ActionSetError(f"a feature's name is a non-empty string, not {self.name!r}; rename the column")
        try:
            mutability = Mutability(self.mutability)
        except ValueError:
            known = [m.value for m in Mutability]
            raise ActionSetError(
                f"{self.name}: mutability is one of {', '.join(known)}, not {self.mutability!r}{did_you_mean(str(self.mutability), known)}"
            ) from None
        object.__setattr__(self, "mutability", mutability)
        effort = finite_number(self.effort, f"{self.name}: effort")
        if effort <= 0:
            raise ActionSetError(
                f"{self.name}: effort is a factor above 0, not {effort:g}; declare the feature immutable to forbid changes"
            )
        object.__setattr__(self, "effort", effort)

    @property
    def kind(self) -> str:
        """The kind's name as it stands in files and tables."""
        return type(self).__name__.lower()

    @property
    def immutable(self) -> bool:
        return self.mutability is Mutability.IMMUTABLE

    @property
    def placed(self) -> tuple[int, ...]:
        """The model's columns that show this feature, none before encoding."""
        raise TypeError("Feature is abstract: build a Continuous, Integer, Ordinal or Categorical")


@dataclass(frozen=True, kw_only=True)
class Continuous(Feature):
    """A real number.

    Attributes:
        bounds: declared ``(lowest, highest)`` in raw units; ``None`` leaves a side to the observed range, ±inf opens it. A row outside
            declared bounds is refused; the observed range never makes a row invalid.
        bounds_share: the same as shares of the training range: ``(0.0, 0.9)`` ends at 90 % of the way from minimum to maximum.
        statistics: of the training rows, raw units.
        column: the model's column; its value is ``(raw - offset) / scale``.
        offset, scale: scale > 0.
    """

    bounds: tuple[float | None, float | None] = (None, None)
    bounds_share: tuple[float, float] | None = None
    statistics: Statistics | None = None
    column: int | None = None
    offset: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = pair(self.bounds, f"{self.name}: bounds")
        low, high = (None if side is None else number(side, f"{self.name}: bounds") for side in (low, high))
        if low is not None and high is not None and low > high:
            raise ActionSetError(f"{self.name}: the lower bound {low:g} is above the upper bound {high:g}; swap or mend them")
        object.__setattr__(self, "bounds", (low, high))
        if self.bounds_share is not None:
            if (low, high) != (None, None):
                raise ActionSetError(f"{self.name}: bounds and bounds_share are both given; keep one")
            first, last = (
                finite_number(side, f"{self.name}: bounds_share") for side in pair(self.bounds_share, f"{self.name}: bounds_share")
            )
            if first > last:
                raise ActionSetError(f"{self.name}: bounds_share starts at {first:g}, above its end {last:g}; swap or mend them")
            object.__setattr__(self, "bounds_share", (first, last))
            if self.statistics is None:
                raise ActionSetError(f"{self.name}: bounds_share needs the training range; give statistics or absolute bounds")
        if self.fill is not None:
            object.__setattr__(self, "fill", finite_number(self.fill, f"{self.name}: fill"))
        object.__setattr__(self, "offset", finite_number(self.offset, f"{self.name}: offset"))
        object.__setattr__(self, "scale", finite_number(self.scale, f"{self.name}: scale"))
        if self.scale <= 0:
            raise ActionSetError(f"{self.name}: scale is above 0, not {self.scale:g}")
        if self.column is not None:
            object.__setattr__(self, "column", column_number(self.column, self.name))

    @property
    def declared(self) -> tuple[float, float]:
        """Declared bounds in raw units, ±inf where a side is open. A factual row outside them is refused."""
        if self.bounds_share is not None and self.statistics is not None:
            width = self.statistics.maximum - self.statistics.minimum
            return tuple(self.statistics.minimum + share * width for share in self.bounds_share)  # type: ignore[return-value]
        low, high = self.bounds
        return (-math.inf if low is None else low, math.inf if high is None else high)

    @property
    def reach(self) -> tuple[float, float]:
        """Where an action may lead, in raw units: the declared bounds, else the observed range, else anywhere."""
        low, high = self.declared
        if self.statistics is not None and self.bounds_share is None:
            if self.bounds[0] is None:
                low = min(self.statistics.minimum, high)
            if self.bounds[1] is None:
                high = max(self.statistics.maximum, low)
        return low, high

    @property
    def placed(self) -> tuple[int, ...]:
        return () if self.column is None else (self.column,)


@dataclass(frozen=True, kw_only=True)
class Integer(Continuous):
    """A whole number in raw units, whatever the model's scaling. Attributes as for :class:`Continuous`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = super().reach
        if math.isfinite(low) and math.isfinite(high) and math.ceil(low) > math.floor(high):
            raise ActionSetError(f"{self.name}: no whole number lies between {low:g} and {high:g}; widen the bounds")

    @property
    def reach(self) -> tuple[float, float]:
        """Whole numbers where an action may lead, in raw units."""
        low, high = super().reach
        return (math.ceil(low) if math.isfinite(low) else low, math.floor(high) if math.isfinite(high) else high)


@dataclass(frozen=True, kw_only=True)
class _Levelled(Feature):
    """A feature with finitely many values, seen by the model as one column of codes or as a one-hot group.

    Attributes:
        frequencies: share of training rows at each level; with the share of missing rows they sum to 1.
        column, codes: one column and the value it takes for each level.
        columns: one column for each level; ``None`` for the level that the encoder drops, which shows as all of them off.
        off, on: the values a one-hot column takes; one pair for each of ``columns``. Default 0 and 1.
        unknown: what the encoder does with an unlisted value: ``"error"``, ``"zeros"`` (all columns off) or a code.
    """

    frequencies: tuple[float, ...] | None = None
    column: int | None = None
    codes: tuple[float, ...] | None = None
    columns: tuple[int | None, ...] | None = None
    off: tuple[float, ...] | None = None
    on: tuple[float, ...] | None = None
    unknown: str | float = "error"

    @property
    def states(self) -> tuple[Level, ...]:
        """The values it can take, in order."""
        raise TypeError("abstract")

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """Each state's place in the order; ``None`` where there is no order."""
        raise TypeError("abstract")

    @property
    def destinations(self) -> tuple[bool, ...]:
        """For each state whether an action may lead there. Missing is never a destination."""
        raise TypeError("abstract")

    @property
    def placed(self) -> tuple[int, ...]:
        if self.columns is not None:
            return tuple(column for column in self.columns if column is not None)
        return () if self.column is None else (self.column,)

    @property
    def one_hot(self) -> bool:
        return self.columns is not None

    def _check_levels(self, word: str) -> None:
        states = self.states
        if not states:
            raise ActionSetError(f"{self.name}: {word} is empty; give the values the feature can take")
        for state in states:
            if not (state is None or isinstance(state, str | int | float | bool)) or (
                isinstance(state, float) and not math.isfinite(state)
            ):
                raise ActionSetError(f"{self.name}: {word} holds {state!r}; strings, numbers, booleans or None are allowed")
        seen: set[Level] = set()
        for state in states:
            if state in seen:
                raise ActionSetError(f"{self.name}: {word} holds {state!r} twice")
            seen.add(state)
        if self.frequencies is not None:
            shares = tuple(finite_number(share, f"{self.name}: frequencies") for share in self.frequencies)
            if len(shares) != len(states):
                raise ActionSetError(f"{self.name}: {len(shares)} frequencies for {len(states)} values; give one for each")
            if min(shares) < 0 or sum(shares) > 1 + 1e-6:
                raise ActionSetError(f"{self.name}: frequencies are shares that sum to at most 1")
            object.__setattr__(self, "frequencies", shares)
        if self.fill is not None and self.fill not in states:
            raise ActionSetError(f"{self.name}: missing values are filled with {self.fill!r}, which is not among its {word}")

    def _check_place(self) -> None:
        count = len(self.states)
        if self.column is not None and self.columns is not None:
            raise ActionSetError(f"{self.name}: give column with codes, or columns for a one-hot group, not both")
        if self.column is not None:
            object.__setattr__(self, "column", column_number(self.column, self.name))
            codes = self.codes
            if codes is None:
                codes = self._own_codes()
            codes = tuple(finite_number(code, f"{self.name}: codes") for code in codes)
            if len(codes) != count or len(set(codes)) != count:
                raise ActionSetError(f"{self.name}: give {count} different codes, one for each value, not {codes}")
            object.__setattr__(self, "codes", codes)
        if self.columns is not None:
            columns = tuple(None if column is None else column_number(column, self.name) for column in self.columns)
            if len(columns) != count:
                raise ActionSetError(
                    f"{self.name}: {len(columns)} columns for {count} values; give one for each, None for the one the encoder drops"
                )
            placed = [column for column in columns if column is not None]
            if columns.count(None) > 1 or len(set(placed)) != len(placed) or not placed:
                raise ActionSetError(f"{self.name}: columns {columns} must differ, at most one of them None")
            object.__setattr__(self, "columns", columns)
            off = tuple(finite_number(v, f"{self.name}: off") for v in (self.off or (0.0,) * count))
            on = tuple(finite_number(v, f"{self.name}: on") for v in (self.on or (1.0,) * count))
            if len(off) != count or len(on) != count or any(high <= low for low, high in zip(off, on, strict=True)):
                raise ActionSetError(f"{self.name}: off and on give each of the {count} columns two values, off below on")
            object.__setattr__(self, "off", off)
            object.__setattr__(self, "on", on)
        if not (self.unknown in ("error", "zeros") or isinstance(self.unknown, int | float)):
            raise ActionSetError(f'{self.name}: unknown is "error", "zeros" or a code, not {self.unknown!r}')

    def _own_codes(self) -> tuple[float, ...]:
        if all(isinstance(state, int | float) for state in self.states):
            return tuple(float(state) for state in self.states if state is not None)
        return tuple(float(place) for place in range(len(self.states)))


@dataclass(frozen=True, kw_only=True)
class Ordinal(_Levelled):
    """A finite ordered domain (eq. 11).

    Attributes:
        domain: its values, lowest first.
        bounds: declared ``(lowest, highest)``, members of the domain or ``None``. A row outside is refused.
    """

    domain: tuple[Level, ...]
    bounds: tuple[Level, Level] = (None, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "domain", level_tuple(self.domain, f"{self.name}: domain"))
        self._check_levels("domain")
        if None in self.domain[:-1]:
            raise ActionSetError(f"{self.name}: None (missing) has no place in an order; put it last or fill missing values")
        low, high = pair(self.bounds, f"{self.name}: bounds")
        low, high = plain(low), plain(high)
        for side in (low, high):
            if side is not None and side not in self.domain:
                raise ActionSetError(
                    f"{self.name}: bound {side!r} is not in its domain {list(self.domain)}{did_you_mean(side, self.domain)}"
                )
        object.__setattr__(self, "bounds", (low, high))
        first, last = self._span()
        if first > last:
            raise ActionSetError(f"{self.name}: the lower bound {low!r} comes after the upper bound {high!r}; swap or mend them")
        self._check_place()

    def _span(self) -> tuple[int, int]:
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
        first, last = self._span()
        return tuple(first <= place <= last and state is not None for place, state in enumerate(self.domain))


@dataclass(frozen=True, kw_only=True)
class Categorical(_Levelled):
    """One of several levels without an order (eq. 12).

    Attributes:
        levels: its values.
        reachable: the levels an action may lead to; ``None`` for all. Staying is always allowed.
    """

    levels: tuple[Level, ...]
    reachable: tuple[Level, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", level_tuple(self.levels, f"{self.name}: levels"))
        self._check_levels("levels")
        if self.mutability in (Mutability.INCREASE, Mutability.DECREASE):
            raise ActionSetError(
                f"{self.name}: a categorical feature has no order to {self.mutability.value} along; "
                "declare it ordinal, with its values in order"
            )
        if self.reachable is not None:
            reachable = level_tuple(self.reachable, f"{self.name}: reachable")
            for level in reachable:
                if level not in self.levels:
                    meant = did_you_mean(level, self.levels)
                    raise ActionSetError(f"{self.name}: reachable level {level!r} is not among its levels {list(self.levels)}{meant}")
            object.__setattr__(self, "reachable", reachable)
        self._check_place()

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
