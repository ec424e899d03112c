"""Shifted populations of Appendix I, on which two models that stay as they are can be audited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfptq.actions import ActionSet
from cfptq.actions.features import Continuous, Integer
from cfptq.errors import DataError


def add_feature_noise(people: pd.DataFrame, action_set: ActionSet, *, scale: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Add Gaussian noise to the numbers that people can change, and project them back into the feasible bounds (eq. 35).

    Immutable features, ordinal features, categories and missing values stay as they are. Whole numbers stay whole. A value that lay
    outside the bounds before is not moved farther out.

    Args:
        people: Raw features, one row a person.
        action_set: The action set, whose training statistics give each feature's standard deviation.
        scale: Standard deviation of the noise, as a share of the feature's.
        seed: Seed of the noise.

    Raises:
        DataError: The scale is negative, or a feature has no column or no statistics.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise DataError(f"scale must be finite and not negative, got {scale}.")
    generator, shifted = np.random.default_rng(seed), people.copy()
    for feature in action_set:
        if not isinstance(feature, Continuous) or feature.is_immutable:
            continue
        if feature.name not in people.columns or feature.statistics is None:
            raise DataError(f"{feature.name} must be a column with training statistics, to which noise can be added. Fit the action set.")
        own = pd.to_numeric(people[feature.name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        noisy = own + scale * feature.statistics.std * generator.standard_normal(len(own))
        low, high = feature.reachable_bounds
        noisy = np.clip(noisy, np.minimum(own, low), np.maximum(own, high))
        if isinstance(feature, Integer):
            noisy = np.rint(noisy)
        is_missing = np.isnan(own)
        shifted[feature.name] = people[feature.name].astype(object).where(is_missing, noisy) if is_missing.any() else noisy
    return shifted


def draw_with_shares(labels: Any, shares: Mapping[Any, float], *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draw people with replacement so that each group has a given share (eq. 36), and return their row numbers.

    A person of group g is drawn with a probability proportional to the weight w_g, the new share over the old one. Groups may be
    subgroups, or true classes for a shift of the class balance.

    Args:
        labels: Group of each person, (N,).
        shares: New share of each group. They must sum to 1 and name every group.
        seed: Seed of the draw.

    Raises:
        DataError: A share is negative, they do not sum to 1, or groups and shares do not match.
    """
    groups = np.asarray(labels, dtype=object)
    present = set(groups.tolist())
    if present != set(shares):
        raise DataError(f"shares must name the groups {sorted(map(str, present))}, got {sorted(map(str, shares))}.")
    values = list(shares.values())
    if not all(value >= 0 for value in values) or not math.isclose(sum(values), 1.0, abs_tol=1e-9):
        raise DataError(f"shares must be at least 0 and sum to 1, got {values}.")
    weights = np.zeros(len(groups))
    for group, share in shares.items():
        is_member = groups == group
        weights[is_member] = share / int(is_member.sum())
    chosen = np.random.default_rng(seed).choice(len(groups), len(groups), p=weights)
    return np.sort(chosen).astype(np.int64)
