"""Two-sided measures at the decision boundary, which a model that accepts more people does not lower.

Validity Drop counts recourse that the quantized model refuses. Premature validity counts recourse that it grants a step too early.
Their mean, boundary disagreement, is to first order the density of people at the boundary times the mean absolute margin error.
Functions with a plural name return one number per person, NaN where it is undefined. The metrics are their means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cfptq.errors import DataError
from cfptq.metrics.arrays import Floats, Values, as_vector, check_lengths, leave_out_missing, nan_mean
from cfptq.metrics.validity import target_failures


def premature_acceptances(decisions: Values, target: Values, found: Values | None = None) -> Floats:
    """Return 1 for each person whom the quantized model accepts before the full-precision model does, else 0.

    Args:
        decisions: (N,) classes that the quantized model decides at the last iterate of each person's path that the full-precision
            model still refuses.
        target: (N,) target classes.
        found: (N,) True where the path ends at a point with the target. By default everyone.

    Returns:
        Array (N,), NaN where ``found`` is False.

    Raises:
        DataError: the lengths differ.
    """
    return 1.0 - target_failures(decisions, target, found)


def premature_validity(decisions: Values, target: Values, found: Values | None = None) -> float:
    """Compute premature validity (PV), the share of people with recourse whom the quantized model accepts a step too early.

    Args:
        decisions: (N,) classes that the quantized model decides at the last iterate of each person's path that the full-precision
            model still refuses.
        target: (N,) target classes.
        found: (N,) True where the path ends at a point with the target. By default everyone.

    Returns:
        The share, or NaN if nobody has recourse.
    """
    return nan_mean(premature_acceptances(decisions, target, found))


def boundary_disagreements(failures: Values, premature: Values) -> Floats:
    """Return half the number of the last step's two ends at which each person's two decisions differ.

    Args:
        failures: (N,) 1 where the quantized model refuses the recourse point, from ``target_failures``.
        premature: (N,) 1 where it accepts the point before, from ``premature_acceptances``.

    Returns:
        Array (N,) of 0, 0.5 and 1, NaN where either is undefined.

    Raises:
        DataError: the lengths differ.
    """
    refused, early = as_vector(failures, "failures"), as_vector(premature, "premature")
    check_lengths(failures=refused, premature=early)
    return (refused + early) / 2


def boundary_disagreement(failures: Values, premature: Values) -> float:
    """Compute boundary disagreement (BD), the mean of Validity Drop and premature validity over the same people.

    Args:
        failures: (N,) 1 where the quantized model refuses the recourse point, from ``target_failures``.
        premature: (N,) 1 where it accepts the point before, from ``premature_acceptances``.

    Returns:
        BD = (VD + PV) / 2, or NaN if nobody has both.
    """
    return nan_mean(boundary_disagreements(failures, premature))


@dataclass(frozen=True)
class MarginThreshold:
    """Threshold on the target margin above which a person is accepted.

    Attributes:
        margin: Threshold in logits. Taking it off the target's logit leaves a threshold of 0.
        tied_share: Share of the people with exactly this margin who are accepted, within [0, 1].
    """

    margin: float
    tied_share: float = 0.0

    def accept(self, margins: Values) -> Floats:
        """Return the share in which each person is accepted, (N,). It is 0 or 1 but for people on the threshold."""
        given = as_vector(margins, "margins")
        return np.where(given > self.margin, 1.0, np.where(given == self.margin, self.tied_share, 0.0))


def equalize_rate(margins: Values, accepted: float) -> MarginThreshold:
    """Find the threshold on the quantized model's target margins at which it accepts a given number of people.

    The threshold is 0 where that number is accepted already, else the middle of all thresholds that accept it. Of people with equal
    margins, or of a fractional number, a share is accepted.

    Args:
        margins: (N,) target margins of the quantized model on all rows, in logits, with N > 0.
        accepted: number of people to accept, from 0 to N. It may be a fraction.

    Raises:
        DataError: there are no rows, a margin is NaN, or ``accepted`` is outside [0, N].
    """
    ordered = np.sort(as_vector(margins, "margins"))[::-1]
    count = len(ordered)
    if count == 0 or bool(np.isnan(ordered).any()):
        raise DataError(f"margins must be {'numbers without NaN' if count else 'those of at least one person'}. Leave such rows out.")
    if not 0 <= accepted <= count:
        raise DataError(f"accepted must lie between 0 and the number of rows, {count}, got {accepted}.")
    whole = int(np.floor(accepted))
    if whole == accepted and _count_above(ordered, 0.0) == whole:
        return MarginThreshold(0.0)
    if accepted == 0:
        return MarginThreshold(float(ordered[0]))
    if accepted == count:
        return MarginThreshold(float(ordered[-1]), 1.0)
    last, following = float(ordered[whole - 1]) if whole else np.inf, float(ordered[whole])
    if whole == accepted and last > following:
        return MarginThreshold((last + following) / 2)
    # The person at the edge, and everyone with the same margin, is accepted in part.
    above, tied = _count_above(ordered, following), int((ordered == following).sum())
    return MarginThreshold(following, (accepted - above) / tied)


def target_failures_at_equal_rate(margins: Values, threshold: MarginThreshold, found: Values | None = None) -> Floats:
    """Return the share in which each person's recourse point is refused at a threshold on the target margin.

    Args:
        margins: (N,) target margins of the quantized model at the recourse points, in logits.
        threshold: threshold from ``equalize_rate``.
        found: (N,) True where the full-precision model decides the target there. By default everyone.

    Returns:
        Array (N,), NaN where ``found`` is False.

    Raises:
        DataError: the lengths differ.
    """
    return leave_out_missing(1.0 - threshold.accept(margins), found)


def validity_drop_at_equal_rate(margins: Values, margins_of_rows: Values, accepted: float, found: Values | None = None) -> float:
    """Compute Validity Drop with an offset on the target's logit that makes the two favourable rates equal.

    Args:
        margins: (M,) target margins of the quantized model at the recourse points, in logits.
        margins_of_rows: (N,) its target margins on all rows, in logits.
        accepted: number of the N rows that the full-precision model accepts.
        found: (M,) True where the full-precision model decides the target at the recourse point. By default everyone.

    Returns:
        The share, or NaN if nobody has recourse.
    """
    return nan_mean(target_failures_at_equal_rate(margins, equalize_rate(margins_of_rows, accepted), found))


def _count_above(ordered: Floats, margin: float) -> int:
    return int((ordered > margin).sum())
