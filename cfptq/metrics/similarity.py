"""Is it still the same advice? Direction similarity and overlap of the changed columns (Section 3.3)."""

from __future__ import annotations

import numpy as np

from cfptq.errors import DataError
from cfptq.metrics.arrays import Floats, Values, check_lengths, defined_mean, mask, matrix
from cfptq.metrics.cost_gap import EPSILON

#: τ of supp_τ: smaller changes of a column are numerical noise.
SUPPORT_TOLERANCE = 1e-6


def direction_cosines(delta_f: Values, delta_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> Floats:
    """Per person: ⟨δ_f, δ_q⟩ / (‖δ_f‖₂ ‖δ_q‖₂ + ε).

    NaN where an action is zero, since it has no direction (a quantized model that already accepts needs no action), and where
    ``kept`` is False.

    Args:
        delta_f: (N, k) actions on the full-precision model, in columns.
        delta_q: (N, k) actions on the quantized model.
        kept: (N,) whether recourse was found on both.
        epsilon: ε > 0.

    Raises:
        DataError: shapes differ.
    """
    before, after, both = _pairs(delta_f, delta_q, kept)
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines: Floats = np.einsum("nk,nk->n", before, after) / (norms + epsilon)
    cosines[~both | ~(before != 0).any(axis=1) | ~(after != 0).any(axis=1)] = np.nan
    return cosines


def direction_similarity(delta_f: Values, delta_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """DirSim: mean cosine between the two actions, in [-1, 1]. Arguments as in :func:`direction_cosines`."""
    return defined_mean(direction_cosines(delta_f, delta_q, kept, epsilon))


def action_jaccards(
    delta_f: Values,
    delta_q: Values,
    kept: Values | None = None,
    tolerance: float = SUPPORT_TOLERANCE,
    epsilon: float = EPSILON,
) -> Floats:
    """Per person: common / (all + ε) of the supports supp_τ(δ_f) and supp_τ(δ_q); NaN where ``kept`` is False.

    By the formula an action that changes nothing overlaps with none: 0. Arguments as in :func:`direction_cosines`;
    ``tolerance`` is τ, in units of the columns.

    Raises:
        DataError: shapes differ.
    """
    before, after, both = _pairs(delta_f, delta_q, kept)
    changed_f, changed_q = np.abs(before) > tolerance, np.abs(after) > tolerance
    overlap: Floats = (changed_f & changed_q).sum(axis=1) / ((changed_f | changed_q).sum(axis=1) + epsilon)
    overlap[~both] = np.nan
    return overlap


def action_overlap(
    delta_f: Values,
    delta_q: Values,
    kept: Values | None = None,
    tolerance: float = SUPPORT_TOLERANCE,
    epsilon: float = EPSILON,
) -> float:
    """ActOverlap: mean Jaccard overlap of the changed columns, in [0, 1]. Arguments as in :func:`action_jaccards`."""
    return defined_mean(action_jaccards(delta_f, delta_q, kept, tolerance, epsilon))


def _pairs(delta_f: Values, delta_q: Values, kept: Values | None) -> tuple[Floats, Floats, np.ndarray]:
    before, after = matrix(delta_f, "delta_f"), matrix(delta_q, "delta_q")
    if before.shape != after.shape:
        raise DataError(f"the actions must be of one shape, but delta_f is {before.shape} and delta_q is {after.shape}")
    both = np.ones(len(before), dtype=np.bool_) if kept is None else mask(kept, "kept")
    check_lengths(delta_f=before, kept=both)
    return before, after, both
