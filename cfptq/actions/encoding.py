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
from cfptq.actions.raw_values import parse_level_numbers, parse_numbers, read_level_numbers, select_series
from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import to_python_value
from cfptq.errors import DataError, name_rows

_MAX_SHOWN_LEVELS = 12  # A message lists this many levels and then an ellipsis.


def encode_frame(features: Sequence[AnyFeature], width: int, frame: pd.DataFrame) -> Tensor:
    """Return the model's columns for raw rows, float32 ``(N, width)``, computed in float64 and rounded once."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"encode takes a DataFrame of raw features, got {type(frame).__name__}.")
    result = np.zeros((len(frame), width), dtype=np.float32)
    names = [feature.name for feature in features]
    for feature in features:
        series = select_series(frame, feature.name, names)
        if isinstance(feature, Continuous):
            values = parse_numbers(series)
            missing = np.isnan(values)
            if missing.any():
                if not isinstance(feature.fill, int | float):
                    _raise_missing(feature, missing)
                values = np.where(missing, feature.fill, values)
            result[:, feature.column] = (values - feature.offset) / feature.scale
        else:
            _write_levels(result, feature, series)
    return torch.from_numpy(result)


def decode_columns(features: Sequence[AnyFeature], columns: Tensor) -> pd.DataFrame:
    """Return raw rows for the model's columns ``(N, d)``. Encoding them gives the same columns."""
    rows = columns.detach().to(torch.float32)
    return pd.DataFrame({feature.name: decode_feature(feature, rows) for feature in features})


def decode_feature(feature: AnyFeature, rows: Tensor) -> pd.Series[Any]:
    """Return one feature's raw values ``(N,)`` for the model's columns ``(N, d)``, missing for a row at no level."""
    if isinstance(feature, Continuous):
        values = _decode_numbers(feature, rows[:, feature.column].numpy())
        if isinstance(feature, Integer) and bool(np.all(values == np.rint(values))):
            return pd.Series(values.astype(np.int64))
        return pd.Series(values)
    numbers = read_level_numbers(feature, rows)
    return pd.Series([None if number < 0 else feature.states[number] for number in numbers.tolist()])


def _decode_numbers(feature: Continuous, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the shortest decimal numbers that encode to ``values``, such as 37.5 for 37.499998.

    The encoded value of a bound decodes to the bound itself.
    """
    exact = values.astype(np.float64) * feature.scale + feature.offset
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
    return np.equal(((raw - feature.offset) / feature.scale).astype(np.float32), values)


def _write_levels(result: npt.NDArray[np.float32], feature: Ordinal | Categorical, series: pd.Series[Any]) -> None:
    """Write the columns of an ordinal or categorical feature into ``result`` ``(N, d)``."""
    numbers = parse_level_numbers(series, feature.states)
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
