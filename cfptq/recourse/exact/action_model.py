"""Admissible actions of one row as numeric changes and level changes, for exact solvers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.bounds import find_reachable_levels
from cfptq.actions.cost import Norm
from cfptq.actions.features import Categorical, Continuous, Integer, Ordinal
from cfptq.errors import ActionSetError

Array: TypeAlias = npt.NDArray[np.float64]

#: Longest change of an unbounded column. Nothing is proven about longer changes.
MAX_CHANGE_COLUMN_UNITS = 1e4


@dataclass(frozen=True)
class NumericChange:
    """A change of a single column in one direction.

    Attributes:
        feature: Index of the feature.
        column: Column of the model.
        sign: 1 for an increase, -1 for a decrease.
        shortest: Length of the shortest change, in column units. Zero unless the value lies between two integers.
        longest: Length of the longest change, in column units, not below ``shortest``.
        step: Distance between lengths above ``shortest``, zero for continuous columns.
        weight: Cost of one unit.
        effects: Columns that follow, and their change for one unit of length.
    """

    feature: int
    column: int
    sign: float
    shortest: float
    longest: float
    step: float
    weight: float
    effects: tuple[tuple[int, float], ...] = ()

    def get_direction(self, width: int) -> Array:
        """Return the change of all columns for one unit of length, (width,)."""
        direction = np.zeros(width)
        direction[self.column] = self.sign
        for column, rate in self.effects:
            direction[column] += rate
        return direction


@dataclass(frozen=True)
class LevelChange:
    """A change of one feature to another of its levels.

    Attributes:
        feature: Index of the feature.
        columns: Columns of the feature.
        delta: Change of each column.
        l1: l1 norm of the weighted change.
        l2: l2 norm of the weighted change.
        effects: Further columns that follow, and their change.
    """

    feature: int
    columns: tuple[int, ...]
    delta: tuple[float, ...]
    l1: float
    l2: float
    effects: tuple[tuple[int, float], ...] = ()

    def get_step(self, width: int) -> Array:
        """Return the change of all columns, (width,)."""
        step = np.zeros(width)
        step[list(self.columns)] = self.delta
        for column, shift in self.effects:
            step[column] += shift
        return step


@dataclass(frozen=True)
class LinearRow:
    """The constraint low ≤ Σ coefficient · change of the column ≤ high.

    Attributes:
        terms: Columns and their coefficients.
        low: Lower limit.
        high: Upper limit.
    """

    terms: tuple[tuple[int, float], ...]
    low: float
    high: float


@dataclass(frozen=True)
class Exclusion:
    """Features that must not change under a condition on another feature.

    Attributes:
        stays: Indices of the features that must not change.
        feature: Index of the feature of the condition.
        leads: Level changes that lead to the condition, ``None`` for any change of the feature.
        holds_now: True if the condition holds until the feature changes.
    """

    stays: tuple[int, ...]
    feature: int
    leads: tuple[LevelChange, ...] | None
    holds_now: bool


@dataclass(frozen=True)
class Coupling:
    """Constraints between the changes of one row.

    Attributes:
        linear: Linear constraints on the changed columns.
        exclusions: Features that must not change under conditions.
        limits: Features of which at most so many may change.
        nested: Features that count as one change together.
        max_changes: Maximal number of changes, ``None`` for no limit.
        switch_effects: Features whose change of any amount shifts columns, with these.
        reasons: Why constraints are not linear. Actions can then be enumerated only.
    """

    linear: tuple[LinearRow, ...]
    exclusions: tuple[Exclusion, ...]
    limits: tuple[tuple[tuple[int, ...], int], ...]
    nested: tuple[tuple[int, ...], ...]
    max_changes: int | None
    switch_effects: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ActionModel:
    """All admissible actions of one row.

    Attributes:
        row: Factual row, (d,) float64.
        numeric_changes: Changes of single columns.
        level_changes: Changes to other levels.
        max_changes: Maximal number of changed features k, at most the number of features that may change.
        norm: Norm of the cost.
        is_truncated: True if an unbounded column was limited to ``MAX_CHANGE_COLUMN_UNITS``.
        coupling: Constraints between changes, ``None`` where there are none.
    """

    row: Array
    numeric_changes: tuple[NumericChange, ...]
    level_changes: tuple[LevelChange, ...]
    max_changes: int
    norm: Norm
    is_truncated: bool = False
    coupling: Coupling | None = None

    @property
    def features(self) -> tuple[int, ...]:
        """Indices of the features that can change, ascending."""
        return tuple(sorted(_collect_features(self.numeric_changes, self.level_changes)))

    @property
    def norm_weights(self) -> tuple[float, float]:
        """Weights of the l1 and the l2 part of the cost."""
        if self.norm == "l1":
            return 1.0, 0.0
        if self.norm == "l2":
            return 0.0, 1.0
        return float(self.norm[1]), float(self.norm[2])

    def restrict_to(self, budget: float) -> ActionModel:
        """Return the changes that cost at most ``budget`` alone, with numeric changes shortened to it."""
        if not math.isfinite(budget):
            return self
        first, second = self.norm_weights
        numeric_changes = []
        for change in self.numeric_changes:
            reach = budget / ((first + second) * change.weight)
            if change.step:
                reach = change.shortest + math.floor((reach - change.shortest) / change.step + 1e-6) * change.step
            most = min(change.longest, reach)
            if most > 0 and most >= change.shortest:
                numeric_changes.append(replace(change, longest=most))
        level_changes = tuple(change for change in self.level_changes if first * change.l1 + second * change.l2 <= budget)
        is_truncated = self.is_truncated and any(change.longest >= MAX_CHANGE_COLUMN_UNITS for change in numeric_changes)
        return ActionModel(
            self.row,
            tuple(numeric_changes),
            level_changes,
            min(self.max_changes, len(_collect_features(numeric_changes, level_changes))),
            self.norm,
            is_truncated,
            self.coupling,
        )


def _collect_features(numeric_changes: Sequence[NumericChange], level_changes: Sequence[LevelChange]) -> set[int]:
    """Collect the indices of all features that can change."""
    return {change.feature for change in numeric_changes} | {change.feature for change in level_changes}


def build_action_models(action_set: ActionSet, x: Tensor) -> list[ActionModel]:
    """Build the admissible actions of each row ``(N, d)``."""
    weights = action_set.column_weights.double().numpy()
    rows = x.double().numpy()
    low, high = (bound.double().numpy() for bound in action_set.column_bounds(x))
    numeric_changes: list[list[NumericChange]] = [[] for _ in range(len(x))]
    level_changes: list[list[LevelChange]] = [[] for _ in range(len(x))]
    for number, feature in enumerate(action_set.features):
        if feature.is_immutable or not feature.model_columns:
            continue
        if isinstance(feature, Continuous):
            column = feature.model_columns[0]
            for row, own in enumerate(numeric_changes):
                list_changes = _list_integer_changes if isinstance(feature, Integer) else _list_continuous_changes
                for sign, first, most, step in list_changes(feature, rows[row, column], low[row, column], high[row, column]):
                    own.append(NumericChange(number, column, sign, first, most, step, float(weights[column])))
            continue
        is_reachable = find_reachable_levels(feature, x).numpy()
        values = _list_level_values(feature)
        columns = list(feature.model_columns)
        weight = weights[columns]
        for row, level in zip(*np.nonzero(is_reachable), strict=True):
            delta = values[level] - rows[row, columns]
            delta[np.abs(delta) <= 1e-5 * (1 + np.abs(values[level]))] = 0.0
            weighted = np.abs(delta) * weight
            if weighted.any():
                change = LevelChange(
                    number, tuple(columns), tuple(delta.tolist()), float(weighted.sum()), float(np.sqrt((weighted**2).sum()))
                )
                level_changes[row].append(change)
    result = []
    for row, (numeric, levels) in enumerate(zip(numeric_changes, level_changes, strict=True)):
        features = len(_collect_features(numeric, levels))
        most = features if action_set.max_changes is None else min(action_set.max_changes, features)
        is_truncated = any(change.longest >= MAX_CHANGE_COLUMN_UNITS for change in numeric)
        result.append(ActionModel(rows[row], tuple(numeric), tuple(levels), most, action_set.norm, is_truncated))
    return result


def _list_continuous_changes(feature: Continuous, current: float, low: float, high: float) -> list[tuple[float, float, float, float]]:
    """Return sign, shortest and longest length and step of the continuous changes between the bounds."""
    directions = ((1.0, high - current), (-1.0, current - low))
    return [(sign, 0.0, min(room, MAX_CHANGE_COLUMN_UNITS), 0.0) for sign, room in directions if room > 0]


def _list_integer_changes(feature: Continuous, current: float, low: float, high: float) -> list[tuple[float, float, float, float]]:
    """Return sign, shortest and longest length and step of the integer changes between the bounds.

    A value between two integers moves to the next integer first, which is its shortest change.
    """
    if feature.curve:
        raise ActionSetError(
            f"{feature.name}: exact recourse needs whole numbers at equal distances, but a curve encodes them. "
            "Use minimal-cost recourse, or declare the feature continuous."
        )
    scale, offset = feature.scale, feature.offset
    value = current * scale + offset
    slack = abs(current * scale) * 2.0**-22 + abs(offset) * 2.0**-48 + 1e-9
    result = []
    for sign, bound in ((1.0, high), (-1.0, low)):
        if bound == current:
            continue
        end = bound * scale + offset
        if math.isfinite(end):
            end += sign * (abs(bound * scale) * 2.0**-22 + abs(offset) * 2.0**-48 + 1e-9)
        on_grid = abs(value - round(value)) <= slack
        start = round(value) if on_grid else (math.ceil(value) if sign > 0 else math.floor(value))
        reach = (
            MAX_CHANGE_COLUMN_UNITS if not math.isfinite(end) else abs((math.floor(end) if sign > 0 else math.ceil(end)) - start) / scale
        )
        first = 0.0 if on_grid else abs(start - value) / scale
        if math.isfinite(end) and (end - start) * sign < 0:
            continue
        most = min(first + reach, MAX_CHANGE_COLUMN_UNITS)
        if most > 0:
            result.append((sign, first, most, 1.0 / scale))
    return result


def _list_level_values(feature: Ordinal | Categorical) -> Array:
    """List the column values of each level, (L, columns)."""
    if feature.columns is None:
        assert feature.codes is not None
        return np.array(feature.codes, dtype=np.float64)[:, None]
    assert feature.off is not None and feature.on is not None
    seen = [place for place, column in enumerate(feature.columns) if column is not None]
    result = np.tile(np.array([feature.off[place] for place in seen], dtype=np.float64), (len(feature.states), 1))
    for slot, place in enumerate(seen):
        result[place, slot] = feature.on[place]
    return result
