"""Changes between two rows of the same person that an action set does not allow."""

from __future__ import annotations

from torch import Tensor

from cfptq.actions.action_set import ActionSet
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
    free = action_set.replace(max_changes=None)
    is_beyond = (free.apply(rows, free.project(rows, delta)) - points).abs() > slack
    is_changed = delta.abs() > slack
    found: list[list[str]] = [[] for _ in range(len(rows))]
    for feature, columns in zip(action_set, action_set.feature_columns, strict=True):
        own = list(columns)
        for row in (is_beyond[:, own] & is_changed[:, own]).any(1).nonzero().flatten().tolist():
            found[row].append(_name_rule(feature))
    most = action_set.max_changes
    if most is not None:
        counts = sum(is_changed[:, list(columns)].any(1).int() for columns in action_set.feature_columns)
        assert isinstance(counts, Tensor)
        for row in (counts > most).nonzero().flatten().tolist():
            found[row].append(f"at most {most} features may change")
    return [tuple(rules) for rules in found]


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
