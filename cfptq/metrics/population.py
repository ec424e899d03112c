"""Accuracy, factual flips and drift of the favourable rate over all people (Section 3.3).

A quantized model can lower its Validity Drop by accepting more people. These numbers show it.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, as_vector, check_lengths, nan_mean


def correct_decisions(decisions: Values, labels: Values) -> Floats:
    """Return 1 for each row whose decision is its label, else 0.

    Args:
        decisions: (N,) decided classes.
        labels: (N,) true classes, NaN where unknown.

    Returns:
        Array (N,), NaN where the label is unknown.

    Raises:
        DataError: the lengths differ.
    """
    given, true = as_vector(decisions, "decisions"), as_vector(labels, "labels")
    check_lengths(decisions=given, labels=true)
    return np.where(np.isnan(true), np.nan, (given == true).astype(np.float64))


def accuracy(decisions: Values, labels: Values) -> float:
    """Compute the share of the rows with a known label that are decided correctly.

    Args:
        decisions: (N,) decided classes.
        labels: (N,) true classes, NaN where unknown.

    Returns:
        The share, or NaN if no label is known.
    """
    return nan_mean(correct_decisions(decisions, labels))


def factual_flips(decisions_f: Values, decisions_q: Values) -> Floats:
    """Return 1 for each row, without any action, on which the two models decide differently, else 0.

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.

    Raises:
        DataError: the lengths differ.
    """
    before, after = as_vector(decisions_f, "decisions_f"), as_vector(decisions_q, "decisions_q")
    check_lengths(decisions_f=before, decisions_q=after)
    flips: Floats = (before != after).astype(np.float64)
    return flips


def factual_flip_rate(decisions_f: Values, decisions_q: Values) -> float:
    """Compute the share of the rows on which the two models decide differently.

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.

    Returns:
        The share, or NaN for no rows.
    """
    return nan_mean(factual_flips(decisions_f, decisions_q))


def favourable_rate(decisions: Values, target: Values) -> float:
    """Compute the share of the rows for which the target class is decided.

    Args:
        decisions: (N,) decided classes.
        target: (N,) target classes.

    Returns:
        The share, or NaN for no rows.
    """
    given, wanted = as_vector(decisions, "decisions"), as_vector(target, "target")
    check_lengths(decisions=given, target=wanted)
    return nan_mean((given == wanted).astype(np.float64))


def favourable_changes(decisions_f: Values, decisions_q: Values, target: Values) -> Floats:
    """Return +1 for each row that quantization makes favourable, -1 for each that it makes unfavourable, else 0.

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.
        target: (N,) target classes.

    Raises:
        DataError: the lengths differ.
    """
    before, after, wanted = as_vector(decisions_f, "decisions_f"), as_vector(decisions_q, "decisions_q"), as_vector(target, "target")
    check_lengths(decisions_f=before, decisions_q=after, target=wanted)
    changes: Floats = (after == wanted).astype(np.float64) - (before == wanted).astype(np.float64)
    return changes


def favourable_rate_drift(decisions_f: Values, decisions_q: Values, target: Values) -> float:
    """Compute the signed change of the favourable rate.

    Args:
        decisions_f: (N,) classes decided by the full-precision model.
        decisions_q: (N,) classes decided by the quantized model.
        target: (N,) target classes.

    Returns:
        The change as a share of the rows (0.01 is one percentage point), or NaN for no rows.
    """
    return nan_mean(favourable_changes(decisions_f, decisions_q, target))
