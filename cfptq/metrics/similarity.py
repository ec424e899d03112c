"""Direction similarity of two actions and overlap of the columns that they change (Section 3.3)."""

from __future__ import annotations

import numpy as np

from cfptq.errors import DataError
from cfptq.metrics.arrays import Floats, Values, as_mask, as_matrix, check_lengths, nan_mean
from cfptq.metrics.cost_gap import EPSILON

#: τ of supp_τ, in units of the columns. Smaller changes count as numerical noise.
SUPPORT_TOLERANCE = 1e-6


def direction_cosines(delta_f: Values, delta_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> Floats:
    """Compute ⟨δ_f, δ_q⟩ / (‖δ_f‖₂ ‖δ_q‖₂ + ε) for each person.

    A zero action has no direction. It occurs where the quantized model already accepts.

    Args:
        delta_f: (N, k) actions on the full-precision model, in columns.
        delta_q: (N, k) actions on the quantized model, in columns.
        kept: (N,) True where recourse was found on both models. By default everyone.
        epsilon: ε > 0.

    Returns:
        Array (N,), NaN where an action is zero or ``kept`` is False.

    Raises:
        DataError: the shapes differ.
    """
    before, after, both = _pair_actions(delta_f, delta_q, kept)
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines: Floats = np.einsum("nk,nk->n", before, after) / (norms + epsilon)
    cosines[~both | ~(before != 0).any(axis=1) | ~(after != 0).any(axis=1)] = np.nan
    return cosines


def direction_similarity(delta_f: Values, delta_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Compute the direction similarity (DirSim), the mean cosine between the two actions.

    Args:
        delta_f: (N, k) actions on the full-precision model, in columns.
        delta_q: (N, k) actions on the quantized model, in columns.
        kept: (N,) True where recourse was found on both models. By default everyone.
        epsilon: ε > 0.

    Returns:
        The mean in [-1, 1], or NaN if it is undefined for everyone.
    """
    return nan_mean(direction_cosines(delta_f, delta_q, kept, epsilon))


def action_jaccards(
    delta_f: Values,
    delta_q: Values,
    kept: Values | None = None,
    tolerance: float = SUPPORT_TOLERANCE,
    epsilon: float = EPSILON,
) -> Floats:
    """Compute the Jaccard overlap of the changed columns supp_τ(δ_f) and supp_τ(δ_q) for each person.

    The overlap is |intersection| / (|union| + ε), which is 0 where neither action changes a column.

    Args:
        delta_f: (N, k) actions on the full-precision model, in columns.
        delta_q: (N, k) actions on the quantized model, in columns.
        kept: (N,) True where recourse was found on both models. By default everyone.
        tolerance: τ, in units of the columns.
        epsilon: ε > 0.

    Returns:
        Array (N,), NaN where ``kept`` is False.

    Raises:
        DataError: the shapes differ.
    """
    before, after, both = _pair_actions(delta_f, delta_q, kept)
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
    """Compute the action overlap (ActOverlap), the mean Jaccard overlap of the changed columns.

    Args:
        delta_f: (N, k) actions on the full-precision model, in columns.
        delta_q: (N, k) actions on the quantized model, in columns.
        kept: (N,) True where recourse was found on both models. By default everyone.
        tolerance: τ, in units of the columns.
        epsilon: ε > 0.

    Returns:
        The mean in [0, 1], or NaN for nobody.
    """
    return nan_mean(action_jaccards(delta_f, delta_q, kept, tolerance, epsilon))


def _pair_actions(delta_f: Values, delta_q: Values, kept: Values | None) -> tuple[Floats, Floats, np.ndarray]:
    before, after = as_matrix(delta_f, "delta_f"), as_matrix(delta_q, "delta_q")
    if before.shape != after.shape:
        raise DataError(f"delta_f and delta_q must have the same shape, got {before.shape} and {after.shape}.")
    both = np.ones(len(before), dtype=np.bool_) if kept is None else as_mask(kept, "kept")
    check_lengths(delta_f=before, kept=both)
    return before, after, both
