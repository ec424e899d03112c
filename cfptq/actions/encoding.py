"""Raw rows to the model's columns and back, from what the features carry: no scikit-learn object is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Ordinal
from cfptq.actions.infer_features import numbers_of, places_of
from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import plain
from cfptq.actions.violations import columns_as_places
from cfptq.errors import DataError, name_rows


def feature_series(frame: pd.DataFrame, name: str, names: Sequence[str]) -> pd.Series[Any]:
    """The frame's column for a feature.

    Raises:
        DataError: there is none, or two.
    """
    if name not in frame.columns:
        present = [str(column) for column in frame.columns]
        unused = [column for column in present if column not in names]
        raise DataError(f"the frame has no column {name!r}{did_you_mean(name, unused)}; it has {', '.join(present)}")
    series = frame[name]
    if isinstance(series, pd.DataFrame):
        raise DataError(f"the frame has two columns named {name!r}; keep one")
    return series


def encoded(features: Sequence[AnyFeature], width: int, frame: pd.DataFrame) -> Tensor:
    """The model's columns for raw rows, float32 ``(N, width)``. Computed in float64, rounded once."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"encode takes a DataFrame of raw features, not {type(frame).__name__}")
    result = np.zeros((len(frame), width), dtype=np.float32)
    names = [feature.name for feature in features]
    for feature in features:
        series = feature_series(frame, feature.name, names)
        if isinstance(feature, Continuous):
            values = numbers_of(series)
            missing = np.isnan(values)
            if missing.any():
                if not isinstance(feature.fill, int | float):
                    _refuse_missing(feature, missing)
                values = np.where(missing, feature.fill, values)
            result[:, feature.column] = (values - feature.offset) / feature.scale
        else:
            _write_levels(result, feature, series)
    return torch.from_numpy(result)


def decoded(features: Sequence[AnyFeature], columns: Tensor) -> pd.DataFrame:
    """Raw rows for the model's columns ``(N, d)``. Encoding them again gives the same columns."""
    rows = columns.detach().to(torch.float32)
    return pd.DataFrame({feature.name: raw_values(feature, rows) for feature in features})


def raw_values(feature: AnyFeature, rows: Tensor) -> pd.Series[Any]:
    """One feature's raw values ``(N,)`` from the model's columns. A row at no level is missing."""
    if isinstance(feature, Continuous):
        values = _numbers(feature, rows[:, feature.column].numpy())
        if isinstance(feature, Integer) and bool(np.all(values == np.rint(values))):
            return pd.Series(values.astype(np.int64))
        return pd.Series(values)
    places = columns_as_places(feature, rows)
    return pd.Series([None if place < 0 else feature.states[place] for place in places.tolist()])


def _numbers(feature: Continuous, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The shortest decimal numbers that encode to ``values``: 37.5 and not 37.499998. A bound decodes to itself."""
    exact = values.astype(np.float64) * feature.scale + feature.offset
    if isinstance(feature, Integer):
        whole = np.rint(exact)
        return np.where(_encodes_to(feature, whole, values), whole, exact)
    result = exact.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.where(exact == 0, 0, np.floor(np.log10(np.abs(exact))))
    open_ = np.isfinite(exact)
    for digits in range(1, 10):
        unit = 10.0 ** (digits - 1 - magnitude)
        short = np.rint(exact * unit) / unit
        fits = open_ & _encodes_to(feature, short, values)
        result[fits] = short[fits]
        open_ &= ~fits
        if not open_.any():
            break
    for side in feature.reach:
        result[_encodes_to(feature, np.full_like(exact, side), values)] = side
    return result


def _encodes_to(feature: Continuous, raw: npt.NDArray[np.float64], values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return np.equal(((raw - feature.offset) / feature.scale).astype(np.float32), values)


def _write_levels(result: npt.NDArray[np.float32], feature: Ordinal | Categorical, series: pd.Series[Any]) -> None:
    places = places_of(series, feature.states)
    missing = series.isna().to_numpy(dtype=bool) & (places < 0)
    if missing.any() and feature.fill is not None:
        places = np.where(missing, feature.states.index(feature.fill), places)
        missing = np.zeros_like(missing)
    if feature.unknown == "error":
        if missing.any():
            _refuse_missing(feature, missing)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            value = plain(series.iloc[int(unknown[0])])
            kind = "" if value in map(str, feature.states) or not isinstance(value, str) else did_you_mean(value, feature.states)
            if str(value) in map(str, feature.states):
                kind = f" (there is {next(s for s in feature.states if str(s) == str(value))!r}, of another type)"
            raise DataError(
                f"{feature.name}: unknown value {value!r} in rows {name_rows(unknown.tolist())}{kind}; "
                f"the encoder knows {', '.join(map(repr, feature.states[:12]))}{', …' if len(feature.states) > 12 else ''}"
            )
    if feature.columns is None:
        assert feature.codes is not None
        other = feature.unknown if isinstance(feature.unknown, int | float) else np.nan
        result[:, feature.column] = np.array([*feature.codes, other])[places]
        return
    assert feature.off is not None and feature.on is not None
    for place, column in enumerate(feature.columns):
        if column is not None:
            result[:, column] = np.where(places == place, feature.on[place], feature.off[place])


def _refuse_missing(feature: AnyFeature, missing: npt.NDArray[np.bool_]) -> NoReturn:
    where = name_rows(np.flatnonzero(missing).tolist())
    raise DataError(f"{feature.name}: no value in rows {where}, and the encoder has no rule for missing ones; impute or drop them")
