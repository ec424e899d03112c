"""Constraints that data suggest, as a table to accept or not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd

from cfptq.actions.constraints.base import Array, Constraint
from cfptq.actions.constraints.consequences import Computed
from cfptq.actions.constraints.limits import SpecialCodes
from cfptq.actions.constraints.orders import Ordered, Thermometer
from cfptq.errors import DataError

_MAX_COLUMNS = 60
"""Sums and orders are looked for among this many numeric columns, the first of the frame."""
_TOLERANCE = 1e-6
_MIN_ROWS = 20
_MAX_CODES = 8
_MIN_RELATION = 0.3
"""Rank correlation below which an order of two columns counts as chance."""


def propose_constraints(frame: pd.DataFrame) -> pd.DataFrame:
    """Propose constraints that raw rows suggest. None is added to any action set.

    Found are columns that are always the sum or the ratio of others, columns that always sum to one, nested 0/1 columns, columns of which
    one is never above another, and negative codes of a column that is otherwise not negative. The data keep them, which does not mean
    that they are rules. Read each, and give those that are to ``constraints``.

    Args:
        frame: raw training rows, at least 20.

    Returns:
        A table with ``constraint`` (a value for ``constraints``), ``rule`` (in words), ``reason`` and ``rows`` (those that show it).

    Raises:
        DataError: ``frame`` is no DataFrame, or has fewer rows.
    """
    if not isinstance(frame, pd.DataFrame) or len(frame) < _MIN_ROWS:
        raise DataError(f"frame must be a DataFrame of at least {_MIN_ROWS} rows. Give the training rows.")
    values: dict[str, Array] = {}
    for name in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[name].dtype) and not pd.api.types.is_bool_dtype(frame[name].dtype):
            values[str(name)] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    proposals: list[tuple[Constraint, str, int]] = list(_propose_codes(values))
    coded = {name for constraint, _, _ in proposals for name in constraint.features}
    whole = {name: v for name, v in values.items() if name not in coded and not np.isnan(v).any() and np.ptp(v) > 0}
    whole = dict(list(whole.items())[:_MAX_COLUMNS])
    sums = list(_propose_formulas(whole))
    proposals += sums
    computed = {constraint.features[0] for constraint, _, _ in sums}
    proposals += _propose_orders({name: v for name, v in whole.items() if name not in computed})
    return pd.DataFrame(
        {
            "constraint": [constraint for constraint, _, _ in proposals],
            "rule": [constraint.describe() for constraint, _, _ in proposals],
            "reason": [reason for _, reason, _ in proposals],
            "rows": [rows for _, _, rows in proposals],
        }
    )


def _propose_codes(values: dict[str, Array]) -> Iterator[tuple[Constraint, str, int]]:
    for name, own in values.items():
        known = own[~np.isnan(own)]
        low = known[known < 0]
        codes = np.unique(low)
        if 0 < len(codes) <= _MAX_CODES and len(low) < len(known) and (codes == np.rint(codes)).all() and (known >= 0).any():
            rule = SpecialCodes(name, tuple(int(code) for code in codes))
            yield rule, f"{name} is at least 0 but for {len(codes)} negative whole numbers.", len(low)


def _propose_formulas(values: dict[str, Array]) -> Iterator[tuple[Constraint, str, int]]:
    found: set[str] = set()
    identifiers = [name for name in values if name.isidentifier()]
    rows = len(next(iter(values.values()))) if values else 0
    for size in (2, 3):
        for names in combinations(identifiers, size):
            if found & set(names):
                continue
            total = np.sum([values[name] for name in names], axis=0)
            if _is_equal(total, np.ones(rows)):
                found.add(names[-1])
                yield Computed(names[-1], " - ".join(("1", *names[:-1]))), "The columns sum to one in every row.", rows
                continue
            for name in identifiers:
                if name not in names and name not in found and _is_equal(values[name], total):
                    found.add(name)
                    yield Computed(name, " + ".join(names)), "The column is the sum in every row.", rows
    for first in identifiers:
        for second in identifiers:
            if first == second or (values[second] == 0).any():
                continue
            ratio = values[first] / values[second]
            for name in identifiers:
                if name not in (first, second) and not found & {name, first, second} and _is_equal(values[name], ratio):
                    found.add(name)
                    yield Computed(name, f"{first} / {second}"), "The column is the ratio in every row.", rows


def _is_equal(first: Array, second: Array) -> bool:
    few = slice(0, _MIN_ROWS)
    if not np.allclose(first[few], second[few], rtol=_TOLERANCE, atol=_TOLERANCE):
        return False
    return bool(np.allclose(first, second, rtol=_TOLERANCE, atol=_TOLERANCE))


def _propose_orders(values: dict[str, Array]) -> list[tuple[Constraint, str, int]]:
    binary = [name for name, own in values.items() if np.isin(own, (0, 1)).all()]
    proposals: list[tuple[Constraint, str, int]] = []
    left = sorted(binary, key=lambda name: -values[name].sum())
    while left:
        chain = [left.pop(0)]
        for name in list(left):
            if (values[name] <= values[chain[-1]]).all() and (values[name] < values[chain[-1]]).any():
                chain.append(name)
                left.remove(name)
        if len(chain) > 1:
            rows = len(values[chain[0]])
            proposals.append((Thermometer(tuple(chain)), "Each column is 1 only where the one before it is.", rows))
    numbers = [name for name in values if name not in binary]
    below = {(a, b) for a in numbers for b in numbers if a != b and _is_below(values[a], values[b])}
    # An order that follows from two others is left out.
    direct = [(a, b) for a, b in sorted(below) if not any((a, c) in below and (c, b) in below for c in numbers)]
    for first, second in direct:
        proposals.append((Ordered(first, second), f"{first} is never above {second}.", len(values[first])))
    return proposals


def _is_below(first: Array, second: Array) -> bool:
    """Return true if ``first`` never exceeds ``second`` although their ranges overlap and they rise together."""
    if (first > second).any() or first.max() <= second.min() or not (first < second).any():
        return False
    ranks = [pd.Series(own).rank().to_numpy() for own in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) >= _MIN_RELATION
