"""A gate for pipelines, with limits on Validity Drop, boundary disagreement and drift of the favourable rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from cfptq.errors import ConfigurationError
from cfptq.metrics import Interval


@dataclass(frozen=True)
class Gate:
    """Outcome of an audit against limits, which is true if every limit held.

    Attributes:
        held: True if no limit was broken.
        reasons: One sentence a limit, in the order Validity Drop, boundary disagreement, drift.
    """

    held: bool
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.held

    def __str__(self) -> str:
        return "\n".join(("Gate held." if self.held else "Gate broken.", *self.reasons))


@dataclass(frozen=True)
class Finding:
    """A measured value that a gate compares with a limit.

    Attributes:
        name: Name of the measure, which begins a sentence.
        value: The value, NaN where it is undefined.
        interval: Confidence interval of the value.
    """

    name: str
    value: float
    interval: Interval


def judge(limits: Sequence[tuple[Finding, float | None, str]]) -> Gate:
    """Compare findings with their limits.

    A finding is judged by its absolute value. An undefined value breaks its limit, because nothing shows that it keeps it.

    Args:
        limits: Each finding with its limit, a share within [0, 1] or None for no limit, and the name of the option that sets it.

    Raises:
        ConfigurationError: A limit is not a number within [0, 1].
    """
    verdicts: list[tuple[bool, str]] = []
    for finding, limit, option in limits:
        if limit is None:
            continue
        if not (isinstance(limit, Real) and 0 <= limit <= 1):
            raise ConfigurationError(f"{option} must be a share between 0 and 1, got {limit!r}. Give 0.02 for 2 %.")
        verdicts.append(_judge_one(finding, limit))
    if not verdicts:
        return Gate(True, ("No limit was given.",))
    return Gate(all(held for held, _ in verdicts), tuple(reason for _, reason in verdicts))


def _judge_one(finding: Finding, limit: float) -> tuple[bool, str]:
    if math.isnan(finding.value):
        return False, f"{finding.name} is undefined, so it cannot be shown to keep the limit {limit:g}."
    held = abs(finding.value) <= limit
    low, high = finding.interval
    word = "keeps" if held else "breaks"
    return held, f"{finding.name} {finding.value:.4f} (interval {low:.4f} to {high:.4f}) {word} the limit {limit:g}."
