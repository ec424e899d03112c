"""Checks of single values: numbers, pairs, levels, column numbers. Each names what is wrong and where."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from cfptq.errors import ActionSetError

Level: TypeAlias = str | int | float | bool | None
"""One value of an ordinal or categorical feature; ``None`` is the level that stands for a missing value."""


def plain(value: Any) -> Any:
    """A NumPy scalar as the Python value it holds; NaN and pandas' NA as ``None``."""
    if hasattr(value, "item") and callable(value.item) and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def level_tuple(values: Any, what: str) -> tuple[Level, ...]:
    """``values`` as a tuple of plain Python values."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ActionSetError(f"{what} is a list of values, not {values!r}")
    return tuple(plain(value) for value in values)


def number(value: Any, what: str) -> float:
    """``value`` as a float that is not NaN."""
    plainly = plain(value)
    if isinstance(plainly, bool) or not isinstance(plainly, int | float):
        raise ActionSetError(f"{what}: {value!r} is not a number")
    return float(plainly)


def finite_number(value: Any, what: str) -> float:
    """``value`` as a finite float."""
    result = number(value, what)
    if not math.isfinite(result):
        raise ActionSetError(f"{what}: {result} is not finite")
    return result


def pair(value: Any, what: str) -> tuple[Any, Any]:
    """``value`` as two things."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise ActionSetError(f"{what}: give a pair (lowest, highest), not {value!r}")
    first, second = value
    return first, second


def column_number(value: Any, name: str) -> int:
    """``value`` as a column index."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ActionSetError(f"{name}: a column is a whole number from 0, not {value!r}")
    return value
