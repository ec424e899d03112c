"""Detection of numbers that stand for a missing value, such as -999."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

_MIN_ROWS = 10  # Fewer rows do not show that a value is set apart.
_MIN_OTHER_VALUES = 5  # Fewer different values have no range that another could be set apart from.
_MAX_CODES = 3
_MIN_SHARE_OF_NINES = 0.01  # A value such as 99 that is near the others must be this frequent to be a code.
_MIN_GAP_OF_NINES = 0.1  # Distance of such a value from the others, as a share of their range.
_CODE = re.compile(r"-[1789]|-?9{2,}|-?8{2,}|-?7{2,}")
"""Numbers that are usual as codes."""


def find_missing_codes(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the least and greatest values that look like codes for a missing value.

    A code is at an end of the range and set apart from the other values. Either it lies farther from them than their own range is wide
    and occurs repeatedly, or it is written as codes are: all nines, or one of a few negative numbers where all others are positive.

    Args:
        values: numbers without missing ones, ``(N,)``.
    """
    if len(values) < _MIN_ROWS:
        return ()
    distinct, counts = np.unique(values, return_counts=True)
    codes: list[float] = []
    while len(codes) < _MAX_CODES and len(distinct) > _MIN_OTHER_VALUES:
        for place, rest in ((0, distinct[1:]), (-1, distinct[:-1])):
            code, count = float(distinct[place]), int(counts[place])
            if _is_code(code, count, rest, len(values)):
                codes.append(code)
                distinct = rest
                counts = counts[1:] if place == 0 else counts[:-1]
                break
        else:
            break
    return tuple(codes)


def _is_code(code: float, count: int, rest: npt.NDArray[np.float64], rows: int) -> bool:
    spread = float(rest[-1] - rest[0])
    gap = float(rest[0] - code) if code < rest[0] else float(code - rest[-1])
    is_written_as_code = code.is_integer() and _CODE.fullmatch(f"{code:.0f}") is not None
    if gap > spread and (count > 1 or is_written_as_code):
        return True
    if not is_written_as_code or count < 2:
        return False
    if code < 0:
        others = rest[rest < 0]
        return len(others) < _MAX_CODES and all(_CODE.fullmatch(f"{other:.0f}") and float(other).is_integer() for other in others)
    return count >= _MIN_SHARE_OF_NINES * rows and gap >= _MIN_GAP_OF_NINES * spread
