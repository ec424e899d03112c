"""Conversion between raw rows and the model's columns, from the features alone and without scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Ordinal
from cfptq.actions.raw_values import find_missing, parse_numbers, parse_states, read_level_numbers, select_series
from cfptq.actions.validation import to_python_value
from cfptq.errors import DataError, name_rows
from cfptq.io.suggestions import did_you_mean

_MAX_SHOWN_LEVELS = 12  # A message lists this many levels and then an ellipsis.

_NO_LEVEL = "(unknown)"
"""Raw value of a row at no level, where a missing value is a level of its own."""


def encode_frame(features: Sequence[AnyFeature], width: int, frame: pd.DataFrame) -> Tensor:
    """Return the model's columns for raw rows, float32 ``(N, width)``, computed in float64 and rounded once."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"encode takes a DataFrame of raw features, got {type(frame).__name__}.")
    result = np.zeros((len(frame), width), dtype=np.float32)
    names = [feature.name for feature in features]
    for feature in features:
        series = select_series(frame, feature.name, names)
        if feature.indicator is not None:
            result[:, feature.indicator] = np.where(series.isna().to_numpy(dtype=bool), *feature.indicator_values[::-1])
        if isinstance(feature, Continuous):
            values = parse_numbers(series)
            missing = np.isnan(values)
            if missing.any():
                if not isinstance(feature.fill, int | float):
                    _raise_missing(feature, missing)
                values = np.where(missing, feature.fill, values)
            with np.errstate(over="ignore"):
                result[:, feature.column] = feature.encode_numbers(values)
            beyond = np.flatnonzero(~np.isfinite(result[:, feature.column]))
            if len(beyond):
                raise DataError(
                    f"{feature.name}: values must fit into float32 columns, but those in rows {name_rows(beyond.tolist())} do not"
                    f"{' through its encoder' if feature.curve else ''}. Correct the values or their unit."
                )
        else:
            _write_levels(result, feature, series)
    return torch.from_numpy(result)


def decode_columns(features: Sequence[AnyFeature], columns: Tensor, people: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return raw rows for the model's columns ``(N, d)``. Encoding them gives the same columns.

    Args:
        features: features placed on the columns.
        columns: the model's columns, ``(N, d)``.
        people: raw rows that the columns come from, ``(N, …)``. A cell whose columns are unchanged keeps its raw value, so that a
            missing value remains missing. The result has their index.

    Raises:
        DataError: ``people`` has another number of rows, or cannot be encoded.
    """
    rows = columns.detach().to(torch.float32)
    decoded = {feature.name: decode_feature(feature, rows) for feature in features}
    if people is None:
        return pd.DataFrame(decoded)
    before = encode_people(features, rows, people)
    for feature in features:
        own = list(feature.all_columns)
        is_same = (rows[:, own] == before[:, own]).all(1).numpy()
        decoded[feature.name] = _keep_unchanged(feature, decoded[feature.name], people[feature.name], is_same)
    result = pd.DataFrame(decoded)
    result.index = people.index
    return result


def encode_people(features: Sequence[AnyFeature], rows: Tensor, people: pd.DataFrame) -> Tensor:
    """Encode the raw rows of ``rows`` ``(N, d)``, refusing another number of them."""
    before = encode_frame(features, rows.shape[1], people)
    if len(before) != len(rows):
        raise DataError(f"people must hold one row for each of the {len(rows)} rows of columns, got {len(before)}.")
    return before


def _keep_unchanged(feature: AnyFeature, decoded: pd.Series[Any], given: pd.Series[Any], is_same: npt.NDArray[np.bool_]) -> pd.Series[Any]:
    """Return decoded values with those of ``given`` where nothing changed."""
    if is_same.all():
        return given.reset_index(drop=True)
    values = [old if same else new for old, new, same in zip(given.tolist(), decoded.tolist(), is_same.tolist(), strict=True)]
    if isinstance(feature, Continuous):
        numbers = [np.nan if to_python_value(value) is None else value for value in values]
        return pd.Series(numbers)
    return pd.Series(values, dtype=object) if any(to_python_value(value) is None for value in values) else pd.Series(values)


def is_fill(feature: AnyFeature, rows: Tensor) -> npt.NDArray[np.bool_]:
    """Return where a feature's columns ``(N, d)`` show the value that the encoder fills in for a missing one, ``(N,)``."""
    if feature.fill is None or not feature.model_columns:
        return np.zeros(len(rows), dtype=bool)
    if feature.indicator is not None:
        return find_missing(feature, rows).numpy()
    if isinstance(feature, Continuous):
        assert isinstance(feature.fill, int | float)
        return _encodes_to(feature, np.full(len(rows), float(feature.fill)), rows[:, feature.column].numpy())
    return np.equal(read_level_numbers(feature, rows), feature.states.index(feature.fill))


def compute_float32_rounding(features: Sequence[AnyFeature], x: Tensor) -> Tensor:
    """Return the largest change of each column that raw values rounded to float32 cause, like ``x`` ``(N, d)``."""
    result = torch.zeros_like(x)
    for feature in features:
        if isinstance(feature, Continuous) and feature.column is not None:
            column = x[:, feature.column].double()
            if feature.curve:
                raw_values = feature.decode_numbers(x[:, feature.column].numpy())
                ends = [feature.encode_numbers(raw_values + side * np.abs(raw_values) * 2.0**-23) for side in (-1, 1)]
                result[:, feature.column] = (torch.from_numpy(np.nan_to_num(ends[1] - ends[0])) + column.abs() * 2.0**-22).float()
                continue
            raw = column * feature.scale + feature.offset
            result[:, feature.column] = (raw.abs() / feature.scale * 2.0**-23 + column.abs() * 2.0**-22).float()
    return result


def decode_feature(feature: AnyFeature, rows: Tensor) -> pd.Series[Any]:
    """Return one feature's raw values ``(N,)`` for the model's columns ``(N, d)``, missing for a row at no level.

    A row at no level of a feature that knows a missing value as a level is ``"(unknown)"``.
    """
    is_missing = find_missing(feature, rows).numpy()
    if isinstance(feature, Continuous):
        values = np.where(is_missing, np.nan, _decode_numbers(feature, rows[:, feature.column].numpy()))
        if isinstance(feature, Integer) and feature.indicator is None and feature.fill is not None:
            # No whole number encodes to a fill such as a mean of 31.5, so that the value must have been missing.
            values = np.where(is_fill(feature, rows) & (values != np.rint(values)), np.nan, values)
        if isinstance(feature, Integer) and bool(np.all((values == np.rint(values)) & (np.abs(values) < 2.0**63))):
            return pd.Series(values.astype(np.int64))
        return pd.Series(values)
    numbers = read_level_numbers(feature, rows)
    missing = np.nan if feature.missing_as == "nan" else None
    beside = _NO_LEVEL if None in feature.states else missing
    levels = [
        missing if absent else beside if n < 0 else missing if (state := feature.states[n]) is None else state
        for n, absent in zip(numbers.tolist(), is_missing.tolist(), strict=True)
    ]
    # pandas would read None among strings as NaN, which is another category to an encoder.
    is_complete = not is_missing.any() and all(number >= 0 and feature.states[number] is not None for number in set(numbers.tolist()))
    return pd.Series(levels) if is_complete else pd.Series(levels, dtype=object)


def _decode_numbers(feature: Continuous, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the shortest decimal numbers that encode to ``values``, such as 37.5 for 37.499998.

    The encoded value of a bound decodes to the bound itself.
    """
    exact = feature.decode_numbers(values)
    if isinstance(feature, Integer):
        whole = np.rint(exact)
        return np.where(_encodes_to(feature, whole, values), whole, exact)
    result = exact.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.where(exact == 0, 0, np.floor(np.log10(np.abs(exact))))
    remaining = np.isfinite(exact)
    for digits in range(1, 10):
        unit = 10.0 ** (digits - 1 - magnitude)
        short = np.rint(exact * unit) / unit
        fits = remaining & _encodes_to(feature, short, values)
        result[fits] = short[fits]
        remaining &= ~fits
        if not remaining.any():
            break
    for bound in feature.reachable_bounds:
        result[_encodes_to(feature, np.full_like(exact, bound), values)] = bound
    return result


def _encodes_to(feature: Continuous, raw: npt.NDArray[np.float64], values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.equal(feature.encode_numbers(raw).astype(np.float32), values)


def _write_levels(result: npt.NDArray[np.float32], feature: Ordinal | Categorical, series: pd.Series[Any]) -> None:
    """Write the columns of an ordinal or categorical feature into ``result`` ``(N, d)``."""
    numbers = parse_states(feature, series)
    missing = series.isna().to_numpy(dtype=bool) & (numbers < 0)
    if missing.any() and feature.fill is not None:
        numbers = np.where(missing, feature.states.index(feature.fill), numbers)
        missing = np.zeros_like(missing)
    if feature.unknown == "error":
        if missing.any():
            _raise_missing(feature, missing)
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            _raise_unknown(feature, series, unknown)
    if feature.columns is None:
        assert feature.codes is not None
        other = feature.unknown if isinstance(feature.unknown, int | float) else np.nan
        result[:, feature.column] = np.array([*feature.codes, other])[numbers]
        return
    assert feature.off is not None and feature.on is not None
    for number, column in enumerate(feature.columns):
        if column is not None:
            result[:, column] = np.where(numbers == number, feature.on[number], feature.off[number])


def _raise_unknown(feature: Ordinal | Categorical, series: pd.Series[Any], rows: npt.NDArray[np.intp]) -> NoReturn:
    value = to_python_value(series.iloc[int(rows[0])])
    same_text = next((state for state in feature.states if str(state) == str(value)), None)
    if same_text is not None:
        hint = f" (the level {same_text!r} has another type)"
    else:
        hint = did_you_mean(value, feature.states) if isinstance(value, str) else ""
    shown = ", ".join(map(repr, feature.states[:_MAX_SHOWN_LEVELS]))
    raise DataError(
        f"{feature.name}: unknown value {value!r} in rows {name_rows(rows.tolist())}{hint}. "
        f"The encoder knows {shown}{', …' if len(feature.states) > _MAX_SHOWN_LEVELS else ''}."
    )


def _raise_missing(feature: AnyFeature, missing: npt.NDArray[np.bool_]) -> NoReturn:
    rows = name_rows(np.flatnonzero(missing).tolist())
    raise DataError(f"{feature.name}: no value in rows {rows}, and the encoder has no rule for missing values. Impute or drop these rows.")
