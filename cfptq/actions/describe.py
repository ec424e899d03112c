"""Actions and action sets in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cfptq.actions.encoding import raw_values
from cfptq.actions.features import AnyFeature, Continuous, Mutability, Ordinal
from cfptq.actions.validation import Level

if TYPE_CHECKING:
    from cfptq.actions.action_set import ActionSet

NO_CHANGE = "no change"

_WAYS = {
    Mutability.FREE: "free",
    Mutability.IMMUTABLE: "immutable",
    Mutability.INCREASE: "only up",
    Mutability.DECREASE: "only down",
}


def described(features: Sequence[AnyFeature], x: Tensor, point: Tensor, delta: Tensor) -> list[str]:
    """For each row what changes between ``x`` and ``point`` ``(N, d)``, features in order; :data:`NO_CHANGE` where nothing does."""
    parts: list[list[str]] = [[] for _ in range(len(x))]
    for feature in features:
        if not feature.placed:
            continue
        rows = (delta[:, list(feature.placed)] != 0).any(1).nonzero().squeeze(1)
        if not len(rows):
            continue
        before, after = raw_values(feature, x[rows]), raw_values(feature, point[rows])
        for row, old, new in zip(rows.tolist(), before.tolist(), after.tolist(), strict=True):
            parts[row].append(f"{feature.name} {' → '.join(shown_pair(old, new))}")
    return ["; ".join(changes) or NO_CHANGE for changes in parts]


def shown_pair(old: Level, new: Level) -> tuple[str, str]:
    """Two values as short as they can be told apart."""
    if isinstance(old, float) and isinstance(new, float):
        for digits in range(6, 17):
            first, second = _number(old, digits), _number(new, digits)
            if first != second:
                return first, second
    return shown(old), shown(new)


def shown(value: Level) -> str:
    """One raw value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "(missing)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value, 6) if isinstance(value, float) else str(value)


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text and abs(value) < 1e15 and float(text).is_integer() else text


def as_table(action_set: ActionSet) -> str:
    """The action set as a text table, one feature a line."""
    head = ["feature", "kind", "may move", "to", "columns", "effort"]
    lines = [head]
    for feature in action_set.features:
        lines.append(
            [
                feature.name,
                feature.kind,
                _WAYS[feature.mutability],
                _reach(feature),
                _columns(feature.placed) if action_set.is_encoded else "",
                f"{feature.effort:g}",
            ]
        )
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    body = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * size for size in widths))
    movable = sum(not feature.immutable for feature in action_set.features)
    most = "any number" if action_set.max_changes is None else f"at most {action_set.max_changes}"
    norm = action_set.norm if isinstance(action_set.norm, str) else "{}({:g}, {:g})".format(*action_set.norm)
    place = f"{action_set.width} columns" if action_set.is_encoded else "not encoded"
    title = (
        f"ActionSet: {len(action_set)} features, {movable} of them mutable, {place}; an action changes {most}; "
        f"cost {norm}, weights {action_set.weights}"
        + ("" if action_set.favourable is None else f"; favourable class {action_set.favourable}")
    )
    if action_set.unseen:
        body.append(f"not seen by the model: {', '.join(action_set.unseen)}")
    return "\n".join([title, *body])


def _reach(feature: AnyFeature) -> str:
    if feature.immutable:
        return "itself"
    if isinstance(feature, Continuous):
        low, high = feature.reach
        inferred = feature.bounds == (None, None) and feature.bounds_share is None
        if math.isinf(low) and math.isinf(high):
            return "any value"
        return f"{shown(float(low))} to {shown(float(high))}{' (observed)' if inferred else ''}"
    reachable = [shown(state) for state, allowed in zip(feature.states, feature.destinations, strict=True) if allowed]
    joint = " < " if isinstance(feature, Ordinal) else ", "
    text = joint.join(reachable[:4])
    return text + (f"{joint}… ({len(reachable)} values)" if len(reachable) > 4 else "")


def _columns(columns: Sequence[int]) -> str:
    ordered = sorted(columns)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))
