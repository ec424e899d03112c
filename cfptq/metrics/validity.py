"""Validity Drop (Section 3.3, eq. 37) and the rates of recourse found (eq. 34) and lost.

Functions with a plural name return one number per person, NaN where it is undefined. The metrics are their means.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, as_mask, as_vector, check_lengths, leave_out_missing, nan_mean


def target_failures(decisions: Values, target: Values, found: Values | None = None) -> Floats:
    """Return 1 for each person whose recourse point is not given the target class, else 0.

    Args:
        decisions: (N,) classes that the quantized model decides at the recourse points of the full-precision model.
        target: (N,) target classes.
        found: (N,) True where the full-precision model decides the target there. By default everyone.

    Returns:
        Array (N,), NaN where ``found`` is False.

    Raises:
        DataError: the lengths differ.
    """
    given, wanted = as_vector(decisions, "decisions"), as_vector(target, "target")
    check_lengths(decisions=given, target=wanted)
    return leave_out_missing((given != wanted).astype(np.float64), found)


def validity_drop(decisions: Values, target: Values, found: Values | None = None) -> float:
    """Compute the Validity Drop (VD, eq. 37), the share of people with recourse whom the quantized model refuses.

    Args:
        decisions: (N,) classes that the quantized model decides at the recourse points of the full-precision model.
        target: (N,) target classes.
        found: (N,) True where the full-precision model decides the target there. By default everyone.

    Returns:
        The share, or NaN if nobody has recourse.
    """
    return nan_mean(target_failures(decisions, target, found))


def label_mismatches(decisions_f: Values, decisions_q: Values) -> Floats:
    """Return 1 for each point at which the two models decide differently, else 0.

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.

    Raises:
        DataError: the lengths differ.
    """
    before, after = as_vector(decisions_f, "decisions_f"), as_vector(decisions_q, "decisions_q")
    check_lengths(decisions_f=before, decisions_q=after)
    mismatches: Floats = (before != after).astype(np.float64)
    return mismatches


def validity_mismatch(decisions_f: Values, decisions_q: Values) -> float:
    """Compute the share of recourse points at which the two models decide differently (Section 3.3).

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.

    Returns:
        The share, or NaN for no points.
    """
    return nan_mean(label_mismatches(decisions_f, decisions_q))


def feasible_recourse_rate(found: Values) -> float:
    """Compute the feasible recourse rate (FRR, eq. 34), the share of rejected people for whom recourse was found.

    Args:
        found: (N,) True where recourse was found on the full-precision model.

    Returns:
        The share, or NaN for nobody.
    """
    return nan_mean(as_mask(found, "found").astype(np.float64))


def lost_recourse(found_f: Values, found_q: Values) -> Floats:
    """Return 1 for each person who has recourse on the full-precision model and none on the quantized model, else 0.

    Args:
        found_f: (N,) True where recourse was found on the full-precision model.
        found_q: (N,) True where recourse was found on the quantized model.

    Returns:
        Array (N,), NaN where ``found_f`` is False.

    Raises:
        DataError: the lengths differ.
    """
    before, after = as_mask(found_f, "found_f"), as_mask(found_q, "found_q")
    check_lengths(found_f=before, found_q=after)
    return leave_out_missing((~after).astype(np.float64), before)


def recourse_lost_rate(found_f: Values, found_q: Values) -> float:
    """Compute the share of people with recourse for whom none was found on the quantized model.

    Args:
        found_f: (N,) True where recourse was found on the full-precision model.
        found_q: (N,) True where recourse was found on the quantized model.

    Returns:
        The share, or NaN if nobody has recourse on the full-precision model.
    """
    return nan_mean(lost_recourse(found_f, found_q))
