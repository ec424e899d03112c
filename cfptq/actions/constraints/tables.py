"""Constraints that rows break, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.constraints.base import Array, Constraint, require_feature
from cfptq.actions.constraints.enforcement import compile_constraints, list_broken
from cfptq.actions.constraints.limits import SpecialCodes
from cfptq.actions.constraints.people import KNOWN, KnownPeople, PerPerson
from cfptq.actions.features import AnyFeature, Continuous
from cfptq.actions.raw_values import parse_numbers, parse_states, select_series
from cfptq.errors import DataError


def find_broken_in_frame(
    constraints: Sequence[Constraint], features: Sequence[AnyFeature], rows: pd.DataFrame, before: Any, found: pd.DataFrame
) -> pd.DataFrame:
    """Return ``found`` with the constraints that raw rows break, or the actions from ``before`` to them."""
    if before is not None and not isinstance(before, pd.DataFrame):
        raise DataError(f"before must be a DataFrame, as rows are, got {type(before).__name__}.")
    if before is not None and len(before) != len(rows):
        raise DataError(f"before must have one row for each of the {len(rows)} rows, got {len(before)}.")
    past = None if before is None else _read_frame(constraints, features, before)
    rules = [one for one in constraints if isinstance(one, PerPerson)]
    people: dict[str, Array] | None = None
    if rules and before is not None:
        people = {KNOWN: np.ones(len(before)), **read_person_columns(rules, before)}
    return _append(constraints, features, _read_frame(constraints, features, rows), past, found, people)


def find_broken_in_columns(
    constraints: Sequence[Constraint], features: Sequence[AnyFeature], rows: Tensor, before: Tensor | None, found: pd.DataFrame,
    people: KnownPeople | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return ``found`` with the constraints that the model's columns break, or the actions from ``before`` to them."""
    if before is not None and len(before) != len(rows):
        raise DataError(f"before must have one row for each of the {len(rows)} rows, got {len(before)}.")
    compiled = compile_constraints(constraints, features, None, people)
    if compiled is None:
        return found
    after = compiled.read_rows(rows, torch.zeros_like(rows)).before
    if before is None:
        return _append(constraints, features, after, None, found)
    past = compiled.read_rows(before, torch.zeros_like(before))
    return _append(constraints, features, after, past.before, found, past.people)


def read_person_columns(constraints: Sequence[PerPerson], people: pd.DataFrame) -> dict[str, Array]:
    """Return the columns of the people's frame that constraints name, as numbers ``(N,)``.

    Raises:
        DataError: a column is missing from the frame, or holds no numbers.
    """
    result = {}
    for name in dict.fromkeys(name for constraint in constraints for name in constraint.columns):
        series = select_series(people, name, [])
        result[name] = parse_numbers(series.astype("Float64") if pd.api.types.is_bool_dtype(series.dtype) else series)
    return result


def hide_codes(frame: pd.DataFrame, codes: Sequence[SpecialCodes]) -> pd.DataFrame:
    """Return the frame with special codes as missing values, so that ranges and spreads are those of the scale."""
    if not codes or not isinstance(frame, pd.DataFrame):
        return frame
    hidden: dict[str, Any] = {}
    for constraint in codes:
        series = select_series(frame, constraint.feature, [])
        numbers = parse_numbers(series)
        is_code = constraint.find_codes(numbers)
        scale = pd.Series(np.where(is_code, np.nan, numbers), index=frame.index)
        hidden[constraint.feature] = scale.astype("Int64") if pd.api.types.is_integer_dtype(series.dtype) else scale
    return frame.assign(**hidden)


def _read_frame(constraints: Sequence[Constraint], features: Sequence[AnyFeature], frame: pd.DataFrame) -> dict[str, Array]:
    by_name = {feature.name: feature for feature in features}
    names = dict.fromkeys(name for constraint in constraints for name in constraint.features)
    result = {}
    for name in names:
        feature, series = by_name[name], select_series(frame, name, list(by_name))
        result[name] = parse_numbers(series) if isinstance(feature, Continuous) else parse_states(feature, series).astype(np.float64)
    return result


def _append(
    constraints: Sequence[Constraint],
    features: Sequence[AnyFeature],
    after: dict[str, Array],
    before: dict[str, Array] | None,
    found: pd.DataFrame,
    people: Mapping[str, Array] | None = None,
) -> pd.DataFrame:
    by_name = {feature.name: feature for feature in features}
    tables = [found] if len(found) else []
    for constraint, rows in list_broken(constraints, by_name, after, before, people):
        name = constraint.features[0]
        feature = require_feature(constraint, name, by_name)
        values = after[name][rows].tolist()
        shown = values if isinstance(feature, Continuous) else [None if v < 0 else feature.states[int(v)] for v in values]
        table = pd.DataFrame({"row": rows, "feature": name, "rule": constraint.describe(), "value": shown})
        tables.append(table.astype({"value": object}))
    return pd.concat(tables, ignore_index=True) if tables else found
