"""Minimal-cost recourse for predictors that have no gradient: files without a twin, functions, pipelines, boosted trees."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.predictor import Predictor
from cfptq.recourse.beam_search import combine
from cfptq.recourse.confidence import check_confidence, level_of
from cfptq.recourse.fallback_search import anywhere, climb, from_pairs
from cfptq.recourse.refinement import refine, rescan
from cfptq.recourse.search_problem import SearchProblem, build_search_problem
from cfptq.recourse.single_feature_moves import Moves, evaluate, tabulate

#: Rows worked on together: bounds memory.
COMBINED_ROWS = 256
#: For those whom the beam leaves without recourse: how many pairs they climb from, how many actions they keep, the most moves, and
#: how many rows climb together.
_PAIRS, _KEEP, _CLIMB, _ROWS_RESCUED = 16, 8, 16, 32
#: What a trade leaves of a number's change.
_LEFT = (0.9, 0.6, 0.3)
#: Numbers in the largest tensor of tried trades.
_AT_A_TIME = 2**21


@dataclass(frozen=True)
class GradientFree:
    """Settings of the gradient-free search.

    Attributes:
        confidence: probability of the target that the point must have against the strongest other class; 0.5 is the decision.
        width: combinations of moves tried in the model for each row and step.
        depth: most features that one action may combine; an action set's ``max_changes`` may set fewer.
        kept: valid combinations of each step that are refined by bisection.
        rounds: how often the best action is taken apart and put together anew.
        trades: also try every move on the best action with each number moved less far, which is how effort is shifted between features;
            a solver that has gradients does it faster.
        slack: logits by which a point must lie beyond the boundary.
    """

    confidence: float = 0.5
    width: int = 64
    depth: int = 5
    kept: int = 4
    rounds: int = 3
    trades: bool = True
    slack: float = 1e-5

    def __post_init__(self) -> None:
        check_confidence(self)
        for name, least in (("width", 1), ("depth", 1), ("kept", 1), ("rounds", 0)):
            if getattr(self, name) < least:
                raise DataError(f"GradientFree.{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def level(self) -> float:
        """Target margin asked for: logit of the confidence, in logits."""
        return level_of(self.confidence)


def search_without_gradient(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: GradientFree) -> Tensor:
    """The cheapest action found for each row that is not at its target, (N, d); zero where none was found. Asks ``logits`` only."""
    terrain = build_search_problem(predictor, rows, space, target, settings.level + settings.slack)
    best, cost = space.zero(rows), torch.full((len(rows),), inf)
    for index in torch.split(torch.arange(len(rows)), COMBINED_ROWS):
        combination_search(terrain, index, best, cost, settings)
    return space.project(rows, best)


def combination_search(terrain: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Improve the actions ``best`` (N, d) of cost ``cost`` (N,), infinite where there is none, for the rows ``index``. Writes there."""
    lost = index[cost[index].isinf()]
    if len(lost):
        moves = _combine_all(terrain, lost, best, cost, settings)
        if terrain.space.max_changes != 1:  # else there is nothing left to combine
            _rescue(terrain, moves, best, cost)
    live = index[cost[index].isfinite()]
    if len(live):  # with a cost to beat, the lengths tried are finer
        _combine_all(terrain, live, best, cost, settings)
    for _ in range(settings.rounds):
        if len(live) == 0:
            break
        before = cost[live]
        swap(terrain, live, best, cost, settings)
        if settings.trades:
            trade(terrain, live, best, cost, settings)
        live = live[cost[live] < before * (1 - 1e-6)]


def _combine_all(terrain: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> Moves:
    """Combine moves, which are handed back, from the factual row on. Writes into ``best``, ``cost``."""
    moves = tabulate(terrain, index, cost[index])
    start = torch.zeros_like(best[index])[:, None]
    _adopt(terrain, best, cost, *combine(terrain, moves, start, cost[index], settings.width, settings.depth, settings.kept))
    return moves


def swap(terrain: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Take each changed feature out of the best action and put up to two other moves in its place. Writes into ``best``, ``cost``."""
    delta, price = best[index], cost[index]
    rescan(terrain, index, delta, price, 15)
    best[index], cost[index] = delta, price
    changed = terrain.changed(delta)
    most = int(changed.sum(1).max())
    apart = torch.full((len(index), most + 1, delta.shape[1]), torch.nan)
    row, feature = changed.nonzero(as_tuple=True)
    place = changed.to(torch.int64).cumsum(1)[row, feature] - 1
    apart[row, place] = torch.where(terrain.member[feature] > 0, 0, delta[row])
    moves = tabulate(terrain, index, cost[index])
    _adopt(terrain, best, cost, *combine(terrain, moves, apart, cost[index], settings.width, 2, settings.kept))


def trade(terrain: SearchProblem, index: Tensor, best: Tensor, cost: Tensor, settings: GradientFree) -> None:
    """Take part of each moved number back and try every move, also of features already changed, on what is left."""
    moves = tabulate(terrain, index, cost[index])
    count, delta = moves.price.shape[1], best[index]
    row, column = ((delta != 0) & terrain.single).nonzero(as_tuple=True)
    for share in _LEFT:
        for part in torch.split(torch.arange(len(row)), max(1, _AT_A_TIME // max(1, count * delta.shape[1]))):
            owner = row[part].repeat_interleave(count)
            less = delta[row[part]].scatter(1, column[part][:, None], share * delta[row[part], column[part]][:, None])
            move = torch.arange(count).repeat(len(part))
            elsewhere = moves.column[move] != column[part].repeat_interleave(count)
            owner, move, less = owner[elsewhere], move[elsewhere], less.repeat_interleave(count, dim=0)[elsewhere]
            tried = moves.onto(terrain, owner, less, move)
            paid = terrain.cost(index[owner], tried)
            cheap = (paid < cost[index[owner]]).nonzero()[:, 0]
            reached = evaluate(terrain, index[owner[cheap]], tried[cheap]) >= terrain.level
            good = cheap[reached]
            # The cheapest few of each row are worth refining.
            good = good[paid[good].argsort()]
            good = good[owner[good].argsort(stable=True)]
            rank = torch.arange(len(good)) - torch.searchsorted(owner[good], owner[good])
            good = good[rank < settings.kept]
            _adopt(terrain, best, cost, index[owner[good]], tried[good])


def _rescue(terrain: SearchProblem, moves: Moves, best: Tensor, cost: Tensor) -> None:
    """For rows of ``moves`` without recourse: raise the margin move by move, from the best pairs of moves, then from anywhere."""
    for pairs in (True, False):
        lost = cost[moves.index].isinf().nonzero()[:, 0]
        for row in torch.split(lost, _ROWS_RESCUED) if len(lost) else ():
            start = from_pairs(terrain, moves, row, _PAIRS) if pairs else anywhere(terrain, moves.index[row], seed=0)
            arrived, delta = climb(terrain, moves, row, start, _KEEP, _CLIMB)
            _adopt(terrain, best, cost, moves.index[arrived], delta)


def _adopt(terrain: SearchProblem, best: Tensor, cost: Tensor, index: Tensor, delta: Tensor) -> None:
    """Refine valid actions and keep those that are cheaper than what is known."""
    index, delta, price = refine(terrain, index, delta)
    least = torch.full_like(cost, inf).scatter_reduce(0, index, price, "amin")
    winner = ((price == least[index]) & (price < cost[index])).nonzero()[:, 0].flip(0)
    best[index[winner]] = delta[winner]
    cost[index[winner]] = price[winner]
