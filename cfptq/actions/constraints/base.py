"""Rows before and after an action in raw units, and the base of all constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.actions.features import AnyFeature, Continuous
from cfptq.errors import ActionSetError
from cfptq.io.suggestions import did_you_mean

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

TOLERANCE = 1e-5
"""Relative difference of raw numbers within which a constraint counts as kept."""


@dataclass(frozen=True)
class RawRows:
    """N rows before and after an action, by feature.

    Attributes:
        before: raw numbers, or level numbers (-1 for none), ``(N,)``, by feature.
        after: the same after the action. Enforcing overwrites its entries.
        features: the features by name.
        people: columns of the people's frame, ``(N,)``, by name. NaN where a person is not known. ``None`` if nobody is known.
        flags: names of features of which only a change is known, with 0 before and 1 after it.
    """

    before: dict[str, Array]
    after: dict[str, Array]
    features: Mapping[str, AnyFeature]
    people: Mapping[str, Array] | None = None
    flags: frozenset[str] = frozenset()

    def is_changed(self, name: str) -> Mask:
        """Return the rows whose action changes the feature ``name``."""
        return ~self.is_close(name, self.before[name], self.after[name])

    def is_close(self, name: str, first: Array, second: Array) -> Mask:
        """Return where two values of a feature are equal to what float32 columns hold, or both missing."""
        feature = self.features[name]
        if not isinstance(feature, Continuous) or name in self.flags:
            return np.asarray(first == second)
        distance = np.abs(first - second)
        is_near = np.asarray(distance <= compute_noise(feature, first, second))
        if np.isnan(distance.sum()):
            is_near |= np.isnan(first) & np.isnan(second)
        return is_near

    def compute_slack(self, name: str, relative: float = TOLERANCE) -> Array:
        """Return the distance from a limit within which a number counts as kept, ``(N,)``."""
        feature, after = self.features[name], self.after[name]
        assert isinstance(feature, Continuous)
        return np.asarray(relative * np.maximum(1e-3, np.abs(after)) + 4 * compute_noise(feature, self.before[name], after))

    def is_at(self, values: Mapping[str, Array], name: str, wanted: Any) -> Mask:
        """Return the rows of ``values`` that are at a level, at a number, or in an interval ``(lowest, highest)``."""
        own = values[name]
        feature = self.features[name]
        if not isinstance(feature, Continuous):
            return np.equal(own, feature.states.index(wanted))
        low, high = get_ends(wanted)
        slack = TOLERANCE * np.maximum(1e-3, np.abs(own)) + 4 * compute_noise(feature, own, own)
        return np.asarray((own >= low - slack) & (own <= high + slack))

    def revert(self, rows: Mask, *names: str) -> None:
        """Take back the changes of the features ``names`` in ``rows``."""
        for name in names:
            self.after[name] = np.where(rows, self.before[name], self.after[name])

    def take(self, index: npt.NDArray[np.intp]) -> RawRows:
        """Return the rows ``index``."""
        before, after = ({name: values[index] for name, values in part.items()} for part in (self.before, self.after))
        people = None if self.people is None else {name: values[index] for name, values in self.people.items()}
        return RawRows(before, after, self.features, people, self.flags)


def compute_noise(feature: Continuous, first: Array, second: Array) -> Array:
    """Return the raw distance below which two numbers are not told apart, because the model's columns are float32."""
    if feature.curve:
        columns = feature.encode_numbers(np.stack([first, second])).astype(np.float32)
        away = np.abs(columns).max(0) * np.float32(2.0**-21) + np.float32(1e-30)
        with np.errstate(invalid="ignore"):
            beside = np.abs(feature.decode_numbers(columns + away) - feature.decode_numbers(columns - away)).max(0)
        return np.asarray(np.nan_to_num(beside, nan=0.0, posinf=0.0) + 1e-9)
    return np.asarray((np.abs(first - feature.offset) + np.abs(second - feature.offset)) * 2.0**-22 + abs(feature.offset) * 2.0**-40 + 1e-9)


def get_ends(wanted: Any) -> tuple[float, float]:
    """Return the ends of a number or an interval ``(lowest, highest)``, with ±inf in place of ``None``."""
    low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


@dataclass(frozen=True)
class Constraint:
    """Base of all constraints on actions."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features involved."""
        raise NotImplementedError

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the features that follow from others and move for nothing else."""
        return ()

    @property
    def is_free(self) -> bool:
        """True if changes of ``targets`` neither count nor cost anything."""
        return True

    def describe(self) -> str:
        """Return the rule as a sentence."""
        raise NotImplementedError

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        """Raise ActionSetError unless the rule fits the features."""
        for name in self.features:
            require_feature(self, name, features)

    def find_broken_alone(self, rows: RawRows, values: Mapping[str, Array]) -> Mask:
        """Return the rows of ``values`` that break the rule by themselves, ``(N,)``."""
        return np.zeros(len(values[self.features[0]]), dtype=bool)

    def find_broken(self, rows: RawRows) -> Mask:
        """Return the rows whose action breaks the rule, ``(N,)``."""
        raise NotImplementedError

    def enforce(self, rows: RawRows) -> None:
        """Overwrite changes that break the rule by the nearest that keep it."""
        rows.revert(self.find_broken(rows), *(name for name in self.features if name not in self.targets))

    def complete(self, rows: RawRows) -> None:
        """Overwrite ``targets`` by what follows from the other features."""

    def list_slopes(self, values: Mapping[str, Array]) -> list[tuple[str, str, Array]]:
        """Return target, source and the target's change for one unit of the source, ``(N,)``, all in raw units, in order."""
        return []

    def __str__(self) -> str:
        return self.describe()


def require_feature(constraint: Constraint, name: str, features: Mapping[str, AnyFeature]) -> AnyFeature:
    """Return the feature ``name``, or raise ActionSetError."""
    if name not in features:
        label = type(constraint).__name__
        raise ActionSetError(f"{label}: there is no feature {name!r}{did_you_mean(name, list(features))}. There are {', '.join(features)}.")
    return features[name]


def require_number(constraint: Constraint, name: str, features: Mapping[str, AnyFeature]) -> None:
    """Raise ActionSetError unless the feature ``name`` is a number."""
    if not isinstance(require_feature(constraint, name, features), Continuous):
        raise ActionSetError(f"{type(constraint).__name__}: {name} must be a number, and it has levels. Name a numeric feature.")


def require_level(constraint: Constraint, name: str, level: Any, features: Mapping[str, AnyFeature]) -> None:
    """Raise ActionSetError unless ``level`` is one of the feature ``name``."""
    feature = require_feature(constraint, name, features)
    if isinstance(feature, Continuous):
        raise ActionSetError(f"{type(constraint).__name__}: {name} must have levels, and it is a number. Name a categorical feature.")
    if level not in feature.states:
        shown = ", ".join(map(repr, feature.states[:12]))
        raise ActionSetError(f"{type(constraint).__name__}: {name} has no level {level!r}. It has {shown}.")


def parse_names(label: str, names: Any, least: int = 1) -> tuple[str, ...]:
    """Return different names as a tuple, or raise ActionSetError."""
    if isinstance(names, str) or not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ActionSetError(f"{label}: features must be a list of names, got {names!r}.")
    if len(names) < least or len(set(names)) < len(names):
        raise ActionSetError(f"{label}: features must be at least {least} different names, got {list(names)}.")
    return tuple(names)


def parse_amount(label: str, name: str, value: Any) -> float:
    """Return a finite number of at least 0, or raise ActionSetError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
        raise ActionSetError(f"{label}: {name} must be a finite number of at least 0, got {value!r}.")
    return value
