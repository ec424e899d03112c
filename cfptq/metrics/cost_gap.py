"""Counterfactual Recourse Gap (Section 3.3, eq. 38) and its robust variants.

Each measure is positive where quantization made recourse more expensive. People with very cheap recourse dominate the mean of the
relative gap. The medians and the ratio of summed costs are therefore reported beside it.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, as_mask, as_vector, check_lengths, nan_mean, nan_median

#: ε of the recourse gap (cost units), of direction similarity and of action overlap. It keeps their denominators above zero.
EPSILON = 1e-8


def pair_costs(cost_f: Values, cost_q: Values, kept: Values | None = None) -> tuple[Floats, Floats]:
    """Return the two costs of each person, both NaN where either is undefined.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.

    Returns:
        Two arrays (N,).

    Raises:
        DataError: the lengths differ.
    """
    before, after = as_vector(cost_f, "cost_f").copy(), as_vector(cost_q, "cost_q").copy()
    check_lengths(cost_f=before, cost_q=after)
    missing = np.isnan(before) | np.isnan(after)
    if kept is not None:
        both = as_mask(kept, "kept")
        check_lengths(cost_f=before, kept=both)
        missing |= ~both
    before[missing] = np.nan
    after[missing] = np.nan
    return before, after


def relative_gaps(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> Floats:
    """Compute (c_q - c_f) / (c_f + ε) for each person.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Returns:
        Array (N,), NaN where either recourse is missing.

    Raises:
        DataError: the lengths differ.
    """
    before, after = pair_costs(cost_f, cost_q, kept)
    return (after - before) / (before + epsilon)


def recourse_gap(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Compute the Counterfactual Recourse Gap (CRG, eq. 38), the mean relative gap.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Returns:
        The mean, or NaN if nobody has both costs.
    """
    return nan_mean(relative_gaps(cost_f, cost_q, kept, epsilon))


def recourse_gap_median(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Compute the median relative gap.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Returns:
        The median, or NaN if nobody has both costs.
    """
    return nan_median(relative_gaps(cost_f, cost_q, kept, epsilon))


def recourse_gap_abs_median(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Compute the median absolute relative gap, in which increases and decreases do not cancel.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Returns:
        The median, or NaN if nobody has both costs.
    """
    return nan_median(np.abs(relative_gaps(cost_f, cost_q, kept, epsilon)))


def recourse_gap_of_sums(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Compute Σ(c_q - c_f) / (Σ c_f + ε), the relative change of the summed costs.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) True where recourse was found on both models. By default all people whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Returns:
        The ratio, or NaN if nobody has both costs.
    """
    before, after = pair_costs(cost_f, cost_q, kept)
    if np.isnan(before).all():
        return float("nan")
    return float(np.nansum(after - before) / (np.nansum(before) + epsilon))
