"""Detection of columns that number people or hold dates as text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

_MIN_ROWS = 20  # Fewer rows have different values by chance.
_MIN_LEVELS_OF_DATES = 10
_MIN_SHARE_OF_DATES = 0.9
_COLLISIONS = 8.0  # Among random numbers of a range below rows²/8, two are equal with a probability above 98 %.
_NAME = re.compile(r"(^|[^a-z])(id|uuid|guid|ssn|iban|idx|index|rowid|pk|key)($|[^a-z])")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})([T ].*)?")


def is_identifier(series: pd.Series[Any]) -> bool:
    """Return true if whole numbers or strings, all different, seem to number the rows.

    Numbers count if their name is that of an identifier, or if random numbers of their range would repeat.
    """
    present = series.dropna()
    if len(present) < _MIN_ROWS or not present.is_unique:
        return False
    if not pd.api.types.is_numeric_dtype(present.dtype):
        return not pd.api.types.is_bool_dtype(present.dtype)
    values = present.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        return False
    span = float(values.max() - values.min()) + 1
    return span * _COLLISIONS < len(values) ** 2 or is_identifier_name(str(series.name))


def is_identifier_name(name: str) -> bool:
    """Return true for names such as ``person_id``, ``customerId`` and ``UUID``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return _NAME.search(words.casefold()) is not None


def has_dates(series: pd.Series[Any]) -> bool:
    """Return true if the values are strings that are written as dates."""
    levels = [value for value in series.dropna().unique() if isinstance(value, str)]
    if len(levels) < _MIN_LEVELS_OF_DATES:
        return False
    return sum(_DATE.fullmatch(level.strip()) is not None for level in levels) >= _MIN_SHARE_OF_DATES * len(levels)
