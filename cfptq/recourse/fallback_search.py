"""Margin maximization for rows that no descent and no beam search brings to the target, regardless of cost."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem
from cfptq.recourse.single_feature_moves import MoveTable, evaluate_margins

#: Largest tensor of candidate actions. More candidates are split into chunks.
_MAX_TENSOR_NUMBERS = 2**21
#: Every third length of a column is used in pairs.
_LENGTH_STRIDE = 3
#: Pairs evaluated for one row. Of more pairs, an evenly spaced selection is evaluated.
MAX_PAIRS_PER_ROW = 2**15


def maximize_margin(problem: SearchProblem, moves: MoveTable, row: Tensor, start: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor]:
    """Maximize the margin move by move until the target is reached.

    Every move is tried on each of the ``width`` best actions of a row. A move may replace an earlier one of its feature. If too many
    features change, the projection reverts the smallest change.

    Args:
        problem: Recourse problem of N rows.
        moves: Moves of n of these rows.
        row: Positions among the rows of ``moves``, (M,).
        start: Feasible actions to start from, (M, S, d), the one with the highest margin first.
        width: Actions kept after each move.
        steps: Maximal number of moves of one row.

    Returns:
        Entries of ``row`` that reach the target, and their actions.
    """
    best = start[:, 0].clone()
    margin = evaluate_margins(problem, moves.index[row], best)
    count, size = moves.cost.shape[1], start.shape[2]
    open_rows = (margin < problem.required_margin).nonzero()[:, 0]
    chunk_size = max(1, _MAX_TENSOR_NUMBERS // max(1, max(width, start.shape[1]) * count * size))
    for part in torch.split(open_rows, chunk_size) if count and len(open_rows) else ():
        states = start[part]
        for _ in range(steps):
            kept = states.shape[1]
            owner = row[part].repeat_interleave(kept * count)
            base = states.repeat_interleave(count, dim=1).reshape(-1, size)
            tried = moves.apply_to(problem, owner, base, torch.arange(count).repeat(len(part) * kept))
            new_margin = evaluate_margins(problem, moves.index[owner], tried).reshape(len(part), -1)
            top, chosen = _select_highest(new_margin, width)
            states = tried.reshape(len(part), -1, size)[torch.arange(len(part))[:, None], chosen]
            has_risen = top[:, 0] > margin[part] + 1e-6
            best[part[has_risen]], margin[part[has_risen]] = states[has_risen, 0], top[has_risen, 0]
            continues = has_risen & (margin[part] < problem.required_margin)
            part, states = part[continues], states[continues]
            if len(part) == 0:
                break
    arrived = (margin >= problem.required_margin).nonzero()[:, 0]
    return row[arrived], best[arrived]


def find_best_pairs(problem: SearchProblem, moves: MoveTable, row: Tensor, width: int) -> Tensor:
    """Find the pairs of moves with the highest margin, (M, width, d).

    Pairs find changes that gain in combination only. ``row`` (M,) holds positions among the rows of ``moves``.
    """
    length = torch.zeros(len(moves.column), dtype=torch.int64)
    for position, previous in enumerate(moves.shorter.tolist()):
        length[position] = length[previous] + 1 if previous >= 0 else 0
    chosen_moves = (moves.is_level | (length % _LENGTH_STRIDE == _LENGTH_STRIDE - 1)).nonzero()[:, 0]
    first, second = torch.combinations(torch.arange(len(chosen_moves))).T
    different = (moves.feature[chosen_moves[first]] != moves.feature[chosen_moves[second]]).nonzero()[:, 0]
    different = different[:: 1 + len(different) // MAX_PAIRS_PER_ROW]
    first, second = first[different], second[different]
    zero = torch.zeros(1, len(problem.unit_cost))
    chunk_size = max(1, _MAX_TENSOR_NUMBERS // zero.shape[1])
    best = []
    for one in row.tolist():
        single = moves.apply_to(problem, torch.full_like(chosen_moves, one), zero.expand(len(chosen_moves), -1), chosen_moves)
        kept = zero.repeat(width, 1)  # There may be fewer than ``width`` pairs.
        for i, j in zip(torch.split(first, chunk_size), torch.split(second, chunk_size), strict=True):
            tried = torch.cat((kept, moves.apply_to(problem, torch.full_like(i, one), single[i], chosen_moves[j])))
            new_margin = evaluate_margins(problem, moves.index[one].expand(len(tried)), tried)
            kept = tried[_select_highest(new_margin[None], width)[1][0]]
        best.append(kept)
    return torch.stack(best)


def draw_random_action(problem: SearchProblem, index: Tensor, seed: int) -> Tensor:
    """Draw a random feasible action that moves every feature, (M, 1, d), with the same draw for every row."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(problem.unit_cost), generator=generator)
    span = torch.where(draw < 0.5, problem.lowest[index], problem.highest[index]) * (2 * draw - 1).abs()
    # Each group moves to the reachable level with the largest draw.
    level = problem.is_reachable * (1 + draw) - 1.0 * problem.current_level[index]
    return problem.project(index, torch.where(problem.is_single, span, level))[:, None]


def _select_highest(new_margin: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Select the ``width`` highest distinct margins of each row (M, P) and their positions.

    Equal margins are nearly always the same action reached in two ways.
    """
    ordered, order = new_margin.sort(dim=1, descending=True)
    is_repeated = torch.zeros_like(ordered, dtype=torch.bool)
    is_repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    top, rank = torch.where(is_repeated, -inf, ordered).topk(min(width, ordered.shape[1]), dim=1)
    return top, order.gather(1, rank)
