"""A pass-or-fail judgement for pipelines: limits on Validity Drop and on drift of the favourable rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from cfptq.errors import ConfigurationError
from cfptq.metrics import Interval


@dataclass(frozen=True)
class Gate:
    """Whether every limit held, and a sentence about each. True where it held.

    Attributes:
        held: no limit was broken.
        reasons: one sentence per limit, in the order Validity Drop, drift.
    """

    held: bool
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.held

    def __str__(self) -> str:
        return "\n".join(("Gate held." if self.held else "Gate broken.", *self.reasons))


@dataclass(frozen=True)
class Finding:
    """A measured number as a gate sees it.

    Attributes:
        name: what it is, to begin a sentence with.
        value: NaN where undefined.
        interval: its confidence interval.
    """

    name: str
    value: float
    interval: Interval


def judged(validity_drop: Finding, drift: Finding, max_vd: float | None, max_drift: float | None) -> Gate:
    """Hold the two findings against their limits; a limit of None is not asked for. Limits are shares within [0, 1].

    Drift is judged by its size, in either direction. An undefined number cannot be shown to keep a limit, so it breaks it.

    Raises:
        ConfigurationError: a limit that is no number, or outside [0, 1].
    """
    verdicts: list[tuple[bool, str]] = []
    for finding, limit, option in ((validity_drop, max_vd, "max_vd"), (drift, max_drift, "max_drift")):
        if limit is None:
            continue
        if not (isinstance(limit, Real) and 0 <= limit <= 1):
            raise ConfigurationError(f"{option} must be a share between 0 and 1, such as 0.02 for 2 %, but is {limit!r}")
        verdicts.append(_verdict(finding, limit))
    if not verdicts:
        return Gate(True, ("No limit was asked for.",))
    return Gate(all(held for held, _ in verdicts), tuple(reason for _, reason in verdicts))


def _verdict(finding: Finding, limit: float) -> tuple[bool, str]:
    if math.isnan(finding.value):
        return False, f"{finding.name} is undefined, so it cannot be shown to keep the limit {limit:g}."
    held = abs(finding.value) <= limit
    low, high = finding.interval
    word = "keeps" if held else "breaks"
    return held, f"{finding.name} {finding.value:.4f} (interval {low:.4f} to {high:.4f}) {word} the limit {limit:g}."
