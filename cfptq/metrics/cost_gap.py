"""What does recourse cost after quantization? The Counterfactual Recourse Gap (Section 3.3, eq. 38) and its robust companions.

The mean of the relative gap is ruled by people whose recourse costs next to nothing, so the medians and the ratio of summed
costs stand beside it. Positive: quantization made recourse dearer.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, check_lengths, defined_mean, mask, vector

#: ε of the gap and of DirSim and ActOverlap.
EPSILON = 1e-8


def relative_gaps(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> Floats:
    """Per person: (c_q - c_f) / (c_f + ε), NaN where either recourse is missing.

    Args:
        cost_f: (N,) minimal cost on the full-precision model.
        cost_q: (N,) minimal cost on the quantized model; 0 for people whom it already accepts.
        kept: (N,) whether recourse was found on both; without it, on everyone whose two costs are numbers.
        epsilon: ε > 0, in cost units.

    Raises:
        DataError: lengths differ.
    """
    before, after = both_costs(cost_f, cost_q, kept)
    return (after - before) / (before + epsilon)


def both_costs(cost_f: Values, cost_q: Values, kept: Values | None = None) -> tuple[Floats, Floats]:
    """The two costs (N,) of each person, both NaN where ``kept`` is False or one of them is NaN.

    Raises:
        DataError: lengths differ.
    """
    before, after = vector(cost_f, "cost_f").copy(), vector(cost_q, "cost_q").copy()
    check_lengths(cost_f=before, cost_q=after)
    missing = np.isnan(before) | np.isnan(after)
    if kept is not None:
        both = mask(kept, "kept")
        check_lengths(cost_f=before, kept=both)
        missing |= ~both
    before[missing] = np.nan
    after[missing] = np.nan
    return before, after


def recourse_gap(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """CRG: mean relative gap (eq. 38). Arguments as in :func:`relative_gaps`; NaN where nobody has both costs."""
    return defined_mean(relative_gaps(cost_f, cost_q, kept, epsilon))


def recourse_gap_median(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Median relative gap. Arguments as in :func:`relative_gaps`."""
    return _defined_median(relative_gaps(cost_f, cost_q, kept, epsilon))


def recourse_gap_abs_median(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Median of the gap's size: dearer and cheaper do not cancel. Arguments as in :func:`relative_gaps`."""
    return _defined_median(np.abs(relative_gaps(cost_f, cost_q, kept, epsilon)))


def recourse_gap_of_sums(cost_f: Values, cost_q: Values, kept: Values | None = None, epsilon: float = EPSILON) -> float:
    """Σ(c_q - c_f) / (Σ c_f + ε): the change in what all people pay together. Arguments as in :func:`relative_gaps`."""
    before, after = both_costs(cost_f, cost_q, kept)
    if np.isnan(before).all():
        return float("nan")
    return float(np.nansum(after - before) / (np.nansum(before) + epsilon))


def _defined_median(values: Floats) -> float:
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if len(kept) else float("nan")
