"""How sure of the target a point must be: what every search that is asked for a confidence checks and computes alike."""

from __future__ import annotations

from math import isfinite, log
from numbers import Real
from typing import Protocol

from cfptq.errors import DataError


class AtConfidence(Protocol):
    """Settings with a ``confidence``, and a ``slack`` in logits by which points lie beyond it."""

    @property
    def confidence(self) -> float: ...

    @property
    def slack(self) -> float: ...


def level_of(confidence: float) -> float:
    """Target margin that a confidence asks for: its logit, in logits."""
    return log(confidence / (1 - confidence))


def check_confidence(settings: AtConfidence) -> None:
    """Raise DataError unless confidence and slack of ``settings`` can be asked for."""
    name, confidence, slack = type(settings).__name__, settings.confidence, settings.slack
    if not (isinstance(confidence, Real) and 0 < confidence < 1):
        raise DataError(f"{name}.confidence is {confidence!r}; it is a probability between 0 and 1, such as 0.5 or 0.55")
    if not (isinstance(slack, Real) and isfinite(slack) and slack >= 0):
        raise DataError(f"{name}.slack is {slack!r}; it must be zero or a small positive number of logits")
