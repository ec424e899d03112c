"""Bounds of each row's columns, which exact solvers need beside the projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfptq.actions.compiled import encode_bounds
from cfptq.actions.features import AnyFeature, Continuous, Mutability
from cfptq.actions.raw_values import find_missing, read_level_numbers


def compute_column_bounds(features: Sequence[AnyFeature], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of each column that an action may lead to, two tensors like ``x`` ``(N, d)``."""
    low, high = x.clone(), x.clone()
    for feature in features:
        if feature.is_immutable or not feature.model_columns:
            continue
        if isinstance(feature, Continuous):
            assert feature.column is not None
            lowest, highest = encode_bounds(feature)
            if feature.mutability is not Mutability.INCREASE:
                low[:, feature.column].clamp_(max=lowest)
            if feature.mutability is not Mutability.DECREASE:
                high[:, feature.column].clamp_(min=highest)
            for bound in (low, high):
                bound[:, feature.column] = torch.where(find_missing(feature, x), x[:, feature.column], bound[:, feature.column])
            continue
        reachable = find_reachable_levels(feature, x)
        if feature.columns is None:
            assert feature.codes is not None and feature.column is not None
            codes = torch.tensor(feature.codes, dtype=x.dtype)
            least = torch.where(reachable, codes, torch.inf).amin(1)
            greatest = torch.where(reachable, codes, -torch.inf).amax(1)
            low[:, feature.column] = torch.minimum(low[:, feature.column], least)
            high[:, feature.column] = torch.maximum(high[:, feature.column], greatest)
            continue
        assert feature.off is not None and feature.on is not None
        movable = reachable.any(1)
        for level, column in enumerate(feature.columns):
            if column is not None:
                low[:, column] = torch.where(movable, feature.off[level], low[:, column])
                high[:, column] = torch.where(movable & reachable[:, level], feature.on[level], high[:, column])
    return low, high


def find_reachable_levels(feature: AnyFeature, x: Tensor) -> Tensor:
    """Return the levels other than its own that each row may move to, ``(N, L)`` booleans, L levels of the feature.

    Raises:
        TypeError: the feature is numeric.
    """
    if isinstance(feature, Continuous):
        raise TypeError(f"{feature.name} must be ordinal or categorical, got a feature of kind {feature.kind}.")
    level_numbers = torch.from_numpy(read_level_numbers(feature, x))
    count = len(feature.states)
    result = torch.tensor(feature.destinations).repeat(len(x), 1)
    result &= torch.arange(count) != level_numbers.unsqueeze(1)
    if feature.is_immutable:
        return torch.zeros_like(result)
    result &= ~find_missing(feature, x).unsqueeze(1)
    if feature.mutability is Mutability.FREE or feature.ranks is None:
        return result
    sign = 1 if feature.mutability is Mutability.INCREASE else -1
    ranks = torch.tensor(feature.ranks)
    is_ranked = torch.tensor([*(state is not None for state in feature.states), False])
    own = ranks[level_numbers]  # A row at no level (-1) reads the last rank here. ``is_ranked`` excludes it below.
    result &= (ranks - own.unsqueeze(1)) * sign > 0
    return result & is_ranked[level_numbers].unsqueeze(1)
