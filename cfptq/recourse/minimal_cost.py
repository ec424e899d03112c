"""Minimal-cost recourse (eqs. 3 and 4): a portfolio of ways to the boundary, refined, repaired, the best kept."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import inf
from typing import Literal

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.predictor import Predictor
from cfptq.recourse.confidence import check_confidence, level_of
from cfptq.recourse.gradient_free import COMBINED_ROWS, GradientFree, combination_search, search_without_gradient
from cfptq.recourse.margin_descent import Descent, descend
from cfptq.recourse.refinement import only, refine, rescan
from cfptq.recourse.search_problem import SearchProblem, build_search_problem
from cfptq.recourse.single_feature_moves import single_steps

#: Tried for everyone.
PORTFOLIO = (
    Descent(sharpness=inf),
    Descent(sharpness=inf, first=1),
    Descent(sharpness=inf, first=2),
    Descent(sharpness=inf, first=3),
    Descent(sharpness=inf, pace=0.25),
    Descent(sharpness=2.0, pace=0.25),
)
#: Tried as well where cost is no sum over features: spreading the effort is then cheaper than the best single feature.
SPREADING = (Descent(sharpness=1.0), Descent(sharpness=1.0, pace=0.25))
#: Tried in the model for those whom no walk brings to the target, and at the end of a thorough search for everyone.
COMBINATIONS = GradientFree(trades=False)
#: What a fast search tries in the model where an action moves whole numbers or ordinals: over a step of a grid no slope can see.
PAIRS = GradientFree(width=4, depth=2, rounds=0, trades=False)

#: About how often the model is run for one person's minimal-cost recourse.
EVALUATIONS_PER_ROW = 512

#: Numbers in a tensor of all walks of some rows: bounds memory.
_AT_A_TIME = 2**22


@dataclass(frozen=True)
class MinimalCost:
    """Settings of minimal-cost recourse.

    Attributes:
        confidence: probability of the target that the point must have against the strongest other class; 0.5 is the decision.
        effort: ``"thorough"`` tries combinations of moves out in the model for everyone, instead of trusting gradients, and repairs more
            often; it costs several times as much and is seldom more than a few per cent from the optimum.
        portfolio: the walks tried for every row.
        steps: most gradient evaluations of one walk.
        slack: logits by which a point must lie beyond the boundary, so that the last bits of another batch size cannot undo it.
    """

    confidence: float = 0.5
    effort: Literal["fast", "thorough"] = "fast"
    portfolio: tuple[Descent, ...] = PORTFOLIO
    steps: int = 16
    slack: float = 1e-5

    def __post_init__(self) -> None:
        check_confidence(self)
        if self.effort not in ("fast", "thorough"):
            raise DataError(f'MinimalCost.effort is {self.effort!r}; use "fast" or "thorough"')
        if self.steps < 1 or not self.portfolio:
            raise DataError("MinimalCost needs at least one walk in the portfolio and at least one step")

    @property
    def level(self) -> float:
        """Target margin asked for: logit of the confidence, in logits."""
        return level_of(self.confidence)

    def without_gradient(self) -> GradientFree:
        """What takes this search's place where a predictor has no gradient."""
        return GradientFree(confidence=self.confidence, width=64 if self.effort == "fast" else 128, slack=self.slack)


def minimal_cost(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost) -> Tensor:
    """The cheapest action found for each row that is not at its target, (N, d); zero where none was found.

    A predictor that has no gradient is searched without one.
    """
    if not predictor.differentiable:
        return search_without_gradient(predictor, rows, space, target, settings.without_gradient())
    terrain = build_search_problem(predictor, rows, space, target, settings.level + settings.slack)
    best = space.zero(rows)
    cost = torch.full((len(rows),), inf)
    thorough = settings.effort == "thorough"
    portfolio = settings.portfolio if terrain.additive else settings.portfolio + SPREADING
    _search(terrain, best, cost, portfolio, settings.steps)
    for index in torch.split(cost.isinf().nonzero()[:, 0], COMBINED_ROWS):
        combination_search(terrain, index, best, cost, COMBINATIONS)
    found = cost.isfinite().nonzero()[:, 0]
    delta, price = best[found], cost[found]
    rescan(terrain, found, delta, price, 15 if thorough else 7)
    best[found], cost[found] = delta, price
    open_rows = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(4 if thorough else 1):
        open_rows = _repair(terrain, best, cost, open_rows, settings.steps)
        if not bool(open_rows.any()):
            break
    rounded = ((best[found] != 0) & (terrain.step > 0)).any(1)
    for index in torch.split(found if thorough else found[rounded], COMBINED_ROWS):
        combination_search(terrain, index, best, cost, COMBINATIONS if thorough else PAIRS)
    # Refinement takes feasible actions apart without asking; a space whose features hang together has the last word here.
    return space.project(rows, best)


def _search(terrain: SearchProblem, best: Tensor, cost: Tensor, rules: tuple[Descent, ...], steps: int) -> None:
    """Walk by every rule, then refine all that arrived."""
    ceiling = torch.full_like(cost, inf)
    some = max(1, _AT_A_TIME // (len(rules) * best.shape[1]))
    for index in torch.split(torch.arange(len(best)), some):
        start = torch.zeros_like(best[index])
        walks = [single_steps(terrain, index)]
        seen = terrain.slope(index, start)  # every walk starts here
        for _, alike in groupby(rules, key=lambda rule: (rule.sharpness, rule.priced)):
            walks.append(descend(terrain, index, start, tuple(alike), steps, ceiling, seen=seen))
        _keep_cheaper(best, cost, *refine(terrain, torch.cat([row for row, _ in walks]), torch.cat([delta for _, delta in walks])))


def _repair(terrain: SearchProblem, best: Tensor, cost: Tensor, open_rows: Tensor, steps: int) -> Tensor:
    """Take each changed feature out in turn and mend the action, without it (of a category: without its level) and, where something
    is left, with all features free again. Returns the rows that gained."""
    changed = terrain.changed(best) & open_rows[:, None]
    owner, feature = changed.nonzero(as_tuple=True)
    if len(owner) == 0:
        return open_rows
    taken = terrain.member[feature] > 0
    start = torch.where(taken, 0, best[owner])
    banned = taken & (terrain.single | (best[owner] > 0))
    several = changed.sum(1)[owner] > 1
    owner, start = torch.cat((owner, owner[several])), torch.cat((start, start[several]))
    banned = torch.cat((banned, torch.zeros_like(banned[several])))
    # A grid leaves a surplus: one step less, and another feature fills the rest.
    rounded, column = ((best != 0) & (terrain.step > 0) & (best.abs() > 1.5 * terrain.step) & open_rows[:, None]).nonzero(as_tuple=True)
    this = only(column, best.shape[1])
    owner, banned = torch.cat((owner, rounded)), torch.cat((banned, this))
    start = torch.cat((start, best[rounded] - torch.where(this, best[rounded].sign() * terrain.step, 0.0)))
    rule = Descent(sharpness=inf) if terrain.additive else Descent(sharpness=1.0, pace=0.5)
    arrived, delta = descend(terrain, owner, start, (rule,), steps, 1.1 * cost, banned)
    before = cost.clone()
    _keep_cheaper(best, cost, *refine(terrain, arrived, delta))
    return cost < before


def _keep_cheaper(best: Tensor, cost: Tensor, index: Tensor, delta: Tensor, price: Tensor) -> None:
    least = torch.full_like(cost, inf).scatter_reduce(0, index, price, "amin")
    winner = ((price == least[index]) & (price < cost[index])).nonzero()[:, 0].flip(0)
    best[index[winner]] = delta[winner]
    cost[index[winner]] = price[winner]
