"""Beam search over combinations of single-feature moves, ranked by predicted cost and evaluated in the model."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem
from cfptq.recourse.single_feature_moves import MoveTable, evaluate_margins

#: Candidate moves that each state of the beam contributes.
_MAX_MOVES_PER_STATE = 8
#: Tolerance factor of predicted margin gains. A move is tried as a last move if it is predicted to fall at most 10 % short of the
#: target, and counts as certain to reach the target if predicted to exceed it by 10 %.
_PREDICTION_TOLERANCE = 1.1
#: Smallest predicted gain of a move, as a share of the margin shortfall. A move without gain alone may gain in combination.
_MIN_GAIN_SHARE = 1e-3


def combine_moves(
    problem: SearchProblem, moves: MoveTable, start: Tensor, max_cost: Tensor, width: int, depth: int, keep: int
) -> tuple[Tensor, Tensor]:
    """Combine moves until the target is reached.

    Predicted margin gains add up. The ``width`` best combinations of each row and step are evaluated in the model.

    Args:
        problem: Recourse problem of N rows.
        moves: Moves of n of these rows.
        start: Feasible actions to start from, (n, S, d). NaN marks an empty slot.
        max_cost: Cost below which actions must stay, (n,).
        width: Combinations evaluated for each row and step.
        depth: Maximal number of moves added to a start.
        keep: Valid actions returned for each row and step.

    Returns:
        Rows of the problem (M,) and valid actions (M, d).
    """
    count, _, size = start.shape
    found: list[tuple[Tensor, Tensor]] = []
    if moves.cost.shape[1] == 0:
        return moves.index[:0], start[:0, 0]
    max_cost = max_cost.clone()
    states, exists = start, ~start.isnan().any(2)
    margin, cost = torch.full(exists.shape, -inf), torch.full(exists.shape, inf)
    row, place = exists.nonzero(as_tuple=True)
    margin[row, place] = evaluate_margins(problem, moves.index[row], states[row, place])
    cost[row, place] = problem.cost(moves.index[row], states[row, place])
    for _ in range(depth):
        predicted, choice = _predict_costs(problem, moves, states, margin, cost, max_cost)
        most = min(width, predicted[0].numel())
        best, flat = predicted.flatten(1).topk(most, dim=1, largest=False)
        row, rank = best.isfinite().nonzero(as_tuple=True)
        if len(row) == 0:
            break
        flat = flat[row, rank]
        move = choice[row, flat // predicted.shape[2], flat % predicted.shape[2]]
        tried = moves.apply_to(problem, row, states[row, flat // predicted.shape[2]], move)
        fresh = _find_first_occurrences(row, rank, tried, count, most)
        row, rank, tried = row[fresh], rank[fresh], tried[fresh]
        reached, paid = evaluate_margins(problem, moves.index[row], tried), problem.cost(moves.index[row], tried)
        valid = reached >= problem.required_margin
        order = torch.full((count, most), inf)
        order[row[valid], rank[valid]] = best[row[valid], rank[valid]]
        chosen = order.topk(min(keep, most), dim=1, largest=False)
        worth = torch.zeros(count, most, dtype=torch.bool).scatter_(1, chosen.indices, chosen.values.isfinite())[row, rank] & valid
        found.append((moves.index[row[worth]], tried[worth]))
        max_cost = max_cost.scatter_reduce(0, row[valid], paid[valid], "amin")
        on = ~valid & (paid < max_cost[row])
        states = torch.zeros(count, most, size)
        margin, cost = torch.full((count, most), -inf), torch.full((count, most), inf)
        states[row[on], rank[on]], margin[row[on], rank[on]], cost[row[on], rank[on]] = tried[on], reached[on], paid[on]
    if not found:
        return moves.index[:0], start[:0, 0]
    return torch.cat([rows for rows, _ in found]), torch.cat([actions for _, actions in found])


def _predict_costs(
    problem: SearchProblem, moves: MoveTable, states: Tensor, margin: Tensor, cost: Tensor, max_cost: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the total cost of the best moves of each state, (n, S, q), infinite where there is none, and return the moves too."""
    count, several, size = states.shape
    changed = problem.find_changed_features(states.reshape(-1, size)).reshape(count, several, -1)
    need = (problem.required_margin - margin)[:, :, None]
    gain = torch.maximum(moves.gain[:, None], _MIN_GAIN_SHARE * need.clamp(max=1e9))
    part = need / gain.clamp_min(1e-12)
    may_reach = part <= _PREDICTION_TOLERANCE
    # Of the lengths of one column, try the shortest that may_reach the target and a few that do not.
    is_certain = part <= 1 / _PREDICTION_TOLERANCE
    is_useful = (moves.shorter < 0) | ~is_certain[:, :, moves.shorter.clamp_min(0)]
    is_useful &= may_reach | moves.is_partial
    total = cost[:, :, None] + moves.cost[:, None] * torch.where(moves.is_level, part.clamp_min(1.0), part)
    least = cost[:, :, None] + torch.where(moves.is_level | ~may_reach, moves.cost[:, None], 0.0)
    is_full = changed.sum(2) >= (problem.space.max_changes or len(problem.incidence))
    is_excluded = changed[:, :, moves.feature] | is_full[:, :, None] | ~is_useful | (least >= max_cost[:, None, None])
    total = torch.where(is_excluded | moves.cost[:, None].isinf(), inf, total)
    best, choice = total.topk(min(_MAX_MOVES_PER_STATE if several > 1 else total.shape[2], total.shape[2]), dim=2, largest=False)
    return best, choice


def _find_first_occurrences(row: Tensor, rank: Tensor, delta: Tensor, count: int, most: int) -> Tensor:
    """Find the actions that equal no earlier action of their row."""
    weight = torch.sqrt(torch.arange(2, delta.shape[1] + 2, dtype=torch.float64))
    key = torch.full((count, most), torch.nan, dtype=torch.float64)
    key[row, rank] = delta.to(torch.float64) @ weight
    ordered, order = key.sort(dim=1, stable=True)
    repeated = torch.zeros(count, most, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    is_repeated = torch.zeros_like(repeated).scatter_(1, order, repeated)
    return (~is_repeated[row, rank]).nonzero()[:, 0]
