"""Limits that columns of the people's frame state for each person."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfptq.actions.constraints.base import Array, Constraint, Mask, RawRows, require_feature, require_number
from cfptq.actions.features import AnyFeature, Integer
from cfptq.errors import ActionSetError, DataWarning, name_rows


@dataclass(frozen=True)
class PerPerson(Constraint):
    """Limits of one feature that columns of the people's frame state for each person.

    A person of whom nothing is known keeps the feature. An empty cell is no limit.

    Attributes:
        feature: name of the feature.
        frozen: name of the column that is true (or 1) for people who keep the feature.
        least: name of the column with the least value that each person can reach.
        most: name of the column with the greatest value that each person can reach.
    """

    feature: str
    frozen: str | None = None
    least: str | None = None
    most: str | None = None

    def __post_init__(self) -> None:
        if not self.columns or not all(isinstance(name, str) for name in self.columns):
            raise ActionSetError("PerPerson: frozen, least or most must name a column of the people's frame.")

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the people's frame that are read."""
        return tuple(name for name in (self.frozen, self.least, self.most) if name is not None)

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        require_feature(self, self.feature, features)
        if self.least is not None or self.most is not None:
            require_number(self, self.feature, features)

    def describe(self) -> str:
        parts = []
        if self.frozen is not None:
            parts.append(f"stays where {self.frozen} is true")
        if self.least is not None:
            parts.append(f"is at least {self.least}")
        if self.most is not None:
            parts.append(f"is at most {self.most}")
        return f"{self.feature} {', '.join(parts)}"

    def compute_ends(self, rows: RawRows) -> tuple[Array, Array, Mask]:
        """Return the least and greatest value that each person can reach, and who keeps the feature, ``(N,)``."""
        before = rows.before[self.feature]
        low, high = np.full(len(before), -np.inf), np.full(len(before), np.inf)
        if rows.people is None:
            return low, high, np.ones(len(before), dtype=bool)
        keeps = ~rows.people[KNOWN].astype(bool)
        if self.frozen is not None:
            keeps |= np.nan_to_num(rows.people[self.frozen], nan=0.0) != 0
        if self.least is not None:
            low = np.minimum(np.nan_to_num(rows.people[self.least], nan=-np.inf), before)
        if self.most is not None:
            high = np.maximum(np.nan_to_num(rows.people[self.most], nan=np.inf), before)
        return low, high, keeps

    def find_broken(self, rows: RawRows) -> Mask:
        low, high, keeps = self.compute_ends(rows)
        is_beyond = keeps
        if self.least is not None or self.most is not None:
            slack = rows.compute_slack(self.feature)
            is_beyond = keeps | (rows.after[self.feature] < low - slack) | (rows.after[self.feature] > high + slack)
        return rows.is_changed(self.feature) & is_beyond

    def enforce(self, rows: RawRows) -> None:
        low, high, keeps = self.compute_ends(rows)
        if self.least is not None or self.most is not None:
            before = rows.before[self.feature]
            if isinstance(rows.features[self.feature], Integer):
                low, high = np.minimum(np.ceil(low), before), np.maximum(np.floor(high), before)
            rows.after[self.feature] = np.clip(rows.after[self.feature], low, high)
        rows.revert(keeps, self.feature)


KNOWN = ""
"""Entry of ``RawRows.people`` that is 1 for people who are known."""

_PRIME_SEED = 20260101


@dataclass(frozen=True)
class KnownPeople:
    """Columns of the people's frame, found by the model's columns of each person.

    Attributes:
        keys: hashes of the people's rows, ascending, ``(P,)``.
        columns: values of each column in the order of ``keys``, ``(P,)``.
    """

    keys: npt.NDArray[np.int64]
    columns: Mapping[str, Array]

    def look_up(self, rows: Tensor) -> dict[str, Array]:
        """Return the columns of the people with the rows ``(N, d)``. People who are not known have NaN."""
        keys = _hash_rows(rows)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        is_known = self.keys[place] == keys
        found = {name: np.where(is_known, values[place], np.nan) for name, values in self.columns.items()}
        return {**found, KNOWN: is_known.astype(np.float64)}


def build_known_people(rows: Tensor, columns: Mapping[str, Array], constraints: tuple[PerPerson, ...]) -> KnownPeople:
    """Build the table of people from the model's columns ``(P, d)`` and the columns of their frame ``(P,)``.

    Warns:
        DataWarning: people whom the model cannot tell apart have different limits. Each of them gets the strictest.
    """
    keys = _hash_rows(rows)
    unique, first, group = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(unique)))
    strictest = {name: values[first] for name, values in columns.items()}
    differs = np.zeros(len(unique), dtype=bool)
    for constraint in constraints:
        for name, combine in ((constraint.frozen, np.fmax), (constraint.least, np.fmax), (constraint.most, np.fmin)):
            if name is None:
                continue
            least, most = np.fmin.reduceat(columns[name][order], starts), np.fmax.reduceat(columns[name][order], starts)
            differs |= (least != most) & ~(np.isnan(least) & np.isnan(most))
            strictest[name] = combine.reduceat(columns[name][order], starts)
    if differs.any():
        affected = np.flatnonzero(differs[group]).tolist()
        warnings.warn(
            f"Rows {name_rows(affected)} are people whom the model cannot tell apart and whose limits differ. Each keeps the strictest.",
            DataWarning,
            stacklevel=4,
        )
    return KnownPeople(unique, strictest)


def _hash_rows(rows: Tensor) -> npt.NDArray[np.int64]:
    bits = np.ascontiguousarray(rows.detach().numpy(), dtype=np.float32) + np.float32(0.0)  # Minus zero becomes zero.
    factors = np.random.default_rng(_PRIME_SEED).integers(1, 2**62, size=bits.shape[1], dtype=np.int64) | 1
    mixed = bits.view(np.int32).astype(np.int64)
    mixed ^= mixed << 29
    with np.errstate(over="ignore"):
        return np.asarray((mixed * factors).sum(1))
