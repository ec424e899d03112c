"""A gate for pipelines, with limits on what a new model may do to recourse."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias
from xml.etree import ElementTree

from cfptq.errors import ConfigurationError
from cfptq.io.atomic import write_text
from cfptq.io.json import canonicalize
from cfptq.metrics import Interval

Outcome: TypeAlias = Literal["kept", "broken", "not judged"]
"""Outcome of a limit. A value that is undefined cannot be judged."""

_VERBS: dict[Outcome, str] = {"kept": "keeps", "broken": "breaks"}
_HEADLINES: dict[Outcome, str] = {"kept": "Gate held.", "broken": "Gate broken.", "not judged": "Gate not judged."}


@dataclass(frozen=True)
class Finding:
    """A measured value that a gate compares with a limit.

    Attributes:
        name: Name of the measure, which begins a sentence.
        value: The value, NaN where it is undefined.
        interval: Confidence interval of the value.
        meaning: The measure in words that need no knowledge of its name.
    """

    name: str
    value: float
    interval: Interval
    meaning: str = ""


@dataclass(frozen=True)
class Ruling:
    """Outcome of one limit.

    Attributes:
        option: Name of the option that set the limit.
        finding: The measured value.
        limit: Largest size allowed.
        judged: Size that was compared with the limit, the estimate's or the bound's. NaN where it is undefined.
        outcome: Outcome.
    """

    option: str
    finding: Finding
    limit: float
    judged: float
    outcome: Outcome

    def __str__(self) -> str:
        name, (low, high) = self.finding.name, self.finding.interval
        if self.outcome == "not judged":
            return f"{name} is undefined, so it cannot be shown to keep the limit {self.limit:g}."
        value = f"{name} {self.finding.value:.4f} (interval {low:.4f} to {high:.4f})"
        bound = "" if self.judged == abs(self.finding.value) else f", judged by its bound {self.judged:.4f},"
        return f"{value}{bound} {_VERBS[self.outcome]} the limit {self.limit:g}."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        result: dict[str, Any] = canonicalize(
            {
                "limit": self.option,
                "measure": self.finding.name,
                "value": self.finding.value,
                "interval": self.finding.interval,
                "judged": self.judged,
                "allowed": self.limit,
                "outcome": self.outcome,
            }
        )
        return result


@dataclass(frozen=True)
class Gate:
    """Outcome of an audit against limits, which is true if every limit held.

    Attributes:
        rulings: Outcome of each limit.
        level: Confidence level whose bounds were judged. None if estimates were.
    """

    rulings: tuple[Ruling, ...]
    level: float | None = None

    @property
    def held(self) -> bool:
        """True if every limit was kept."""
        return self.outcome == "kept"

    @property
    def outcome(self) -> Outcome:
        """``"broken"`` if a limit is broken, else ``"not judged"`` if a value is undefined, else ``"kept"``."""
        outcomes = {ruling.outcome for ruling in self.rulings}
        return "broken" if "broken" in outcomes else "not judged" if "not judged" in outcomes else "kept"

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence a limit."""
        return tuple(map(str, self.rulings)) or ("No limit was given.",)

    def __bool__(self) -> bool:
        return self.held

    def __str__(self) -> str:
        return "\n".join((_HEADLINES[self.outcome], *self.reasons))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"outcome": self.outcome, "level": self.level, "limits": [ruling.to_dict() for ruling in self.rulings]}

    def to_junit(self, path: str | os.PathLike[str], name: str = "cfptq audit") -> None:
        """Write the outcome as JUnit XML, one test case a limit.

        A broken limit is a failure, and one that could not be judged is an error.

        Args:
            path: File to write. An existing file is replaced.
            name: Name of the test suite.

        Raises:
            FileError: The folder does not exist or cannot be written.
        """
        write_text(path, format_junit([(name, self)]))


def format_junit(gates: Sequence[tuple[str, Gate]]) -> str:
    """Return JUnit XML of several gates, one test suite each."""
    root = ElementTree.Element("testsuites")
    for name, gate in gates:
        outcomes = [ruling.outcome for ruling in gate.rulings]
        counts = {"tests": len(outcomes), "failures": outcomes.count("broken"), "errors": outcomes.count("not judged")}
        attributes = {"name": _keep_printable(name), **{key: str(count) for key, count in counts.items()}}
        suite = ElementTree.SubElement(root, "testsuite", attributes)
        for ruling in gate.rulings:
            case = ElementTree.SubElement(suite, "testcase", classname=_keep_printable(name), name=ruling.option)
            if ruling.outcome != "kept":
                kind = "failure" if ruling.outcome == "broken" else "error"
                ElementTree.SubElement(case, kind, message=str(ruling)).text = str(ruling)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _keep_printable(text: str) -> str:
    """Drop characters that XML cannot hold."""
    return "".join(character for character in text if character.isprintable())


def check_limits(limits: Sequence[tuple[str, float | None]], level: float | None) -> None:
    """Check that limits are shares and the level is a confidence level.

    Raises:
        ConfigurationError: One is not.
    """
    for option, limit in limits:
        if limit is not None and not (isinstance(limit, Real) and 0 <= limit <= 1):
            raise ConfigurationError(f"{option} must be a share between 0 and 1, got {limit!r}. Give 0.02 for 2 %.")
    if level is not None and not (isinstance(level, Real) and 0 < level < 1):
        raise ConfigurationError(f"level must be a confidence level between 0 and 1, got {level!r}. Give 0.95 for 95 %.")


def judge(limits: Sequence[tuple[Finding, float | None, str]], level: float | None = None) -> Gate:
    """Compare findings with their limits.

    A finding is judged by its absolute value. An undefined value cannot be judged, and nothing shows that it keeps its limit.

    Args:
        limits: Each finding with its limit, a share within [0, 1] or None for no limit, and the name of the option that sets it.
        level: Confidence level of the intervals, whose farther end is judged. None judges the estimates.

    Raises:
        ConfigurationError: A limit is not a number within [0, 1].
    """
    check_limits([(option, limit) for _, limit, option in limits], level)
    return Gate(tuple(_judge_one(finding, limit, option, level) for finding, limit, option in limits if limit is not None), level)


def _judge_one(finding: Finding, limit: float, option: str, level: float | None) -> Ruling:
    size = abs(finding.value) if level is None else max(abs(end) for end in finding.interval)
    if math.isnan(finding.value) or math.isnan(size):
        return Ruling(option, finding, float(limit), math.nan, "not judged")
    return Ruling(option, finding, float(limit), size, "kept" if size <= limit else "broken")
