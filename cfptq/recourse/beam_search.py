"""A beam over combinations of single moves: each step tries those that promise the target at the least cost in the model itself."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem
from cfptq.recourse.single_feature_moves import Moves, evaluate

#: Moves of one state that are tried at most.
_FROM_ONE = 8
#: Foresight is trusted to this factor: a move may reach the target if it is foreseen to fall short by no more, and surely does if it
#: goes as much beyond.
_HOPE = 1.1
#: What a move that gains nothing by itself is foreseen to gain, as a share of the shortfall: it may still pay in company.
_LEAST_GAIN = 1e-3


def combine(
    terrain: SearchProblem, moves: Moves, start: Tensor, ceiling: Tensor, width: int, depth: int, kept: int
) -> tuple[Tensor, Tensor]:
    """Put move upon move until the target is reached.

    Gains are foreseen as if they added up, and checked in the model for the ``width`` best of each row and step.

    Args:
        start: feasible actions to start from, (n, S, d), n the rows of ``moves``; one that is NaN is none.
        ceiling: no action that costs as much is wanted, (n,).
        width: actions tried a row and step. depth: most moves put upon a start. kept: valid actions handed back a row and step.

    Returns:
        Rows of the terrain (M,) and valid actions (M, d).
    """
    count, _, size = start.shape
    found: list[tuple[Tensor, Tensor]] = []
    if moves.price.shape[1] == 0:
        return moves.index[:0], start[:0, 0]
    ceiling = ceiling.clone()
    states, exists = start, ~start.isnan().any(2)
    margin, cost = torch.full(exists.shape, -inf), torch.full(exists.shape, inf)
    row, place = exists.nonzero(as_tuple=True)
    margin[row, place] = evaluate(terrain, moves.index[row], states[row, place])
    cost[row, place] = terrain.cost(moves.index[row], states[row, place])
    for _ in range(depth):
        foreseen, choice = _foreseen(terrain, moves, states, margin, cost, ceiling)
        most = min(width, foreseen[0].numel())
        best, flat = foreseen.flatten(1).topk(most, dim=1, largest=False)
        row, rank = best.isfinite().nonzero(as_tuple=True)
        if len(row) == 0:
            break
        flat = flat[row, rank]
        move = choice[row, flat // foreseen.shape[2], flat % foreseen.shape[2]]
        tried = moves.onto(terrain, row, states[row, flat // foreseen.shape[2]], move)
        fresh = _first_of_its_kind(row, rank, tried, count, most)
        row, rank, tried = row[fresh], rank[fresh], tried[fresh]
        reached, paid = evaluate(terrain, moves.index[row], tried), terrain.cost(moves.index[row], tried)
        valid = reached >= terrain.level
        order = torch.full((count, most), inf)
        order[row[valid], rank[valid]] = best[row[valid], rank[valid]]
        chosen = order.topk(min(kept, most), dim=1, largest=False)
        worth = torch.zeros(count, most, dtype=torch.bool).scatter_(1, chosen.indices, chosen.values.isfinite())[row, rank] & valid
        found.append((moves.index[row[worth]], tried[worth]))
        ceiling = ceiling.scatter_reduce(0, row[valid], paid[valid], "amin")
        on = ~valid & (paid < ceiling[row])
        states = torch.zeros(count, most, size)
        margin, cost = torch.full((count, most), -inf), torch.full((count, most), inf)
        states[row[on], rank[on]], margin[row[on], rank[on]], cost[row[on], rank[on]] = tried[on], reached[on], paid[on]
    if not found:
        return moves.index[:0], start[:0, 0]
    return torch.cat([rows for rows, _ in found]), torch.cat([actions for _, actions in found])


def _foreseen(terrain: SearchProblem, moves: Moves, states: Tensor, margin: Tensor, cost: Tensor, ceiling: Tensor) -> tuple[Tensor, Tensor]:
    """For each state (n, S) the total cost foreseen of its best moves, (n, S, q), infinite where there is none, and the moves."""
    count, several, size = states.shape
    changed = terrain.changed(states.reshape(-1, size)).reshape(count, several, -1)
    need = (terrain.level - margin)[:, :, None]
    gain = torch.maximum(moves.gain[:, None], _LEAST_GAIN * need.clamp(max=1e9))
    part = need / gain.clamp_min(1e-12)
    reaches = part <= _HOPE
    # Of one column's lengths the least that reaches the target; of those that do not, a few.
    surely = part <= 1 / _HOPE
    useful = (moves.shorter < 0) | ~surely[:, :, moves.shorter.clamp_min(0)]
    useful &= reaches | moves.partial
    total = cost[:, :, None] + moves.price[:, None] * torch.where(moves.level, part.clamp_min(1.0), part)
    least = cost[:, :, None] + torch.where(moves.level | ~reaches, moves.price[:, None], 0.0)
    full = changed.sum(2) >= (terrain.space.max_changes or len(terrain.member))
    barred = changed[:, :, moves.feature] | full[:, :, None] | ~useful | (least >= ceiling[:, None, None])
    total = torch.where(barred | moves.price[:, None].isinf(), inf, total)
    best, choice = total.topk(min(_FROM_ONE if several > 1 else total.shape[2], total.shape[2]), dim=2, largest=False)
    return best, choice


def _first_of_its_kind(row: Tensor, rank: Tensor, delta: Tensor, count: int, most: int) -> Tensor:
    """Positions of the actions that no earlier action of the same row equals."""
    weight = torch.sqrt(torch.arange(2, delta.shape[1] + 2, dtype=torch.float64))
    key = torch.full((count, most), torch.nan, dtype=torch.float64)
    key[row, rank] = delta.to(torch.float64) @ weight
    ordered, order = key.sort(dim=1, stable=True)
    repeated = torch.zeros(count, most, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    again = torch.zeros_like(repeated).scatter_(1, order, repeated)
    return (~again[row, rank]).nonzero()[:, 0]
