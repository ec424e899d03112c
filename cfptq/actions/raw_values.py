"""Raw values of one feature as numbers or level numbers, read from a frame or from the model's columns.

A *level number* is the index of a value among the feature's ``states``, and -1 for a row that is at none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import INFREQUENT, AnyFeature, Categorical, Ordinal
from cfptq.actions.validation import Level, to_python_value
from cfptq.errors import DataError, name_rows
from cfptq.io.suggestions import did_you_mean

COLUMN_TOLERANCE = 1e-5
"""Relative deviation from a one-hot value or a code that is attributed to the rounding of a float32 scaler."""


def select_series(frame: pd.DataFrame, name: str, feature_names: Sequence[str]) -> pd.Series[Any]:
    """Return the frame's column for the feature ``name``.

    Args:
        frame: raw rows.
        name: the feature.
        feature_names: names of all features. Only other columns of the frame are suggested for a missing one.

    Raises:
        DataError: the frame has no column of this name, or two.
    """
    if name not in frame.columns:
        present = [str(column) for column in frame.columns]
        unused = [column for column in present if column not in feature_names]
        raise DataError(f"The frame has no column {name!r}{did_you_mean(name, unused)}. It has {', '.join(present)}.")
    series = frame[name]
    if isinstance(series, pd.DataFrame):
        raise DataError(f"The frame has two columns named {name!r}. Keep one of them.")
    return series


def parse_numbers(series: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Return raw numbers ``(N,)``, NaN where missing.

    Raises:
        DataError: a value is infinite or no number.
    """
    if pd.api.types.is_datetime64_any_dtype(series.dtype) or pd.api.types.is_timedelta64_dtype(series.dtype):
        raise DataError(f"{series.name}: values must be numbers, got dates ({series.dtype}). Convert them to a number of days.")
    if pd.api.types.is_complex_dtype(series.dtype):
        raise DataError(f"{series.name}: values must be real numbers, got dtype {series.dtype}.")
    try:
        values = pd.to_numeric(series).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{series.name}: {error}. Correct the values, or list the feature as categorical.") from error
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(f"{series.name}: values must be finite, got infinity in rows {name_rows(infinite.tolist())}. Replace or drop them.")
    return values


def list_levels(series: pd.Series[Any]) -> tuple[Level, ...]:
    """Return the levels of a series without missing values, in the order of its ``category`` dtype or else sorted."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return tuple(to_python_value(level) for level in series.dtype.categories)
    found = [to_python_value(level) for level in series.dropna().unique()]
    try:
        return tuple(sorted(found))
    except TypeError:
        return tuple(sorted(found, key=lambda level: (type(level).__name__, str(level))))


def parse_level_numbers(series: pd.Series[Any], levels: Sequence[Level]) -> npt.NDArray[np.int64]:
    """Return each row's level number ``(N,)``. A missing value has the number of the level ``None``, if there is one."""
    missing = series.isna().to_numpy(dtype=bool)
    index = _build_level_index(levels)
    if isinstance(series.dtype, pd.CategoricalDtype):
        known = index.get_indexer(pd.Index([to_python_value(level) for level in series.dtype.categories], dtype=object))
        codes = series.cat.codes.to_numpy()
        numbers = np.where(codes < 0, -1, known[codes]) if len(known) else np.full(len(series), -1)
    else:
        numbers = index.get_indexer(pd.Index(series.astype(object)))
    numbers = np.where(missing, levels.index(None) if None in levels else -1, numbers)
    return numbers.astype(np.int64)


def parse_states(feature: Ordinal | Categorical, series: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Return each row's level number ``(N,)``, by its bin where the encoder bins numbers."""
    if isinstance(feature, Ordinal) and feature.edges is not None:
        values = parse_numbers(series)
        return np.where(np.isnan(values), -1, np.searchsorted(feature.edges, values, side="right")).astype(np.int64)
    if not feature.merged:
        return _place_unknown(feature, series, parse_level_numbers(series, feature.states))
    numbers = parse_level_numbers(series, [*feature.states, *(value for value, _ in feature.merged)])
    places = np.array([*range(len(feature.states)), *(feature.states.index(state) for _, state in feature.merged), -1])
    return _place_unknown(feature, series, places[numbers].astype(np.int64))


def _place_unknown(feature: Ordinal | Categorical, series: pd.Series[Any], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Put unlisted values at the merged level, where the encoder does so. Missing ones too, unless it fills them in."""
    if feature.unknown != "merged":
        return numbers
    is_filled = series.isna().to_numpy(dtype=bool) & (feature.fill is not None)
    return np.where((numbers < 0) & ~is_filled, feature.states.index(INFREQUENT), numbers)


def _build_level_index(levels: Sequence[Level]) -> pd.Index[Any]:
    # An object that equals no value replaces None, so that positions remain those of ``levels``.
    return pd.Index([object() if level is None else level for level in levels], dtype=object)


def find_missing(feature: AnyFeature, rows: Tensor) -> Tensor:
    """Return where the indicator of a feature shows a missing value in the model's columns ``(N, d)``, ``(N,)``."""
    if feature.indicator is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    return rows[:, feature.indicator] > sum(feature.indicator_values) / 2


def read_level_numbers(feature: Ordinal | Categorical, rows: Tensor) -> npt.NDArray[np.int64]:
    """Return each row's level number ``(N,)`` from the model's columns ``(N, d)``."""
    if feature.columns is None:
        assert feature.codes is not None and feature.column is not None
        codes = torch.tensor(feature.codes, dtype=torch.float64)
        distances = (rows[:, [feature.column]].to(torch.float64) - codes).abs()
        least, number = distances.min(1)
        is_code = least <= COLUMN_TOLERANCE * (1 + codes.abs()[number])
        return torch.where(is_code, number, -1).numpy()
    return slots_to_level_numbers(feature, *read_slots(feature, rows))


def read_slots(feature: Ordinal | Categorical, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Read the one-hot columns (slots) of a feature.

    Returns:
        Two boolean tensors. The first, ``(N, H)``, tells which of the H slots are on. The second, ``(N,)``, tells in which rows each
        slot is at its value for on or off and at most one is on.
    """
    assert feature.columns is not None and feature.off is not None and feature.on is not None
    shown = [number for number, column in enumerate(feature.columns) if column is not None]
    group = rows[:, list(feature.model_columns)].to(torch.float64)
    off = torch.tensor([feature.off[number] for number in shown], dtype=torch.float64)
    on = torch.tensor([feature.on[number] for number in shown], dtype=torch.float64)
    share = (group - off) / (on - off)
    is_on = share > 0.5
    is_exact = (share - is_on.to(torch.float64)).abs() <= COLUMN_TOLERANCE * (1 + off.abs() / (on - off))
    if all(value == 0 for value in off.tolist()) and all(value == 1 for value in on.tolist()):
        is_exact = share == is_on.to(torch.float64)
    return is_on, is_exact.all(1) & (is_on.sum(1) <= 1)


def slots_to_level_numbers(feature: Ordinal | Categorical, is_on: Tensor, is_valid: Tensor) -> npt.NDArray[np.int64]:
    """Return each row's level number ``(N,)`` from what ``read_slots`` returned."""
    assert feature.columns is not None
    shown = torch.tensor([number for number, column in enumerate(feature.columns) if column is not None])
    all_off = feature.columns.index(None) if None in feature.columns else -1
    return torch.where(is_valid & is_on.any(1), shown[is_on.to(torch.int8).argmax(1)], torch.where(is_valid, all_off, -1)).numpy()
