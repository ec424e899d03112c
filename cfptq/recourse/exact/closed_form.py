"""The cheapest l2 action on a linear model with continuous columns: closed form over each admissible support (appendix A.6).

On one support the problem is  min ‖Wδ‖₂  subject to  a·δ ≥ need,  0 ≤ δ·sign(a) ≤ room. Its KKT conditions give
δ_j = min(t·|a_j|/w_j², room_j): water filling. t rises until the need is met; columns that reach their bound drop out in the
order of room_j·w_j²/|a_j|, so that sorting them gives t exactly.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

#: Supports looked at together.
_TOGETHER = 4096


def water_filling(slope: Array, weight: Array, room: Array, need: float) -> Array:
    """The l2-cheapest way to gain ``need`` on each of several supports.

    Args:
        slope: gain of one unit of each column in its better direction, (S, n), at least 0.
        weight: price w of one unit, (S, n), above 0.
        room: how far each column can go, (S, n), at least 0, may be infinite.
        need: above 0.

    Returns:
        Amounts (S, n); infinite in supports that cannot gain as much.
    """
    pull = slope / weight**2
    with np.errstate(divide="ignore", invalid="ignore"):
        full = np.where(pull > 0, room / pull, np.inf)  # the t at which a column reaches its bound
        order = np.argsort(full, axis=1)
        full = np.take_along_axis(full, order, 1)
        pulls, slopes, rooms = (np.take_along_axis(part, order, 1) for part in (pull, slope, room))
        gained = np.where(slopes > 0, slopes * rooms, 0)
        # Columns before j stand at their bounds, j and those after it rise with t.
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


def cheapest_l2(slope: Array, weight: Array, room: Array, need: float, most: int) -> Array | None:
    """The cheapest amounts (n,) that change at most ``most`` columns; ``None`` where no support gains ``need``."""
    useful = np.flatnonzero((slope > 0) & (room > 0))
    size = min(most, len(useful))
    best, least = None, math.inf
    if size == 0:
        return None
    supports = itertools.combinations(useful.tolist(), size)
    while chunk := list(itertools.islice(supports, _TOGETHER)):
        columns = np.array(chunk)
        amounts = water_filling(slope[columns], weight[columns], room[columns], need)
        with np.errstate(invalid="ignore"):
            cost = np.sqrt(((amounts * weight[columns]) ** 2).sum(1))
        first = int(np.argmin(cost))
        if cost[first] < least:
            least = float(cost[first])
            best = np.zeros(len(slope))
            best[columns[first]] = amounts[first]
    return best


def supports_of(columns: int, most: int) -> int:
    """How many supports :func:`cheapest_l2` would look at."""
    return math.comb(columns, min(most, columns))
