"""Does the full-precision recourse still work? Validity Drop (Section 3.3, eq. 37) and the feasible recourse rate (eq. 34).

Functions in the plural give one number per person, NaN where it is undefined for her; the metrics are their means.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, check_lengths, defined_mean, mask, vector


def target_failures(decisions: Values, target: Values, found: Values | None = None) -> Floats:
    """Per person: 1 where the decision at her recourse point is not the target, else 0.

    Args:
        decisions: (N,) classes that the quantized model gives at the recourse points of the full-precision model.
        target: (N,) target classes.
        found: (N,) whether the full-precision model grants the target there; people without are undefined (NaN).

    Raises:
        DataError: lengths differ.
    """
    given, wanted = vector(decisions, "decisions"), vector(target, "target")
    check_lengths(decisions=given, target=wanted)
    failed: Floats = (given != wanted).astype(np.float64)
    if found is not None:
        had = mask(found, "found")
        check_lengths(decisions=given, found=had)
        failed[~had] = np.nan
    return failed


def validity_drop(decisions: Values, target: Values, found: Values | None = None) -> float:
    """VD, target failure: of the people with full-precision recourse, the share whom the quantized model refuses (eq. 37).

    Arguments as in :func:`target_failures`. NaN where nobody has recourse.
    """
    return defined_mean(target_failures(decisions, target, found))


def label_mismatches(decisions_f: Values, decisions_q: Values) -> Floats:
    """Per person: 1 where the two models decide differently at the same point, else 0. Both (N,).

    Raises:
        DataError: lengths differ.
    """
    before, after = vector(decisions_f, "decisions_f"), vector(decisions_q, "decisions_q")
    check_lengths(decisions_f=before, decisions_q=after)
    mismatches: Floats = (before != after).astype(np.float64)
    return mismatches


def validity_mismatch(decisions_f: Values, decisions_q: Values) -> float:
    """VD, mismatch: share of recourse points at which the two models decide differently (Section 3.3). NaN for no points."""
    return defined_mean(label_mismatches(decisions_f, decisions_q))


def feasible_recourse_rate(found: Values) -> float:
    """FRR: share of rejected people for whom recourse was found on the full-precision model (eq. 34). NaN for nobody."""
    return defined_mean(mask(found, "found").astype(np.float64))


def lost_recourse(found_f: Values, found_q: Values) -> Floats:
    """Per person: 1 where the full-precision model has recourse and the quantized model has none; NaN without the first.

    Raises:
        DataError: lengths differ.
    """
    before, after = mask(found_f, "found_f"), mask(found_q, "found_q")
    check_lengths(found_f=before, found_q=after)
    lost: Floats = (~after).astype(np.float64)
    lost[~before] = np.nan
    return lost


def recourse_lost_rate(found_f: Values, found_q: Values) -> float:
    """Of the people with recourse on the full-precision model, the share for whom none was found on the quantized model."""
    return defined_mean(lost_recourse(found_f, found_q))
