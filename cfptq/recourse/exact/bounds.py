"""Sound bounds on every unit over all admissible actions, by linear relaxations propagated back to the action.

Interval bounds treat the columns as if all could change at once. These bounds use that an action changes at most k features and costs at
most the budget. A linear function a·δ of the action is at most

    min over λ ≥ 0 of  λ·budget + the k largest over features of  max over the feature's changes of (a·δ − λ·cost)⁺

This is the Lagrangian bound for the budget, so any λ gives a sound value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.recourse.exact.action_model import ActionModel
from cfptq.recourse.exact.relu_encoding import Affine, Nonlinearity, PiecewiseLinearNetwork

Array: TypeAlias = npt.NDArray[np.float64]

#: Multipliers λ tried, as shares of the largest gain per cost.
_MULTIPLIER_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
#: Relative error added to every bound. Float64 sums of a thousand float32 products have a smaller error.
_ROUNDING_ERROR = 1e-7


@dataclass(frozen=True)
class Region:
    """End points of all changes of a row, whose combinations bound every linear function of the action.

    Attributes:
        endpoints: Full changes of one feature each, (M, d), ordered by feature.
        cost: Cost of each end point, (M,).
        starts: Position of the first end point of each feature, (F,).
        max_changes: Maximal number of changed features k.
        budget: Upper bound of the sum of costs, infinite where there is no limit.
    """

    endpoints: Array
    cost: Array
    starts: npt.NDArray[np.intp]
    max_changes: int
    budget: float

    def maximize(self, functions: Array) -> Array:
        """Return an upper bound of each linear function (R, d) of the action, (R,)."""
        if not len(self.endpoints):
            return np.zeros(len(functions))
        gain = functions @ self.endpoints.T
        best = self._sum_largest(gain)
        if math.isfinite(self.budget):
            rate = np.where(gain > 0, gain / np.maximum(self.cost, 1e-12), 0).max(1)
            for share in _MULTIPLIER_SHARES:
                multiplier = share * rate
                best = np.minimum(best, multiplier * self.budget + self._sum_largest(gain - multiplier[:, None] * self.cost))
        return best

    def _sum_largest(self, gain: Array) -> Array:
        """Sum the k largest gains over features, (R,), for gains of end points (R, M)."""
        each = np.maximum(np.maximum.reduceat(gain, self.starts, axis=1), 0)
        if self.max_changes >= each.shape[1]:
            return np.asarray(each.sum(1))
        return np.asarray(np.partition(each, each.shape[1] - self.max_changes, axis=1)[:, each.shape[1] - self.max_changes :].sum(1))


def build_region(actions: ActionModel, budget: float) -> Region:
    """Build the region of ``actions``, each of which costs at most ``budget`` in the norm of the actions."""
    width = len(actions.row)
    endpoints, cost, feature = [], [], []
    shifts = dict(actions.coupling.switch_effects) if actions.coupling else {}
    for change in actions.numeric_changes:
        endpoints.append(change.longest * change.get_direction(width))
        cost.append(change.weight * change.longest)
        feature.append(change.feature)
        if change.feature in shifts:  # The shift comes with the shortest change and with the longest.
            shift = np.zeros(width)
            for column, size in shifts[change.feature]:
                shift[column] += size
            endpoints[-1] = endpoints[-1] + shift
            endpoints.append(change.shortest * change.get_direction(width) + shift)
            cost.append(change.weight * change.shortest)
            feature.append(change.feature)
    for level_change in actions.level_changes:
        endpoints.append(level_change.get_step(width))
        cost.append(level_change.l2 if actions.norm != "l1" else level_change.l1)
        feature.append(level_change.feature)
    order = np.argsort(np.array(feature, dtype=np.intp), kind="stable")
    numbers = np.array(feature, dtype=np.intp)[order]
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1]))) if len(numbers) else np.zeros(0, dtype=np.intp)
    first, second = actions.norm_weights
    # The sum of k lengths is at most sqrt(k) times their l2 norm, and an l1 norm is at least the l2 norm.
    limit = budget / (first + second / math.sqrt(max(actions.max_changes, 1)))
    return Region(np.array(endpoints).reshape(-1, width)[order], np.array(cost)[order], starts, actions.max_changes, limit)


@dataclass(frozen=True)
class Bounds:
    """Bounds of all pre-activations and of the target margins.

    Attributes:
        low: Lower bounds of each nonlinearity's pre-activation, (n,) each.
        high: Upper bounds of each nonlinearity's pre-activation, (n,) each.
        margin_low: Lower bounds of the target margins, (C - 1,).
        margin_high: Upper bounds of the target margins, (C - 1,).
    """

    low: tuple[Array, ...]
    high: tuple[Array, ...]
    margin_low: Array
    margin_high: Array


def compute_bounds(network: PiecewiseLinearNetwork, region: Region, row: Array, target: int) -> Bounds:
    """Compute bounds over all actions of the region, layer by layer.

    The bounds of each layer use those of the layers before it.
    """
    low: list[Array] = []
    high: list[Array] = []
    for layer in network.nonlinearities:
        least, most = _bound_both_sides(network, region, row, layer.preactivation, low, high)
        low.append(least)
        high.append(most)
    least, most = _bound_both_sides(network, region, row, network.margins(target), low, high)
    return Bounds(tuple(low), tuple(high), least, most)


def _bound_both_sides(
    network: PiecewiseLinearNetwork, region: Region, row: Array, function: Affine, low: list[Array], high: list[Array]
) -> tuple[Array, Array]:
    """Return lower and upper bounds of the outputs of an affine function."""
    matrix = np.concatenate((function.matrix, -function.matrix))
    offset = np.concatenate((function.offset, -function.offset))
    top = _compute_upper_bounds(network, region, row, matrix, offset, low, high)
    size = function.size
    slack = _ROUNDING_ERROR * (1 + np.abs(top))
    top = top + slack
    return -top[size:], top[:size]


def _compute_upper_bounds(
    network: PiecewiseLinearNetwork, region: Region, row: Array, matrix: Array, offset: Array, low: list[Array], high: list[Array]
) -> Array:
    """Bound affine functions of v (R, w) from above by replacing nonlinearities, last first, by linear relaxations."""
    matrix, offset = matrix.copy(), offset.copy()
    for layer, least, most in reversed(list(zip(network.nonlinearities, low, high, strict=False))):
        if layer.start >= matrix.shape[1]:
            continue
        part = matrix[:, layer.start :]
        up, down = np.maximum(part, 0), np.minimum(part, 0)
        slope_up, offset_up, slope_down, offset_down = _relax(layer, least, most)
        offset += up @ offset_up + down @ offset_down
        part = up * slope_up + down * slope_down
        offset += part @ layer.preactivation.offset
        matrix = matrix[:, : layer.start].copy()
        inner = layer.preactivation.matrix
        matrix[:, : inner.shape[1]] += part @ inner
    return np.asarray(offset + matrix @ row + region.maximize(matrix))


def _relax(layer: Nonlinearity, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """Return slope and offset of an upper line and of a lower line for each unit."""
    if layer.kind == "round":
        one, half = np.ones(len(low)), np.full(len(low), 0.5)
        return one, half, one, -half
    is_unstable = (low < 0) & (high > 0)
    above = np.where(is_unstable, high / np.maximum(high - low, 1e-12), (low >= 0).astype(float))
    intercept = np.where(is_unstable, -above * low, 0)
    below = np.where(is_unstable, (high > -low).astype(float), above)
    return above, intercept, below, np.zeros_like(low)
