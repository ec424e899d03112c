"""Minimal-cost recourse along gradients and by bisection, for action spaces whose columns limit each other.

A search by columns takes each column's bounds for its own. In a code whose length is limited, they are not. This search moves all
columns, and asks the space for nothing but its projection and its cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor

#: Rows that are searched at a time, which bounds the memory of gradients.
ROWS_AT_ONCE = 512
#: Share of the shortfall at the start by which a step aims beyond the target.
SURPLUS_SHARE = 0.1
#: Halvings of a segment between an action that misses the target and one that reaches it.
HALVINGS = 12
#: Rounds in which an action slides along the boundary to lower cost.
SLIDES = 8
#: Lengths of a slide, as shares of the action's length.
SLIDE_SHARES = (0.5, 0.2, 0.08, 0.03)
#: Gain of cost from which a cheaper action counts.
LEAST_GAIN = 1e-5


@dataclass(frozen=True)
class _Rule:
    """A rule of one descent.

    Attributes:
        step_fraction: share of the shortfall at the start that a step aims at.
        is_single: whether a step moves the one column with the largest gain per cost, or all columns.
    """

    step_fraction: float
    is_single: bool


_RULES = (_Rule(1.0, False), _Rule(0.25, False), _Rule(1.0, True))


@dataclass(frozen=True)
class _Problem:
    """Recourse problem of some rows."""

    predictor: Predictor
    space: ActionSpace
    rows: Tensor
    target: Tensor
    required: float
    unit_cost: Tensor

    def measure(self, index: Tensor, delta: Tensor) -> Tensor:
        """Return by how much the artefact's margins exceed what is required."""
        with torch.no_grad():
            points = self.space.apply(self.rows[index], delta)
        return target_margin(self.predictor.logits(points), self.target[index]) - self.required

    def differentiate(self, index: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return by how much the surrogate's margins exceed what is required, and their gradients."""
        with torch.enable_grad():
            action = delta.detach().requires_grad_(True)
            margin = target_margin(self.predictor.surrogate(self.space.apply(self.rows[index], action)), self.target[index])
            (gradient,) = torch.autograd.grad(margin.sum(), action)
        return margin.detach() - self.required, gradient

    def differentiate_cost(self, index: Tensor, delta: Tensor) -> Tensor:
        """Return the gradient of the cost."""
        with torch.enable_grad():
            action = delta.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.space.cost(self.rows[index], action).sum(), action)
        return gradient

    def cost(self, index: Tensor, delta: Tensor) -> Tensor:
        """Return the costs of actions."""
        with torch.no_grad():
            return self.space.cost(self.rows[index], delta)

    def project(self, index: Tensor, delta: Tensor) -> Tensor:
        """Return the feasible actions next to ``delta``."""
        return self.space.project(self.rows[index], delta)


def couples_columns(space: ActionSpace) -> bool:
    """Return whether a space says by ``couples_columns`` that its columns limit each other."""
    return bool(getattr(space, "couples_columns", False))


def search_along_gradients(
    predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, required_margin: float, *, steps: int = 16, rounds: int = SLIDES
) -> Tensor:
    """Search a cheap action of each row, (N, k), zero where none is found.

    Descents lead to the target. The segments from each end back to the start, and back to the last action that misses the target, are
    bisected. The cheapest action then slides along the boundary, and single columns are taken back in turn where the cost adds up over
    columns.

    Args:
        predictor: model to change the decision of, with a gradient.
        rows: factual rows without their target, (N, ...).
        space: feasible actions.
        target: target class of each row, (N,) int64.
        required_margin: target margin to reach, in logits.
        steps: gradients of one descent at most.
        rounds: rounds of slides.
    """
    width = space.zero(rows[:1]).shape[1]
    with torch.no_grad():
        one_row = rows[:1].expand(width, *rows.shape[1:])
        unit_cost = space.cost(one_row, torch.eye(width)).clamp_min(1e-9)
        is_additive = bool(torch.isclose(space.cost(rows[:1], torch.ones(1, width)), unit_cost.sum(), rtol=1e-4))
    best = space.zero(rows)
    for part in torch.split(torch.arange(len(rows)), ROWS_AT_ONCE):
        problem = _Problem(predictor, space, rows[part], target[part], required_margin, unit_cost)
        best[part] = _search_part(problem, steps, rounds, is_additive)
    return best


def _search_part(problem: _Problem, steps: int, rounds: int, is_additive: bool) -> Tensor:
    everyone = torch.arange(len(problem.rows))
    best, cost = problem.space.zero(problem.rows), torch.full((len(problem.rows),), inf)
    blocked = torch.zeros_like(best, dtype=torch.bool)
    for rule in _RULES:
        for owner, before, after in _descend(problem, everyone, best * 0, blocked, rule, steps):
            _keep_cheaper(problem, best, cost, owner, before, after)
    if is_additive:
        _take_back(problem, best, cost, steps)
    else:
        for _ in range(rounds):
            if not _slide(problem, best, cost):
                break
    return best


def _descend(
    problem: _Problem, index: Tensor, start: Tensor, blocked: Tensor, rule: _Rule, steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Step from ``start`` towards the target, and yield the rows that arrive with their actions before and after the last step."""
    delta, blocked = start.clone(), blocked.clone()
    before = delta
    first: Tensor | None = None
    for step in range(steps + 1):
        excess, gradient = problem.differentiate(index, delta)
        first = -excess if first is None else first
        claimed = (excess >= 0).nonzero()[:, 0]
        arrived = claimed[problem.measure(index[claimed], delta[claimed]) >= 0] if len(claimed) else claimed
        if len(arrived):
            yield index[arrived], before[arrived], delta[arrived]
            left = torch.ones(len(index), dtype=torch.bool)
            left[arrived] = False
            index, delta, before, blocked = index[left], delta[left], before[left], blocked[left]
            excess, gradient, first = excess[left], gradient[left], first[left]
        if len(index) == 0 or step == steps:
            return
        need = (-excess).clamp_min(0) + SURPLUS_SHARE * first.abs()
        gain = torch.minimum(need, (rule.step_fraction + SURPLUS_SHARE) * first.abs()).clamp_min(1e-6)
        slope = torch.where(blocked, 0.0, gradient)
        weighted = slope / problem.unit_cost
        if rule.is_single:
            column = weighted.abs().argmax(1, keepdim=True)
            direction = torch.zeros_like(slope).scatter(1, column, slope.gather(1, column).sign())
        else:
            direction = weighted / problem.unit_cost
        rate = (slope * direction).sum(1)
        push = (gain / rate.clamp_min(1e-12))[:, None] * direction
        after = problem.project(index, delta + torch.where((rate > 0)[:, None], push, 0.0))
        if rule.is_single:
            # A column that the projection holds back gives no more gain.
            blocked |= (direction != 0) & ((after - delta).abs() < 0.5 * push.abs())
        before, delta = delta, after


def _keep_cheaper(problem: _Problem, best: Tensor, cost: Tensor, index: Tensor, before: Tensor, after: Tensor) -> None:
    """Shorten actions that reach the target, and write those that are cheaper than the best ones, in place."""
    for start in (before, torch.zeros_like(before)):
        action = _bisect(problem, index, start, after)
        new_cost = problem.cost(index, action)
        # A row may stand in the index several times. The first of its cheapest actions counts.
        least = torch.full_like(cost, inf).scatter_reduce(0, index, new_cost, "amin")
        place = ((new_cost == least[index]) & (new_cost < cost[index] * (1 - LEAST_GAIN))).nonzero()[:, 0]
        first = torch.full((len(cost),), len(index)).scatter_reduce(0, index[place], place, "amin")
        chosen = first[first < len(index)]
        best[index[chosen]], cost[index[chosen]] = action[chosen], new_cost[chosen]


def _bisect(problem: _Problem, index: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the action nearest to ``start`` on the way to ``end`` that reaches the target, where ``end`` does."""
    best, low, high = end.clone(), torch.zeros(len(index)), torch.ones(len(index))
    for _ in range(HALVINGS):
        share = (low + high) / 2
        tried = problem.project(index, start + share[:, None] * (end - start))
        valid = (problem.measure(index, tried) >= 0) & (tried != 0).any(1)
        best[valid] = tried[valid]
        low, high = torch.where(valid, low, share), torch.where(valid, share, high)
    return best


def _slide(problem: _Problem, best: Tensor, cost: Tensor) -> bool:
    """Move the best actions along the boundary to lower cost, in place, and return whether some became cheaper."""
    index = cost.isfinite().nonzero()[:, 0]
    if len(index) == 0:
        return False
    action, before = best[index], cost.clone()
    _, slope = problem.differentiate(index, action)
    upward = problem.differentiate_cost(index, action)
    size = slope.square().sum(1, keepdim=True).clamp_min(1e-20)
    along = upward - (upward * slope).sum(1, keepdim=True) / size * slope
    along = along / along.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for share in SLIDE_SHARES:
        moved = problem.project(index, action - share * action.norm(dim=1, keepdim=True) * along)
        excess = problem.measure(index, moved)
        pushed = problem.project(index, moved + ((-excess).clamp_min(0) * 1.05 + 1e-6)[:, None] / size * slope)
        reached = (problem.measure(index, pushed) >= 0) & (pushed != 0).any(1)
        kept = index[reached]
        if len(kept):
            end = pushed[reached]
            _keep_cheaper(problem, best, cost, kept, torch.zeros_like(end), end)
    return bool((cost < before * (1 - 10 * LEAST_GAIN)).any())


def _take_back(problem: _Problem, best: Tensor, cost: Tensor, steps: int) -> None:
    """Take back each changed column in turn and descend again without it, in place where that is cheaper."""
    owner, column = (best != 0).nonzero(as_tuple=True)
    if len(owner) == 0:
        return
    blocked = torch.zeros(len(owner), best.shape[1], dtype=torch.bool).scatter(1, column[:, None], True)
    start = torch.where(blocked, 0.0, best[owner])
    for rows, before, after in _descend(problem, owner, start, blocked, _Rule(1.0, True), steps):
        _keep_cheaper(problem, best, cost, rows, before, after)
