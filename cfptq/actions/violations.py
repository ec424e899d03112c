"""Search for rows that break a declared rule, in raw frames and in the model's columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.encoding import is_fill
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Ordinal
from cfptq.actions.raw_values import (
    COLUMN_TOLERANCE,
    find_missing,
    parse_numbers,
    parse_states,
    read_level_numbers,
    read_slots,
    select_series,
    slots_to_level_numbers,
)
from cfptq.errors import ActionSetError, DataError, name_rows

_MISSING_RULE = "a value is missing and the encoder has no rule for it"
_BOUND_TOLERANCE = 1e-6  # Relative deviation from a bound that is attributed to float32 columns.
_MAX_SUMMARIZED_RULES = 5  # A message names this many broken rules and counts the rest.
_MAX_SHOWN_COLUMNS = 12  # A rule shows this many columns of a one-hot group.
_SHOWN_DIGITS = 6


def require_valid_columns(features: Sequence[AnyFeature], rows: Tensor, names: Sequence[str]) -> None:
    """Raise unless every row ``(N, d)`` is finite and at values that the encoder gives. Declared bounds may be exceeded.

    Args:
        features: features placed on the columns.
        rows: the model's columns, ``(N, d)``.
        names: names of the columns for the message.

    Raises:
        DataError: a value is NaN or infinite.
        ActionSetError: a row breaks a rule.
    """
    bad = ~torch.isfinite(rows)
    if bad.any():
        column = int(bad.any(0).nonzero()[0])
        numbers = bad[:, column].nonzero().squeeze(1).tolist()
        label = names[column] if column < len(names) else str(column)
        raise DataError(
            f"Values must be finite, got NaN or infinity in column {column} ({label}), rows {name_rows(numbers)}. Impute or drop them."
        )
    found = find_violations_in_columns([_drop_bounds(feature) for feature in features], rows)
    if len(found):
        raise ActionSetError(summarize_violations(found))


def _drop_bounds(feature: AnyFeature) -> AnyFeature:
    """Remove declared bounds, which say where actions may lead and not where a row may be."""
    if isinstance(feature, Continuous):
        return dataclasses.replace(feature, bounds=(None, None), bounds_share=None)
    return dataclasses.replace(feature, bounds=(None, None)) if isinstance(feature, Ordinal) else feature


def summarize_violations(found: pd.DataFrame) -> str:
    """Format violations as one message that names each rule once, with its rows."""
    parts = []
    for (feature, rule), rows in found.groupby(["feature", "rule"], sort=False):
        first_value = rows["value"].tolist()[0]
        parts.append(f"{feature}: {rule}, broken by rows {name_rows(rows['row'].tolist())} (row {rows['row'].iloc[0]}: {first_value}).")
    hidden = len(parts) - _MAX_SUMMARIZED_RULES
    if hidden > 0:
        parts[_MAX_SUMMARIZED_RULES:] = [f"{hidden} further rules are broken."]
    return f"{' '.join(parts)} Correct or drop the rows. ActionSet.validate lists all violations."


def find_violations_in_columns(features: Sequence[AnyFeature], rows: Tensor) -> pd.DataFrame:
    """Return violations among the model's columns ``(N, d)``, as ``cfptq.ActionSet.validate`` does."""
    found = []
    for feature in features:
        if feature.indicator is not None:
            found.append(_find_wrong_indicators(feature, rows))
        if isinstance(feature, Continuous):
            if feature.column is None:
                continue
            values = rows[:, feature.column].to(torch.float64).numpy()
            raw = feature.decode_numbers(values)
            slack = _BOUND_TOLERANCE * (np.abs(values) * feature.scale + abs(feature.offset))
            if feature.curve:
                step = _BOUND_TOLERANCE * (np.abs(values) + abs(feature.offset) / feature.scale)
                slack = np.nan_to_num(feature.decode_numbers(values + step) - feature.decode_numbers(values - step))
            found.append(_find_out_of_bounds(feature, raw, slack))
        elif feature.columns is None:
            found.append(_find_unknown_codes(feature, rows))
        else:
            found.append(_find_invalid_groups(feature, rows))
    return _join(found)


def find_violations_in_frame(features: Sequence[AnyFeature], frame: pd.DataFrame) -> pd.DataFrame:
    """Return violations among raw rows, missing and unknown values included."""
    found = []
    names = [feature.name for feature in features]
    for feature in features:
        series = select_series(frame, feature.name, names)
        missing = series.isna().to_numpy(dtype=bool)
        values = series.to_numpy(dtype=object)
        if isinstance(feature, Continuous):
            raw = parse_numbers(series)
            if feature.fill is None and feature.model_columns:
                found.append(_tabulate(feature, _MISSING_RULE, missing, values))
            found.append(_find_out_of_bounds(feature, raw, slack=np.zeros(len(raw))))
            continue
        numbers = parse_states(feature, series)
        if feature.unknown == "error":
            found.append(_tabulate(feature, f"the value is none of {list(feature.states)}", (numbers < 0) & ~missing, values))
            if feature.fill is None and None not in feature.states and feature.model_columns:
                found.append(_tabulate(feature, _MISSING_RULE, missing, values))
        found.append(_find_out_of_domain(feature, numbers))
    return _join(found)


def _find_wrong_indicators(feature: AnyFeature, rows: Tensor) -> pd.DataFrame:
    """Return rows whose indicator of a missing value has another value than its two, or that have no fill beside it."""
    assert feature.indicator is not None
    column, (present, missing) = rows[:, feature.indicator], feature.indicator_values
    is_known = ((column - present).abs() <= COLUMN_TOLERANCE * (1 + abs(present))) | (
        (column - missing).abs() <= COLUMN_TOLERANCE * (1 + abs(missing))
    )
    plain = dataclasses.replace(feature, indicator=None)
    is_torn = find_missing(feature, rows).numpy() & ~is_fill(plain, rows)
    rule = f"column {feature.indicator} tells whether the value is missing, and the value is then the encoder's fill"
    return _tabulate(feature, rule, ~is_known.numpy() | is_torn, column.numpy())


def _find_unknown_codes(feature: Ordinal | Categorical, rows: Tensor) -> pd.DataFrame:
    assert feature.codes is not None and feature.column is not None
    column = rows[:, feature.column]
    numbers = read_level_numbers(feature, rows)
    is_allowed = numbers >= 0
    for code in (feature.unknown, feature.fill):
        if isinstance(code, float):
            is_allowed |= (column.to(torch.float64) - code).abs().numpy() <= COLUMN_TOLERANCE * (1 + abs(code))
    shown = [round(code, _SHOWN_DIGITS) for code in feature.codes]
    bad = _tabulate(feature, f"column {feature.column} holds none of the codes {shown}", ~is_allowed, column.numpy())
    return _join([bad, _find_out_of_domain(feature, numbers)])


def _find_invalid_groups(feature: Ordinal | Categorical, rows: Tensor) -> pd.DataFrame:
    assert feature.columns is not None
    group = rows[:, list(feature.model_columns)]
    is_on, is_valid = read_slots(feature, rows)
    may_be_off = None in feature.columns or feature.unknown == "zeros"
    is_wrong = ~is_valid if may_be_off else ~(is_valid & is_on.any(1))
    shown = np.empty(len(rows), dtype=object)
    for row in is_wrong.nonzero().squeeze(1).tolist():
        shown[row] = [round(value, _SHOWN_DIGITS) for value in group[row].tolist()][:_MAX_SHOWN_COLUMNS]
    count = "at most one" if may_be_off else "exactly one"
    rule = f"{count} of columns {list(feature.model_columns)[:_MAX_SHOWN_COLUMNS]} is on and the rest off"
    bad = _tabulate(feature, rule, is_wrong.numpy(), shown)
    return _join([bad, _find_out_of_domain(feature, slots_to_level_numbers(feature, is_on, is_valid))])


def _find_out_of_bounds(feature: Continuous, raw: npt.NDArray[np.float64], slack: npt.NDArray[np.float64]) -> pd.DataFrame:
    low, high = feature.declared_bounds
    with np.errstate(invalid="ignore"):
        is_bad = (raw < low - slack) | (raw > high + slack)
    if isinstance(feature.fill, int | float):
        is_bad &= np.abs(raw - feature.fill) > _BOUND_TOLERANCE * (1 + abs(feature.fill))
    return _tabulate(feature, f"lies between {low:g} and {high:g}", is_bad, raw, digits=_SHOWN_DIGITS)


def _find_out_of_domain(feature: Ordinal | Categorical, level_numbers: npt.NDArray[np.int64]) -> pd.DataFrame:
    if not isinstance(feature, Ordinal) or feature.bounds == (None, None):
        return _join([])
    # Rows without a value and rows at no level (-1, the last entry) break other rules than this one.
    is_outside = [not allowed and state is not None for allowed, state in zip(feature.destinations, feature.states, strict=True)]
    low, high = feature.bounds
    first, last = (feature.domain[0] if low is None else low, feature.domain[-1] if high is None else high)
    values = np.array([*feature.states, None], dtype=object)[level_numbers]
    return _tabulate(feature, f"lies between {first} and {last}", np.array([*is_outside, False])[level_numbers], values)


def _tabulate(feature: AnyFeature, rule: str, is_bad: npt.NDArray[np.bool_], values: Any, digits: int | None = None) -> pd.DataFrame:
    rows = np.flatnonzero(is_bad)
    if len(rows) == 0:  # The usual case. One new frame for each of hundreds of features would be slow.
        return _NO_VIOLATIONS
    shown = [values[row] if digits is None else float(f"{values[row]:.{digits}g}") for row in rows]
    return pd.DataFrame({"row": rows, "feature": feature.name, "rule": rule, "value": shown})


def _join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    if not filled:
        return _NO_VIOLATIONS.copy()
    return pd.concat([table.astype({"value": object}) for table in filled], ignore_index=True)


_NO_VIOLATIONS = pd.DataFrame({"row": pd.Series(dtype=int), "feature": pd.Series(dtype=str), "rule": pd.Series(dtype=str), "value": []})
