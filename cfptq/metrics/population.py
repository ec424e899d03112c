"""How the two models treat everybody, recourse or not: accuracy, flips, and drift of the favourable rate.

A quantizer can buy Validity Drop by accepting more people. These numbers show it.
"""

from __future__ import annotations

import numpy as np

from cfptq.metrics.arrays import Floats, Values, check_lengths, defined_mean, vector


def hits(decisions: Values, labels: Values) -> Floats:
    """Per row: 1 where the decision is the label, else 0. Both (N,) classes; NaN where the label is NaN (unknown).

    Raises:
        DataError: lengths differ.
    """
    given, true = vector(decisions, "decisions"), vector(labels, "labels")
    check_lengths(decisions=given, labels=true)
    return np.where(np.isnan(true), np.nan, (given == true).astype(np.float64))


def accuracy(decisions: Values, labels: Values) -> float:
    """Share of the rows with a known label that are decided as labelled. NaN where no label is known."""
    return defined_mean(hits(decisions, labels))


def factual_flips(decisions_f: Values, decisions_q: Values) -> Floats:
    """Per row, as it is and without any action: 1 where the two models decide differently, else 0.

    Raises:
        DataError: lengths differ.
    """
    before, after = vector(decisions_f, "decisions_f"), vector(decisions_q, "decisions_q")
    check_lengths(decisions_f=before, decisions_q=after)
    flips: Floats = (before != after).astype(np.float64)
    return flips


def factual_flip_rate(decisions_f: Values, decisions_q: Values) -> float:
    """Share of the rows on which the two models decide differently. NaN for no rows."""
    return defined_mean(factual_flips(decisions_f, decisions_q))


def favourable_rate(decisions: Values, target: Values) -> float:
    """Share of the rows that are given their target class. Both (N,). NaN for no rows."""
    given, wanted = vector(decisions, "decisions"), vector(target, "target")
    check_lengths(decisions=given, target=wanted)
    return defined_mean((given == wanted).astype(np.float64))


def favourable_changes(decisions_f: Values, decisions_q: Values, target: Values) -> Floats:
    """Per row: +1 newly favourable after quantization, -1 no longer favourable, 0 unchanged. All (N,) classes.

    Raises:
        DataError: lengths differ.
    """
    before, after, wanted = vector(decisions_f, "decisions_f"), vector(decisions_q, "decisions_q"), vector(target, "target")
    check_lengths(decisions_f=before, decisions_q=after, target=wanted)
    changes: Floats = (after == wanted).astype(np.float64) - (before == wanted).astype(np.float64)
    return changes


def favourable_rate_drift(decisions_f: Values, decisions_q: Values, target: Values) -> float:
    """Signed change of the favourable rate, as a share of the rows (0.01 is one percentage point). NaN for no rows."""
    return defined_mean(favourable_changes(decisions_f, decisions_q, target))
