"""Checks of single values that raise errors naming the feature and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from cfptq.errors import ActionSetError

Level: TypeAlias = str | int | float | bool | None
"""One value of an ordinal or categorical feature. ``None`` stands for a missing value."""


def to_python_value(value: Any) -> Any:
    """Return a NumPy scalar as a Python value, and NaN or pandas' NA as ``None``."""
    if hasattr(value, "item") and callable(value.item) and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def parse_levels(values: Any, label: str) -> tuple[Level, ...]:
    """Return ``values`` as a tuple of Python values. ``label`` begins the error message, here and below."""
    if isinstance(values, Mapping):
        raise ActionSetError(f"{label} must be a list of values that holds for every row, got the mapping {values!r}. List the values.")
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ActionSetError(f"{label} must be a list of values, got {values!r}. Write [{values!r}] for a single value.")
    return tuple(to_python_value(value) for value in values)


def parse_number(value: Any, label: str) -> float:
    """Return ``value`` as a float that is not NaN."""
    number = to_python_value(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ActionSetError(f"{label} must be a number, got {value!r}.")
    try:
        return float(number)
    except OverflowError:
        raise ActionSetError(f"{label} must be a number that float64 can hold, got a longer one.") from None


def parse_finite_number(value: Any, label: str) -> float:
    """Return ``value`` as a finite float."""
    number = parse_number(value, label)
    if not math.isfinite(number):
        raise ActionSetError(f"{label} must be finite, got {number}.")
    return number


def to_float32(value: float) -> float:
    """Return ``value`` rounded to float32, in which the model's columns are held. It is infinite beyond the range."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def parse_pair(value: Any, label: str) -> tuple[Any, Any]:
    """Return ``value`` as a tuple of two elements."""
    if isinstance(value, str | Mapping | set) or not hasattr(value, "__len__") or len(value) != 2:
        raise ActionSetError(f"{label} must be a pair (lowest, highest), got {value!r}.")
    first, second = value
    return first, second


def parse_column_number(value: Any, name: str) -> int:
    """Return ``value`` as the index of one of the model's columns, counted from 0."""
    number = to_python_value(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ActionSetError(f"{name}: a column must be a whole number of at least 0, got {value!r}.")
    return number
