"""Refinement of valid actions by reverting features and shortening changes."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: Maximal number of evaluations to bracket the shortest valid change.
_MAX_PROBES = 8
#: Share of a change below which its bracket counts as closed.
_BRACKET_TOLERANCE = 1e-4
#: An action that costs this many times the cheapest one of its row is not shortened.
_MAX_COST_RATIO = 1.25
#: Rounds of reverting and shortening. Later rounds gain only on grids or where the margin is not monotone.
_MAX_ROUNDS = 3


def refine(problem: SearchProblem, index: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Refine valid actions to cheaper ones.

    Of the actions of one row that change the same columns in the same directions, only the cheapest is refined. Actions that cost far
    more than another one of their row are left out.

    Args:
        problem: Recourse problem of N rows.
        index: Row of each action, (M,).
        delta: Actions, (M, d), feasible and valid on the artefact.

    Returns:
        Rows (L,), actions (L, d) and costs (L,) of the refined actions, which are feasible and valid too.
    """
    if len(index) == 0:
        return index, delta, delta.new_zeros(0)
    delta, cost = delta.clone(), problem.cost(index, delta)
    margins = revert_features(problem, index, delta, cost)
    kept = _find_cheapest_per_pattern(index, delta, cost)
    least = torch.full((len(problem.rows),), torch.inf).scatter_reduce(0, index, cost, "amin")
    kept = kept[cost[kept] <= _MAX_COST_RATIO * least[index[kept]]]
    index, delta, cost, margins = index[kept], delta[kept], cost[kept], margins[kept]
    active = torch.arange(len(index))
    for _ in range(_MAX_ROUNDS):
        improved = shorten(problem, index, delta, cost, active, margins)
        # An action of one feature cannot shift effort to another one.
        active = improved[problem.find_changed_features(delta[improved]).sum(1) > 1]
        if len(active) == 0:
            break
        action, new_cost = delta[active], cost[active]
        margins = revert_features(problem, index[active], action, new_cost)
        delta[active], cost[active] = action, new_cost
    return index, delta, cost


def refine_into(problem: SearchProblem, best: Tensor, cost: Tensor, index: Tensor, delta: Tensor) -> None:
    """Refine valid actions and write those that are cheaper into ``best`` (N, d) and ``cost`` (N,)."""
    index, delta, new_cost = refine(problem, index, delta)
    least = torch.full_like(cost, torch.inf).scatter_reduce(0, index, new_cost, "amin")
    winner = ((new_cost == least[index]) & (new_cost < cost[index])).nonzero()[:, 0].flip(0)
    best[index[winner]] = delta[winner]
    cost[index[winner]] = new_cost[winner]


def revert_features(problem: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor) -> Tensor:
    """Revert whole features in place, the one that saves most first, as long as the action stays valid.

    Returns:
        Margins (M, F) of each resulting action with one more feature reverted. Entries of unchanged features are meaningless.
    """
    margins = problem.initial_margin[index][:, None].repeat(1, len(problem.incidence))
    active = torch.arange(len(index))
    while True:
        changed = problem.find_changed_features(delta[active])
        several = changed.sum(1) > 1  # Reverting the last feature would give the factual row.
        active, changed = active[several], changed[several]
        if len(active) == 0:
            return margins
        owner, feature = changed.nonzero(as_tuple=True)
        position = active[owner]
        tried = delta[position] * (1 - problem.incidence[feature])
        margins[position, feature] = margin = problem.compute_projected_margin(index[position], tried)
        new_cost = torch.where(margin >= problem.required_margin, problem.cost(index[position], tried), torch.inf)
        active = _keep_best(delta, cost, position, tried, new_cost)
        margins[active] = problem.initial_margin[index[active]][:, None]


def shorten(problem: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, active: Tensor, margins: Tensor) -> Tensor:
    """Shorten the column that saves most, in place, and return the actions that became cheaper.

    Where the cost is not a sum over features, shortening all columns together is tried too.

    Args:
        problem: Recourse problem of N rows.
        index: Row of each action, (M,).
        delta: Actions, (M, d).
        cost: Cost of each action, (M,).
        live: Positions of the actions to shorten, (L,).
        margins: Margins of these with one feature reverted, (L, F).
    """
    is_changed = (delta[active] != 0) & problem.is_single
    owner, column = is_changed.nonzero(as_tuple=True)
    low = margins[owner, problem.feature_of_column[column]]
    high = problem.compute_projected_margin(index[active], delta[active])
    is_shortenable = _find_shortenable(problem, low, high[owner])
    owner, column, low = owner[is_shortenable], column[is_shortenable], low[is_shortenable]
    part = mask_columns(column, delta.shape[1])
    if not problem.is_additive:
        several_changed = (is_changed.sum(1) > 1).nonzero()[:, 0]
        reverted_margin = problem.compute_projected_margin(
            index[active[several_changed]], torch.where(is_changed[several_changed], 0, delta[active[several_changed]])
        )
        is_shortenable = _find_shortenable(problem, reverted_margin, high[several_changed])
        owner, part, low = (
            torch.cat((owner, several_changed[is_shortenable])),
            torch.cat((part, is_changed[several_changed[is_shortenable]])),
            torch.cat((low, reverted_margin[is_shortenable])),
        )
    if len(owner) == 0:
        return owner
    position = active[owner]
    shorter, new_cost = _find_shortest(
        problem,
        index[position],
        delta[position],
        cost[position],
        part,
        low - problem.required_margin,
        high[owner] - problem.required_margin,
    )
    return _keep_best(delta, cost, position, shorter, new_cost)


def _find_shortenable(problem: SearchProblem, low: Tensor, high: Tensor) -> Tensor:
    """Find positions where the margin is too low without the change and clearly above the required one with all of it."""
    return ((low < problem.required_margin) & (high - problem.required_margin > _BRACKET_TOLERANCE * (high - low))).nonzero()[:, 0]


def search_nearer_segments(problem: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, points: int) -> Tensor:
    """Search each column for shorter valid changes on a grid of ``points``, in place, and return the actions that became cheaper.

    Along one column the margin may cross the boundary several times, while ``shorten`` brackets one crossing only.
    """
    owner, column = ((delta != 0) & problem.is_single).nonzero(as_tuple=True)
    if len(owner) == 0:
        return owner
    part = mask_columns(column, delta.shape[1]).repeat_interleave(points, 0)
    position = owner.repeat_interleave(points)
    share = (torch.arange(1, points + 1) / (points + 1)).repeat(len(owner))
    tried = torch.where(part, share[:, None] * delta[position], delta[position])
    on_grid = (part & ~problem.is_continuous).any(1)
    if bool(on_grid.any()):
        tried[on_grid] = problem.project(index[position[on_grid]], tried[on_grid])
    new_cost = torch.where(
        problem.compute_projected_margin(index[position], tried) >= problem.required_margin, problem.cost(index[position], tried), torch.inf
    )
    improved = _keep_best(delta, cost, position, tried, new_cost)
    action, new_cost = delta[improved], cost[improved]
    margins = revert_features(problem, index[improved], action, new_cost)
    delta[improved], cost[improved] = action, new_cost
    shorten(problem, index, delta, cost, improved, margins)
    return improved


def _find_shortest(
    problem: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, part: Tensor, surplus_low: Tensor, surplus_high: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the smallest share of ``part`` (M, d) of each action that still reaches the target by bracketed false position.

    Margins of ReLU networks are piecewise linear along the line, so the secant mostly hits the boundary at once.

    Args:
        problem: Recourse problem of N rows.
        index: Row of each action, (M,).
        delta: Actions, (M, d).
        cost: Cost of each action, (M,).
        part: Columns to shorten, (M, d) bool.
        surplus_low: Margin above the required one without the part, (M,), negative.
        surplus_high: Margin above the required one with all of the part, (M,).

    Returns:
        Actions (M, d) and their costs (M,).
    """
    best, new_cost = delta.clone(), cost.clone()
    scale = surplus_high - surplus_low
    low, high = torch.zeros(len(index)), torch.ones(len(index))
    active = torch.arange(len(index))
    for probe in range(_MAX_PROBES):
        if len(active) == 0:
            break
        a, b = low[active], high[active]
        secant = a - (b - a) * surplus_low[active] / (surplus_high[active] - surplus_low[active])
        # Probing on alternate sides of the root moves both ends of the bracket. Every fourth probe bisects.
        offset = _BRACKET_TOLERANCE if probe % 2 == 0 else -_BRACKET_TOLERANCE
        share = (a + b) / 2 if probe % 4 == 3 else secant + offset / 2 * (b - a)
        share = torch.minimum(torch.maximum(share, a), b)
        tried = torch.where(part[active], share[:, None] * delta[active], delta[active])
        on_grid = (part[active] & ~problem.is_continuous).any(1)
        if bool(on_grid.any()):
            tried[on_grid] = problem.project(index[active[on_grid]], tried[on_grid])
        excess = problem.compute_projected_margin(index[active], tried) - problem.required_margin
        valid = excess >= 0
        tried_cost = problem.cost(index[active], tried)
        is_better = valid & (tried_cost < new_cost[active])
        best[active[is_better]], new_cost[active[is_better]] = tried[is_better], tried_cost[is_better]
        high[active], low[active] = torch.where(valid, share, b), torch.where(valid, a, share)
        surplus_high[active] = torch.where(valid, excess, surplus_high[active])
        surplus_low[active] = torch.where(valid, surplus_low[active], excess)
        done = (surplus_high[active] <= _BRACKET_TOLERANCE * scale[active]) | (high[active] - low[active] <= _BRACKET_TOLERANCE)
        active = active[~done]
    return best, new_cost


def mask_columns(column: Tensor, width: int) -> Tensor:
    """Return masks that are true in one ``column`` (M,) each, (M, width) bool."""
    return torch.zeros(len(column), width, dtype=torch.bool).scatter_(1, column[:, None], True)


def _find_cheapest_per_pattern(index: Tensor, delta: Tensor, cost: Tensor) -> Tensor:
    """Find the cheapest action of each row for each set of changed columns and directions."""
    # Square roots as column weights give different patterns different sums.
    weight = torch.sqrt(torch.arange(2, delta.shape[1] + 2, dtype=torch.float64))
    pattern = delta.sign().to(torch.float64) @ weight
    order = cost.argsort(stable=True)
    order = order[pattern[order].argsort(stable=True)]
    order = order[index[order].argsort(stable=True)]
    row, kind = index[order], pattern[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (kind[1:] != kind[:-1])
    return order[first].sort().values


def _keep_best(delta: Tensor, cost: Tensor, position: Tensor, tried: Tensor, new_cost: Tensor) -> Tensor:
    """Write the cheapest tried action of each position in place if it is cheaper, and return the positions that gained."""
    least = torch.full_like(cost, torch.inf).scatter_reduce(0, position, new_cost, "amin")
    improved = least < cost * (1 - 1e-6)
    winner = ((new_cost == least[position]) & improved[position]).nonzero()[:, 0]
    # Ties go to the first candidate.
    first = torch.full((len(cost),), len(new_cost)).scatter_reduce(0, position[winner], winner, "amin")[improved]
    delta[improved] = tried[first]
    cost[improved] = new_cost[first]
    return improved.nonzero()[:, 0]
