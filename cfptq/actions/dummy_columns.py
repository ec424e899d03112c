"""Detection of one-hot columns in raw rows, such as those of ``pandas.get_dummies``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfptq.actions.raw_values import parse_numbers

_MIN_ROWS = 10  # Fewer rows do not show that two columns exclude one another.
_MIN_EXPECTED_OVERLAP = 10.0  # Rows in which independent columns would both be on. Fewer would be chance.


def find_dummy_groups(frame: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """Return groups of columns of 0 and 1 of which exactly one is 1 in every row.

    Columns that share the beginning of their name are a group too if at most one of them is 1 in every row and chance does not explain
    that, as after ``get_dummies(drop_first=True)``.
    """
    columns = {str(name): values for name in frame.columns if (values := _read_binary(frame[name])) is not None}
    if len(frame) < _MIN_ROWS or len(columns) < 2:
        return ()
    names = list(columns)
    table = np.stack([columns[name] for name in names]).astype(np.float64)
    overlaps = table @ table.T
    counts = np.diag(overlaps)
    found: list[tuple[int, ...]] = []
    free = set(range(len(names)))
    for members in _list_candidates(names):
        group = tuple(member for member in members if member in free)
        if len(group) > 1 and _is_exclusive(group, overlaps) and _is_group(group, counts, len(frame)):
            found.append(group)
            free -= set(group)
    for first in range(len(names)):
        group = _grow_group(first, sorted(free), overlaps, len(frame)) if first in free else ()
        if len(group) > 1:
            found.append(group)
            free -= set(group)
    return tuple(tuple(names[member] for member in group) for group in found)


def _read_binary(series: pd.Series[Any]) -> npt.NDArray[np.bool_] | None:
    """Return a column of 0 and 1 as booleans, or ``None`` for any other and for a constant."""
    if not (pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_numeric_dtype(series.dtype)) or series.isna().any():
        return None
    values = parse_numbers(series)
    is_on = values == 1
    return is_on if bool((is_on | (values == 0)).all()) and 0 < is_on.sum() < len(is_on) else None


def _list_candidates(names: Sequence[str]) -> Iterator[list[int]]:
    """Yield columns whose names begin alike, up to a sign such as ``_`` or ``=``, the longest beginnings first."""
    by_prefix: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        for match in re.finditer(r"[^A-Za-z0-9]+", name):
            if match.start() > 0:
                by_prefix.setdefault(name[: match.end()], []).append(place)
    yield from (by_prefix[prefix] for prefix in sorted(by_prefix, key=len, reverse=True))


def _is_exclusive(group: Sequence[int], overlaps: npt.NDArray[np.float64]) -> bool:
    own = overlaps[np.ix_(group, group)]
    return bool(own.sum() == np.trace(own))


def _is_group(group: Sequence[int], counts: npt.NDArray[np.float64], rows: int) -> bool:
    """Tell a group from columns that exclude one another by chance."""
    own = counts[list(group)]
    if own.sum() == rows:
        return True
    expected = (own.sum() ** 2 - (own**2).sum()) / 2 / rows
    return bool(expected >= _MIN_EXPECTED_OVERLAP)


def _grow_group(first: int, free: Sequence[int], overlaps: npt.NDArray[np.float64], rows: int) -> tuple[int, ...]:
    """Add to a column each later one that excludes all of the group, until one of them is 1 in every row."""
    group, count = [first], overlaps[first, first]
    for place in free:
        if count == rows:
            break
        if place > first and not overlaps[place, group].any():
            group.append(place)
            count += overlaps[place, place]
    return tuple(group) if count == rows else ()
