"""Minimal-cost recourse for predictors without gradient, such as functions, pipelines and boosted trees."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.predictor import Predictor
from cfptq.recourse.beam_search import combine_moves
from cfptq.recourse.confidence import check_confidence, margin_at_confidence
from cfptq.recourse.fallback_search import draw_random_action, find_best_pairs, maximize_margin
from cfptq.recourse.refinement import refine_into, search_nearer_segments
from cfptq.recourse.search_problem import SearchProblem, build_search_problem
from cfptq.recourse.single_feature_moves import MoveTable, evaluate_margins, tabulate_moves

#: Rows searched together, which bounds memory.
COMBINED_ROWS_PER_BATCH = 256
#: Settings of the margin maximization, for rows that the beam search leaves without recourse: pairs of moves to start from, actions
#: kept after each move, maximal number of moves, and rows maximized together.
_START_PAIRS, KEPT_ACTIONS, MAX_MOVES, _MAXIMIZED_ROWS = 16, 8, 16, 32
#: Shares to which a numeric change is shortened while another move is tried.
_REMAINING_SHARES = (0.9, 0.6, 0.3)
#: Largest tensor of candidate actions. More candidates are split into chunks.
_MAX_TENSOR_NUMBERS = 2**21


@dataclass(frozen=True)
class GradientFree:
    """Settings of the gradient-free search.

    Attributes:
        confidence: Probability of the target against the strongest other class that a point must have, default 0.5 (the decision).
        width: Beam width, the combinations of moves evaluated for each row and step, default 64.
        depth: Maximal number of features that the beam search combines, default 5. The action set's ``max_changes`` may be lower.
        keep: Valid combinations of each step that are refined by bisection, default 4.
        rounds: Maximal number of improvement rounds on the best action, default 3.
        shift_effort: Also shorten each numeric change of the best action and try every other move on top, default True. With
            gradients, ``cfptq.recourse.MinimalCost`` does the same faster.
        slack: Logits by which a point must lie beyond the required margin, default 1e-5.
    """

    confidence: float = 0.5
    width: int = 64
    depth: int = 5
    keep: int = 4
    rounds: int = 3
    shift_effort: bool = True
    slack: float = 1e-5

    def __post_init__(self) -> None:
        check_confidence(self)
        for name, least in (("width", 1), ("depth", 1), ("keep", 1), ("rounds", 0)):
            if getattr(self, name) < least:
                raise DataError(f"GradientFree.{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def required_margin(self) -> float:
        """Required target margin in logits, the logit of the confidence."""
        return margin_at_confidence(self.confidence)


def search_without_gradient(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: GradientFree) -> Tensor:
    """Search the cheapest action of each row that is not at its target, (N, d), zero where none is found.

    Args:
        predictor: Model to change the decision of. Only its ``logits`` are used.
        rows: Factual rows without their target, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        settings: Settings of the search.
    """
    problem = build_search_problem(predictor, rows, space, target, settings.required_margin + settings.slack)
    best, cost = space.zero(rows), torch.full((len(rows),), inf)
    for index in torch.split(torch.arange(len(rows)), COMBINED_ROWS_PER_BATCH):
        search_combinations(problem, index, best, cost, settings)
    return space.project(rows, best)


def search_combinations(problem: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Improve ``best`` (N, d) and ``cost`` (N,) in place for the rows ``index``.

    ``cost`` is infinite for rows without an action.
    """
    open_rows = index[cost[index].isinf()]
    if len(open_rows):
        moves = _combine_from_factual(problem, open_rows, best, cost, settings)
        if problem.space.max_changes != 1:
            _raise_margins(problem, moves, best, cost)
    solved = index[cost[index].isfinite()]
    if len(solved):  # A finite cost limits the lengths, so that they are spaced more finely.
        _combine_from_factual(problem, solved, best, cost, settings)
    for _ in range(settings.rounds):
        if len(solved) == 0:
            break
        before = cost[solved]
        replace_features(problem, solved, best, cost, settings)
        if settings.shift_effort:
            shift_effort(problem, solved, best, cost, settings)
        solved = solved[cost[solved] < before * (1 - 1e-6)]


def _combine_from_factual(problem: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> MoveTable:
    """Combine moves on the factual rows, update ``best`` and ``cost`` in place, and return the moves."""
    moves = tabulate_moves(problem, index, cost[index])
    start = torch.zeros_like(best[index])[:, None]
    refine_into(problem, best, cost, *combine_moves(problem, moves, start, cost[index], settings.width, settings.depth, settings.keep))
    return moves


def replace_features(problem: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Replace each changed feature of the best action by up to two other moves, and update ``best`` and ``cost`` in place."""
    delta, new_cost = best[index], cost[index]
    search_nearer_segments(problem, index, delta, new_cost, 15)
    best[index], cost[index] = delta, new_cost
    changed = problem.find_changed_features(delta)
    most = int(changed.sum(1).max())
    reduced = torch.full((len(index), most + 1, delta.shape[1]), torch.nan)
    row, feature = changed.nonzero(as_tuple=True)
    slot = changed.to(torch.int64).cumsum(1)[row, feature] - 1
    reduced[row, slot] = torch.where(problem.incidence[feature] > 0, 0, delta[row])
    moves = tabulate_moves(problem, index, cost[index])
    refine_into(problem, best, cost, *combine_moves(problem, moves, reduced, cost[index], settings.width, 2, settings.keep))


def shift_effort(problem: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Shorten each numeric change in part, try every other move on top, and update ``best`` and ``cost`` in place."""
    moves = tabulate_moves(problem, index, cost[index])
    count, delta = moves.cost.shape[1], best[index]
    row, column = ((delta != 0) & problem.is_single).nonzero(as_tuple=True)
    for share in _REMAINING_SHARES:
        for part in torch.split(torch.arange(len(row)), max(1, _MAX_TENSOR_NUMBERS // max(1, count * delta.shape[1]))):
            owner = row[part].repeat_interleave(count)
            shortened = delta[row[part]].scatter(1, column[part][:, None], share * delta[row[part], column[part]][:, None])
            move = torch.arange(count).repeat(len(part))
            other_column = moves.column[move] != column[part].repeat_interleave(count)
            owner, move, shortened = owner[other_column], move[other_column], shortened.repeat_interleave(count, dim=0)[other_column]
            tried = moves.apply_to(problem, owner, shortened, move)
            new_cost = problem.cost(index[owner], tried)
            cheaper = (new_cost < cost[index[owner]]).nonzero()[:, 0]
            is_valid = evaluate_margins(problem, index[owner[cheaper]], tried[cheaper]) >= problem.required_margin
            good = cheaper[is_valid]
            # Only the cheapest candidates of each row are refined.
            good = good[new_cost[good].argsort()]
            good = good[owner[good].argsort(stable=True)]
            rank = torch.arange(len(good)) - torch.searchsorted(owner[good], owner[good])
            good = good[rank < settings.keep]
            refine_into(problem, best, cost, index[owner[good]], tried[good])


def _raise_margins(problem: SearchProblem, moves: MoveTable, best: Tensor, cost: Tensor) -> None:
    """Maximize the margin of rows without recourse, first from the best pairs of moves, then from a random action."""
    for from_pairs in (True, False):
        open_rows = cost[moves.index].isinf().nonzero()[:, 0]
        for row in torch.split(open_rows, _MAXIMIZED_ROWS) if len(open_rows) else ():
            start = (
                find_best_pairs(problem, moves, row, _START_PAIRS) if from_pairs else draw_random_action(problem, moves.index[row], seed=0)
            )
            arrived, delta = maximize_margin(problem, moves, row, start, KEPT_ACTIONS, MAX_MOVES)
            refine_into(problem, best, cost, moves.index[arrived], delta)
