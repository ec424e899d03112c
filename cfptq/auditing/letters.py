"""Letters that told people what to change, joined to these people.

``cfptq.auditing.joining`` says who is meant. An empty cell means that the value stays.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.actions import ActionSet, Remark
from cfptq.actions.action_space import ActionSpace
from cfptq.actions.forbidden_changes import SLACK, find_forbidden_changes
from cfptq.auditing.joining import Join, Key, explain_no_match, find_named_index, join_letters, normalize_key, require_same_people
from cfptq.errors import ActionSetError, DataError, DataWarning, name_rows
from cfptq.io.suggestions import did_you_mean

#: Remarks on letters that say more than the same remark on the people.
_KINDS = ("unknown category", "code for missing", "other range", "not whole")


@dataclass(frozen=True, eq=False)
class Letters:
    """K letters, each joined to a person.

    Attributes:
        number: Row numbers in the table of letters, (K,) int64.
        person: Row numbers in the table of people, (K,) int64. A person may have several letters.
        points: Columns that each letter asks to reach, (K, ...).
        keys: Key of every person in the table of people, None where it is empty. None if letters were joined by position.
        joined_by: What the letters were joined by, in words.
        unmatched: Keys of letters that no person has.
        without_key: Row numbers of letters whose key is empty.
        forbidden: Rules of the action set that each letter breaks.
        remarks: How letters were read, where their sender may have meant something else.
        notes: Sentences on the table of letters.
    """

    number: NDArray[np.int64]
    person: NDArray[np.int64]
    points: Tensor
    keys: tuple[Key | None, ...] | None
    joined_by: str
    unmatched: tuple[Key, ...] = ()
    without_key: tuple[int, ...] = ()
    forbidden: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[Remark, ...] = ()
    notes: tuple[str, ...] = ()


def read_letters(issued: Any, people: Any, rows: Tensor, space: ActionSpace, key: str | None = None) -> Letters:
    """Read letters and join them to the people they were sent to.

    Args:
        issued: A DataFrame of raw features, one row a letter, or an array of columns (N, ...), one row a person. A letter whose cells
            are all empty is none.
        people: The people as they were given, a DataFrame of raw features or columns.
        rows: Columns of all N people, (N, ...).
        space: Action space, which encodes a DataFrame.
        key: Column, or name of the index, that identifies a person in both tables.

    Raises:
        DataError: Letters cannot be read, or cannot be joined to people without doubt.
        ActionSetError: ``issued`` is a DataFrame and the action space cannot encode.
    """
    if isinstance(issued, pd.DataFrame):
        return _read_frame(issued, people, rows, space, key)
    if key is not None:
        raise DataError(f"id={key!r} names a column, so issued must be a DataFrame, got {type(issued).__name__}. Give the letters as one.")
    return _read_array(issued, rows, space)


# Arrays of columns ---------------------------------------------------------------------------------------------------------------------


def _read_array(issued: Any, rows: Tensor, space: ActionSpace) -> Letters:
    try:
        table = torch.as_tensor(np.asarray(issued, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"issued must be a DataFrame of features or an array of columns, got neither ({error}).") from error
    _check_shape(table, rows)
    if len(table) != len(rows):
        raise DataError(
            f"issued must have one row per person ({len(rows)}), because columns hold no key, got {len(table)} rows. Give a DataFrame "
            "with the people's index, or with a column that id= names."
        )
    missing = torch.isnan(table).flatten(1).all(dim=1)
    given = torch.nonzero(~missing).flatten()
    partly = torch.nonzero(torch.isnan(table).flatten(1).any(dim=1) & ~missing).flatten()
    if len(partly):
        raise DataError(f"issued must hold all columns of a row or none, got rows with some missing: {name_rows(partly.tolist())}.")
    number = given.numpy()
    if isinstance(space, ActionSet):
        require_same_people(_find_disagreements(table[given], rows[given], space), number, "position")
    return _finish(Join(number, number, "position"), table[given], rows, space, (), ())


# Frames of raw features -----------------------------------------------------------------------------------------------------------------


def _read_frame(issued: pd.DataFrame, people: Any, rows: Tensor, space: ActionSpace, key: str | None) -> Letters:
    if getattr(space, "encode", None) is None:
        raise ActionSetError(
            "issued must be columns, because this action space cannot encode a DataFrame. Give the points in the model's columns."
        )
    twice = [str(name) for name, count in Counter(issued.columns).items() if count > 1]
    if twice:
        raise DataError(f"issued must have one column of each name, and {twice[0]!r} stands twice. Rename or drop one.")
    raw = _raw_people(people, rows, space)
    names = list(space.names) if isinstance(space, ActionSet) else list(issued.columns if raw is None else raw.columns)
    key = key if key is not None else find_named_index(issued, people)
    features = [name for name in names if name in issued.columns and name != key]
    notes = _examine_names(issued, people, names, key)
    is_empty = np.column_stack([_find_empty(issued[name]) for name in features]) if features else np.ones((len(issued), 0), dtype=bool)
    blank = is_empty.all(axis=1)
    if blank.all():
        raise DataError(
            f"issued must ask for a change, got {len(issued)} rows without any. Give the values that people were told to reach."
        )
    given = np.flatnonzero(~blank).astype(np.int64)
    join = join_letters(issued, people, len(rows), given, key, lambda letters, persons: _compare_raw(issued, raw, letters, persons, space))
    if len(join.number) == 0:
        raise DataError(explain_no_match(join))
    merged = _merge(issued, raw, join, names, features, is_empty)
    with warnings.catch_warnings():
        # The report remarks on letters below.
        warnings.simplefilter("ignore", DataWarning)
        try:
            points = space.encode(merged)  # type: ignore[attr-defined]
        except DataError as error:
            raise DataError(f"Letters cannot be read. {error}") from error
    _check_shape(points, rows)
    remarks = tuple(remark for remark in space.examine(merged) if remark.kind in _KINDS) if isinstance(space, ActionSet) else ()
    return _finish(join, points, rows, space, remarks, notes)


def _raw_people(people: Any, rows: Tensor, space: ActionSpace) -> pd.DataFrame | None:
    """Return the people as raw features, or None if an action space cannot tell them."""
    if isinstance(people, pd.DataFrame):
        return people
    return space.decode(rows) if isinstance(space, ActionSet) else None


def _examine_names(issued: pd.DataFrame, people: Any, names: Sequence[str], key: str | None) -> tuple[str, ...]:
    """Return sentences on features that letters lack and on columns that are no feature, or refuse a misspelt feature."""
    absent = [name for name in names if name not in issued.columns]
    known = set(people.columns) if isinstance(people, pd.DataFrame) else set()
    others = [str(name) for name in issued.columns if name not in names and name != key and name not in known]
    for other in others:
        meant = did_you_mean(other, absent)
        if meant:
            raise DataError(f"issued has a column {other!r}, which is no feature{meant}. Rename it, or drop it.")
    if len(absent) == len(names):
        raise DataError(f"issued must have columns of the features {', '.join(names)}, got {', '.join(map(str, issued.columns))}.")
    notes = []
    if absent:
        notes.append(f"Letters have no column {', '.join(map(repr, absent))}, so these stay as they are.")
    if others:
        notes.append(f"Columns of letters that are no feature were left out: {', '.join(map(repr, others))}.")
    return tuple(notes)


def _find_empty(series: pd.Series[Any]) -> NDArray[np.bool_]:
    """Return where a cell is missing or holds no more than spaces."""
    empty = series.isna().to_numpy(dtype=bool)
    if pd.api.types.is_object_dtype(series.dtype) or pd.api.types.is_string_dtype(series.dtype):
        empty = empty | np.array([isinstance(value, str) and not value.strip() for value in series.tolist()], dtype=bool)
    return empty


def _merge(
    issued: pd.DataFrame, raw: pd.DataFrame | None, join: Join, names: Sequence[str], features: Sequence[str], is_empty: NDArray[np.bool_]
) -> pd.DataFrame:
    """Return the raw rows that letters lead to, with the people's own values where a cell is empty."""
    if raw is None:
        partly = [int(row) for row in join.number if is_empty[row].any()]
        if partly or len(features) < len(names):
            raise DataError(
                f"issued must hold all features of a row or none, because people are columns, got rows with some missing: "
                f"{name_rows(partly or join.number.tolist())}. Give people as a DataFrame."
            )
        return issued.iloc[join.number]
    merged = {}
    for name in names:
        own = raw[name].iloc[join.person].reset_index(drop=True)
        if name not in features:
            merged[name] = own
            continue
        told = issued[name].iloc[join.number].reset_index(drop=True)
        empty = is_empty[join.number, features.index(name)]
        if empty.any():
            values = [old if stays else new for old, new, stays in zip(own.tolist(), told.tolist(), empty.tolist(), strict=True)]
            values = [np.nan if value is pd.NA else value for value in values]
            is_number = pd.api.types.is_numeric_dtype(own.dtype) and pd.api.types.is_numeric_dtype(told.dtype)
            told = pd.Series(values, dtype=np.float64 if is_number else object, name=name)
        merged[name] = told
    return pd.DataFrame(merged)


# Checks ---------------------------------------------------------------------------------------------------------------------------------


def _compare_raw(
    issued: pd.DataFrame, raw: pd.DataFrame | None, letters: NDArray[np.int64], persons: NDArray[np.int64], space: ActionSpace
) -> list[tuple[str, ...]]:
    """Return the immutable features in which each letter differs from the person it is paired with."""
    found: list[list[str]] = [[] for _ in letters]
    if raw is None or not isinstance(space, ActionSet):
        return [tuple(entry) for entry in found]
    following = {name for constraint in space.constraints for name in constraint.targets}
    for feature in space:
        name = feature.name
        if not feature.is_immutable or name in following or name not in issued.columns:
            continue
        told, own = issued[name].iloc[letters], raw[name].iloc[persons]
        stays = _find_empty(issued[name])[letters]
        if feature.kind in ("continuous", "integer"):
            numbers = [pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan) for values in (told, own)]
            near = np.isclose(numbers[0], numbers[1], rtol=1e-6, atol=1e-9, equal_nan=True)
            differs = ~near
        else:
            pairs = zip(told.tolist(), own.tolist(), strict=True)
            differs = np.array([normalize_key(one) != normalize_key(other) for one, other in pairs], dtype=bool)
        for row in np.flatnonzero(differs & ~stays):
            found[row].append(name)
    return [tuple(entry) for entry in found]


def _find_disagreements(points: Tensor, rows: Tensor, action_set: ActionSet) -> list[tuple[str, ...]]:
    """Return the immutable features in which columns of letters differ from those of the people."""
    following = {name for constraint in action_set.constraints for name in constraint.targets}
    differs = (points - rows).abs() > SLACK * (action_set.rounding(rows) + action_set.rounding(points))
    pairs = [
        (feature.name, differs[:, list(columns)].any(1).tolist())
        for feature, columns in zip(action_set, action_set.feature_columns, strict=True)
        if feature.is_immutable and feature.name not in following
    ]
    return [tuple(name for name, flags in pairs if flags[row]) for row in range(len(rows))]


def _finish(join: Join, points: Tensor, rows: Tensor, space: ActionSpace, remarks: tuple[Remark, ...], notes: tuple[str, ...]) -> Letters:
    persons = torch.from_numpy(join.person)
    forbidden = find_forbidden_changes(space, rows[persons], points) if isinstance(space, ActionSet) else [()] * len(points)
    return Letters(
        number=join.number,
        person=join.person,
        points=points,
        keys=join.keys,
        joined_by=join.joined_by,
        unmatched=join.unmatched,
        without_key=join.without_key,
        forbidden=tuple(forbidden),
        remarks=remarks,
        notes=notes,
    )


def _check_shape(points: Tensor, rows: Tensor) -> None:
    given, wanted = tuple(points.shape[1:]), tuple(rows.shape[1:])
    if given != wanted:
        raise DataError(f"A row of issued advice must have the shape of a person's columns, {wanted}, got {given}. Encode both alike.")
