"""Descriptions of actions and of action sets in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from cfptq.actions.cost import Norm, Weights
from cfptq.actions.encoding import decode_feature, is_fill
from cfptq.actions.features import AnyFeature, Continuous, Mutability, Ordinal
from cfptq.actions.validation import Level

NO_CHANGE = "no change"
MISSING = "(missing)"
ASSUMED = " (assumed if missing)"
"""Mark of a value that is the person's own, or the encoder's in place of a missing one."""

_MAX_SHOWN_LEVELS = 4  # The table lists this many levels and then their number.
_MUTABILITY_WORDS = {
    Mutability.FREE: "free",
    Mutability.IMMUTABLE: "immutable",
    Mutability.INCREASE: "only up",
    Mutability.DECREASE: "only down",
}


def describe_actions(
    features: Sequence[AnyFeature], x: Tensor, point: Tensor, delta: Tensor, people: pd.DataFrame | None = None
) -> list[str]:
    """Describe for each row the changes between ``x`` and ``point``, or ``NO_CHANGE``.

    Args:
        features: features placed on the columns. Changes are listed in their order.
        x: rows, ``(N, d)``.
        point: counterfactual points, ``(N, d)``.
        delta: actions, ``(N, d)``. A feature is listed where one of its columns is not zero.
        people: raw rows that ``x`` comes from. Without them, a value that the encoder also fills in is marked as perhaps missing.
    """
    parts: list[list[str]] = [[] for _ in range(len(x))]
    for feature in features:
        if not feature.model_columns:
            continue
        rows = (delta[:, list(feature.model_columns)] != 0).any(1).nonzero().squeeze(1)
        if not len(rows):
            continue
        before, after = decode_feature(feature, x[rows]), decode_feature(feature, point[rows])
        is_assumed = is_fill(feature, x[rows])
        if people is not None:
            before = before.astype(object).mask(people[feature.name].iloc[rows.numpy()].isna().to_numpy(), None)
            is_assumed[:] = False
        for row, old, new, assumed in zip(rows.tolist(), before.tolist(), after.tolist(), is_assumed.tolist(), strict=True):
            first, second = format_pair(old, new)
            mark = ASSUMED if assumed and first != MISSING else ""
            parts[row].append(f"{feature.name} {first}{mark} → {second}")
    return ["; ".join(changes) or NO_CHANGE for changes in parts]


def format_pair(old: Level, new: Level) -> tuple[str, str]:
    """Format two values with as few digits as tell them apart, but at least six."""
    if isinstance(old, float) and isinstance(new, float):
        for digits in range(6, 17):
            first, second = _format_number(old, digits), _format_number(new, digits)
            if first != second:
                return first, second
    return format_value(old), format_value(new)


def format_value(value: Level) -> str:
    """Format one raw value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _format_number(value, 6) if isinstance(value, float) else str(value)


def _format_number(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text and abs(value) < 1e15 and float(text).is_integer() else text


def format_table(
    features: Sequence[AnyFeature],
    *,
    width: int | None,
    unseen: Sequence[str],
    max_changes: int | None,
    favourable: int | None,
    norm: Norm,
    weights: Weights,
    constraints: Sequence[str] = (),
) -> str:
    """Format an action set as a text table with one line for each feature. The arguments are the fields of the set."""
    header = ["feature", "kind", "may move", "to", "columns", "effort"]
    lines = [header]
    for feature in features:
        lines.append(
            [
                feature.name,
                feature.kind,
                _MUTABILITY_WORDS[feature.mutability],
                _format_reachable(feature),
                "" if width is None else _format_columns(feature.all_columns),
                f"{feature.effort:g}",
            ]
        )
    sizes = [max(len(line[place]) for line in lines) for place in range(len(header))]
    body = ["  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in lines]
    body.insert(1, "  ".join("-" * size for size in sizes))
    movable = sum(not feature.is_immutable for feature in features)
    limit = "any number" if max_changes is None else f"at most {max_changes}"
    norm_text = norm if isinstance(norm, str) else "{}({:g}, {:g})".format(*norm)
    place = "not encoded" if width is None else f"{width} columns"
    title = (
        f"ActionSet: {len(features)} features, {movable} of them mutable, {place}; an action changes {limit}; "
        f"cost {norm_text}, weights {weights}" + ("" if favourable is None else f"; favourable class {favourable}")
    )
    if unseen:
        body.append(f"not seen by the model: {', '.join(unseen)}")
    body.extend(f"rule: {constraint}" for constraint in constraints)
    return "\n".join([title, *body])


def _format_reachable(feature: AnyFeature) -> str:
    if feature.is_immutable:
        return "itself"
    if isinstance(feature, Continuous):
        low, high = feature.reachable_bounds
        is_observed = feature.bounds == (None, None) and feature.bounds_share is None
        if math.isinf(low) and math.isinf(high):
            return "any value"
        return f"{format_value(float(low))} to {format_value(float(high))}{' (observed)' if is_observed else ''}"
    reachable = [format_value(state) for state, allowed in zip(feature.states, feature.destinations, strict=True) if allowed]
    separator = " < " if isinstance(feature, Ordinal) else ", "
    text = separator.join(reachable[:_MAX_SHOWN_LEVELS])
    return text + (f"{separator}… ({len(reachable)} values)" if len(reachable) > _MAX_SHOWN_LEVELS else "")


def _format_columns(columns: Sequence[int]) -> str:
    ordered = sorted(columns)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, ordered))
