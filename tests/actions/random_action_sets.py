"""Random action sets with valid rows, and a slow projection of one row by enumeration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cfptq.actions import ActionSet, AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal

WAYS = [Mutability.FREE, Mutability.FREE, Mutability.IMMUTABLE, Mutability.INCREASE, Mutability.DECREASE]


def random_action_set(
    seed: int, *, rows: int = 12, features: int = 5, norm: object = "l1", weights: str = "std"
) -> tuple[ActionSet, Tensor]:
    """An action set of ``features`` features of all kinds on shuffled columns, and ``rows`` rows that it accepts."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["continuous", "integer", "coded", "one-hot", "dropped", "unknown", "scaled", "ordered one-hot"], size=features)
    sizes = [int(rng.integers(2, 5)) if kind not in ("continuous", "integer", "coded") else 1 for kind in kinds]
    order = rng.permutation(sum(sizes)).tolist()
    x = np.zeros((rows, sum(sizes)), dtype=np.float32)
    built: list[AnyFeature] = []
    for number, kind in enumerate(kinds):
        columns = tuple(order[sum(sizes[:number]) : sum(sizes[: number + 1])])
        built.append(_feature(rng, f"f{number}", str(kind), columns, x))
    k = None if rng.random() < 0.2 else int(rng.integers(1, features + 1))
    points = torch.from_numpy(x)
    return ActionSet.from_columns(points, built, max_changes=k, norm=norm, weights=weights), points  # type: ignore[arg-type]


def _feature(rng: np.random.Generator, name: str, kind: str, columns: tuple[int, ...], x: np.ndarray) -> AnyFeature:
    rows = len(x)
    mutability = Mutability(rng.choice(WAYS))
    effort = float(rng.uniform(0.5, 2))
    if kind == "continuous":
        offset, scale = float(rng.normal()), float(rng.uniform(0.3, 4))
        raw = rng.uniform(-3, 3, rows)
        x[:, columns[0]] = (raw - offset) / scale
        bounds = (-3.5, float(rng.uniform(3.0, 6))) if rng.random() < 0.5 else (None, None)
        return Continuous(name, column=columns[0], offset=offset, scale=scale, bounds=bounds, mutability=mutability, effort=effort)
    if kind == "integer":
        offset, scale = float(rng.uniform(-5, 40)), float(rng.uniform(0.5, 12))
        raw = rng.integers(0, 20, rows)
        x[:, columns[0]] = (raw - offset) / scale
        bounds = (-1.5, 24.5) if rng.random() < 0.5 else (None, None)
        return Integer(name, column=columns[0], offset=offset, scale=scale, bounds=bounds, mutability=mutability, effort=effort)
    if kind == "coded":
        codes = rng.permutation(np.round(rng.choice(np.arange(-6, 7), 4, replace=False) / 2, 3))
        if rng.random() < 0.5:
            codes = np.sort(codes)
        x[:, columns[0]] = codes[rng.integers(0, 4, rows)]
        domain = ("a", "b", "c", "d")
        return Ordinal(name, domain=domain, column=columns[0], codes=tuple(codes.tolist()), mutability=mutability, effort=effort)
    count = len(columns) + (kind == "dropped")
    levels = tuple(f"l{place}" for place in range(count))
    place = rng.integers(-1 if kind == "unknown" else 0, count, rows)
    shown = list(columns)
    if kind == "dropped":
        shown.insert(int(rng.integers(0, count)), None)  # type: ignore[arg-type]
    off, on = np.zeros(count), np.ones(count)
    if kind == "scaled":
        off, on = -rng.uniform(0.1, 1, count), rng.uniform(0.5, 3, count)
    for level, column in enumerate(shown):
        if column is not None:
            x[:, column] = np.where(place == level, on[level], off[level])
    if kind == "ordered one-hot":
        bounds = (None, levels[-1] if rng.random() < 0.5 else None)
        return Ordinal(name, domain=levels, columns=tuple(shown), mutability=mutability, effort=effort, bounds=bounds)
    reachable = tuple(rng.choice(levels, size=int(rng.integers(0, count + 1)), replace=False).tolist()) if rng.random() < 0.4 else None
    return Categorical(
        name,
        levels=levels,
        columns=tuple(shown),
        off=tuple(off.tolist()),
        on=tuple(on.tolist()),
        reachable=reachable,
        unknown="zeros" if kind == "unknown" else "error",
        mutability=mutability if mutability is Mutability.IMMUTABLE else Mutability.FREE,
        effort=effort,
    )


def vertex(feature: AnyFeature, place: int | None) -> list[float]:
    """The feature's columns at a level; ``None`` is at none of them."""
    if feature.columns is None:
        return [feature.codes[place]]
    return [(feature.on if level == place else feature.off)[level] for level, column in enumerate(feature.columns) if column is not None]


def place_of(feature: AnyFeature, values: list[float]) -> int | None:
    """The level that the feature's columns show."""
    for place in range(len(feature.states)):
        if all(abs(a - b) < 1e-4 for a, b in zip(vertex(feature, place), values, strict=True)):
            return place
    return None


def options(feature: AnyFeature, here: list[float]) -> list[list[float]]:
    """Every set of column values that a row standing at ``here`` may move the feature to; not for continuous features."""
    if feature.is_immutable:
        return [here]
    if isinstance(feature, Integer):
        stand = here[0] * feature.scale + feature.offset
        low, high = feature.reachable_bounds
        low, high = min(low, stand), max(high, stand)
        low = stand if feature.mutability is Mutability.INCREASE else low
        high = stand if feature.mutability is Mutability.DECREASE else high
        grid = [n for n in range(math.floor(low) - 1, math.ceil(high) + 2) if low - 1e-4 <= n <= high + 1e-4]
        return [here, *([(n - feature.offset) / feature.scale] for n in grid if abs(n - stand) > 1e-3)]
    own = place_of(feature, here)
    result = [here]
    for place, allowed in enumerate(feature.destinations):
        if not allowed or place == own:
            continue
        if feature.mutability is Mutability.INCREASE and (own is None or place < own):
            continue
        if feature.mutability is Mutability.DECREASE and (own is None or place > own):
            continue
        result.append(vertex(feature, place))
    return result


def slow_projection(action_set: ActionSet, x: list[float], delta: list[float]) -> list[float]:
    """Algorithm 1 for one row, by listing everything each feature may become."""
    moved: list[tuple[AnyFeature, list[float]]] = []
    for feature in action_set.features:
        here = [x[column] for column in feature.model_columns]
        wish = [x[column] + delta[column] for column in feature.model_columns]
        if isinstance(feature, Continuous) and not isinstance(feature, Integer) and not feature.is_immutable:
            low, high = ((side - feature.offset) / feature.scale for side in feature.reachable_bounds)
            low, high = min(low, here[0]), max(high, here[0])
            low = here[0] if feature.mutability is Mutability.INCREASE else low
            high = here[0] if feature.mutability is Mutability.DECREASE else high
            goal = [min(max(wish[0], low), high)]
        else:
            wish_in_units, units = wish, [1.0] * len(wish)
            if getattr(feature, "columns", None) is not None:
                spans = [on - off for off, on, c in zip(feature.off, feature.on, feature.columns, strict=True) if c is not None]
                units = spans
            goal = min(
                options(feature, here),
                key=lambda values: sum(((a - b) / u) ** 2 for a, b, u in zip(values, wish_in_units, units, strict=True)),
            )
        moved.append((feature, [a - b for a, b in zip(goal, here, strict=True)]))
    weights = action_set.column_weights.tolist()

    def price(feature: AnyFeature, change: list[float]) -> float:
        weighted = [weights[column] * abs(step) for column, step in zip(feature.model_columns, change, strict=True)]
        length = math.sqrt(sum(w * w for w in weighted))
        if action_set.norm == "l1":
            return sum(weighted)
        return length if action_set.norm == "l2" else action_set.norm[1] * sum(weighted) + action_set.norm[2] * length

    ranked = sorted(range(len(moved)), key=lambda number: -price(*moved[number]))
    kept = ranked if action_set.max_changes is None else ranked[: action_set.max_changes]
    result = [0.0] * len(x)
    for number in kept:
        feature, change = moved[number]
        for column, step in zip(feature.model_columns, change, strict=True):
            result[column] = step
    return result


def without_statistics(feature: AnyFeature) -> AnyFeature:
    return replace(feature, statistics=None) if isinstance(feature, Continuous) else replace(feature, frequencies=None)
