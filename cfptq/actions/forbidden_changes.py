"""Changes between two rows of the same person that an action set does not allow."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.actions.action_set import ActionSet
from cfptq.actions.constraints.enforcement import compile_constraints
from cfptq.actions.constraints.orders import Thermometer
from cfptq.actions.features import AnyFeature, Continuous, Mutability

#: Factor on the rounding of raw values in float32, within which two columns count as equal.
SLACK = 4.0


def find_forbidden_changes(action_set: ActionSet, rows: Tensor, points: Tensor) -> list[tuple[str, ...]]:
    """Return the rules that the way from each row to its point breaks, as sentences without an end.

    Args:
        action_set: encoded action set.
        rows: columns of N people, ``(N, d)``.
        points: columns that each person is to reach, ``(N, d)``.
    """
    delta = points - rows
    slack = SLACK * (action_set.rounding(rows) + action_set.rounding(points))
    free = action_set.replace(max_changes=None, constraints=())
    is_beyond = (free.apply(rows, free.project(rows, delta)) - points).abs() > slack
    is_changed = delta.abs() > slack
    found: list[list[str]] = [[] for _ in range(len(rows))]
    following = {name for constraint in action_set.constraints for name in constraint.targets}
    for feature, columns in zip(action_set, action_set.feature_columns, strict=True):
        own = list(columns)
        if feature.name in following:  # The constraint says where it moves to.
            continue
        for row in (is_beyond[:, own] & is_changed[:, own]).any(1).nonzero().flatten().tolist():
            found[row].append(_name_rule(feature))
    most = action_set.max_changes
    if most is not None:
        for row in (_count_changes(action_set, is_changed) > most).nonzero().flatten().tolist():
            found[row].append(f"at most {most} features may change")
    rules = compile_constraints(action_set.constraints, tuple(action_set), None, action_set.people)
    if rules is not None:
        for constraint, is_broken in rules.find_broken(rules.read_change(rows, points)):
            for row in is_broken.nonzero()[0].tolist():
                found[row].append(constraint.describe())
    return [tuple(broken) for broken in found]


def _count_changes(action_set: ActionSet, is_changed: Tensor) -> Tensor:
    """Return how many features count as changed, ``(N,)``. Free consequences do not, and nested columns count as one."""
    free = {name for one in action_set.constraints if one.is_free for name in one.targets}
    counted = {name for one in action_set.constraints if not one.is_free for name in one.targets}
    nested = {name: one.names[0] for one in action_set.constraints if isinstance(one, Thermometer) for name in one.names}
    groups: dict[str, list[int]] = {}
    for feature, columns in zip(action_set, action_set.feature_columns, strict=True):
        if feature.name not in free - counted:
            groups.setdefault(nested.get(feature.name, feature.name), []).extend(columns)
    return torch.stack([is_changed[:, columns].any(1) for columns in groups.values()]).sum(0)


def _name_rule(feature: AnyFeature) -> str:
    if feature.is_immutable:
        return f"{feature.name} is immutable"
    ends = ""
    if isinstance(feature, Continuous):
        low, high = feature.reachable_bounds
        ends = f", {low:g} to {high:g}"
    if feature.mutability is not Mutability.FREE:
        return f"{feature.name} may only {feature.mutability.value}{ends}"
    return f"{feature.name} is asked for beyond what an action may reach{ends}"
