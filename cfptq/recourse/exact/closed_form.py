"""Closed form of the cheapest l2 action on a linear model with continuous columns (appendix A.6).

On one support the problem is  min ‖Wδ‖₂  subject to  a·δ ≥ need,  0 ≤ δ·sign(a) ≤ room. Its KKT conditions give the water-filling
solution δ_j = min(t·|a_j|/w_j², room_j), where t is the smallest value that meets the need. Columns reach their bound in the order of
room_j·w_j²/|a_j|, so sorting them gives t exactly.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

#: Supports solved together, which bounds memory.
_BATCH_SUPPORTS = 4096


def solve_water_filling(slope: Array, weight: Array, room: Array, need: float) -> Array:
    """Find the amounts of lowest l2 cost that gain ``need`` on each of several supports.

    Args:
        slope: Gain of one unit of each column in its better direction, (S, n), at least 0.
        weight: Cost w of one unit, (S, n), above 0.
        room: Largest amount of each column, (S, n), at least 0, may be infinite.
        need: Gain to reach, above 0.

    Returns:
        Amounts (S, n), infinite for supports that cannot gain ``need``.
    """
    pull = slope / weight**2
    with np.errstate(divide="ignore", invalid="ignore"):
        full = np.where(pull > 0, room / pull, np.inf)  # The t at which a column reaches its bound.
        order = np.argsort(full, axis=1)
        full = np.take_along_axis(full, order, 1)
        pulls, slopes, rooms = (np.take_along_axis(part, order, 1) for part in (pull, slope, room))
        gained = np.where(slopes > 0, slopes * rooms, 0)
        # Columns before j are at their bounds. Column j and those after it grow with t.
        settled = np.concatenate((np.zeros((len(slope), 1)), np.cumsum(gained, 1)[:, :-1]), axis=1)
        rate = np.cumsum((slopes * pulls)[:, ::-1], 1)[:, ::-1]
        level = np.where(rate > 0, (need - settled) / rate, np.inf)
        enough = (level <= full * (1 + 1e-12)) & np.isfinite(level)
    possible = enough.any(1)
    chosen = np.where(possible, np.take_along_axis(level, enough.argmax(1)[:, None], 1)[:, 0], np.inf)
    with np.errstate(invalid="ignore"):
        amounts = np.minimum(chosen[:, None] * pull, room)
    amounts[np.isnan(amounts)] = 0.0
    amounts[~possible] = np.inf
    return amounts


def find_cheapest_l2(slope: Array, weight: Array, room: Array, need: float, max_changes: int) -> Array | None:
    """Find the cheapest amounts (n,) that change at most ``max_changes`` columns.

    Args:
        slope: Gain of one unit of each column in its better direction, (n,), at least 0.
        weight: Cost of one unit, (n,), above 0.
        room: Largest amount of each column, (n,), at least 0, may be infinite.
        need: Gain to reach, above 0.
        max_changes: Maximal number of changed columns.

    Returns:
        Amounts (n,), ``None`` if no support gains ``need``.
    """
    useful = np.flatnonzero((slope > 0) & (room > 0))
    size = min(max_changes, len(useful))
    best, least = None, math.inf
    if size == 0:
        return None
    supports = itertools.combinations(useful.tolist(), size)
    while chunk := list(itertools.islice(supports, _BATCH_SUPPORTS)):
        columns = np.array(chunk)
        amounts = solve_water_filling(slope[columns], weight[columns], room[columns], need)
        with np.errstate(invalid="ignore"):
            cost = np.sqrt(((amounts * weight[columns]) ** 2).sum(1))
        first = int(np.argmin(cost))
        if cost[first] < least:
            least = float(cost[first])
            best = np.zeros(len(slope))
            best[columns[first]] = amounts[first]
    return best


def count_supports(columns: int, max_changes: int) -> int:
    """Count the supports that ``find_cheapest_l2`` enumerates."""
    return math.comb(columns, min(max_changes, columns))
