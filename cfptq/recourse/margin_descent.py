"""Ways to the boundary: steps sized by the linearized margin, spent where effort is cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: A step aims this share of the first shortfall beyond the boundary; refinement takes the surplus back.
_SURPLUS = 0.1
#: A walk is given up where it has cost so many times what another walk of its row paid for the whole way.
_DEARER = 1.5


@dataclass(frozen=True)
class Descent:
    """One rule for walking to the target.

    Attributes:
        sharpness: q. A column moves by (gain per cost)^q / price: 1 is steepest descent in the weighted l2 norm, larger q favours
            the cheapest columns, infinity moves one feature at a time, steepest descent in the weighted l1 norm.
        pace: the share of the first shortfall in margin that one step may aim at; 1 is a Newton step.
        priced: ``False`` leaves prices out and takes the plain gradient.
        first: with infinite sharpness, how many better-looking features to pass over in the first step.
    """

    sharpness: float = 1.0
    pace: float = 1.0
    priced: bool = True
    first: int = 0


def descend(
    terrain: SearchProblem,
    index: Tensor,
    start: Tensor,
    rules: Sequence[Descent],
    steps: int,
    ceiling: Tensor,
    banned: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Walk from ``start`` until the artefact gives the target, by each of the rules.

    Args:
        index: rows (M,). start: first action of each, (M, d).
        rules: of one sharpness and pricing; their walks are taken in one batch.
        ceiling: a walk whose cost passes that of its row is given up, (N,). Lowered as walks arrive: what is far dearer than another walk
            will not be refined to something cheaper.
        banned: columns that may not be moved, (M, d) bool.
        seen: margins and gradients at the start where they are known and ``start`` is feasible.

    Returns:
        Rows and actions of the walks that arrived.
    """
    count, several = len(index), len(rules)
    pace = torch.tensor([rule.pace for rule in rules]).repeat_interleave(count)
    first = torch.tensor([rule.first for rule in rules]).repeat_interleave(count)
    index, total = index.repeat(several), start.repeat(several, 1)
    banned = None if banned is None else banned.repeat(several, 1)
    delta = total if seen else terrain.project(index, total)
    shortfall = torch.zeros(len(index))
    doubt = torch.zeros(len(index))  # by how much the surrogate has been too hopeful
    stuck = torch.zeros(len(index), dtype=torch.bool)
    arrived: list[tuple[Tensor, Tensor]] = []
    ended: list[tuple[Tensor, Tensor]] = []  # where the surrogate does not see the target
    for step in range(steps):
        if len(index) == 0:
            break
        if seen and step == 0:
            margin, gradient = seen[0].repeat(several), seen[1].repeat(several, 1)
        else:
            margin, gradient = terrain.slope(index, delta)
        there = margin >= terrain.level
        keep = torch.ones_like(there)
        cost = terrain.cost(index, delta)
        if bool(there.any()):
            hopeful = there.nonzero()[:, 0]
            sure = terrain.margin(index[hopeful], delta[hopeful])
            good = hopeful[sure >= terrain.level]
            arrived.append((index[good], delta[good]))
            ceiling.scatter_reduce_(0, index[good], _DEARER * cost[good], "amin")
            keep[good] = False
            doubt[hopeful] = (margin[hopeful] - sure).clamp_min(0) + _SURPLUS * shortfall[hopeful]
        keep &= cost < ceiling[index]
        ended.append((index[keep & stuck], delta[keep & stuck]))
        keep &= ~stuck
        if not bool(keep.all()):
            index, total, delta, margin, gradient = index[keep], total[keep], delta[keep], margin[keep], gradient[keep]
            shortfall, doubt, pace, first = shortfall[keep], doubt[keep], pace[keep], first[keep]
            banned = banned[keep] if banned is not None else None
            if len(index) == 0:
                break
        need = terrain.level - margin + doubt
        if step == 0:
            shortfall = need
        aim = torch.minimum(need + _SURPLUS * shortfall, (pace + _SURPLUS) * shortfall).clamp_min(1e-6)
        before = total
        if rules[0].sharpness == inf:
            total = _one_feature(terrain, index, total, delta, gradient, aim, banned, first if step == 0 else None)
        else:
            total = _many_columns(terrain, index, total, gradient, aim, rules[0], banned)
        stuck = (total == before).all(1)
        delta = terrain.project(index, total)
    rows, actions = (torch.cat(parts) for parts in zip(*ended, (index, delta), strict=True))
    sure = terrain.margin(rows, actions) >= terrain.level
    arrived.append((rows[sure], actions[sure]))
    return torch.cat([rows for rows, _ in arrived]), torch.cat([actions for _, actions in arrived])


def _many_columns(
    terrain: SearchProblem, index: Tensor, total: Tensor, gradient: Tensor, aim: Tensor, rule: Descent, banned: Tensor | None
) -> Tensor:
    """A step in every column that can move, its length by Newton's rule."""
    lowest, highest = terrain.lowest[index], terrain.highest[index]
    up = gradient > 0
    level = ~terrain.single & (terrain.owner >= 0)
    lowest = torch.where(level, -1.0, lowest)
    highest = torch.where(terrain.reachable, 1.0, highest)
    free = torch.where(up, total < highest, total > lowest)
    if banned is not None:
        free &= ~banned
    slope = torch.where(free, gradient, 0)
    price = terrain.price if rule.priced else torch.ones_like(terrain.price)
    gain = slope.abs() / price
    gain = gain / gain.amax(1, keepdim=True).clamp_min(1e-20)
    direction = slope.sign() * gain**rule.sharpness / price
    rate = (slope * direction).sum(1).clamp_min(1e-12)
    moved = total + (aim / rate)[:, None] * direction
    return torch.minimum(torch.maximum(moved, lowest), highest)


def _one_feature(
    terrain: SearchProblem,
    index: Tensor,
    total: Tensor,
    delta: Tensor,
    gradient: Tensor,
    aim: Tensor,
    banned: Tensor | None,
    passed_over: Tensor | None,
) -> Tensor:
    """Move the one feature that promises the target at the least cost: a single column as far as needed, or a whole level.

    ``passed_over`` (M,): how many better-looking features each walk leaves aside.
    """
    need = aim[:, None]
    changed = terrain.changed(delta)
    whole, reach = _costs_by_column(terrain, index, total, delta, gradient, need, changed)
    if banned is not None:
        whole.masked_fill_(banned, inf)
    if terrain.space.max_changes is not None:
        full = (changed.sum(1) >= terrain.space.max_changes).nonzero()[:, 0]
        if len(full):
            fresh = ~(changed[full].to(delta.dtype) @ terrain.member > 0)
            whole[full] = torch.where(fresh, inf, whole[full])
    if passed_over is not None and bool(passed_over.any()):
        # Features, not columns: two levels of one group are one feature.
        feature = torch.full((len(index), len(terrain.member)), inf)
        feature = feature.scatter_reduce(1, terrain.owner.clamp_min(0).expand_as(whole), whole, "amin")
        rank = passed_over.clamp(max=len(terrain.member) - 1)[:, None]
        least = feature.sort(dim=1).values.gather(1, rank)
        whole = torch.where(whole < least, inf, whole)
    best = whole.argmin(1, keepdim=True)
    stuck = whole.gather(1, best).isinf()
    alone = terrain.single[best]
    slide = torch.where(alone & ~stuck, gradient.gather(1, best).sign() * reach.gather(1, terrain.place[best].clamp_min(0)), 0.0)
    result = total.scatter_add(1, best, slide)
    jumping = (~(alone | stuck))[:, 0].nonzero()[:, 0]
    if len(jumping):
        column = best[jumping]
        own = terrain.member[terrain.owner[column[:, 0]]] > 0
        standing = terrain.standing[index[jumping]]
        # To leave the level one stands on for no other is to go to the level that an encoder dropped.
        there = torch.where(standing.gather(1, column), -1.0, 1.0)
        result[jumping] = torch.where(own, -1.0 * standing, result[jumping]).scatter(1, column, there)
    return result


def _costs_by_column(
    terrain: SearchProblem, index: Tensor, total: Tensor, delta: Tensor, gradient: Tensor, need: Tensor, changed: Tensor
) -> tuple[Tensor, Tensor]:
    """What the whole way would cost at each column's rate, (M, d), infinite where it cannot move; and how far each single column would
    go, (M, S) in the order of ``terrain.alone``. A level is paid in full even where less of it is needed."""
    alone = terrain.alone
    rising, moved = gradient[:, alone], total[:, alone]
    room = torch.where(rising > 0, terrain.highest[index][:, alone] - moved, moved - terrain.lowest[index][:, alone]).clamp_min(0)
    steepness = rising.abs().clamp_min(1e-12)
    reach = torch.minimum(need / steepness, room)
    slid = torch.where(room > 0, need * terrain.price[alone] / steepness, inf)
    if len(terrain.groups) == 0:
        return torch.full_like(gradient, inf).index_copy(1, alone, slid), reach
    group = terrain.groups
    now, whole = terrain.standing[index], terrain.change[index]
    elsewhere = (changed & terrain.grouped).any(1).nonzero()[:, 0]
    if len(elsewhere):
        action = delta[elsewhere]
        gone = (changed[elsewhere].to(action.dtype) * terrain.grouped) @ terrain.member > 0
        paid = (action.abs() * terrain.price) @ group.T @ group
        now[elsewhere] = torch.where(gone, action > 0, now[elsewhere])
        taken = now[elsewhere] | (gone & terrain.standing[index[elsewhere]])
        whole[elsewhere] = torch.where(taken, inf, (whole[elsewhere] - paid).clamp_min(1e-9))
    gain = gradient - (gradient * now) @ group.T @ group
    if bool(terrain.droppable.any()):
        gain = torch.where(now & terrain.droppable, -gradient, gain)
    whole *= (need / gain.clamp_min(1e-12)).clamp_min_(1.0)
    whole.masked_fill_(gain <= 0, inf)
    return whole.index_copy_(1, alone, slid), reach
