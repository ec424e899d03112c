"""Exact recourse by enumerating all actions, cheapest first, and evaluating each in the artefact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.recourse.exact.action_model import ActionModel
from cfptq.recourse.exact.mip import SearchResult

Array: TypeAlias = npt.NDArray[np.float64]

#: Actions evaluated together. The first batch is small, because the cheapest valid action is often among them.
_FIRST_BATCH_ACTIONS, _MAX_BATCH_ACTIONS = 256, 16384

#: Maps actions (M, d), cheapest first, to the position of the first valid one, or ``None``.
FindFirstValid: TypeAlias = Callable[[Array], int | None]


def count_actions(actions: ActionModel) -> float:
    """Return an upper bound of the number of actions, infinite if a column is continuous."""
    if any(not change.step for change in actions.numeric_changes):
        return math.inf
    options = dict.fromkeys(actions.features, 0)
    for change in actions.numeric_changes:
        options[change.feature] += _count_lengths(change.shortest, change.longest, change.step)
    for level_change in actions.level_changes:
        options[level_change.feature] += 1
    counts = [1.0] + [0.0] * actions.max_changes  # Number of actions by the number of changed features.
    for number in options.values():
        for changed in range(actions.max_changes, 0, -1):
            counts[changed] += number * counts[changed - 1]
    return sum(counts) - 1


def enumerate_cheapest(actions: ActionModel, budget: float, find_first_valid: FindFirstValid) -> SearchResult:
    """Find the cheapest valid action of at most ``budget``, for any model.

    Args:
        actions: Admissible actions of one row, none of them continuous.
        budget: Maximal cost.
        find_first_valid: Function that finds the first valid of several actions.
    """
    vectors, absolute, square, chosen = _list_actions(actions, budget)
    first, second = actions.norm_weights
    cost = first * absolute + second * np.sqrt(square)
    order = np.argsort(cost, kind="stable")
    order = order[cost[order] <= budget]
    start, batch = 0, _FIRST_BATCH_ACTIONS
    while start < len(order):
        part = order[start : start + batch]
        position = find_first_valid(vectors[chosen[part]].sum(1))
        if position is not None:
            return SearchResult(vectors[chosen[part[position]]].sum(0), float(cost[part[position]]), True)
        start, batch = start + batch, min(4 * batch, _MAX_BATCH_ACTIONS)
    return SearchResult(None, math.inf, True)


def _count_lengths(first: float, most: float, step: float) -> int:
    """Count the lengths that a numeric change may have."""
    return round((most - first) / step) + (1 if first else 0)


def _list_actions(actions: ActionModel, budget: float) -> tuple[Array, Array, Array, npt.NDArray[np.intp]]:
    """List all actions of at most ``budget`` as combinations of single-feature options.

    Returns:
        Options (O, d), the first one zero, l1 norm (M,) and squared l2 norm (M,) of each action, and its options (M, k).
    """
    vectors: list[Array] = [np.zeros(len(actions.row))]
    sizes: list[tuple[float, float]] = [(0.0, 0.0)]
    by_feature: dict[int, list[int]] = {feature: [] for feature in actions.features}
    for change in actions.numeric_changes:
        for step in range(0 if change.shortest else 1, round((change.longest - change.shortest) / change.step) + 1):
            length = change.shortest + step * change.step
            vector = np.zeros(len(actions.row))
            vector[change.column] = change.sign * length
            by_feature[change.feature].append(len(vectors))
            vectors.append(vector)
            sizes.append((change.weight * length, (change.weight * length) ** 2))
    for level_change in actions.level_changes:
        vector = np.zeros(len(actions.row))
        vector[list(level_change.columns)] = level_change.delta
        by_feature[level_change.feature].append(len(vectors))
        vectors.append(vector)
        sizes.append((level_change.l1, level_change.l2**2))
    norms = np.array(sizes)
    first, second = actions.norm_weights
    chosen = np.zeros((1, actions.max_changes), dtype=np.intp)
    count = np.zeros(1, dtype=np.intp)
    absolute, square = np.zeros(1), np.zeros(1)
    for options in by_feature.values():
        indices = np.array(options, dtype=np.intp)
        extendable = np.flatnonzero(count < actions.max_changes)
        more_absolute = absolute[extendable, None] + norms[indices, 0]
        more_square = square[extendable, None] + norms[indices, 1]
        base, option = np.nonzero(first * more_absolute + second * np.sqrt(more_square) <= budget)
        added = chosen[extendable[base]]
        added[np.arange(len(added)), count[extendable[base]]] = indices[option]
        chosen = np.concatenate((chosen, added))
        count = np.concatenate((count, count[extendable[base]] + 1))
        absolute = np.concatenate((absolute, more_absolute[base, option]))
        square = np.concatenate((square, more_square[base, option]))
    return np.array(vectors), absolute[1:], square[1:], chosen[1:]
