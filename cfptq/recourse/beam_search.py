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
    row, slot = exists.nonzero(as_tuple=True)
    if problem.is_constrained:
        states = states.clone()
        states[row, slot] = problem.project(moves.index[row], states[row, slot])
    margin[row, slot] = evaluate_margins(problem, moves.index[row], states[row, slot])
    cost[row, slot] = problem.cost(moves.index[row], states[row, slot])
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
        is_new = _find_first_occurrences(row, rank, tried, count, most)
        row, rank, tried = row[is_new], rank[is_new], tried[is_new]
        new_margin, new_cost = evaluate_margins(problem, moves.index[row], tried), problem.cost(moves.index[row], tried)
        is_valid = new_margin >= problem.required_margin
        order = torch.full((count, most), inf)
        order[row[is_valid], rank[is_valid]] = best[row[is_valid], rank[is_valid]]
        chosen = order.topk(min(keep, most), dim=1, largest=False)
        is_kept = torch.zeros(count, most, dtype=torch.bool).scatter_(1, chosen.indices, chosen.values.isfinite())[row, rank] & is_valid
        found.append((moves.index[row[is_kept]], tried[is_kept]))
        max_cost = max_cost.scatter_reduce(0, row[is_valid], new_cost[is_valid], "amin")
        continues = ~is_valid & (new_cost < max_cost[row])
        states = torch.zeros(count, most, size)
        margin, cost = torch.full((count, most), -inf), torch.full((count, most), inf)
        states[row[continues], rank[continues]], margin[row[continues], rank[continues]], cost[row[continues], rank[continues]] = (
            tried[continues],
            new_margin[continues],
            new_cost[continues],
        )
    if not found:
        return moves.index[:0], start[:0, 0]
    return torch.cat([rows for rows, _ in found]), torch.cat([actions for _, actions in found])


def _predict_costs(
    problem: SearchProblem, moves: MoveTable, states: Tensor, margin: Tensor, cost: Tensor, max_cost: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the total cost of the best moves of each state, (n, S, q), infinite where there is none, and return the moves too."""
    count, slots, size = states.shape
    changed = problem.find_changed_features(states.reshape(-1, size)).reshape(count, slots, -1)
    need = (problem.required_margin - margin)[:, :, None]
    gain = torch.maximum(moves.gain[:, None], _MIN_GAIN_SHARE * need.clamp(max=1e9))
    needed_share = need / gain.clamp_min(1e-12)
    may_reach = needed_share <= _PREDICTION_TOLERANCE
    # Of the lengths of one column, try the shortest that reaches the target and a few that do not.
    is_certain = needed_share <= 1 / _PREDICTION_TOLERANCE
    is_useful = (moves.shorter < 0) | ~is_certain[:, :, moves.shorter.clamp_min(0)]
    is_useful &= may_reach | moves.is_partial
    total = cost[:, :, None] + moves.cost[:, None] * torch.where(moves.is_level, needed_share.clamp_min(1.0), needed_share)
    least = cost[:, :, None] + torch.where(moves.is_level | ~may_reach, moves.cost[:, None], 0.0)
    is_full = changed.sum(2) >= (problem.space.max_changes or len(problem.incidence))
    is_excluded = changed[:, :, moves.feature] | is_full[:, :, None] | ~is_useful | (least >= max_cost[:, None, None])
    total = torch.where(is_excluded | moves.cost[:, None].isinf(), inf, total)
    best, choice = total.topk(min(_MAX_MOVES_PER_STATE if slots > 1 else total.shape[2], total.shape[2]), dim=2, largest=False)
    return best, choice


def _find_first_occurrences(row: Tensor, rank: Tensor, delta: Tensor, count: int, most: int) -> Tensor:
    """Find the actions that equal no earlier action of their row."""
    weight = torch.sqrt(torch.arange(2, delta.shape[1] + 2, dtype=torch.float64))
    key = torch.full((count, most), torch.nan, dtype=torch.float64)
    key[row, rank] = delta.to(torch.float64) @ weight
    sorted_key, order = key.sort(dim=1, stable=True)
    sorted_repeats = torch.zeros(count, most, dtype=torch.bool)
    sorted_repeats[:, 1:] = sorted_key[:, 1:] == sorted_key[:, :-1]
    is_repeated = torch.zeros_like(sorted_repeats).scatter_(1, order, sorted_repeats)
    return (~is_repeated[row, rank]).nonzero()[:, 0]
