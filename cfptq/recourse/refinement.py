"""Making a valid action cheaper without ever losing it: take features back, then shorten what is left."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: Most evaluations spent on finding how far a feature can be taken back, and the share of it that no longer matters.
_PROBES = 8
_CLOSE = 1e-4
#: An action that costs so many times what another of its row costs, needless features gone, is not shortened.
_DEARER = 1.25
#: Passes of taking back and shortening; the second finds something only where columns are integers or the margin is not monotone.
_ROUNDS = 3


def refine(terrain: SearchProblem, index: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cheaper actions, fewer than came in: of one row's actions that change the same things, the cheapest is worked on, if it is not far
    dearer than another.

    ``delta`` must be feasible and valid on the artefact; so are the results.

    Args:
        index: (M,). delta: (M, d).

    Returns:
        Rows, actions and costs of what is left, (L,), (L, d), (L,).
    """
    if len(index) == 0:
        return index, delta, delta.new_zeros(0)
    delta, cost = delta.clone(), terrain.cost(index, delta)
    margins = take_back(terrain, index, delta, cost)
    kept = _one_of_a_kind(index, delta, cost)
    least = torch.full((len(terrain.rows),), torch.inf).scatter_reduce(0, index, cost, "amin")
    kept = kept[cost[kept] <= _DEARER * least[index[kept]]]
    index, delta, cost, margins = index[kept], delta[kept], cost[kept], margins[kept]
    live = torch.arange(len(index))
    for _ in range(_ROUNDS):
        gained = shorten(terrain, index, delta, cost, live, margins)
        # With one feature left there is nothing more to trade.
        live = gained[terrain.changed(delta[gained]).sum(1) > 1]
        if len(live) == 0:
            break
        action, price = delta[live], cost[live]
        margins = take_back(terrain, index[live], action, price)
        delta[live], cost[live] = action, price
    return index, delta, cost


def take_back(terrain: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor) -> Tensor:
    """Undo whole features, the one that saves most first, while the target holds. Writes into its arguments.

    Returns:
        Margins with each feature of what is left taken back, (M, F); those of features that are not changed mean nothing.
    """
    margins = terrain.outset[index][:, None].repeat(1, len(terrain.member))
    live = torch.arange(len(index))
    while True:
        changed = terrain.changed(delta[live])
        several = changed.sum(1) > 1  # taking back all there is would give the factual row
        live, changed = live[several], changed[several]
        if len(live) == 0:
            return margins
        owner, feature = changed.nonzero(as_tuple=True)
        walk = live[owner]
        tried = delta[walk] * (1 - terrain.member[feature])
        margins[walk, feature] = margin = terrain.margin(index[walk], tried)
        price = torch.where(margin >= terrain.level, terrain.cost(index[walk], tried), torch.inf)
        live = _adopt_best(delta, cost, walk, tried, price)
        margins[live] = terrain.outset[index[live]][:, None]


def shorten(terrain: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, live: Tensor, margins: Tensor) -> Tensor:
    """Shorten the one column (or, where cost is no sum over features, all together) that saves most. Returns those that gained.

    Args:
        live: the actions to work on, (L,). margins: theirs with each feature taken back, (L, F).
    """
    moved = (delta[live] != 0) & terrain.single
    owner, column = moved.nonzero(as_tuple=True)
    low = margins[owner, terrain.owner[column]]
    high = terrain.margin(index[live], delta[live])
    worth = _worth_shortening(terrain, low, high[owner])
    owner, column, low = owner[worth], column[worth], low[worth]
    part = only(column, delta.shape[1])
    if not terrain.additive:
        together = (moved.sum(1) > 1).nonzero()[:, 0]
        rest = terrain.margin(index[live[together]], torch.where(moved[together], 0, delta[live[together]]))
        worth = _worth_shortening(terrain, rest, high[together])
        owner, part, low = torch.cat((owner, together[worth])), torch.cat((part, moved[together[worth]])), torch.cat((low, rest[worth]))
    if len(owner) == 0:
        return owner
    walk = live[owner]
    shorter, price = _shortest(terrain, index[walk], delta[walk], cost[walk], part, low - terrain.level, high[owner] - terrain.level)
    return _adopt_best(delta, cost, walk, shorter, price)


def _worth_shortening(terrain: SearchProblem, low: Tensor, high: Tensor) -> Tensor:
    """Positions where the margin without the part is below the level and that with all of it is noticeably above."""
    return ((low < terrain.level) & (high - terrain.level > _CLOSE * (high - low))).nonzero()[:, 0]


def rescan(terrain: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, points: int) -> Tensor:
    """Look for valid stretches nearer to the factual row than the one an action lies in, and shorten there. Writes into its arguments.

    Along one column the margin may cross the boundary more than once; a bracket sees one crossing only. Returns those that gained.
    """
    owner, column = ((delta != 0) & terrain.single).nonzero(as_tuple=True)
    if len(owner) == 0:
        return owner
    part = only(column, delta.shape[1]).repeat_interleave(points, 0)
    walk = owner.repeat_interleave(points)
    share = (torch.arange(1, points + 1) / (points + 1)).repeat(len(owner))
    tried = torch.where(part, share[:, None] * delta[walk], delta[walk])
    stepped = (part & ~terrain.smooth).any(1)
    if bool(stepped.any()):
        tried[stepped] = terrain.project(index[walk[stepped]], tried[stepped])
    price = torch.where(terrain.margin(index[walk], tried) >= terrain.level, terrain.cost(index[walk], tried), torch.inf)
    gained = _adopt_best(delta, cost, walk, tried, price)
    action, price = delta[gained], cost[gained]
    margins = take_back(terrain, index[gained], action, price)
    delta[gained], cost[gained] = action, price
    shorten(terrain, index, delta, cost, gained, margins)
    return gained


def _shortest(
    terrain: SearchProblem, index: Tensor, delta: Tensor, cost: Tensor, part: Tensor, surplus_low: Tensor, surplus_high: Tensor
) -> tuple[Tensor, Tensor]:
    """The least share of ``part`` (M, d) of each action that still reaches the target: a bracketed false position.

    Margins of ReLU networks are piecewise linear along the line, so that the secant mostly lands on the boundary at once. The surpluses
    of margin (M,) are those of the action without the part and with all of it.
    """
    best, price = delta.clone(), cost.clone()
    scale = surplus_high - surplus_low
    low, high = torch.zeros(len(index)), torch.ones(len(index))
    live = torch.arange(len(index))
    for probe in range(_PROBES):
        if len(live) == 0:
            break
        a, b = low[live], high[live]
        secant = a - (b - a) * surplus_low[live] / (surplus_high[live] - surplus_low[live])
        # Alternately a little to either side of the root, so that both ends of the bracket close in on it; at times the middle.
        share = (a + b) / 2 if probe % 4 == 3 else secant + (_CLOSE if probe % 2 == 0 else -_CLOSE) / 2 * (b - a)
        share = torch.minimum(torch.maximum(share, a), b)
        tried = torch.where(part[live], share[:, None] * delta[live], delta[live])
        stepped = (part[live] & ~terrain.smooth).any(1)
        if bool(stepped.any()):
            tried[stepped] = terrain.project(index[live[stepped]], tried[stepped])
        surplus = terrain.margin(index[live], tried) - terrain.level
        valid = surplus >= 0
        cheaper = terrain.cost(index[live], tried)
        adopt = valid & (cheaper < price[live])
        best[live[adopt]], price[live[adopt]] = tried[adopt], cheaper[adopt]
        high[live], low[live] = torch.where(valid, share, b), torch.where(valid, a, share)
        surplus_high[live] = torch.where(valid, surplus, surplus_high[live])
        surplus_low[live] = torch.where(valid, surplus_low[live], surplus)
        done = (surplus_high[live] <= _CLOSE * scale[live]) | (high[live] - low[live] <= _CLOSE)
        live = live[~done]
    return best, price


def only(column: Tensor, width: int) -> Tensor:
    """Masks that hold in one column each, (M, width) bool; ``column`` (M,)."""
    return torch.zeros(len(column), width, dtype=torch.bool).scatter_(1, column[:, None], True)


def _one_of_a_kind(index: Tensor, delta: Tensor, cost: Tensor) -> Tensor:
    """Positions of the cheapest action of each row for each set of changed columns and directions."""
    # A fixed irrational-looking weight a column makes different patterns differ in their sum.
    weight = torch.sqrt(torch.arange(2, delta.shape[1] + 2, dtype=torch.float64))
    pattern = delta.sign().to(torch.float64) @ weight
    order = cost.argsort(stable=True)
    order = order[pattern[order].argsort(stable=True)]
    order = order[index[order].argsort(stable=True)]
    row, kind = index[order], pattern[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = (row[1:] != row[:-1]) | (kind[1:] != kind[:-1])
    return order[first].sort().values


def _adopt_best(delta: Tensor, cost: Tensor, walk: Tensor, tried: Tensor, price: Tensor) -> Tensor:
    """Put the cheapest of the tried actions of each walk in place if it is cheaper; the walks that gained."""
    least = torch.full_like(cost, torch.inf).scatter_reduce(0, walk, price, "amin")
    gained = least < cost * (1 - 1e-6)
    winner = ((price == least[walk]) & gained[walk]).nonzero()[:, 0]
    # Of equal offers the first one counts.
    first = torch.full((len(cost),), len(price)).scatter_reduce(0, walk[winner], winner, "amin")[gained]
    delta[gained] = tried[first]
    cost[gained] = price[first]
    return gained.nonzero()[:, 0]
