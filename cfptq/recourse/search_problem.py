"""One recourse problem as the minimal-cost search sees it: what the model says, what can be moved, how far and at what price."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor

#: A push that leaves every finite bound behind; what the projection leaves of it is how far a feature can go.
_FAR = 1e6
#: How often a push is halved in looking for the least change of a column with a grid.
_HALVINGS = 24
#: Rows on which the reachable one-hot levels are looked for. Mutability belongs to the feature, not to the row.
_PROBED_ROWS = 64
#: Numbers in the largest tensor of pushes.
_AT_A_TIME = 2**20


@dataclass(frozen=True)
class SearchProblem:
    """N rows that want a class, with everything the search asks about them more than once.

    ``index`` arguments are int64 row numbers; a row may occur many times, each time with another action.

    Attributes:
        level: the target margin to be reached, in logits.
        outset: the artefact's target margin of the rows as they are, (N,).
        lowest, highest: range of each single-column feature's action in each row, (N, d); zero in one-hot columns.
        reachable: one-hot columns that some row can move to, (d,) bool.
        standing: the one-hot column each row stands on in every group that can move, (N, d) bool.
        droppable: one-hot columns whose group may be all off: the level that an encoder dropped, (d,) bool.
        change: cost of moving to each one-hot column (from the column a row stands on: to all off), (N, d), infinite where one cannot.
        price: cost of one unit of each column, (d,).
        owner: feature of each column, (d,) int64; columns of no feature cannot be moved.
        single: columns that are a feature of their own, (d,) bool.
        smooth: single columns along which every shorter action is feasible as it is (not integers, not ordinals), (d,) bool.
        step: the least change of each single column that has a grid (integers, ordinals), (d,); zero in other columns.
        additive: the cost of an action is the sum of its features' costs (l1).
        member: feature by column incidence, (F, d).
        grouped: features of several columns, (F,) bool; ``groups`` their rows of ``member``.
        alone: the single columns, (S,) int64; ``place``: where each column stands in it, -1 for others, (d,).
    """

    predictor: Predictor
    space: ActionSpace
    rows: Tensor
    target: Tensor
    level: float
    outset: Tensor
    lowest: Tensor
    highest: Tensor
    reachable: Tensor
    standing: Tensor
    droppable: Tensor
    change: Tensor
    price: Tensor
    owner: Tensor
    single: Tensor
    smooth: Tensor
    step: Tensor
    additive: bool
    member: Tensor
    grouped: Tensor
    groups: Tensor
    alone: Tensor
    place: Tensor

    def margin(self, index: Tensor, delta: Tensor) -> Tensor:
        """Target margin of the artefact after feasible actions, (M,)."""
        if len(index) == 0:
            return delta.new_zeros(0)
        return target_margin(self.predictor.logits(self.space.apply(self.rows[index], delta)), self.target[index])

    def slope(self, index: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Target margin of the surrogate (M,) and its gradient by the action (M, d)."""
        with torch.enable_grad():
            action = delta.detach().requires_grad_(True)
            margin = target_margin(self.predictor.surrogate(self.space.apply(self.rows[index], action)), self.target[index])
            (gradient,) = torch.autograd.grad(margin.sum(), action)
        return margin.detach(), gradient

    def project(self, index: Tensor, delta: Tensor) -> Tensor:
        return self.space.project(self.rows[index], delta)

    def cost(self, index: Tensor, delta: Tensor) -> Tensor:
        return self.space.cost(self.rows[index], delta)

    def changed(self, delta: Tensor) -> Tensor:
        """Which features an action changes, (M, F) bool."""
        return (delta != 0).to(delta.dtype) @ self.member.T > 0


def build_search_problem(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, level: float) -> SearchProblem:
    """Probe the space through its projection: bounds, reachable levels and prices.

    Pushing no more features at once than may change (k) means that sparsity cuts none of them off.
    """
    start = space.zero(rows)
    if start.dim() != 2:
        raise DataError(f"minimal-cost recourse needs actions (N, d), these have shape {tuple(start.shape)}; use ProjectedGradient(...)")
    width = start.shape[1]
    features = space.feature_columns
    member = torch.zeros(len(features), width)
    owner = torch.full((width,), -1, dtype=torch.int64)
    for feature, own in enumerate(features):
        member[feature, list(own)] = 1
        owner[list(own)] = feature
    single = (member.T @ member.sum(1)) == 1
    at_once = max(1, min(space.max_changes or len(features), len(features)))
    lowest, highest = torch.zeros_like(start), torch.zeros_like(start)
    alone = [own[0] for own in features if len(own) == 1]
    for first in range(0, len(alone), at_once):
        columns = alone[first : first + at_once]
        for bound, push in ((lowest, -_FAR), (highest, _FAR)):
            pushed = start.clone()
            pushed[:, columns] = push
            bound[:, columns] = space.project(rows, pushed)[:, columns]
    price = space.cost(rows[:1].expand(width, *rows.shape[1:]), torch.eye(width)).clamp_min(1e-9)
    additive = bool(torch.isclose(space.cost(rows[:1], torch.ones(1, width)), price.sum(), rtol=1e-4))
    few = slice(0, _PROBED_ROWS)
    smooth = single & _smooth_columns(rows[few], space, alone, at_once, lowest[few], highest[few])
    reachable = _reachable_levels(rows[:_PROBED_ROWS], space, at_once)
    standing = _standing_levels(rows, space, reachable, at_once)
    droppable = _droppable(rows[few], space, standing[few], at_once)
    grouped = member.sum(1) > 1
    groups = member[grouped]
    left = (standing * price) @ groups.T @ groups
    change = torch.where(standing, torch.where(droppable, price, torch.inf), torch.where(reachable, price + left, torch.inf))
    places = single.nonzero()[:, 0]
    place = torch.full((width,), -1, dtype=torch.int64)
    place[places] = torch.arange(len(places))
    return SearchProblem(
        predictor=predictor,
        space=space,
        rows=rows,
        target=target,
        level=level,
        outset=target_margin(predictor.logits(rows), target),
        lowest=lowest,
        highest=highest,
        reachable=reachable,
        standing=standing,
        droppable=droppable,
        change=change,
        price=price,
        owner=owner,
        single=single,
        smooth=smooth,
        step=_steps(rows[few], space, smooth, alone, at_once, lowest[few], highest[few]),
        additive=additive,
        member=member,
        grouped=grouped,
        groups=groups,
        alone=places,
        place=place,
    )


def _reachable_levels(rows: Tensor, space: ActionSpace, at_once: int) -> Tensor:
    """Levels that some row can be pushed to. All pushes go through the projection in few calls."""
    start = space.zero(rows)
    reachable = torch.zeros(start.shape[1], dtype=torch.bool)
    groups = [columns for columns in space.feature_columns if len(columns) > 1]
    pushes = [
        [group[position] for group in groups[first : first + at_once] if position < len(group)]
        for first in range(0, len(groups), at_once)
        for position in range(max(len(columns) for columns in groups[first : first + at_once]))
    ]
    some = max(1, _AT_A_TIME // start.numel())
    for first in range(0, len(pushes), some):
        together = pushes[first : first + some]
        pushed = start.repeat(len(together), 1, 1)
        for push, columns in zip(pushed, together, strict=True):
            push[:, columns] = _FAR
        left = space.project(rows.repeat(len(together), *[1] * (rows.dim() - 1)), pushed.flatten(0, 1)).reshape(pushed.shape)
        for push, columns in zip(left, together, strict=True):
            reachable[columns] |= (push[:, columns] > 0).any(0)
    return reachable


def _standing_levels(rows: Tensor, space: ActionSpace, reachable: Tensor, at_once: int) -> Tensor:
    """The column that empties when a group is pushed to another level; the second push is for rows that stand on the first."""
    start = space.zero(rows)
    standing = torch.zeros_like(start, dtype=torch.bool)
    levels = [[column for column in columns if bool(reachable[column])] for columns in space.feature_columns if len(columns) > 1]
    for position in (0, 1):
        pushes = [columns[position] for columns in levels if len(columns) > position]
        for first in range(0, len(pushes), at_once):
            pushed = start.clone()
            pushed[:, pushes[first : first + at_once]] = _FAR
            standing |= space.project(rows, pushed) < 0
    return standing


def _droppable(rows: Tensor, space: ActionSpace, standing: Tensor, at_once: int) -> Tensor:
    """Columns of the groups that some row can empty."""
    start = space.zero(rows)
    droppable = torch.zeros(start.shape[1], dtype=torch.bool)
    groups = [list(columns) for columns in space.feature_columns if len(columns) > 1]
    for first in range(0, len(groups), at_once):
        together = groups[first : first + at_once]
        pushed = start.clone()
        pushed[:, [column for columns in together for column in columns]] = -_FAR
        left = space.project(rows, pushed)
        for columns in together:
            droppable[columns] = bool(((left[:, columns] < 0).any(1) & ~(left[:, columns] > 0).any(1)).any())
    return droppable


def _smooth_columns(rows: Tensor, space: ActionSpace, alone: list[int], at_once: int, lowest: Tensor, highest: Tensor) -> Tensor:
    """Columns whose part-way moves the projection leaves alone."""
    start = space.zero(rows)
    smooth = torch.zeros(start.shape[1], dtype=torch.bool)
    for first in range(0, len(alone), at_once):
        columns = alone[first : first + at_once]
        pushed = start.clone()
        # Two shares of the way that no grid has in common with its end points.
        pushed[:, columns] = (0.3819 * highest + 0.2361 * lowest)[:, columns]
        kept = space.project(rows, pushed)
        smooth[columns] = torch.isclose(kept, pushed, rtol=1e-4, atol=1e-6).all(0)[columns]
    return smooth


def _steps(rows: Tensor, space: ActionSpace, smooth: Tensor, alone: list[int], at_once: int, lowest: Tensor, highest: Tensor) -> Tensor:
    """The least change that the projection leaves of pushes of all sizes, in the columns where it leaves not every change alone."""
    start = space.zero(rows)
    step = torch.full((start.shape[1],), torch.inf)
    stepped = [column for column in alone if not bool(smooth[column])]
    for first in range(0, len(stepped), at_once):
        columns = stepped[first : first + at_once]
        for bound in (lowest[:, columns], highest[:, columns]):
            push = bound.clone()
            for _ in range(_HALVINGS):
                pushed = start.clone()
                pushed[:, columns] = push
                left = space.project(rows, pushed)[:, columns].abs()
                if not bool((left > 0).any()):
                    break
                step[columns] = torch.minimum(step[columns], torch.where(left > 0, left, torch.inf).amin(0))
                push = push / 2
    return torch.where(step.isfinite(), step, 0.0)
