"""The recourse problem of a minimal-cost search, probed from the action space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor

#: A push beyond every finite bound, in column units. Its projection shows how far a feature can move.
_LARGE_PUSH = 1e6
#: Halvings of a push in search of the smallest change of a column on a grid. Smaller changes are not seen.
_MAX_HALVINGS = 24
#: Rows on which reachable levels and grids are probed. They are properties of the feature, so that more rows add nothing.
_PROBED_ROWS = 64
#: Largest tensor of pushes. More pushes are projected in several calls.
_MAX_TENSOR_NUMBERS = 2**20


@dataclass(frozen=True)
class SearchProblem:
    """Recourse problem of N rows, with all properties of rows and action space that a search uses repeatedly.

    ``index`` arguments are int64 row numbers. A row may occur several times, each time with another action.

    Attributes:
        predictor: Model to change the decision of.
        space: Admissible actions.
        rows: Factual rows, (N, ...).
        target: Target class of each row, (N,) int64.
        required_margin: Target margin to reach, in logits.
        initial_margin: Target margin of the artefact at the factual rows, (N,), in logits.
        lowest: Lower bound of the action in each single column, (N, d), zero in one-hot columns.
        highest: Upper bound of the action in each single column, (N, d), zero in one-hot columns.
        is_reachable: One-hot columns that some row can move to, (d,) bool.
        current_level: One-hot column that is active in each row, for groups that can change, (N, d) bool.
        has_dropped_level: One-hot columns whose group may be all zero, which is the level that an encoder dropped, (d,) bool.
        level_cost: Cost of moving to each one-hot column, (N, d), infinite where a row cannot move there. In the column of the
            current level it is the cost of the dropped level.
        unit_cost: Cost of one unit of each column, (d,).
        feature_of_column: Feature of each column, (d,) int64, -1 for columns that belong to no feature and cannot change.
        is_single: Columns that are a feature of their own, (d,) bool.
        is_continuous: Single columns in which every shorter action is feasible too (neither integers nor ordinals), (d,) bool.
        grid_step: Smallest change of each single column on a grid (integers, ordinals), (d,), zero in other columns.
        is_constrained: True if the space couples features, so that an action is evaluated as its projection.
        is_additive: True if the cost of an action is the sum of its features' costs (l1).
        incidence: Incidence of features and columns, (F, d).
        is_grouped: Features of several columns, (F,) bool.
        group_incidence: Rows of ``incidence`` of the grouped features, (G, d).
        single_columns: Indices of the single columns, (S,) int64.
        single_position: Position of each column in ``single_columns``, (d,) int64, -1 for others.
    """

    predictor: Predictor
    space: ActionSpace
    rows: Tensor
    target: Tensor
    required_margin: float
    initial_margin: Tensor
    lowest: Tensor
    highest: Tensor
    is_reachable: Tensor
    current_level: Tensor
    has_dropped_level: Tensor
    level_cost: Tensor
    unit_cost: Tensor
    feature_of_column: Tensor
    is_single: Tensor
    is_continuous: Tensor
    grid_step: Tensor
    is_constrained: bool
    is_additive: bool
    incidence: Tensor
    is_grouped: Tensor
    group_incidence: Tensor
    single_columns: Tensor
    single_position: Tensor

    def compute_margin(self, index: Tensor, delta: Tensor) -> Tensor:
        """Compute the target margin of the artefact after feasible actions, (M,)."""
        if len(index) == 0:
            return delta.new_zeros(0)
        return target_margin(self.predictor.logits(self.space.apply(self.rows[index], delta)), self.target[index])

    def compute_projected_margin(self, index: Tensor, delta: Tensor) -> Tensor:
        """Compute the target margin of the artefact after the projection of actions that constraints may not allow, (M,)."""
        if len(index) == 0 or not self.is_constrained:
            return self.compute_margin(index, delta)
        return self.compute_margin(index, self.project(index, delta))

    def differentiate_margin(self, index: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the target margin of the surrogate (M,) and its gradient with respect to the action (M, d)."""
        with torch.enable_grad():
            action = delta.detach().requires_grad_(True)
            margin = target_margin(self.predictor.surrogate(self.space.apply(self.rows[index], action)), self.target[index])
            (gradient,) = torch.autograd.grad(margin.sum(), action)
        return margin.detach(), gradient

    def project(self, index: Tensor, delta: Tensor) -> Tensor:
        """Project actions onto the feasible ones, (M, d)."""
        return self.space.project(self.rows[index], delta)

    def cost(self, index: Tensor, delta: Tensor) -> Tensor:
        """Compute the cost of actions, (M,)."""
        return self.space.cost(self.rows[index], delta)

    def find_changed_features(self, delta: Tensor) -> Tensor:
        """Find the features that each action changes, (M, F) bool."""
        return (delta != 0).to(delta.dtype) @ self.incidence.T > 0


def build_search_problem(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, required_margin: float) -> SearchProblem:
    """Probe bounds, levels and costs of an action space through its projection.

    No more features are pushed at once than may change, so that sparsity reverts none of them.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        required_margin: Target margin to reach, in logits.

    Raises:
        DataError: Actions of the space are not of shape (N, d).
    """
    start = space.zero(rows)
    if start.dim() != 2:
        raise DataError(f"Minimal-cost recourse needs actions of shape (N, d), got {tuple(start.shape)}. Use ProjectedGradient(...).")
    width = start.shape[1]
    features = space.feature_columns
    incidence = torch.zeros(len(features), width)
    feature_of_column = torch.full((width,), -1, dtype=torch.int64)
    for feature, own in enumerate(features):
        incidence[feature, list(own)] = 1
        feature_of_column[list(own)] = feature
    is_single = (incidence.T @ incidence.sum(1)) == 1
    # A space that does not tell whether it has constraints may couple features.
    is_constrained = bool(getattr(space, "constraints", True))
    at_once = max(1, min(space.max_changes or len(features), len(features)))
    coupled = _find_coupled_features(space) if is_constrained else frozenset()
    lowest, highest = torch.zeros_like(start), torch.zeros_like(start)
    single_columns = [own[0] for own in features if len(own) == 1]
    singles = _batch([[column] for column in single_columns], at_once, coupled)
    for batch in singles:
        columns = [own[0] for own in batch]
        for bound, push in ((lowest, -_LARGE_PUSH), (highest, _LARGE_PUSH)):
            pushed = start.clone()
            pushed[:, columns] = push
            bound[:, columns] = space.project(rows, pushed)[:, columns]
    unit_cost = space.cost(rows[:1].expand(width, *rows.shape[1:]), torch.eye(width)).clamp_min(1e-9)
    is_additive = bool(torch.isclose(space.cost(rows[:1], torch.ones(1, width)), unit_cost.sum(), rtol=1e-4))
    probed = slice(0, _PROBED_ROWS)
    groups = _batch([columns for columns in features if len(columns) > 1], at_once, coupled)
    is_continuous = is_single & _find_continuous_columns(rows[probed], space, singles, lowest[probed], highest[probed])
    is_reachable = _find_reachable_levels(rows[:_PROBED_ROWS], space, groups)
    current_level = _find_current_levels(rows, space, is_reachable, groups)
    has_dropped_level = _find_dropped_levels(rows[probed], space, groups)
    is_grouped = incidence.sum(1) > 1
    group_incidence = incidence[is_grouped]
    left = (current_level * unit_cost) @ group_incidence.T @ group_incidence
    level_cost = torch.where(
        current_level, torch.where(has_dropped_level, unit_cost, torch.inf), torch.where(is_reachable, unit_cost + left, torch.inf)
    )
    for own in features if coupled else ():
        if len(own) > 1 and own[0] in coupled:
            level_cost[:, list(own)] = _exclude_levels(rows, space, list(own), level_cost[:, list(own)])
    stepped = _batch([[column] for column in single_columns if not bool(is_continuous[column])], at_once, coupled)
    places = is_single.nonzero()[:, 0]
    single_position = torch.full((width,), -1, dtype=torch.int64)
    single_position[places] = torch.arange(len(places))
    return SearchProblem(
        predictor=predictor,
        space=space,
        rows=rows,
        target=target,
        required_margin=required_margin,
        initial_margin=target_margin(predictor.logits(rows), target),
        lowest=lowest,
        highest=highest,
        is_reachable=is_reachable,
        current_level=current_level,
        has_dropped_level=has_dropped_level,
        level_cost=level_cost,
        unit_cost=unit_cost,
        feature_of_column=feature_of_column,
        is_single=is_single,
        is_continuous=is_continuous,
        grid_step=_find_grid_steps(rows[probed], space, is_continuous, stepped, lowest[probed], highest[probed]),
        is_constrained=is_constrained,
        is_additive=is_additive,
        incidence=incidence,
        is_grouped=is_grouped,
        group_incidence=group_incidence,
        single_columns=places,
        single_position=single_position,
    )


def _find_coupled_features(space: ActionSpace) -> frozenset[int]:
    """Return the columns of features that constraints name, which must be pushed alone. Other spaces may couple all features."""
    features = space.feature_columns
    if not isinstance(space, ActionSet):
        return frozenset(column for columns in features for column in columns)
    named = {name for constraint in space.constraints for name in constraint.features}
    return frozenset(column for name, columns in zip(space.names, features, strict=True) if name in named for column in columns)


def _batch(features: Sequence[Sequence[int]], at_once: int, coupled: frozenset[int]) -> list[list[Sequence[int]]]:
    """Return the columns of features in batches that are pushed together, those of coupled features alone."""
    free = [columns for columns in features if columns[0] not in coupled]
    alone = [[columns] for columns in features if columns[0] in coupled]
    return [*(free[first : first + at_once] for first in range(0, len(free), at_once)), *alone]


def _exclude_levels(rows: Tensor, space: ActionSpace, columns: list[int], cost: Tensor) -> Tensor:
    """Return the costs of a group's levels (N, L), infinite where the constraints keep a row from moving there."""
    index, position = cost.isfinite().nonzero(as_tuple=True)
    if rows.dim() != 2 or len(index) == 0:
        return cost
    column = torch.tensor(columns)[position]
    factual = rows[index]
    is_current = factual.gather(1, column[:, None])[:, 0] == factual[:, columns].amax(1)
    pushed = torch.zeros(len(index), rows.shape[1]).scatter_(1, column[:, None], _LARGE_PUSH)
    is_blocked = (space.project(factual, pushed)[:, columns] == 0).all(1)
    result = cost.clone()
    result[index[is_blocked & ~is_current], position[is_blocked & ~is_current]] = torch.inf
    return result


def _find_reachable_levels(rows: Tensor, space: ActionSpace, batches: list[list[Sequence[int]]]) -> Tensor:
    """Find the levels that batch_size row can be pushed to, (d,) bool, in few calls of the projection."""
    start = space.zero(rows)
    is_reachable = torch.zeros(start.shape[1], dtype=torch.bool)
    pushes = [
        [group[position] for group in groups if position < len(group)]
        for groups in batches
        for position in range(max(len(columns) for columns in groups))
    ]
    batch_size = max(1, _MAX_TENSOR_NUMBERS // start.numel())
    for first in range(0, len(pushes), batch_size):
        batch = pushes[first : first + batch_size]
        pushed = start.repeat(len(batch), 1, 1)
        for push, columns in zip(pushed, batch, strict=True):
            push[:, columns] = _LARGE_PUSH
        left = space.project(rows.repeat(len(batch), *[1] * (rows.dim() - 1)), pushed.flatten(0, 1)).reshape(pushed.shape)
        for push, columns in zip(left, batch, strict=True):
            is_reachable[columns] |= (push[:, columns] > 0).any(0)
    return is_reachable


def _find_current_levels(rows: Tensor, space: ActionSpace, is_reachable: Tensor, batches: list[list[Sequence[int]]]) -> Tensor:
    """Find the column of each group that becomes zero when the group is pushed to another level, (N, d) bool.

    The second push covers rows whose current level is the first one pushed to.
    """
    start = space.zero(rows)
    current_level = torch.zeros_like(start, dtype=torch.bool)
    for batch in batches:
        levels = [[column for column in columns if bool(is_reachable[column])] for columns in batch]
        for position in (0, 1):
            pushes = [columns[position] for columns in levels if len(columns) > position]
            if pushes:
                pushed = start.clone()
                pushed[:, pushes] = _LARGE_PUSH
                current_level |= space.project(rows, pushed) < 0
    return current_level


def _find_dropped_levels(rows: Tensor, space: ActionSpace, batches: list[list[Sequence[int]]]) -> Tensor:
    """Find the columns of groups that batch_size row can set to all zero, (d,) bool."""
    start = space.zero(rows)
    has_dropped_level = torch.zeros(start.shape[1], dtype=torch.bool)
    for batch in batches:
        pushed = start.clone()
        pushed[:, [column for columns in batch for column in columns]] = -_LARGE_PUSH
        left = space.project(rows, pushed)
        for columns in map(list, batch):
            has_dropped_level[columns] = bool(((left[:, columns] < 0).any(1) & ~(left[:, columns] > 0).any(1)).any())
    return has_dropped_level


def _find_continuous_columns(
    rows: Tensor, space: ActionSpace, batches: list[list[Sequence[int]]], lowest: Tensor, highest: Tensor
) -> Tensor:
    """Find the columns in which the projection keeps partial moves unchanged, (d,) bool."""
    start = space.zero(rows)
    is_continuous = torch.zeros(start.shape[1], dtype=torch.bool)
    for batch in batches:
        columns = [own[0] for own in batch]
        pushed = start.clone()
        # Shares that do not fall on a grid through the end points.
        pushed[:, columns] = (0.3819 * highest + 0.2361 * lowest)[:, columns]
        kept = space.project(rows, pushed)
        is_continuous[columns] = torch.isclose(kept, pushed, rtol=1e-4, atol=1e-6).all(0)[columns]
    return is_continuous


def _find_grid_steps(
    rows: Tensor, space: ActionSpace, is_continuous: Tensor, batches: list[list[Sequence[int]]], lowest: Tensor, highest: Tensor
) -> Tensor:
    """Find the smallest change that the projection keeps in each column on a grid, (d,), zero in other columns."""
    start = space.zero(rows)
    step = torch.full((start.shape[1],), torch.inf)
    for batch in batches:
        columns = [own[0] for own in batch]
        for bound in (lowest[:, columns], highest[:, columns]):
            push = bound.clone()
            for _ in range(_MAX_HALVINGS):
                pushed = start.clone()
                pushed[:, columns] = push
                left = space.project(rows, pushed)[:, columns].abs()
                if not bool((left > 0).any()):
                    break
                step[columns] = torch.minimum(step[columns], torch.where(left > 0, left, torch.inf).amin(0))
                push = push / 2
    return torch.where(step.isfinite(), step, 0.0)
