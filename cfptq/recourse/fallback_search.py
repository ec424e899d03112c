"""Help for those whom no walk and no combination brought to the target: raise the margin itself, whatever it costs."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem
from cfptq.recourse.single_feature_moves import Moves, evaluate

#: Numbers in the largest tensor of tried moves.
_AT_A_TIME = 2**21
#: Of the lengths of a column every so many-th is one to put in a pair.
_COARSE = 3
#: Most pairs tried for one row; of more, so many are taken evenly.
_PAIRS = 2**15


def climb(terrain: SearchProblem, moves: Moves, row: Tensor, start: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor]:
    """Move feature after feature to where the margin is highest, keeping the ``width`` best of each row, until the target is reached.

    Every move is tried on every kept action. A move may replace an earlier one of its feature; one change too many and the projection
    reverts the smallest.

    Args:
        row: which of the rows of ``moves``, (M,). start: feasible actions, (M, S, d), the one with the highest margin first.
        steps: most moves of one row.

    Returns:
        Those of ``row`` that reach the target, and their actions.
    """
    best = start[:, 0].clone()
    margin = evaluate(terrain, moves.index[row], best)
    count, size = moves.price.shape[1], start.shape[2]
    live = (margin < terrain.level).nonzero()[:, 0]
    some = max(1, _AT_A_TIME // max(1, max(width, start.shape[1]) * count * size))
    for part in torch.split(live, some) if count and len(live) else ():
        states = start[part]
        for _ in range(steps):
            several = states.shape[1]
            owner = row[part].repeat_interleave(several * count)
            onto = states.repeat_interleave(count, dim=1).reshape(-1, size)
            tried = moves.onto(terrain, owner, onto, torch.arange(count).repeat(len(part) * several))
            reached = evaluate(terrain, moves.index[owner], tried).reshape(len(part), -1)
            top, chosen = _highest(reached, width)
            states = tried.reshape(len(part), -1, size)[torch.arange(len(part))[:, None], chosen]
            rose = top[:, 0] > margin[part] + 1e-6
            best[part[rose]], margin[part[rose]] = states[rose, 0], top[rose, 0]
            on = rose & (margin[part] < terrain.level)
            part, states = part[on], states[on]
            if len(part) == 0:
                break
    arrived = (margin >= terrain.level).nonzero()[:, 0]
    return row[arrived], best[arrived]


def from_pairs(terrain: SearchProblem, moves: Moves, row: Tensor, width: int) -> Tensor:
    """Of all actions of two moves, their lengths far apart, those with the highest margin, (M, width, d): for changes that help in
    company only. ``row`` (M,) counts among the rows of ``moves``."""
    length = torch.zeros(len(moves.column), dtype=torch.int64)
    for place, previous in enumerate(moves.shorter.tolist()):
        length[place] = length[previous] + 1 if previous >= 0 else 0
    coarse = (moves.level | (length % _COARSE == _COARSE - 1)).nonzero()[:, 0]
    first, second = torch.combinations(torch.arange(len(coarse))).T
    apart = (moves.feature[coarse[first]] != moves.feature[coarse[second]]).nonzero()[:, 0]
    apart = apart[:: 1 + len(apart) // _PAIRS]
    first, second = first[apart], second[apart]
    nothing = torch.zeros(1, len(terrain.price))
    some = max(1, _AT_A_TIME // nothing.shape[1])
    best = []
    for one in row.tolist():
        alone = moves.onto(terrain, torch.full_like(coarse, one), nothing.expand(len(coarse), -1), coarse)
        kept = nothing.repeat(width, 1)  # there may be fewer than asked for
        for i, j in zip(torch.split(first, some), torch.split(second, some), strict=True):
            tried = torch.cat((kept, moves.onto(terrain, torch.full_like(i, one), alone[i], coarse[j])))
            reached = evaluate(terrain, moves.index[one].expand(len(tried)), tried)
            kept = tried[_highest(reached[None], width)[1][0]]
        best.append(kept)
    return torch.stack(best)


def anywhere(terrain: SearchProblem, index: Tensor, seed: int) -> Tensor:
    """A random feasible action of each row that moves every feature, (M, 1, d); the same draw for every row."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(terrain.price), generator=generator)
    span = torch.where(draw < 0.5, terrain.lowest[index], terrain.highest[index]) * (2 * draw - 1).abs()
    # Of each group the reachable level with the largest draw.
    level = terrain.reachable * (1 + draw) - 1.0 * terrain.standing[index]
    return terrain.project(index, torch.where(terrain.single, span, level))[:, None]


def _highest(reached: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` highest margins of each row (M, P) and their places; equal ones are nearly always one action reached in two ways."""
    ordered, order = reached.sort(dim=1, descending=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    top, rank = torch.where(again, -inf, ordered).topk(min(width, ordered.shape[1]), dim=1)
    return top, order.gather(1, rank)
