"""Numbers of a report as text."""

from __future__ import annotations

import math

from cfptq.metrics import Interval

#: Text of a share that cannot be computed.
UNDEFINED = "undefined"
_SINGULAR = {"people": "person", "rows": "row", "letters": "letter", "groups": "group", "features": "feature", "limits": "limit"}


def format_count(number: int, plural: str) -> str:
    """Return a number with its noun, such as "1 letter" or "1,204 people"."""
    return f"1 {_SINGULAR[plural]}" if number == 1 else f"{number:,} {plural}"


def format_number(value: float | None, signed: bool = False) -> str:
    """Return a number with four decimals, or a dash if it is undefined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value + 0.0:+.4f}" if signed else f"{value:.4f}"


def format_interval(ends: Interval, signed: bool = False) -> str:
    """Return both ends of an interval, or a dash if it is undefined."""
    low, high = ends
    return "-" if math.isnan(low) else f"{format_number(low, signed)} to {format_number(high, signed)}"


def format_percent(value: float, signed: bool = False) -> str:
    """Return a share as a percentage with one decimal, or more below 0.1 %."""
    if math.isnan(value):
        return UNDEFINED
    percent, sign = 100 * value + 0.0, "+" if signed else ""
    return f"{percent:{sign}.1f} %" if abs(percent) >= 0.1 or percent == 0 else f"{percent:{sign}.2g} %"


def format_percent_interval(interval: Interval, level: float) -> str:
    """Return an interval of a share in words."""
    low, high = interval
    if math.isnan(low):
        return "no interval"
    return f"{100 * level:g} % interval {100 * low:.1f} to {100 * high:.1f} %"


def format_percent_range(interval: Interval) -> str:
    """Return both ends of an interval of a share as percentages, or a dash if it is undefined."""
    low, high = interval
    return "-" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f} %"


def format_cost(value: float) -> str:
    """Return a cost with three significant digits, or a dash if there is none."""
    return "-" if math.isnan(value) else f"{value:.3g}"
