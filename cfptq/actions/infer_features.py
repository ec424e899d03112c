"""Inference of features from training rows, raw or on the model's columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.columns import as_matrix, require_one_feature_per_column, resolve_column_names
from cfptq.actions.dummy_columns import find_dummy_groups
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal
from cfptq.actions.identifiers import has_dates, is_identifier
from cfptq.actions.missing_codes import find_missing_codes
from cfptq.actions.raw_values import list_levels, parse_level_numbers, parse_numbers, read_level_numbers
from cfptq.actions.remarks import Remark
from cfptq.actions.statistics import compute_level_shares, compute_statistics
from cfptq.actions.validation import parse_levels, to_python_value
from cfptq.actions.violations import require_valid_columns
from cfptq.errors import ActionSetError, DataError, name_rows
from cfptq.io.suggestions import did_you_mean

_MAX_SHOWN_NAMES = 12  # A message lists this many columns and then an ellipsis.


def infer_from_frame(
    frame: pd.DataFrame,
    *,
    immutable: Iterable[str],
    increase_only: Iterable[str],
    decrease_only: Iterable[str],
    bounds: Mapping[str, tuple[Any, Any]],
    bounds_share: Mapping[str, tuple[float, float]],
    reachable: Mapping[str, Sequence[Any]],
    effort: Mapping[str, float],
    continuous: Iterable[str],
    integer: Iterable[str],
    ordinal: Mapping[str, Sequence[Any]],
    categorical: Iterable[str],
) -> tuple[tuple[AnyFeature, ...], tuple[Remark, ...]]:
    """Infer one feature for each column of ``frame``. ``cfptq.actions.ActionSet.from_frame`` explains the arguments.

    Returns:
        The features, and remarks on columns that are read in a way their owner may not have meant.
    """
    _require_frame(frame)
    for keyword, mapping in (
        ("bounds", bounds),
        ("bounds_share", bounds_share),
        ("reachable", reachable),
        ("effort", effort),
        ("ordinal", ordinal),
    ):
        if not isinstance(mapping, Mapping):
            raise ActionSetError(f"{keyword} must map names of features to values, got {mapping!r}. Write {keyword}={{name: value}}.")
    mutabilities = {
        "immutable": (Mutability.IMMUTABLE, _to_names(immutable, "immutable")),
        "increase_only": (Mutability.INCREASE, _to_names(increase_only, "increase_only")),
        "decrease_only": (Mutability.DECREASE, _to_names(decrease_only, "decrease_only")),
    }
    kinds = {
        "continuous": (Continuous, _to_names(continuous, "continuous")),
        "integer": (Integer, _to_names(integer, "integer")),
        "ordinal": (Ordinal, tuple(ordinal)),
        "categorical": (Categorical, _to_names(categorical, "categorical")),
    }
    declared = {
        **{keyword: names for keyword, (_, names) in (mutabilities | kinds).items()},
        "bounds": tuple(bounds),
        "bounds_share": tuple(bounds_share),
        "reachable": tuple(reachable),
        "effort": tuple(effort),
    }
    known = [str(name) for name in frame.columns]
    for keyword, names in declared.items():
        for name in names:
            if name not in known:
                meant = did_you_mean(name, known)
                raise ActionSetError(f"{keyword}: the frame has no column {name!r}{meant}. It has {', '.join(known)}.")
    mutability_of = _group_by_name(mutabilities)
    kind_of = _group_by_name(kinds)
    explained = {*kind_of, *bounds, *bounds_share, *reachable, *mutability_of}  # Their owner has said what they are.
    features: list[AnyFeature] = []
    remarks: list[Remark] = []
    for name in known:
        series = frame[name]
        kind: type[AnyFeature] = kind_of.get(name) or _infer_kind(series)
        common = {"mutability": mutability_of.get(name, Mutability.FREE), "effort": effort.get(name, 1.0)}
        if issubclass(kind, Continuous):
            if name in reachable:
                raise ActionSetError(f"reachable: {name} is numeric. Give it bounds, or list it as categorical.")
            features.append(_infer_numeric(series, name, kind, common, bounds.get(name), bounds_share.get(name)))
        else:
            if name in bounds_share:
                raise ActionSetError(
                    f"bounds_share: {name} has levels and no range. Give it bounds if it is ordinal, or reachable if it is categorical."
                )
            features.append(_infer_levels(series, name, kind, common, ordinal.get(name), bounds.get(name), reachable.get(name)))
        if name not in explained and (remark := _remark_on_identity(series)) is not None:
            remarks.append(remark)
            if remark.kind == "identifier":
                features[-1] = dataclasses.replace(features[-1], mutability=Mutability.IMMUTABLE)
        if isinstance(features[-1], Continuous):
            remarks.extend(_check_observed_range(series, features[-1]))
    _refuse_dummy_columns(frame, features, kind_of)
    return tuple(features), tuple(remarks)


def _remark_on_identity(series: pd.Series[Any]) -> Remark | None:
    """Return a remark on a column that numbers the rows or holds dates as text."""
    name, rows = str(series.name), len(series)
    if has_dates(series):
        return Remark(name, "date", rows, rows, series.dropna().iloc[0], "They are read as categories. Convert them to a number of days.")
    if is_identifier(series):
        reading = "The column seems to number the rows and is read as immutable. Drop it, or list it under integer= or categorical=."
        return Remark(name, "identifier", rows, rows, to_python_value(series.dropna().iloc[0]), reading)
    return None


def _check_observed_range(series: pd.Series[Any], feature: Continuous) -> list[Remark]:
    """Refuse declared bounds that exclude every row, and remark on codes for missing values that set the observed range."""
    values = parse_numbers(series)
    present = values[~np.isnan(values)]
    low, high = feature.declared_bounds
    if feature.bounds_share is None and not bool(((present >= low) & (present <= high)).any()):
        raise ActionSetError(
            f"{feature.name}: bounds must hold a training row, got {low:g} to {high:g} for values from {present.min():g} to "
            f"{present.max():g}. Check their unit."
        )
    if feature.is_immutable or feature.bounds != (None, None) or feature.bounds_share is not None:
        return []
    reading = "It is read as a number that actions may lead to. Replace it by a missing value, or declare bounds."
    return [
        Remark(feature.name, "code for missing", int((present == code).sum()), len(values), code, reading)
        for code in find_missing_codes(present)
    ]


def _refuse_dummy_columns(frame: pd.DataFrame, features: Sequence[AnyFeature], kind_of: Mapping[str, Any]) -> None:
    """Refuse mutable columns of one one-hot group, which an action would change apart from one another."""
    feature_of = {feature.name: feature for feature in features}
    for group in find_dummy_groups(frame):
        if not any(feature_of[name].is_immutable is False and name not in kind_of for name in group):
            continue
        shown = ", ".join(group[:_MAX_SHOWN_NAMES]) + (", …" if len(group) > _MAX_SHOWN_NAMES else "")
        raise ActionSetError(
            f"The columns {shown} must be one feature, because at most one of them is 1 in every row. "
            f"Give the frame one column of categories (pandas.from_dummies) and encode it with a OneHotEncoder, or list all as immutable. "
            f"ActionSet.from_columns takes Categorical(name, levels=…, columns=…) for columns that are encoded already."
        )


def infer_from_columns(
    columns: Tensor | npt.NDArray[Any] | pd.DataFrame,
    features: Sequence[AnyFeature],
    *,
    means: Sequence[float] | None,
    scales: Sequence[float] | None,
    column_names: Sequence[str] | None,
) -> tuple[tuple[AnyFeature, ...], tuple[str, ...]]:
    """Complete features by statistics of the training rows ``columns`` ``(N, d)``.

    ``cfptq.actions.ActionSet.from_columns`` explains the arguments.

    Returns:
        The features, with an immutable one for each column that none declares, and the names of the d columns.
    """
    if column_names is None and isinstance(columns, pd.DataFrame):
        column_names = [str(name) for name in columns.columns]
    rows = as_matrix(columns, "columns")
    if rows.ndim != 2 or not len(rows) or not rows.shape[1]:
        raise DataError(f"columns must have shape (N, d) with at least one row and one column, got {tuple(rows.shape)}.")
    for feature in features:
        if not isinstance(feature, Continuous | Ordinal | Categorical):
            raise ActionSetError(f"Features must be Continuous, Integer, Ordinal or Categorical, got {feature!r}.")
    if not (rows.is_floating_point() or rows.dtype in (torch.int64, torch.int32, torch.uint8, torch.bool)):
        raise DataError(f"columns must hold real numbers, got {rows.dtype}.")
    rows = rows.detach().to(torch.float32)
    width = rows.shape[1]
    names = resolve_column_names(width, column_names)
    for keyword, vector in (("means", means), ("scales", scales)):
        if vector is not None and len(vector) != width:
            raise ActionSetError(f"{keyword} must hold one value for each of the {width} columns, got {len(vector)}.")
    declared = {column for feature in features for column in feature.all_columns}
    rest = tuple(
        Continuous(names[column], column=column, mutability=Mutability.IMMUTABLE) for column in range(width) if column not in declared
    )
    placed = (*features, *rest)
    require_one_feature_per_column(placed, width)
    scaled = tuple(_apply_scaling(feature, means, scales) for feature in placed)
    require_valid_columns(scaled, rows, names)
    return tuple(_add_statistics(feature, rows) for feature in scaled), names


def _apply_scaling(feature: AnyFeature, means: Sequence[float] | None, scales: Sequence[float] | None) -> AnyFeature:
    """Set offset and scale of a numeric feature that gives none of its own."""
    if not isinstance(feature, Continuous) or feature.column is None or (feature.offset, feature.scale) != (0.0, 1.0):
        return feature
    offset = 0.0 if means is None else float(means[feature.column])
    scale = 1.0 if scales is None else float(scales[feature.column])
    return dataclasses.replace(feature, offset=offset, scale=scale)


def _add_statistics(feature: AnyFeature, rows: Tensor) -> AnyFeature:
    """Add statistics or level frequencies of ``rows`` to a feature that has none."""
    if not isinstance(feature, Continuous):
        if feature.frequencies is not None:
            return feature
        return dataclasses.replace(feature, frequencies=compute_level_shares(read_level_numbers(feature, rows), feature.states))
    if feature.statistics is not None or feature.column is None:
        return feature
    raw = feature.decode_numbers(rows[:, feature.column].numpy())
    if isinstance(feature, Integer):
        whole = np.rint(raw)
        broken = np.flatnonzero(np.abs(raw - whole) > 1e-3 + 1e-6 * np.abs(raw))
        if len(broken):
            raise ActionSetError(
                f"{feature.name}: values must be whole numbers, got {raw[broken[0]]:g} in row {broken[0]} "
                f"(rows {name_rows(broken.tolist())}). Give offset and scale if the column is standardized, or declare it continuous."
            )
        raw = whole
    return dataclasses.replace(feature, statistics=compute_statistics(raw))


def _require_frame(frame: pd.DataFrame) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"frame must be a pandas DataFrame of raw features, got {type(frame).__name__}. Use ActionSet.from_columns for arrays."
        )
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise DataError(f"The frame must hold training rows, got {frame.shape[0]} rows and {frame.shape[1]} columns.")
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(f"Column names must differ, got {', '.join(map(str, repeated))} more than once.")
    for name in frame.columns:
        if not isinstance(name, str):
            raise DataError(f"Column names must be strings, got {name!r}. Convert them with frame.rename(columns=str).")


def _to_names(names: Iterable[str], keyword: str) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    if not isinstance(names, Iterable) or isinstance(names, bytes):
        raise ActionSetError(f"{keyword} must be a list of names, got {names!r}. Give names of columns.")
    return tuple(names)


def _group_by_name(declared: Mapping[str, tuple[Any, tuple[str, ...]]]) -> dict[str, Any]:
    """Turn ``{keyword: (value, names)}`` into ``{name: value}``, refusing a name under two keywords."""
    result: dict[str, Any] = {}
    keyword_of: dict[str, str] = {}
    for keyword, (value, names) in declared.items():
        for name in names:
            if keyword_of.setdefault(name, keyword) != keyword:
                raise ActionSetError(f"{name} is listed as both {keyword_of[name]} and {keyword}. Keep one of them.")
            result[name] = value
    return result


def _infer_kind(series: pd.Series[Any]) -> type[AnyFeature]:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return Ordinal if dtype.ordered else Categorical
    if pd.api.types.is_bool_dtype(dtype):
        return Categorical
    if pd.api.types.is_integer_dtype(dtype):
        return Integer
    if pd.api.types.is_float_dtype(dtype):
        values = parse_numbers(series)
        present = values[~np.isnan(values)]
        return Integer if len(present) and bool(np.all(present == np.rint(present))) else Continuous
    if pd.api.types.is_string_dtype(dtype) or pd.api.types.is_object_dtype(dtype):
        return Categorical
    raise DataError(f"{series.name}: values must be numbers or levels, got dtype {dtype}. Convert a date to a number of days.")


def _infer_numeric(
    series: pd.Series[Any],
    name: str,
    kind: type[Continuous],
    common: Mapping[str, Any],
    bounds: tuple[Any, Any] | None,
    bounds_share: tuple[float, float] | None,
) -> Continuous:
    values = parse_numbers(series)
    if kind is Integer:
        broken = np.flatnonzero(~np.isnan(values) & (values != np.rint(values)))
        if len(broken):
            raise ActionSetError(
                f"{name}: values must be whole numbers, unlike those in rows {name_rows(broken.tolist())}. List it as continuous."
            )
    statistics = compute_statistics(values)
    if statistics is None:
        raise DataError(f"{name}: every value is missing. Drop the column.")
    given: dict[str, Any] = {} if bounds is None else {"bounds": bounds}
    if bounds_share is not None:
        given["bounds_share"] = bounds_share
    return kind(name, statistics=statistics, **given, **common)


def _infer_levels(
    series: pd.Series[Any],
    name: str,
    kind: type[Ordinal] | type[Categorical],
    common: Mapping[str, Any],
    domain: Sequence[Any] | None,
    bounds: tuple[Any, Any] | None,
    reachable: Sequence[Any] | None,
) -> Ordinal | Categorical:
    levels = list_levels(series) if domain is None else Ordinal(name, domain=parse_levels(domain, f"{name}: domain")).domain
    if not levels:
        raise DataError(f"{name}: every value is missing. Drop the column.")
    numbers = parse_level_numbers(series, levels)
    unknown = np.flatnonzero((numbers < 0) & ~series.isna().to_numpy(dtype=bool))
    if len(unknown):
        value = to_python_value(series.iloc[int(unknown[0])])
        rows = name_rows(unknown.tolist())
        meant = did_you_mean(value, levels)
        raise ActionSetError(f"{name}: values must be in its domain {list(levels)}, got {value!r}{meant} in rows {rows}.")
    frequencies = compute_level_shares(numbers, levels)
    if kind is Ordinal:
        if reachable is not None:
            raise ActionSetError(f"reachable: {name} is ordinal. Give it bounds, which are members of its domain.")
        return Ordinal(name, domain=levels, frequencies=frequencies, bounds=(None, None) if bounds is None else bounds, **common)
    if bounds is not None:
        raise ActionSetError(
            f"bounds: {name} is categorical and has no order. Use reachable, or declare ordinal={{{name!r}: [its values in order]}}."
        )
    return Categorical(
        name,
        levels=levels,
        frequencies=frequencies,
        reachable=None if reachable is None else parse_levels(reachable, f"{name}: reachable"),
        **common,
    )
