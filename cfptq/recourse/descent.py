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
    room = torch.where(gradient > 0, terrain.highest[index] - total, total - terrain.lowest[index]).clamp_min(0)
    steepness = gradient.abs()
    reach = torch.minimum(need / steepness.clamp_min(1e-12), room)
    # What the whole way would cost at this feature's rate; a level is paid in full even where less of it is needed.
    whole = torch.where(terrain.single & (room > 0), need * terrain.price / steepness.clamp_min(1e-12), inf)
    if bool(terrain.reachable.any()):
        group = terrain.member * (terrain.member.sum(1, keepdim=True) > 1)
        standing = terrain.standing[index]
        moved = (changed.to(delta.dtype) @ group) > 0
        now = torch.where(moved, delta > 0, standing)
        gain = gradient - (gradient * now) @ group.T @ group
        paid = (delta.abs() * terrain.price) @ group.T @ group
        left = (standing * terrain.price) @ group.T @ group
        extra = (terrain.price + left - paid).clamp_min(1e-9)
        possible = terrain.reachable & ~now & ~standing & (gain > 0)
        lump = torch.where(possible, extra * (need / gain.clamp_min(1e-12)).clamp_min(1.0), inf)
        whole = torch.minimum(whole, lump)
    if banned is not None:
        whole = torch.where(banned, inf, whole)
    if terrain.space.max_changes is not None:
        full = changed.sum(1) >= terrain.space.max_changes
        fresh = ~(changed.to(delta.dtype) @ terrain.member > 0)
        whole = torch.where(full[:, None] & fresh, inf, whole)
    if passed_over:
        # Features, not columns: two levels of one group are one feature.
        feature = torch.full((len(index), len(terrain.member)), inf)
        feature = feature.scatter_reduce(1, terrain.owner.clamp_min(0).expand_as(whole), whole, "amin")
        rank = min(passed_over, len(terrain.member) - 1)
        least = feature.sort(dim=1).values[:, rank : rank + 1]
        whole = torch.where(whole < least, inf, whole)
    best = whole.argmin(1, keepdim=True)
    stuck = whole.gather(1, best).isinf()
    sign = gradient.gather(1, best).sign()
    slide = total.scatter_add(1, best, torch.where(stuck, 0.0, sign * reach.gather(1, best)))
    alone = terrain.single[best]
    if bool(alone.all()):
        return slide
    columns = terrain.member[terrain.owner[best[:, 0]].clamp_min(0)] > 0
    jump = torch.where(columns, -1.0 * terrain.standing[index], total).scatter(1, best, 1.0)
    return torch.where(alone | stuck, slide, jump)
