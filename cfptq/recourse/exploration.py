"""Help for those whom no walk and no combination brought to the target: raise the margin itself, whatever it costs."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.moves import evaluate, tabulate
from cfptq.recourse.terrain import Terrain

#: Numbers in the largest tensor of tried moves.
_AT_A_TIME = 2**21
#: Of the lengths of a column every so many-th is one to climb from.
_COARSE = 3


def climb(terrain: Terrain, index: Tensor, start: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor]:
    """Move feature after feature to where the margin is highest, keeping the ``width`` best of each row, until the target is reached.

    Every move is tried on every kept action. A move may replace an earlier one of its feature; one change too many and the projection
    reverts the smallest.

    Args:
        index: rows (M,). start: feasible actions to start from, (M, S, d). steps: most moves of one row.

    Returns:
        Positions in 0..M-1 that reach the target, and their actions.
    """
    best = start[:, 0].clone()
    if len(index) == 0:
        return index, best
    margin = evaluate(terrain, index, best)
    moves = tabulate(terrain, index, torch.full((len(index),), inf))
    count, size = moves.price.shape[1], start.shape[2]
    live = (margin < terrain.level).nonzero()[:, 0]
    some = max(1, _AT_A_TIME // max(1, max(width, start.shape[1]) * count * size))
    for part in torch.split(live, some) if count else ():
        states = start[part]
        if start.shape[1] > 1:
            margin[part] = -inf  # whatever the start, what two moves reach is what counts
        for _ in range(steps):
            several = states.shape[1]
            row = part.repeat_interleave(several * count)
            onto = states.repeat_interleave(count, dim=1).reshape(-1, size)
            tried = moves.onto(terrain, row, onto, torch.arange(count).repeat(len(part) * several))
            reached = evaluate(terrain, index[row], tried).reshape(len(part), -1)
            # Equal margins are nearly always one action reached in two ways.
            ordered, order = reached.sort(dim=1, descending=True)
            again = torch.zeros_like(ordered, dtype=torch.bool)
            again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
            top, rank = torch.where(again, -inf, ordered).topk(min(width, ordered.shape[1]), dim=1)
            chosen = order.gather(1, rank)
            states = tried.reshape(len(part), -1, size)[torch.arange(len(part))[:, None], chosen]
            rose = top[:, 0] > margin[part] + 1e-6
            best[part[rose]], margin[part[rose]] = states[rose, 0], top[rose, 0]
            on = rose & (margin[part] < terrain.level)
            part, states = part[on], states[on]
            if len(part) == 0:
                break
    arrived = (margin >= terrain.level).nonzero()[:, 0]
    return arrived, best[arrived]


def one_move_each(terrain: Terrain, index: Tensor) -> Tensor:
    """Feasible actions of one move each, the lengths far apart, to climb from: (M, S, d), the first of them zero."""
    moves = tabulate(terrain, index, torch.full((len(index),), inf))
    length = torch.zeros(len(moves.column), dtype=torch.int64)
    for place, previous in enumerate(moves.shorter.tolist()):
        length[place] = length[previous] + 1 if previous >= 0 else 0
    chosen = (moves.level | (length % _COARSE == _COARSE - 1)).nonzero()[:, 0]
    zero = torch.zeros(len(index), 1, terrain.lowest.shape[1])
    row = torch.arange(len(index)).repeat_interleave(len(chosen))
    single = moves.onto(terrain, row, zero[row, 0], chosen.repeat(len(index)))
    return torch.cat((zero, single.reshape(len(index), len(chosen), -1)), 1)


def anywhere(terrain: Terrain, index: Tensor, seed: int) -> Tensor:
    """Random feasible actions that move every feature, (M, d); the same draw for every row."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(terrain.price), generator=generator)
    span = torch.where(draw < 0.5, terrain.lowest[index], terrain.highest[index]) * (2 * draw - 1).abs()
    # Of each group the reachable level with the largest draw.
    return terrain.project(index, torch.where(terrain.single, span, terrain.reachable * (1 + draw) - 1.0 * terrain.standing[index]))
