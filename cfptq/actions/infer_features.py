"""Features inferred from training rows: from a raw DataFrame, or from the model's columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal
from cfptq.actions.statistics import measured, shares
from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import Level, plain
from cfptq.actions.violations import columns_as_places, refuse_columns
from cfptq.errors import ActionSetError, DataError, name_rows


def inferred_features(
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
) -> tuple[AnyFeature, ...]:
    """One feature for each column of ``frame``; see :meth:`cfptq.actions.ActionSet.from_frame`."""
    _check_frame(frame)
    ways = {
        "immutable": (Mutability.IMMUTABLE, _names(immutable)),
        "increase_only": (Mutability.INCREASE, _names(increase_only)),
        "decrease_only": (Mutability.DECREASE, _names(decrease_only)),
    }
    kinds = {
        "continuous": (Continuous, _names(continuous)),
        "integer": (Integer, _names(integer)),
        "ordinal": (Ordinal, tuple(ordinal)),
        "categorical": (Categorical, _names(categorical)),
    }
    mentioned = {
        **{word: names for word, (_, names) in ways.items()},
        **{word: names for word, (_, names) in kinds.items()},
        "bounds": tuple(bounds),
        "bounds_share": tuple(bounds_share),
        "reachable": tuple(reachable),
        "effort": tuple(effort),
    }
    known = [str(name) for name in frame.columns]
    for word, names in mentioned.items():
        for name in names:
            if name not in known:
                raise ActionSetError(f"{word}: no column {name!r} in the frame{did_you_mean(name, known)}; it has {', '.join(known)}")
    mutability = _one_each({word: (value, names) for word, (value, names) in ways.items()})
    kind = _one_each({word: (value, names) for word, (value, names) in kinds.items()})
    features: list[AnyFeature] = []
    for name in known:
        series = frame[name]
        chosen: type[AnyFeature] = kind.get(name) or _natural_kind(series)
        common = {"mutability": mutability.get(name, Mutability.FREE), "effort": effort.get(name, 1.0)}
        if issubclass(chosen, Continuous):
            feature: AnyFeature = _numeric(series, name, chosen, common, bounds.get(name), bounds_share.get(name))
            if name in reachable:
                raise ActionSetError(f"reachable: {name} is numeric; give it bounds, or list it as categorical")
        else:
            if name in bounds_share:
                raise ActionSetError(f"bounds_share: {name} has levels, not a range; give it bounds (ordinal) or reachable (categorical)")
            feature = _levelled(series, name, chosen, common, ordinal.get(name), bounds.get(name), reachable.get(name))
        features.append(feature)
    return tuple(features)


def features_on_columns(
    columns: Tensor | npt.NDArray[Any],
    features: Sequence[AnyFeature],
    *,
    means: Sequence[float] | None,
    scales: Sequence[float] | None,
    column_names: Sequence[str] | None,
) -> tuple[tuple[AnyFeature, ...], int, tuple[str, ...]]:
    """Features with statistics of ``columns`` ``(N, d)``, d, and the columns' names; see :meth:`cfptq.actions.ActionSet.from_columns`."""
    rows = torch.as_tensor(columns)
    if rows.ndim != 2 or not len(rows) or not rows.shape[1]:
        raise DataError(f"columns have shape {tuple(rows.shape)}; give training rows as (N, d) with at least one row")
    if not (rows.is_floating_point() or rows.dtype in (torch.int64, torch.int32, torch.uint8, torch.bool)):
        raise DataError(f"columns are {rows.dtype}; give numbers")
    rows = rows.detach().to(torch.float32)
    width = rows.shape[1]
    names = tuple(f"column_{place}" for place in range(width)) if column_names is None else tuple(str(name) for name in column_names)
    if len(names) != width:
        raise ActionSetError(f"{len(names)} column names for {width} columns; give one for each")
    for word, vector in (("means", means), ("scales", scales)):
        if vector is not None and len(vector) != width:
            raise ActionSetError(f"{word}: {len(vector)} values for {width} columns; give one for each")
    claimed: set[int] = set()
    for feature in features:
        if not feature.placed:
            raise ActionSetError(f"{feature.name}: say where it stands: column=…, or columns=(…) for a one-hot group")
        for column in feature.placed:
            if column >= width:
                raise ActionSetError(f"{feature.name}: column {column} does not exist; there are {width}, counted from 0")
        claimed.update(feature.placed)
    rest = tuple(
        Continuous(names[column], column=column, mutability=Mutability.IMMUTABLE) for column in range(width) if column not in claimed
    )
    scaled = tuple(_scaled(feature, means, scales) for feature in (*features, *rest))
    structural = tuple(_undeclared(feature) for feature in scaled)
    refuse_columns(structural, rows, names)
    return tuple(_with_statistics(feature, rows) for feature in scaled), width, names


def _scaled(feature: AnyFeature, means: Sequence[float] | None, scales: Sequence[float] | None) -> AnyFeature:
    if not isinstance(feature, Continuous) or feature.column is None or (feature.offset, feature.scale) != (0.0, 1.0):
        return feature
    offset = 0.0 if means is None else float(means[feature.column])
    scale = 1.0 if scales is None else float(scales[feature.column])
    return dataclasses.replace(feature, offset=offset, scale=scale)


def _undeclared(feature: AnyFeature) -> AnyFeature:
    """Without declared bounds: training rows may lie outside what is declared, but not off their one-hot groups."""
    if isinstance(feature, Continuous):
        return dataclasses.replace(feature, bounds=(None, None), bounds_share=None, statistics=None)
    if isinstance(feature, Ordinal):
        return dataclasses.replace(feature, bounds=(None, None))
    return feature


def _with_statistics(feature: AnyFeature, rows: Tensor) -> AnyFeature:
    if isinstance(feature, Continuous):
        if feature.statistics is not None or feature.column is None:
            return feature
        raw = rows[:, feature.column].to(torch.float64).numpy() * feature.scale + feature.offset
        if isinstance(feature, Integer):
            whole = np.rint(raw)
            off = np.abs(raw - whole) > 1e-3 + 1e-6 * np.abs(raw)
            if off.any():
                worst = np.flatnonzero(off)
                raise ActionSetError(
                    f"{feature.name}: not a whole number in rows {name_rows(worst.tolist())} (row {worst[0]}: {raw[worst[0]]:g}); "
                    "give offset and scale if the column is standardized, or declare it continuous"
                )
            raw = whole
        return dataclasses.replace(feature, statistics=measured(raw))
    if feature.frequencies is not None:
        return feature
    return dataclasses.replace(feature, frequencies=shares(columns_as_places(feature, rows), feature.states))


def _check_frame(frame: pd.DataFrame) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"people are a pandas DataFrame of raw features, not {type(frame).__name__}; for arrays use ActionSet.from_columns")
    if frame.shape[0] == 0 or frame.shape[1] == 0:
        raise DataError(f"the frame has {frame.shape[0]} rows and {frame.shape[1]} columns; give training rows")
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise DataError(f"columns named twice: {', '.join(map(str, repeated))}; names must differ")
    for name in frame.columns:
        if not isinstance(name, str):
            raise DataError(f"column {name!r} is not named by a string; rename it, e.g. frame.rename(columns=str)")


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _one_each(declared: Mapping[str, tuple[Any, tuple[str, ...]]]) -> dict[str, Any]:
    """From ``{word: (value, names)}`` to ``{name: value}``; a name under two words is a contradiction."""
    result: dict[str, Any] = {}
    word_of: dict[str, str] = {}
    for word, (value, names) in declared.items():
        for name in names:
            if name in word_of and word_of[name] != word:
                raise ActionSetError(f"{name} is listed as both {word_of[name]} and {word}; keep one")
            result[name] = value
            word_of[name] = word
    return result


def _natural_kind(series: pd.Series[Any]) -> type[AnyFeature]:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return Ordinal if dtype.ordered else Categorical
    if pd.api.types.is_bool_dtype(dtype):
        return Categorical
    if pd.api.types.is_integer_dtype(dtype):
        return Integer
    if pd.api.types.is_float_dtype(dtype):
        values = numbers_of(series)
        present = values[~np.isnan(values)]
        return Integer if len(present) and bool(np.all(present == np.rint(present))) else Continuous
    if pd.api.types.is_string_dtype(dtype) or pd.api.types.is_object_dtype(dtype):
        return Categorical
    raise DataError(f"{series.name}: values of dtype {dtype} are neither numbers nor levels; convert the column (a date: to days since)")


def numbers_of(series: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Raw numbers, NaN where missing.

    Raises:
        DataError: text that is no number, or infinity.
    """
    try:
        values = pd.to_numeric(series).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"{series.name}: {error}; list the feature as categorical, or mend the values") from error
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(f"{series.name}: infinite in rows {name_rows(infinite.tolist())}; replace or drop them")
    return values


def _numeric(
    series: pd.Series[Any],
    name: str,
    kind: type[Continuous],
    common: Mapping[str, Any],
    bounds: tuple[Any, Any] | None,
    bounds_share: tuple[float, float] | None,
) -> Continuous:
    values = numbers_of(series)
    if kind is Integer:
        off = np.flatnonzero(~np.isnan(values) & (values != np.rint(values)))
        if len(off):
            raise ActionSetError(f"{name}: not a whole number in rows {name_rows(off.tolist())}; list it as continuous")
    statistics = measured(values)
    if statistics is None:
        raise DataError(f"{name}: every value is missing; drop the column")
    given: dict[str, Any] = {} if bounds is None else {"bounds": bounds}
    if bounds_share is not None:
        given["bounds_share"] = bounds_share
    return kind(name, statistics=statistics, **given, **common)


def _levelled(
    series: pd.Series[Any],
    name: str,
    kind: type[Ordinal] | type[Categorical],
    common: Mapping[str, Any],
    domain: Sequence[Any] | None,
    bounds: tuple[Any, Any] | None,
    reachable: Sequence[Any] | None,
) -> Ordinal | Categorical:
    levels = level_order(series) if domain is None else Ordinal(name, domain=tuple(domain)).domain
    if not levels:
        raise DataError(f"{name}: every value is missing; drop the column")
    places = places_of(series, levels)
    unknown = np.flatnonzero((places < 0) & ~series.isna().to_numpy(dtype=bool))
    if len(unknown):
        value = plain(series.iloc[int(unknown[0])])
        where = name_rows(unknown.tolist())
        raise ActionSetError(f"{name}: {value!r} in rows {where} is not in its domain {list(levels)}{did_you_mean(value, levels)}")
    frequencies = shares(places, levels)
    if kind is Ordinal:
        if reachable is not None:
            raise ActionSetError(f"reachable: {name} is ordinal; give it bounds, members of its domain")
        return Ordinal(name, domain=levels, frequencies=frequencies, bounds=(None, None) if bounds is None else bounds, **common)
    if bounds is not None:
        raise ActionSetError(
            f"bounds: {name} is categorical and has no order; use reachable, or say ordinal={{{name!r}: [its values in order]}}"
        )
    return Categorical(name, levels=levels, frequencies=frequencies, reachable=None if reachable is None else tuple(reachable), **common)


def level_order(series: pd.Series[Any]) -> tuple[Level, ...]:
    """The levels seen in a column, missing aside: as a ``category`` dtype orders them, else sorted."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        return tuple(plain(level) for level in series.dtype.categories)
    found = [plain(level) for level in series.dropna().unique()]
    try:
        return tuple(sorted(found))
    except TypeError:
        return tuple(sorted(found, key=lambda level: (type(level).__name__, str(level))))


def places_of(series: pd.Series[Any], levels: Sequence[Level]) -> npt.NDArray[np.int64]:
    """The number of each row's level, ``(N,)``; -1 where it is none of them. Missing is the level ``None``, where there is one."""
    missing = series.isna().to_numpy(dtype=bool)
    if isinstance(series.dtype, pd.CategoricalDtype):
        own = pd.Index([plain(level) for level in series.dtype.categories], dtype=object)
        known = _index(levels).get_indexer(own)
        codes = series.cat.codes.to_numpy()
        places = np.where(codes < 0, -1, known[codes]) if len(known) else np.full(len(series), -1)
    else:
        places = _index(levels).get_indexer(pd.Index(series.astype(object)))
    places = np.where(missing, levels.index(None) if None in levels else -1, places)
    return places.astype(np.int64)


def _index(levels: Sequence[Level]) -> pd.Index[Any]:
    # A level that no value equals stands in for None, so that positions stay those of ``levels``.
    return pd.Index([object() if level is None else level for level in levels], dtype=object)
