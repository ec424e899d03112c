"""Gradient descents to the decision boundary, with steps sized by the linearized margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: Share of the initial margin shortfall by which a step aims beyond the boundary. Refinement reverts the surplus.
_SURPLUS_SHARE = 0.1
#: A descent ends if it costs this many times the cheapest valid action that another descent of its row found.
_MAX_COST_RATIO = 1.5


@dataclass(frozen=True)
class Descent:
    """Rule of one descent to the target.

    Attributes:
        exponent: Exponent q of the step direction, default 1. A column moves by (margin gain per cost)^q / cost. 1 is steepest descent
            in the weighted l2 norm, and larger values favour the cheapest columns. Infinity moves one feature at a time, which is
            steepest descent in the weighted l1 norm.
        step_fraction: Share of the initial margin shortfall that one step may aim at, default 1 (a Newton step).
        is_weighted: Weight gradients by costs, default True. ``False`` takes the plain gradient.
        skipped_features: Number of better features to skip in the first step, default 0. Used with an infinite exponent only.
    """

    exponent: float = 1.0
    step_fraction: float = 1.0
    is_weighted: bool = True
    skipped_features: int = 0


def descend_to_target(
    problem: SearchProblem,
    index: Tensor,
    start: Tensor,
    rules: Sequence[Descent],
    steps: int,
    max_cost: Tensor,
    forbidden: Tensor | None = None,
    initial: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Descend from ``start`` by each of the rules until the artefact predicts the target.

    Args:
        problem: Recourse problem of N rows.
        index: Rows to descend for, (M,).
        start: First action of each, (M, d).
        rules: Rules with the same exponent and weighting. They run as one batch.
        steps: Maximal number of gradient evaluations of a descent.
        max_cost: Cost of each row at which a descent ends, (N,). It is lowered in place whenever a descent reaches the target, because
            an action that costs far more is not refined to a cheaper one.
        forbidden: Columns that may not change, (M, d) bool. ``None`` forbids none.
        initial: Margins (M,) and gradients (M, d) at ``start`` if they are known and ``start`` is feasible.

    Returns:
        Rows and actions of the descents that reach the target.
    """
    count, several = len(index), len(rules)
    fraction = torch.tensor([rule.step_fraction for rule in rules]).repeat_interleave(count)
    skipped = torch.tensor([rule.skipped_features for rule in rules]).repeat_interleave(count)
    index, total = index.repeat(several), start.repeat(several, 1)
    forbidden = None if forbidden is None else forbidden.repeat(several, 1)
    delta = total if initial else problem.project(index, total)
    shortfall = torch.zeros(len(index))
    overestimate = torch.zeros(len(index))  # Surrogate margin minus artefact margin where the target was predicted.
    is_stalled = torch.zeros(len(index), dtype=torch.bool)
    arrived: list[tuple[Tensor, Tensor]] = []
    ended: list[tuple[Tensor, Tensor]] = []  # Descents that ended without a predicted target.
    for step in range(steps):
        if len(index) == 0:
            break
        if initial and step == 0:
            margin, gradient = initial[0].repeat(several), initial[1].repeat(several, 1)
        else:
            margin, gradient = problem.differentiate_margin(index, delta)
        is_predicted = margin >= problem.required_margin
        keep = torch.ones_like(is_predicted)
        cost = problem.cost(index, delta)
        if bool(is_predicted.any()):
            predicted = is_predicted.nonzero()[:, 0]
            actual = problem.compute_margin(index[predicted], delta[predicted])
            good = predicted[actual >= problem.required_margin]
            arrived.append((index[good], delta[good]))
            max_cost.scatter_reduce_(0, index[good], _MAX_COST_RATIO * cost[good], "amin")
            keep[good] = False
            overestimate[predicted] = (margin[predicted] - actual).clamp_min(0) + _SURPLUS_SHARE * shortfall[predicted]
        keep &= cost < max_cost[index]
        ended.append((index[keep & is_stalled], delta[keep & is_stalled]))
        keep &= ~is_stalled
        if not bool(keep.all()):
            index, total, delta, margin, gradient = index[keep], total[keep], delta[keep], margin[keep], gradient[keep]
            shortfall, overestimate, fraction, skipped = shortfall[keep], overestimate[keep], fraction[keep], skipped[keep]
            forbidden = forbidden[keep] if forbidden is not None else None
            if len(index) == 0:
                break
        need = problem.required_margin - margin + overestimate
        if step == 0:
            shortfall = need
        gain = torch.minimum(need + _SURPLUS_SHARE * shortfall, (fraction + _SURPLUS_SHARE) * shortfall).clamp_min(1e-6)
        before = total
        if rules[0].exponent == inf:
            total = _step_one_feature(problem, index, total, delta, gradient, gain, forbidden, skipped if step == 0 else None)
        else:
            total = _step_all_columns(problem, index, total, gradient, gain, rules[0], forbidden)
        is_stalled = (total == before).all(1)
        delta = problem.project(index, total)
    rows, actions = (torch.cat(parts) for parts in zip(*ended, (index, delta), strict=True))
    is_valid = problem.compute_margin(rows, actions) >= problem.required_margin
    arrived.append((rows[is_valid], actions[is_valid]))
    return torch.cat([rows for rows, _ in arrived]), torch.cat([actions for _, actions in arrived])


def _step_all_columns(
    problem: SearchProblem, index: Tensor, total: Tensor, gradient: Tensor, margin_gain: Tensor, rule: Descent, forbidden: Tensor | None
) -> Tensor:
    """Take a step in every column that can move, with the length of a Newton step."""
    lowest, highest = problem.lowest[index], problem.highest[index]
    up = gradient > 0
    is_one_hot = ~problem.is_single & (problem.feature_of_column >= 0)
    lowest = torch.where(is_one_hot, -1.0, lowest)
    highest = torch.where(problem.is_reachable, 1.0, highest)
    free = torch.where(up, total < highest, total > lowest)
    if forbidden is not None:
        free &= ~forbidden
    slope = torch.where(free, gradient, 0)
    unit_cost = problem.unit_cost if rule.is_weighted else torch.ones_like(problem.unit_cost)
    gain = slope.abs() / unit_cost
    gain = gain / gain.amax(1, keepdim=True).clamp_min(1e-20)
    direction = slope.sign() * gain**rule.exponent / unit_cost
    rate = (slope * direction).sum(1).clamp_min(1e-12)
    stepped = total + (margin_gain / rate)[:, None] * direction
    return torch.minimum(torch.maximum(stepped, lowest), highest)


def _step_one_feature(
    problem: SearchProblem,
    index: Tensor,
    total: Tensor,
    delta: Tensor,
    gradient: Tensor,
    margin_gain: Tensor,
    forbidden: Tensor | None,
    skipped: Tensor | None,
) -> Tensor:
    """Move the one feature whose estimated cost to the target is lowest.

    A single column moves as far as needed. A one-hot group moves to another level. ``skipped`` (M,) is the number of better features
    that each descent skips.
    """
    need = margin_gain[:, None]
    changed = problem.find_changed_features(delta)
    whole, reach = _estimate_column_costs(problem, index, total, delta, gradient, need, changed)
    if forbidden is not None:
        whole.masked_fill_(forbidden, inf)
    if problem.space.max_changes is not None:
        full = (changed.sum(1) >= problem.space.max_changes).nonzero()[:, 0]
        if len(full):
            fresh = ~(changed[full].to(delta.dtype) @ problem.incidence > 0)
            whole[full] = torch.where(fresh, inf, whole[full])
    if skipped is not None and bool(skipped.any()):
        # Two levels of one group count as one feature.
        feature = torch.full((len(index), len(problem.incidence)), inf)
        feature = feature.scatter_reduce(1, problem.feature_of_column.clamp_min(0).expand_as(whole), whole, "amin")
        rank = skipped.clamp(max=len(problem.incidence) - 1)[:, None]
        least = feature.sort(dim=1).values.gather(1, rank)
        whole = torch.where(whole < least, inf, whole)
    best = whole.argmin(1, keepdim=True)
    is_stalled = whole.gather(1, best).isinf()
    is_single = problem.is_single[best]
    result = total.clone()
    if len(problem.single_columns):
        length = reach.gather(1, problem.single_position[best].clamp_min(0))
        result = total.scatter_add(1, best, torch.where(is_single & ~is_stalled, gradient.gather(1, best).sign() * length, 0.0))
    changing_level = (~(is_single | is_stalled))[:, 0].nonzero()[:, 0]
    if len(changing_level):
        column = best[changing_level]
        own = problem.incidence[problem.feature_of_column[column[:, 0]]] > 0
        current = problem.current_level[index[changing_level]]
        # A step in the column of the current level means a move to the level that an encoder dropped.
        value = torch.where(current.gather(1, column), -1.0, 1.0)
        result[changing_level] = torch.where(own, -1.0 * current, result[changing_level]).scatter(1, column, value)
    return result


def _estimate_column_costs(
    problem: SearchProblem, index: Tensor, total: Tensor, delta: Tensor, gradient: Tensor, need: Tensor, changed: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate the cost of the needed margin by each column alone, and the length of each single column's change.

    Returns:
        Costs (M, d), infinite where a column cannot move, and lengths (M, S) in the order of ``problem.single_columns``. The cost of
        a level is at least that of the whole change.
    """
    columns = problem.single_columns
    slope, position = gradient[:, columns], total[:, columns]
    room = torch.where(slope > 0, problem.highest[index][:, columns] - position, position - problem.lowest[index][:, columns]).clamp_min(0)
    steepness = slope.abs().clamp_min(1e-12)
    reach = torch.minimum(need / steepness, room)
    single_cost = torch.where(room > 0, need * problem.unit_cost[columns] / steepness, inf)
    if len(problem.group_incidence) == 0:
        return torch.full_like(gradient, inf).index_copy(1, columns, single_cost), reach
    group = problem.group_incidence
    current, whole = problem.current_level[index], problem.level_cost[index]
    changed_rows = (changed & problem.is_grouped).any(1).nonzero()[:, 0]
    if len(changed_rows):
        action = delta[changed_rows]
        is_left = (changed[changed_rows].to(action.dtype) * problem.is_grouped) @ problem.incidence > 0
        spent = (action.abs() * problem.unit_cost) @ group.T @ group
        current[changed_rows] = torch.where(is_left, action > 0, current[changed_rows])
        is_excluded = current[changed_rows] | (is_left & problem.current_level[index[changed_rows]])
        whole[changed_rows] = torch.where(is_excluded, inf, (whole[changed_rows] - spent).clamp_min(1e-9))
    gain = gradient - (gradient * current) @ group.T @ group
    if bool(problem.has_dropped_level.any()):
        gain = torch.where(current & problem.has_dropped_level, -gradient, gain)
    whole *= (need / gain.clamp_min(1e-12)).clamp_min_(1.0)
    whole.masked_fill_(gain <= 0, inf)
    return whole.index_copy_(1, columns, single_cost), reach
