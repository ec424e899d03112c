"""Per-row bounds of every column under an action set: what exact solvers need beside the projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfptq.actions.compiled import encoded_bounds
from cfptq.actions.features import AnyFeature, Continuous, Mutability
from cfptq.actions.violations import columns_as_places


def column_reach(features: Sequence[AnyFeature], x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each column that an action may lead to, two tensors like ``x`` ``(N, d)``."""
    low, high = x.clone(), x.clone()
    for feature in features:
        if feature.immutable or not feature.placed:
            continue
        if isinstance(feature, Continuous):
            assert feature.column is not None
            first, last = encoded_bounds(feature)
            if feature.mutability is not Mutability.INCREASE:
                low[:, feature.column].clamp_(max=first)
            if feature.mutability is not Mutability.DECREASE:
                high[:, feature.column].clamp_(min=last)
            continue
        reachable = reachable_levels(feature, x)
        if feature.columns is None:
            assert feature.codes is not None and feature.column is not None
            codes = torch.tensor(feature.codes, dtype=x.dtype)
            least = torch.where(reachable, codes, torch.inf).amin(1)
            most = torch.where(reachable, codes, -torch.inf).amax(1)
            low[:, feature.column] = torch.minimum(low[:, feature.column], least)
            high[:, feature.column] = torch.maximum(high[:, feature.column], most)
            continue
        assert feature.off is not None and feature.on is not None
        movable = reachable.any(1)
        for place, column in enumerate(feature.columns):
            if column is not None:
                low[:, column] = torch.where(movable, feature.off[place], low[:, column])
                high[:, column] = torch.where(movable & reachable[:, place], feature.on[place], high[:, column])
    return low, high


def reachable_levels(feature: AnyFeature, x: Tensor) -> Tensor:
    """For an ordinal or categorical feature the levels, other than its own, that each row may move to: ``(N, L)`` booleans."""
    if isinstance(feature, Continuous):
        raise TypeError(f"{feature.name} has no levels")
    places = torch.from_numpy(columns_as_places(feature, x))
    count = len(feature.states)
    result = torch.tensor(feature.destinations).repeat(len(x), 1)
    result &= torch.arange(count) != places.unsqueeze(1)
    if feature.immutable:
        return torch.zeros_like(result)
    if feature.mutability is Mutability.FREE or feature.ranks is None:
        return result
    sign = 1 if feature.mutability is Mutability.INCREASE else -1
    ranks = torch.tensor(feature.ranks)
    ranked = torch.tensor([*(state is not None for state in feature.states), False])
    own = ranks[places]  # rows at no level read the last rank here; ``ranked`` bars them
    result &= (ranks - own.unsqueeze(1)) * sign > 0
    return result & ranked[places].unsqueeze(1)
