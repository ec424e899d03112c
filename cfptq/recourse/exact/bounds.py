"""Sound bounds on every unit over all that a person may do: linear relaxations carried back to the action, then solved over the moves.

Interval bounds treat the columns as if all could move at once. An action changes k features and costs no more than the best one known;
both enter here. A linear function a·δ over the moves is at most

    min over λ ≥ 0 of  λ·budget + the k largest over features of  max over the feature's moves of (a·δ − λ·price)⁺

which is Lagrange's bound on the budget, so that any λ gives a sound value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.recourse.exact.action_model import Moves
from cfptq.recourse.exact.relu_encoding import Affine, Kink, PiecewiseLinear

Array: TypeAlias = npt.NDArray[np.float64]

#: Multipliers tried, as shares of the steepest gain per price.
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
#: Added to every bound: float64 sums of a thousand float32 products are off by less.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Region:
    """The end points of all moves: a linear function over all actions is largest at some of them, at most ``most``, of one feature each.

    Attributes:
        ends: (M, d) actions. price: (M,). feature: (M,) numbered 0 .. F-1 without gaps, ascending.
        most: k. budget: what an action's prices may sum to; infinite where there is no limit.
    """

    ends: Array
    price: Array
    starts: npt.NDArray[np.intp]
    most: int
    budget: float

    def highest(self, functions: Array) -> Array:
        """The largest value of each linear function (R, d) of the action, (R,), or an upper bound of it."""
        if not len(self.ends):
            return np.zeros(len(functions))
        gain = functions @ self.ends.T
        best = self._top(gain)
        if math.isfinite(self.budget):
            rate = np.where(gain > 0, gain / np.maximum(self.price, 1e-12), 0).max(1)
            for share in _SHARES:
                multiplier = share * rate
                best = np.minimum(best, multiplier * self.budget + self._top(gain - multiplier[:, None] * self.price))
        return best

    def _top(self, gain: Array) -> Array:
        each = np.maximum(np.maximum.reduceat(gain, self.starts, axis=1), 0)
        if self.most >= each.shape[1]:
            return np.asarray(each.sum(1))
        return np.asarray(np.partition(each, each.shape[1] - self.most, axis=1)[:, each.shape[1] - self.most :].sum(1))


def region_of(moves: Moves, budget: float) -> Region:
    """The end points of ``moves``, which are within ``budget`` each; the budget bounds a cost in the moves' own norm."""
    width = len(moves.row)
    ends, price, feature = [], [], []
    for slide in moves.slides:
        end = np.zeros(width)
        end[slide.column] = slide.sign * slide.most
        ends.append(end)
        price.append(slide.weight * slide.most)
        feature.append(slide.feature)
    for jump in moves.jumps:
        end = np.zeros(width)
        end[list(jump.columns)] = jump.delta
        ends.append(end)
        price.append(jump.length if moves.norm != "l1" else jump.absolute)
        feature.append(jump.feature)
    order = np.argsort(np.array(feature, dtype=np.intp), kind="stable")
    numbers = np.array(feature, dtype=np.intp)[order]
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))) if len(numbers) else np.zeros(0, dtype=np.intp)
    first, second = moves.shares
    # An l2 cost bounds the sum of k lengths by its square root of k fold; l1 is at least the length.
    limit = budget / (first + second / math.sqrt(max(moves.most, 1)))
    return Region(np.array(ends).reshape(-1, width)[order], np.array(price)[order], starts, moves.most, limit)


@dataclass(frozen=True)
class Bounds:
    """Least and greatest input z of each kink's units, lists of (n,), and of the target margins, (C - 1,)."""

    low: tuple[Array, ...]
    high: tuple[Array, ...]
    margin_low: Array
    margin_high: Array


def bounds_of(network: PiecewiseLinear, region: Region, row: Array, target: int) -> Bounds:
    """Bounds over all actions of the region, kink by kink, each with the bounds of those before it."""
    low: list[Array] = []
    high: list[Array] = []
    for kink in network.kinks:
        least, most = _both(network, region, row, kink.before, low, high)
        low.append(least)
        high.append(most)
    least, most = _both(network, region, row, network.margins(target), low, high)
    return Bounds(tuple(low), tuple(high), least, most)


def _both(
    network: PiecewiseLinear, region: Region, row: Array, function: Affine, low: list[Array], high: list[Array]
) -> tuple[Array, Array]:
    matrix = np.concatenate((function.matrix, -function.matrix))
    offset = np.concatenate((function.offset, -function.offset))
    top = _highest(network, region, row, matrix, offset, low, high)
    size = function.size
    slack = _ROUNDING * (1 + np.abs(top))
    top = top + slack
    return -top[size:], top[:size]


def _highest(
    network: PiecewiseLinear, region: Region, row: Array, matrix: Array, offset: Array, low: list[Array], high: list[Array]
) -> Array:
    """Upper bounds of functions of v (R, w): kinks replaced, last first, by the line above or below them."""
    matrix, offset = matrix.copy(), offset.copy()
    for kink, least, most in reversed(list(zip(network.kinks, low, high, strict=False))):
        if kink.start >= matrix.shape[1]:
            continue
        part = matrix[:, kink.start :]
        up, down = np.maximum(part, 0), np.minimum(part, 0)
        slope_up, lift_up, slope_down, lift_down = _lines(kink, least, most)
        offset += up @ lift_up + down @ lift_down
        part = up * slope_up + down * slope_down
        offset += part @ kink.before.offset
        matrix = matrix[:, : kink.start].copy()
        inner = kink.before.matrix
        matrix[:, : inner.shape[1]] += part @ inner
    return np.asarray(offset + matrix @ row + region.highest(matrix))


def _lines(kink: Kink, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """Slope and height of a line above and of one below each unit."""
    if kink.kind == "round":
        one, half = np.ones(len(low)), np.full(len(low), 0.5)
        return one, half, one, -half
    open_ = (low < 0) & (high > 0)
    above = np.where(open_, high / np.maximum(high - low, 1e-12), (low >= 0).astype(float))
    lift = np.where(open_, -above * low, 0)
    below = np.where(open_, (high > -low).astype(float), above)
    return above, lift, below, np.zeros_like(low)
