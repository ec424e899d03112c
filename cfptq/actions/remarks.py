"""Remarks on raw rows that an action set reads in a way that their owner may not have meant."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Ordinal
from cfptq.actions.identifiers import has_dates, is_identifier, is_identifier_name
from cfptq.actions.missing_codes import find_missing_codes
from cfptq.actions.raw_values import parse_level_numbers, parse_numbers, parse_states, read_level_numbers, select_series
from cfptq.actions.validation import to_python_value
from cfptq.errors import DataWarning

RemarkKind: TypeAlias = Literal[
    "unknown category", "missing", "imputed", "code for missing", "other range", "out of bounds", "not whole", "lost digits",
    "identifier", "date", "curve", "other columns",
]  # fmt: skip
"""Kinds of remark."""

_MIN_SHARE_OUTSIDE = 0.05  # A smaller share of rows outside the observed range is what new people bring.
_MIN_ROWS_OUTSIDE = 3
_MIN_ROWS_FOR_SPREAD = 50  # Fewer rows do not show a spread.
_MAX_SPREAD_RATIO = 40.0  # σ may be smaller than the observed one by this factor before the unit is doubted.
_LOST_DIGITS_SHARE_OF_STD = 1e-2  # A change of this share of σ by rounding to float32 is a loss.
_COLUMN_DIGITS = 6  # Raw numbers from float32 columns have this many digits before and after the point, so that codes are whole.
_MISSING_MARGIN = 0.05  # A share of missing values up to twice the training share and this margin is expected.


@dataclass(frozen=True)
class Remark:
    """One observation about one column of raw rows.

    Attributes:
        column: name of the column.
        kind: kind of the observation.
        count: number of rows that show it.
        rows: number of rows that were examined.
        example: first value that shows it; ``None`` for a missing value.
        reading: sentence that says how these rows are read, or what to do.
        is_expected: true if the training rows showed the same, or a declaration says so. Expected remarks are no warnings.
    """

    column: str
    kind: RemarkKind
    count: int
    rows: int
    example: Any
    reading: str
    is_expected: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        example = self.example if isinstance(self.example, str | int | float | None) else str(self.example)
        return {**dataclasses.asdict(self), "example": example}

    def __str__(self) -> str:
        example = "" if self.example is None else f", such as {_format(self.example)}"
        return f"{self.column}: {self.count} of {self.rows} rows {_PREDICATES[self.kind]}{example}. {self.reading}"


_PREDICATES: dict[RemarkKind, str] = {
    "unknown category": "hold a category that the encoder does not know",
    "missing": "have no value",
    "imputed": "have no value",
    "code for missing": "hold what looks like a code for a missing value",
    "other range": "lie outside the observed range or spread",
    "out of bounds": "lie outside the declared bounds",
    "not whole": "hold no whole number",
    "lost digits": "lose digits in float32",
    "identifier": "have a value of their own",
    "date": "hold a date as text",
    "other columns": "have other columns than the action set gives, because the file encodes them otherwise",
    "curve": "pass through a curve of the encoder",
}


def warn_of(remarks: Iterable[Remark], stacklevel: int = 2) -> None:
    """Warn of each unexpected remark. ``stacklevel`` counts from the caller, which is 1."""
    for remark in remarks:
        if not remark.is_expected:
            warnings.warn(str(remark), DataWarning, stacklevel=stacklevel + 1)


def examine_frame(features: Sequence[AnyFeature], frame: pd.DataFrame) -> tuple[Remark, ...]:
    """Return remarks on raw rows, in the order of the features.

    Args:
        features: features placed on the model's columns.
        frame: raw rows that these features can encode.

    Raises:
        DataError: a feature is missing from the frame, or a number cannot be read.
    """
    names = [feature.name for feature in features]
    found: list[Remark] = []
    for feature in features:
        series = select_series(frame, feature.name, names)
        if isinstance(feature, Continuous):
            found.extend(_examine_numbers(feature, parse_numbers(series)))
        else:
            found.extend(_examine_levels(feature, series))
        remark = _examine_identity(feature, series)
        if remark is not None:
            found.append(remark)
    return tuple(found)


def examine_columns(features: Sequence[AnyFeature], columns: Tensor) -> tuple[Remark, ...]:
    """Return remarks on the model's columns ``(N, d)``, as far as these still show how raw rows were read."""
    found: list[Remark] = []
    for feature in features:
        if isinstance(feature, Continuous):
            if feature.column is not None:
                raw = feature.decode_numbers(columns[:, feature.column].numpy())
                found.extend(_examine_numbers(feature, _round_to_float32(raw)))
            continue
        beside = read_level_numbers(feature, columns) < 0
        if beside.any():
            reading = _describe_reading(feature)
            found.append(Remark(feature.name, "unknown category", int(beside.sum()), len(columns), None, reading))
    return tuple(remark for remark in found if remark.kind not in ("lost digits", "not whole"))


def _round_to_float32(raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    largest = float(np.abs(raw).max(initial=0.0))
    if not math.isfinite(largest):
        return raw
    return np.round(raw, _COLUMN_DIGITS - max(0, math.ceil(math.log10(largest))) if largest > 1 else 2 * _COLUMN_DIGITS)


def _examine_numbers(feature: Continuous, values: npt.NDArray[np.float64]) -> list[Remark]:
    missing = np.isnan(values)
    present, rows = values[~missing], len(values)
    found: list[Remark] = []

    def add(kind: RemarkKind, is_shown: npt.NDArray[np.bool_], reading: str, is_expected: bool = False) -> None:
        if is_shown.any():
            example = float(present[np.argmax(is_shown)])
            found.append(Remark(feature.name, kind, int(is_shown.sum()), rows, example, reading, is_expected))

    if missing.any() and isinstance(feature.fill, int | float):
        share = 0.0 if feature.statistics is None else feature.statistics.missing
        reading = f"The encoder fills in {_format(feature.fill)}.{_describe_indicator(feature)}"
        found.append(Remark(feature.name, "imputed", int(missing.sum()), rows, None, reading, _is_expected(missing, share)))
    for code in find_missing_codes(present):
        known = feature.statistics is not None and feature.statistics.minimum <= code <= feature.statistics.maximum
        add("code for missing", present == code, f"Replace {_format(code)} by a missing value.", known)
    difference = _compare_with_observed(feature, present)
    if difference is not None:
        is_outside = _find_outside(feature, present)
        add("other range", is_outside if is_outside.any() else np.ones(len(present), dtype=bool), difference)
    low, high = feature.declared_bounds
    bounds = f"{_format(low)} to {_format(high)}"
    add("out of bounds", (present < low) | (present > high), f"Actions keep these values or move towards {bounds}.", is_expected=True)
    if isinstance(feature, Integer):
        add("not whole", present != np.rint(present), "The action set declares whole numbers.")
    if feature.curve:
        add("curve", np.ones(len(present), dtype=bool), "The cost of a change is measured in the encoded column.", is_expected=True)
    if feature.column is not None:
        add(
            "lost digits", _find_lost_digits(feature, present), "The model sees a rounded number. Subtract a constant, or scale the column."
        )
    return found


def _examine_levels(feature: Ordinal | Categorical, series: pd.Series[Any]) -> list[Remark]:
    numbers = parse_states(feature, series)
    missing = series.isna().to_numpy(dtype=bool)
    found: list[Remark] = []
    absent = missing & (numbers < 0)
    if absent.any() and (feature.fill is not None or feature.unknown != "error"):
        share = 0.0 if feature.frequencies is None else max(0.0, 1.0 - sum(feature.frequencies))
        kind: RemarkKind = "missing" if feature.fill is None else "imputed"
        reading = (
            _describe_reading(feature) if feature.fill is None else f"The encoder fills in {feature.fill!r}.{_describe_indicator(feature)}"
        )
        found.append(Remark(feature.name, kind, int(absent.sum()), len(series), None, reading, _is_expected(absent, share)))
    if feature.unknown == "merged":
        merged = missing & (numbers >= 0) & (None not in feature.states)
        if merged.any():
            share = 0.0 if feature.frequencies is None else max(0.0, 1.0 - sum(feature.frequencies))
            reading = "The model sees an infrequent category."
            found.append(Remark(feature.name, "missing", int(merged.sum()), len(series), None, reading, _is_expected(merged, share)))
        listed = [*(state for state in feature.states if state is not None), *(value for value, _ in feature.merged)]
        unknown = ~missing & (parse_level_numbers(series, listed) < 0)
        if unknown.any():
            example = to_python_value(series.iloc[int(np.argmax(unknown))])
            reading = "The model sees an infrequent category."
            found.append(Remark(feature.name, "unknown category", int(unknown.sum()), len(series), example, reading))
    unknown = ~missing & (numbers < 0)
    if unknown.any() and feature.unknown != "error":
        example = to_python_value(series.iloc[int(np.argmax(unknown))])
        found.append(Remark(feature.name, "unknown category", int(unknown.sum()), len(series), example, _describe_reading(feature)))
    if isinstance(feature, Ordinal) and feature.bounds != (None, None):
        allowed = [place for place, is_allowed in enumerate(feature.destinations) if is_allowed]
        beyond = (numbers >= 0) & ~np.isin(numbers, allowed) & ~missing
        if beyond.any():
            example = to_python_value(series.iloc[int(np.argmax(beyond))])
            reading = f"Actions keep these values or move towards {feature.states[allowed[0]]!r} to {feature.states[allowed[-1]]!r}."
            found.append(Remark(feature.name, "out of bounds", int(beyond.sum()), len(series), example, reading, is_expected=True))
    return found


def _examine_identity(feature: AnyFeature, series: pd.Series[Any]) -> Remark | None:
    """Return a remark on a feature that holds dates as text or numbers the rows, or None.

    The action set declares it, so the remark is expected. Few different numbers are no identifier unless their name says so.
    """
    present, rows = series.dropna(), len(series)
    if has_dates(series):
        kind: RemarkKind = "date"
        reading = "The model sees each date as a category. Convert dates to a number of days."
    elif is_identifier(series) and (not pd.api.types.is_numeric_dtype(series.dtype) or is_identifier_name(feature.name)):
        kind, reading = "identifier", "The column seems to number people, and the model reads it."
    else:
        return None
    return Remark(feature.name, kind, len(present), rows, to_python_value(present.iloc[0]), reading, is_expected=True)


def _describe_reading(feature: Ordinal | Categorical) -> str:
    """Say how the model sees a value that the encoder does not know."""
    if feature.columns is None:
        return f"The model sees the code {_format(feature.unknown)}."
    if None in feature.columns:
        return f"The model sees {feature.states[feature.columns.index(None)]!r}, the level that the encoder drops."
    return "The model sees none of its levels."


def _describe_indicator(feature: AnyFeature) -> str:
    return "" if feature.indicator is None else " A column tells that it is missing, and actions leave it so."


def _is_expected(missing: npt.NDArray[np.bool_], training_share: float) -> bool:
    return training_share > 0 and float(missing.mean()) <= 2 * training_share + _MISSING_MARGIN


def _find_outside(feature: Continuous, present: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    if feature.statistics is None:
        return np.zeros(len(present), dtype=bool)
    slack = 1e-6 * max(abs(feature.statistics.minimum), abs(feature.statistics.maximum))
    return np.logical_or(present < feature.statistics.minimum - slack, present > feature.statistics.maximum + slack)


def _compare_with_observed(feature: Continuous, present: npt.NDArray[np.float64]) -> str | None:
    """Return how present values differ from the training rows as those in another unit do, or ``None``."""
    seen = feature.statistics
    if seen is None or not len(present):
        return None
    width = seen.maximum - seen.minimum
    outside = int(_find_outside(feature, present).sum())
    is_far = width > 0 and bool(((present < seen.minimum - width) | (present > seen.maximum + width)).any())
    advice = "Check the unit, and that the rows are raw and not encoded already."
    if is_far or outside >= max(_MIN_ROWS_OUTSIDE, _MIN_SHARE_OUTSIDE * len(present)):
        return f"The observed range is {_format(seen.minimum)} to {_format(seen.maximum)}. {advice}"
    spread = float(present.std())
    if len(present) >= _MIN_ROWS_FOR_SPREAD and 0 < spread * _MAX_SPREAD_RATIO < seen.std:
        return f"The standard deviation is {_format(spread)}, and {_format(seen.std)} was observed. {advice}"
    return None


def _find_lost_digits(feature: Continuous, present: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Find values that another raw number stands for once the column is float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        back = feature.decode_numbers(feature.encode_numbers(present).astype(np.float32))
    if isinstance(feature, Integer):
        return np.array((np.rint(back) != present) & (present == np.rint(present)), dtype=bool)
    spread = 0.0 if feature.statistics is None else feature.statistics.std
    allowed = np.full(len(present), _LOST_DIGITS_SHARE_OF_STD * spread) if spread > 0 else 1e-6 * np.abs(present)
    return np.array(np.abs(back - present) > allowed, dtype=bool)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return repr(value) if isinstance(value, str) or not isinstance(value, float) or math.isnan(value) else str(value)
