"""Ways to the boundary: steps sized by the linearized margin, spent where effort is cheapest."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.recourse.terrain import Terrain

#: A step aims this share of the first shortfall beyond the boundary; refinement takes the surplus back.
_SURPLUS = 0.1


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
    terrain: Terrain,
    index: Tensor,
    start: Tensor,
    rule: Descent,
    steps: int,
    ceiling: Tensor,
    banned: Tensor | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Walk from ``start`` until the artefact gives the target.

    Args:
        index: row of each walk, (M,). start: first action, (M, d). ceiling: a walk whose cost passes this is given up, (M,).
        banned: columns that may not be moved, (M, d) bool.
        seen: margins and gradients at the start where they are known and ``start`` is feasible.

    Returns:
        The positions in 0..M-1 that arrived, and their actions.
    """
    live = torch.arange(len(index))
    total = start
    delta = start if seen else terrain.project(index, start)
    shortfall = torch.zeros(len(index))
    doubt = torch.zeros(len(index))  # by how much the surrogate has been too hopeful
    arrived: list[Tensor] = []
    actions: list[Tensor] = []
    for step in range(steps):
        if len(live) == 0:
            break
        margin, gradient = seen if seen and step == 0 else terrain.slope(index, delta)
        there = margin >= terrain.level
        keep = torch.ones_like(there)
        if bool(there.any()):
            hopeful = there.nonzero()[:, 0]
            sure = terrain.margin(index[hopeful], delta[hopeful])
            good = sure >= terrain.level
            arrived.append(live[hopeful[good]])
            actions.append(delta[hopeful[good]])
            keep[hopeful[good]] = False
            doubt[hopeful] = (margin[hopeful] - sure).clamp_min(0) + _SURPLUS * shortfall[hopeful]
        keep &= terrain.cost(index, delta) < ceiling
        if not bool(keep.all()):
            live, index, total, delta, margin, gradient = live[keep], index[keep], total[keep], delta[keep], margin[keep], gradient[keep]
            shortfall, doubt, ceiling = shortfall[keep], doubt[keep], ceiling[keep]
            banned = banned[keep] if banned is not None else None
            if len(live) == 0:
                break
        need = terrain.level - margin + doubt
        if step == 0:
            shortfall = need
        aim = torch.minimum(need + _SURPLUS * shortfall, (rule.pace + _SURPLUS) * shortfall).clamp_min(1e-6)
        if rule.sharpness == inf:
            total = _one_feature(terrain, index, total, delta, gradient, aim, banned, rule.first if step == 0 else 0)
        else:
            total = _many_columns(terrain, index, total, gradient, aim, rule, banned)
        delta = terrain.project(index, total)
    if len(live):
        sure = terrain.margin(index, delta) >= terrain.level
        arrived.append(live[sure])
        actions.append(delta[sure])
    if not arrived:
        return live[:0], start[:0]
    return torch.cat(arrived), torch.cat(actions)


def _many_columns(
    terrain: Terrain, index: Tensor, total: Tensor, gradient: Tensor, aim: Tensor, rule: Descent, banned: Tensor | None
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
    terrain: Terrain, index: Tensor, total: Tensor, delta: Tensor, gradient: Tensor, aim: Tensor, banned: Tensor | None, passed_over: int
) -> Tensor:
    """Move the one feature that promises the target at the least cost: a single column as far as needed, or a whole level."""
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
    if passed_over:
        # Features, not columns: two levels of one group are one feature.
        feature = torch.full((len(index), len(terrain.member)), inf)
        feature = feature.scatter_reduce(1, terrain.owner.clamp_min(0).expand_as(whole), whole, "amin")
        rank = min(passed_over, len(terrain.member) - 1)
        least = feature.sort(dim=1).values[:, rank : rank + 1]
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
    terrain: Terrain, index: Tensor, total: Tensor, delta: Tensor, gradient: Tensor, need: Tensor, changed: Tensor
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
