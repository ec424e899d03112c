"""Constraints on the order of several features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cfptq.actions.constraints.base import Array, Constraint, Mask, RawRows, parse_names, require_number
from cfptq.actions.features import AnyFeature


def _find_disordered(names: tuple[str, ...], rows: RawRows, values: Mapping[str, Array]) -> Mask:
    broken = [values[a] > values[b] + rows.compute_slack(a) + rows.compute_slack(b) for a, b in pairwise(names)]
    return np.asarray(np.logical_or.reduce(broken))


@dataclass(frozen=True, init=False)
class Ordered(Constraint):
    """Numbers of which none exceeds the next.

    Attributes:
        names: names of the features, lowest first.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", parse_names("Ordered", names, 2))

    @property
    def features(self) -> tuple[str, ...]:
        return self.names

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        for name in self.names:
            require_number(self, name, features)

    def describe(self) -> str:
        return f"{' ≤ '.join(self.names)}"

    def find_broken_alone(self, rows: RawRows, values: Mapping[str, Array]) -> Mask:
        return _find_disordered(self.names, rows, values)

    def find_broken(self, rows: RawRows) -> Mask:
        changed = np.logical_or.reduce([rows.is_changed(name) for name in self.names])
        return np.asarray(changed & _find_disordered(self.names, rows, rows.after))

    def enforce(self, rows: RawRows) -> None:
        # Both passes end between the value that is asked for and the own one, so that no bound is left.
        after, before = rows.after, rows.before
        pairs = list(pairwise(self.names))
        for lower, upper in reversed(pairs):
            after[lower] = np.minimum(after[lower], np.maximum(after[upper], before[lower]))
        for lower, upper in pairs:
            after[upper] = np.maximum(after[upper], after[lower])


@dataclass(frozen=True)
class Thermometer(Constraint):
    """Nested 0/1 columns, which count as one feature.

    Attributes:
        names: names of the columns. Each is 1 only where all before it are.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", parse_names("Thermometer", self.names, 2))

    @property
    def features(self) -> tuple[str, ...]:
        return self.names

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        for name in self.names:
            require_number(self, name, features)

    def describe(self) -> str:
        return f"{' ≥ '.join(self.names)}, nested columns that count as one feature"

    def find_broken_alone(self, rows: RawRows, values: Mapping[str, Array]) -> Mask:
        return _find_disordered(self.names[::-1], rows, values)

    def find_broken(self, rows: RawRows) -> Mask:
        changed = np.logical_or.reduce([rows.is_changed(name) for name in self.names])
        return np.asarray(changed & self.find_broken_alone(rows, rows.after))

    def enforce(self, rows: RawRows) -> None:
        before = np.stack([rows.before[name] for name in self.names]) > 0.5
        after = np.stack([rows.after[name] for name in self.names]) > 0.5
        on, off = after & ~before, before & ~after
        places = np.arange(len(self.names))[:, None]
        level = np.where(on.any(0), np.where(on, places + 1, 0).max(0), np.where(off, places, len(self.names)).min(0))
        moved = on.any(0) | off.any(0)
        wanted = places < level
        blocked = np.array([rows.features[name].is_immutable for name in self.names])[:, None] & (wanted != before)
        moved &= ~blocked.any(0)
        for place, name in enumerate(self.names):
            rows.after[name] = np.where(moved, wanted[place].astype(float), rows.before[name])
