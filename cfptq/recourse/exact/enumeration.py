"""Where a person has few enough choices, every action is listed, cheapest first, and the artefact itself is asked about each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.recourse.exact.action_model import Moves
from cfptq.recourse.exact.mip import Answer

Array: TypeAlias = npt.NDArray[np.float64]

#: Actions asked about together: few at first, since the cheapest that holds is often among them.
_FIRST, _MOST = 256, 16384

#: For actions (M, d), cheapest first, the place of the first one that holds, or ``None``.
FirstThatHolds: TypeAlias = Callable[[Array], int | None]


def size_of(moves: Moves) -> float:
    """An upper bound on how many actions there are; infinite where a column is continuous."""
    if any(not slide.step for slide in moves.slides):
        return math.inf
    options = dict.fromkeys(moves.features, 0)
    for slide in moves.slides:
        options[slide.feature] += _steps(slide.first, slide.most, slide.step)
    for jump in moves.jumps:
        options[jump.feature] += 1
    counts = [1.0] + [0.0] * moves.most  # actions by the number of features they change
    for number in options.values():
        for changed in range(moves.most, 0, -1):
            counts[changed] += number * counts[changed - 1]
    return sum(counts) - 1


def cheapest_listed(moves: Moves, budget: float, holds: FirstThatHolds) -> Answer:
    """The cheapest action of at most ``budget`` that holds: exact, whatever the model is."""
    vectors, absolute, square, chosen = _actions(moves, budget)
    first, second = moves.shares
    cost = first * absolute + second * np.sqrt(square)
    order = np.argsort(cost, kind="stable")
    order = order[cost[order] <= budget]
    start, many = 0, _FIRST
    while start < len(order):
        part = order[start : start + many]
        found = holds(vectors[chosen[part]].sum(1))
        if found is not None:
            return Answer(vectors[chosen[part[found]]].sum(0), float(cost[part[found]]), True)
        start, many = start + many, min(4 * many, _MOST)
    return Answer(None, math.inf, True)


def _steps(first: float, most: float, step: float) -> int:
    """How many lengths a slide may have."""
    return round((most - first) / step) + (1 if first else 0)


def _actions(moves: Moves, budget: float) -> tuple[Array, Array, Array, npt.NDArray[np.intp]]:
    """Option vectors (O, d), the first one zero; of each action the l1 norm and the squared l2 norm (M,), and its options (M, k)."""
    vectors: list[Array] = [np.zeros(len(moves.row))]
    sizes: list[tuple[float, float]] = [(0.0, 0.0)]
    by_feature: dict[int, list[int]] = {feature: [] for feature in moves.features}
    for slide in moves.slides:
        for step in range(0 if slide.first else 1, round((slide.most - slide.first) / slide.step) + 1):
            length = slide.first + step * slide.step
            vector = np.zeros(len(moves.row))
            vector[slide.column] = slide.sign * length
            by_feature[slide.feature].append(len(vectors))
            vectors.append(vector)
            sizes.append((slide.weight * length, (slide.weight * length) ** 2))
    for jump in moves.jumps:
        vector = np.zeros(len(moves.row))
        vector[list(jump.columns)] = jump.delta
        by_feature[jump.feature].append(len(vectors))
        vectors.append(vector)
        sizes.append((jump.absolute, jump.length**2))
    measured = np.array(sizes)
    first, second = moves.shares
    chosen = np.zeros((1, moves.most), dtype=np.intp)
    count = np.zeros(1, dtype=np.intp)
    absolute, square = np.zeros(1), np.zeros(1)
    for options in by_feature.values():
        own = np.array(options, dtype=np.intp)
        room = np.flatnonzero(count < moves.most)
        more_absolute = absolute[room, None] + measured[own, 0]
        more_square = square[room, None] + measured[own, 1]
        base, option = np.nonzero(first * more_absolute + second * np.sqrt(more_square) <= budget)
        added = chosen[room[base]]
        added[np.arange(len(added)), count[room[base]]] = own[option]
        chosen = np.concatenate((chosen, added))
        count = np.concatenate((count, count[room[base]] + 1))
        absolute = np.concatenate((absolute, more_absolute[base, option]))
        square = np.concatenate((square, more_square[base, option]))
    return np.array(vectors), absolute[1:], square[1:], chosen[1:]
