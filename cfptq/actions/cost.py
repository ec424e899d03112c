"""Cost of a change, from weights w_j (eq. 13) and the norms of eq. 4 and Table 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature, Continuous
from cfptq.actions.validation import Level, parse_finite_number
from cfptq.errors import ActionSetError
from cfptq.io.suggestions import did_you_mean

Norm: TypeAlias = Literal["l1", "l2"] | tuple[Literal["mix"], float, float]
"""Norm of the weighted changes, ``"l1"``, ``"l2"``, or ``("mix", λ1, λ2)`` for λ1·ℓ1 + λ2·ℓ2."""

Weights: TypeAlias = Literal["std", "uniform", "mad"]
"""Rule for w_j: ``"std"`` is 1/(σ_j + ε), ``"uniform"`` is 1, and ``"mad"`` is 1/(1.4826·MAD_j + ε)."""

WEIGHTINGS: tuple[Weights, ...] = ("std", "uniform", "mad")
MAD_TO_STD = 1.4826
"""Factor that makes the MAD of a normal sample an estimate of its σ, so that costs under both rules are comparable."""

_MIN_WEIGHT, _MAX_WEIGHT = 1e-20, 1e20  # Beyond them, costs and their squares would leave float32.


def parse_norm(norm: object) -> Norm:
    """Return ``norm`` in its canonical form.

    Raises:
        ActionSetError: ``norm`` has none of the three forms, a λ is negative, or both are zero.
    """
    if norm == "l1":
        return "l1"
    if norm == "l2":
        return "l2"
    if isinstance(norm, tuple | list) and len(norm) == 3 and norm[0] == "mix":
        first, second = (parse_finite_number(part, "norm") for part in norm[1:])
        if first < 0 or second < 0 or first + second == 0:
            raise ActionSetError(f"The factors of norm must be at least 0 and not both 0, got {first:g} and {second:g}.")
        return ("mix", first, second)
    raise ActionSetError(f'norm must be "l1", "l2" or ("mix", λ1, λ2), got {norm!r}{did_you_mean(norm, ("l1", "l2"))}.')


def parse_weights(weights: object) -> Weights:
    """Return ``weights``, or raise ``ActionSetError`` if it is none of ``WEIGHTINGS``."""
    for known in WEIGHTINGS:
        if weights == known:
            return known
    raise ActionSetError(f"weights must be one of {', '.join(WEIGHTINGS)}, got {weights!r}{did_you_mean(weights, WEIGHTINGS)}.")


def compute_column_weights(features: Sequence[AnyFeature], width: int, weights: Weights, epsilon: float) -> Tensor:
    """Compute w of eq. 4 for every column, ``(width,)``, each multiplied by its feature's effort.

    σ is that of the encoded column. Under ``"mad"``, one-hot columns, codes and numbers with a MAD of zero have their σ instead.

    Args:
        features: features placed on the columns.
        width: number of columns.
        weights: rule for the weights.
        epsilon: ε of eq. 13, which is added to σ.

    Raises:
        ActionSetError: a mutable feature has no statistics, or float32 cannot hold its weight.
    """
    result = torch.ones(width, dtype=torch.float64)
    for feature in features:
        for place, column in enumerate(feature.model_columns):
            if weights == "uniform":
                result[column] = feature.effort
                continue
            spread = _compute_spread(feature, place, robust=weights == "mad")
            if spread is None:
                if feature.is_immutable:
                    continue
                raise ActionSetError(
                    f'{feature.name}: weights="{weights}" needs its statistics, or frequencies for levels. '
                    'Build the action set with from_frame or from_columns, or use weights="uniform".'
                )
            result[column] = feature.effort / (spread + epsilon)
    weights_in_float32 = result.to(torch.float32)
    for feature in features:
        own = weights_in_float32[list(feature.model_columns)]
        if not feature.is_immutable and not bool(((own >= _MIN_WEIGHT) & (own <= _MAX_WEIGHT)).all()):
            raise ActionSetError(
                f"{feature.name}: the weight of a change, effort / (std + epsilon), must lie between {_MIN_WEIGHT:g} and {_MAX_WEIGHT:g}, "
                f"got {result[list(feature.model_columns)].tolist()[0]:g}. Correct its std or effort."
            )
    return weights_in_float32


def compute_row_costs(weighted: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each row of weighted changes ``(N, d)`` (eq. 4 and Table 7), ``(N,)``."""
    if norm == "l1":
        return weighted.abs().sum(1)
    if norm == "l2":
        return _compute_l2_norms(weighted)
    _, first, second = norm
    return first * weighted.abs().sum(1) + second * _compute_l2_norms(weighted)


def _compute_l2_norms(weighted: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(weighted, dim=1)
    return lengths


def _compute_spread(feature: AnyFeature, place: int, *, robust: bool) -> float | None:
    """Return σ, or 1.4826·MAD, of one encoded column of the feature over the training rows.

    Args:
        feature: the feature.
        place: index of the column among ``feature.model_columns``.
        robust: whether to use the MAD of a number, if it is above 0.

    Returns:
        ``None`` if the feature has no statistics.
    """
    if isinstance(feature, Continuous):
        seen = feature.statistics
        if seen is None:
            return None
        if feature.curve:
            # The curve has no one scale. Half the column's way between mean - σ and mean + σ, within the observed range, stands for σ.
            spread = MAD_TO_STD * seen.mad if robust and seen.mad > 0 else seen.std
            ends = np.clip([seen.mean - spread, seen.mean + spread], seen.minimum, seen.maximum)
            return float(np.diff(feature.encode_numbers(ends))[0]) / 2
        if robust and seen.mad > 0:
            return MAD_TO_STD * seen.mad / feature.scale
        if seen.missing == 0 or not isinstance(feature.fill, int | float):
            return seen.std / feature.scale
        present = 1 - seen.missing
        mean = present * seen.mean + seen.missing * feature.fill
        square = present * (seen.std**2 + seen.mean**2) + seen.missing * feature.fill**2
        return math.sqrt(max(square - mean**2, 0.0)) / feature.scale
    if feature.frequencies is None:
        return None
    shares = compute_filled_shares(feature.states, feature.frequencies, feature.fill)
    if feature.columns is None:
        codes = feature.codes or ()
        mean = sum(share * code for share, code in zip(shares, codes, strict=True))
        return math.sqrt(max(sum(share * (code - mean) ** 2 for share, code in zip(shares, codes, strict=True)), 0.0))
    level = [index for index, column in enumerate(feature.columns) if column is not None][place]
    assert feature.off is not None and feature.on is not None
    return math.sqrt(max(shares[level] * (1 - shares[level]), 0.0)) * (feature.on[level] - feature.off[level])


def compute_filled_shares(states: Sequence[Level], frequencies: Sequence[float], fill: Level) -> list[float]:
    """Return the share of training rows that the model sees at each level, where missing rows are at the level ``fill``."""
    missing = max(0.0, 1 - sum(frequencies))
    if fill is None:
        return list(frequencies)
    return [share + (missing if state == fill else 0.0) for state, share in zip(states, frequencies, strict=True)]
