"""What one person may do, as an exact solver needs it: slides along a column and jumps to a level, each with its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.bounds import reachable_levels
from cfptq.actions.cost import Norm
from cfptq.actions.features import Categorical, Continuous, Integer, Ordinal

Array: TypeAlias = npt.NDArray[np.float64]

#: Where a column has no bound a slide ends here, in the column's units; nothing is then proven beyond it.
FAR = 1e4


@dataclass(frozen=True)
class Slide:
    """A move of a single column one way, by ``first`` and then any amount up to ``most``, in whole ``step``s where that is not zero.

    Attributes:
        feature: number of the feature.
        column: of the model.
        sign: 1 up, -1 down.
        first: length of the shortest move; zero unless the row stands between whole numbers.
        most: length of the longest, above ``first``.
        step: zero for continuous columns.
        weight: price of one unit.
    """

    feature: int
    column: int
    sign: float
    first: float
    most: float
    step: float
    weight: float


@dataclass(frozen=True)
class Jump:
    """A move of one feature to another of its levels.

    Attributes:
        feature: number of the feature.
        columns, delta: what it changes.
        absolute, length: l1 and l2 norm of the weighted change.
    """

    feature: int
    columns: tuple[int, ...]
    delta: tuple[float, ...]
    absolute: float
    length: float


@dataclass(frozen=True)
class Moves:
    """All moves of one row.

    Attributes:
        row: (d,) in float64.
        slides, jumps: of features that may move.
        most: k, the features that one action may change; no larger than their number.
        norm: of the cost.
        cut: whether an open bound was cut off at :data:`FAR`.
    """

    row: Array
    slides: tuple[Slide, ...]
    jumps: tuple[Jump, ...]
    most: int
    norm: Norm
    cut: bool = False

    @property
    def features(self) -> tuple[int, ...]:
        """Numbers of the features that can move, ascending."""
        return tuple(sorted(_features_of(self.slides, self.jumps)))

    @property
    def shares(self) -> tuple[float, float]:
        """Factors of the l1 and the l2 part of the cost."""
        if self.norm == "l1":
            return 1.0, 0.0
        if self.norm == "l2":
            return 0.0, 1.0
        return float(self.norm[1]), float(self.norm[2])

    def within(self, budget: float) -> Moves:
        """The moves that alone cost no more than ``budget``, slides shortened to it."""
        if not math.isfinite(budget):
            return self
        first, second = self.shares
        slides = []
        for slide in self.slides:
            reach = budget / ((first + second) * slide.weight)
            if slide.step:
                reach = slide.first + math.floor((reach - slide.first) / slide.step + 1e-6) * slide.step
            most = min(slide.most, reach)
            if most > 0 and most >= slide.first:
                slides.append(Slide(slide.feature, slide.column, slide.sign, slide.first, most, slide.step, slide.weight))
        jumps = tuple(jump for jump in self.jumps if first * jump.absolute + second * jump.length <= budget)
        cut = self.cut and any(slide.most >= FAR for slide in slides)
        return Moves(self.row, tuple(slides), jumps, min(self.most, len(_features_of(slides, jumps))), self.norm, cut)


def _features_of(slides: Sequence[Slide], jumps: Sequence[Jump]) -> set[int]:
    return {slide.feature for slide in slides} | {jump.feature for jump in jumps}


def moves_of(action_set: ActionSet, x: Tensor) -> list[Moves]:
    """The moves of each row ``(N, d)``."""
    weights = action_set.column_weights.double().numpy()
    rows = x.double().numpy()
    low, high = (bound.double().numpy() for bound in action_set.column_bounds(x))
    slides: list[list[Slide]] = [[] for _ in range(len(x))]
    jumps: list[list[Jump]] = [[] for _ in range(len(x))]
    for number, feature in enumerate(action_set.features):
        if feature.immutable or not feature.placed:
            continue
        if isinstance(feature, Continuous):
            column = feature.placed[0]
            for row, own in enumerate(slides):
                ways = _whole_ways if isinstance(feature, Integer) else _ways
                for sign, first, most, step in ways(feature, rows[row, column], low[row, column], high[row, column]):
                    own.append(Slide(number, column, sign, first, most, step, float(weights[column])))
            continue
        leads = reachable_levels(feature, x).numpy()
        patterns = _patterns(feature)
        columns = list(feature.placed)
        weight = weights[columns]
        for row, level in zip(*np.nonzero(leads), strict=True):
            delta = patterns[level] - rows[row, columns]
            delta[np.abs(delta) <= 1e-5 * (1 + np.abs(patterns[level]))] = 0.0
            priced = np.abs(delta) * weight
            if priced.any():
                jump = Jump(number, tuple(columns), tuple(delta.tolist()), float(priced.sum()), float(np.sqrt((priced**2).sum())))
                jumps[row].append(jump)
    result = []
    for row, (slid, jumped) in enumerate(zip(slides, jumps, strict=True)):
        features = len(_features_of(slid, jumped))
        most = features if action_set.max_changes is None else min(action_set.max_changes, features)
        cut = any(slide.most >= FAR for slide in slid)
        result.append(Moves(rows[row], tuple(slid), tuple(jumped), most, action_set.norm, cut))
    return result


def _ways(feature: Continuous, here: float, low: float, high: float) -> list[tuple[float, float, float, float]]:
    both = ((1.0, high - here), (-1.0, here - low))
    return [(sign, 0.0, min(room, FAR), 0.0) for sign, room in both if room > 0]


def _whole_ways(feature: Continuous, here: float, low: float, high: float) -> list[tuple[float, float, float, float]]:
    """Whole numbers between the bounds; a row between two of them has a first step of its own to the next one each way."""
    scale, offset = feature.scale, feature.offset
    stand = here * scale + offset
    slack = abs(here * scale) * 2.0**-22 + abs(offset) * 2.0**-48 + 1e-9
    result = []
    for sign, bound in ((1.0, high), (-1.0, low)):
        if bound == here:
            continue
        end = bound * scale + offset
        if math.isfinite(end):
            end += sign * (abs(bound * scale) * 2.0**-22 + abs(offset) * 2.0**-48 + 1e-9)
        on_grid = abs(stand - round(stand)) <= slack
        start = round(stand) if on_grid else (math.ceil(stand) if sign > 0 else math.floor(stand))
        far = FAR if not math.isfinite(end) else abs((math.floor(end) if sign > 0 else math.ceil(end)) - start) / scale
        first = 0.0 if on_grid else abs(start - stand) / scale
        if math.isfinite(end) and (end - start) * sign < 0:
            continue
        most = min(first + far, FAR)
        if most > 0:
            result.append((sign, first, most, 1.0 / scale))
    return result


def _patterns(feature: Ordinal | Categorical) -> Array:
    """Column values of each level, (L, columns)."""
    if feature.columns is None:
        assert feature.codes is not None
        return np.array(feature.codes, dtype=np.float64)[:, None]
    assert feature.off is not None and feature.on is not None
    seen = [place for place, column in enumerate(feature.columns) if column is not None]
    result = np.tile(np.array([feature.off[place] for place in seen], dtype=np.float64), (len(feature.states), 1))
    for slot, place in enumerate(seen):
        result[place, slot] = feature.on[place]
    return result
