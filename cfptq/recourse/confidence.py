"""Required confidence of a counterfactual point, as checked and converted by every search."""

from __future__ import annotations

from math import isfinite, log
from numbers import Real
from typing import Protocol

from cfptq.errors import DataError


class AtConfidence(Protocol):
    """Settings that require a ``confidence``, and a ``slack`` in logits beyond it."""

    @property
    def confidence(self) -> float: ...

    @property
    def slack(self) -> float: ...


def margin_at_confidence(confidence: float) -> float:
    """Return the target margin in logits that a confidence requires, which is its logit."""
    return log(confidence / (1 - confidence))


def check_confidence(settings: AtConfidence) -> None:
    """Raise DataError unless confidence and slack of ``settings`` are admissible."""
    name, confidence, slack = type(settings).__name__, settings.confidence, settings.slack
    if not (isinstance(confidence, Real) and 0 < confidence < 1):
        raise DataError(f"{name}.confidence must be a probability between 0 and 1, such as 0.5 or 0.55, got {confidence!r}.")
    if not (isinstance(slack, Real) and isfinite(slack) and slack >= 0):
        raise DataError(f"{name}.slack must be zero or a small positive number of logits, got {slack!r}.")
