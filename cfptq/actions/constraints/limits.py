"""Constraints on how far and where a person can move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfptq.actions.constraints.base import (
    TOLERANCE,
    Array,
    Constraint,
    Mask,
    RawRows,
    parse_amount,
    parse_names,
    require_level,
    require_number,
)
from cfptq.actions.features import AnyFeature, Integer
from cfptq.errors import ActionSetError


@dataclass(frozen=True)
class StepLimit(Constraint):
    """A limit on the distance from the person's own value.

    Attributes:
        feature: name of a number.
        up: largest increase. ``None`` for no limit.
        down: largest decrease. ``None`` for no limit.
        relative: true if ``up`` and ``down`` are shares of the own value. Default: false.
    """

    feature: str
    up: float | None = None
    down: float | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.up is None and self.down is None:
            raise ActionSetError("StepLimit: up or down must be a number, got neither.")
        for name in ("up", "down"):
            if getattr(self, name) is not None:
                parse_amount("StepLimit", name, getattr(self, name))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        require_number(self, self.feature, features)

    def describe(self) -> str:
        unit = " times the own value" if self.relative else ""
        parts = [f"{word} by at most {side:g}{unit}" for word, side in (("rises", self.up), ("falls", self.down)) if side is not None]
        return f"{self.feature} {' and '.join(parts)}"

    def compute_ends(self, before: Array) -> tuple[Array, Array]:
        """Return the least and the greatest value that each person can reach, ``(N,)``."""
        unit = np.abs(before) if self.relative else np.ones_like(before)
        low = np.full_like(before, -np.inf) if self.down is None else before - self.down * unit
        high = np.full_like(before, np.inf) if self.up is None else before + self.up * unit
        return low, high

    def find_broken(self, rows: RawRows) -> Mask:
        before, after = rows.before[self.feature], rows.after[self.feature]
        low, high = self.compute_ends(before)
        slack = rows.compute_slack(self.feature)
        return np.asarray(rows.is_changed(self.feature) & ((after < low - slack) | (after > high + slack)))

    def enforce(self, rows: RawRows) -> None:
        before = rows.before[self.feature]
        low, high = self.compute_ends(before)
        if isinstance(rows.features[self.feature], Integer):
            low, high = np.minimum(np.ceil(low), before), np.maximum(np.floor(high), before)
        rows.after[self.feature] = np.clip(rows.after[self.feature], low, high)


@dataclass(frozen=True)
class AtMost(Constraint):
    """A limit on the number of changed features among some.

    Attributes:
        count: largest number of them that one action changes.
        names: names of the features.
    """

    count: int
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", parse_names("AtMost", self.names))
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ActionSetError(f"AtMost: count must be a whole number of at least 1, got {self.count!r}.")

    @property
    def features(self) -> tuple[str, ...]:
        return self.names

    def describe(self) -> str:
        return f"at most {self.count} of {', '.join(self.names)} change"

    def find_broken(self, rows: RawRows) -> Mask:
        return np.asarray(sum(rows.is_changed(name).astype(int) for name in self.names) > self.count)

    def enforce(self, rows: RawRows) -> None:
        """Leave broken rows to ``enforce_counts``, which knows what each change costs."""


@dataclass(frozen=True)
class Transitions(Constraint):
    """Levels that can be reached from each level of one feature, or of several together.

    Attributes:
        feature: name of a feature with levels, or a tuple of names.
        to: levels to lists of levels. Levels that are not listed stay. For several features, tuples of levels.
    """

    feature: str | tuple[str, ...]
    to: Any

    def __post_init__(self) -> None:
        if not isinstance(self.feature, str):
            object.__setattr__(self, "feature", parse_names("Transitions", self.feature, 2))
        entries = self.to.items() if isinstance(self.to, Mapping) else self.to
        size = len(self.features)
        pairs = []
        try:
            for start, ends in entries:
                if isinstance(ends, str):
                    raise TypeError
                steps = [(start, *ends)] if size == 1 else [tuple(map(tuple, (start, *ends)))]
                pairs.append((steps[0][0], steps[0][1:]))
        except (TypeError, ValueError):
            raise ActionSetError(f"Transitions: to must map levels to lists of levels, got {self.to!r}.") from None
        if size > 1 and any(len(step) != size for start, ends in pairs for step in (start, *ends)):
            raise ActionSetError(f"Transitions: every step must hold {size} levels, one for each of {', '.join(self.features)}.")
        object.__setattr__(self, "to", tuple(pairs))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,) if isinstance(self.feature, str) else self.feature

    @property
    def steps(self) -> tuple[tuple[tuple[Any, ...], tuple[tuple[Any, ...], ...]], ...]:
        """Each start with its ends, all as tuples of one level for each feature."""
        if len(self.features) > 1:
            return tuple(self.to)
        return tuple(((start,), tuple((end,) for end in ends)) for start, ends in self.to)

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        for start, ends in self.steps:
            for step in (start, *ends):
                for name, level in zip(self.features, step, strict=True):
                    require_level(self, name, level, features)

    def describe(self) -> str:
        shown = [f"{' and '.join(map(str, s))} to {' or '.join(' and '.join(map(str, e)) for e in ends)}" for s, ends in self.steps]
        return f"{', '.join(self.features)} may go only from {'; '.join(shown) or 'nowhere'}"

    def _find_at(self, rows: RawRows, values: Mapping[str, Array], step: tuple[Any, ...]) -> Mask:
        parts = [rows.is_at(values, name, level) for name, level in zip(self.features, step, strict=True)]
        return np.asarray(np.logical_and.reduce(parts))

    def find_broken(self, rows: RawRows) -> Mask:
        changed = np.logical_or.reduce([rows.is_changed(name) for name in self.features])
        kept = np.zeros_like(changed)
        for start, ends in self.steps:
            at_start = self._find_at(rows, rows.before, start)
            for end in ends:
                kept |= at_start & self._find_at(rows, rows.after, end)
        return np.asarray(changed & ~kept)

    def enforce(self, rows: RawRows) -> None:
        broken = self.find_broken(rows)
        if len(self.features) > 1 and broken.any():
            for start, ends in self.steps:
                at_start = broken & self._find_at(rows, rows.before, start)
                for end in ends:
                    # A destination that agrees with everything that is asked for completes the change.
                    fits = at_start & broken
                    for name, level in zip(self.features, end, strict=True):
                        fits &= ~rows.is_changed(name) | rows.is_at(rows.after, name, level)
                        fits &= rows.is_at(rows.before, name, level) | (not rows.features[name].is_immutable)
                    for name, level in zip(self.features, end, strict=True):
                        feature = rows.features[name]
                        rows.after[name] = np.where(fits, feature.states.index(level), rows.after[name])  # type: ignore[union-attr]
                    broken &= ~fits
        rows.revert(broken, *self.features)


def split_reachable(reachable: Any) -> tuple[Any, tuple[Transitions, ...]]:
    """Return the levels that can be reached from anywhere, by name, and those that depend on the own level as transitions."""
    if not isinstance(reachable, Mapping):
        return reachable, ()
    by_level = {name: levels for name, levels in reachable.items() if isinstance(levels, Mapping)}
    anywhere = {name: levels for name, levels in reachable.items() if name not in by_level}
    return anywhere, tuple(Transitions(name, levels) for name, levels in by_level.items())


@dataclass(frozen=True)
class SpecialCodes(Constraint):
    """Codes that are no values of the scale, kept by who has one and advised to nobody.

    Attributes:
        feature: name of a number.
        codes: the codes.
    """

    feature: str
    codes: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.codes, list | tuple) or not self.codes:
            raise ActionSetError(f"SpecialCodes: codes must be a list of numbers, got {self.codes!r}.")
        if any(isinstance(code, bool) or not isinstance(code, int | float) for code in self.codes):
            raise ActionSetError(f"SpecialCodes: codes must be numbers, got {self.codes!r}.")
        object.__setattr__(self, "codes", tuple(self.codes))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        require_number(self, self.feature, features)

    def describe(self) -> str:
        return f"{self.feature} keeps the codes {', '.join(f'{code:g}' for code in self.codes)}, and nobody is led to them"

    def find_codes(self, values: Array) -> Mask:
        """Return where ``values`` hold a code."""
        return np.asarray(np.abs(values[:, None] - np.array(self.codes)).min(1) <= TOLERANCE)

    def find_broken(self, rows: RawRows) -> Mask:
        involved = self.find_codes(rows.before[self.feature]) | self.find_codes(rows.after[self.feature])
        return rows.is_changed(self.feature) & involved
