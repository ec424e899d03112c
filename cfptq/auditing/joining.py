"""Joins of letters to the people they were sent to.

Letters are joined by a key (a column or the index) where there is one. Only tables without any key are joined by position, and then
immutable features must agree, because nothing else shows that two rows are the same person.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfptq.actions.identifiers import is_identifier, is_identifier_name
from cfptq.errors import DataError, name_rows
from cfptq.io.suggestions import did_you_mean

Key: TypeAlias = str
"""Key of a person as text."""

NAME_A_KEY = "Name a column that identifies people as id=."
#: Largest whole number up to which float64 holds every whole number.
_EXACT_FLOAT = 2.0**53
_WHOLE_AS_FLOAT = re.compile(r"([+-]?\d+)\.0+")


@dataclass(frozen=True, eq=False)
class Join:
    """Pairs of a letter and a person, by row number."""

    number: NDArray[np.int64]
    person: NDArray[np.int64]
    joined_by: str
    keys: tuple[Key | None, ...] | None = None
    unmatched: tuple[Key, ...] = ()
    without_key: tuple[int, ...] = ()


def find_named_index(issued: pd.DataFrame, people: Any) -> str | None:
    """Return the name of one table's index that is a column, or the index, of the other."""
    if not isinstance(people, pd.DataFrame):
        return None
    for one, other in ((people, issued), (issued, people)):
        name = one.index.name
        if isinstance(name, str) and name not in one.columns and (name in other.columns or other.index.name == name):
            return name
    return None


def join_letters(issued: pd.DataFrame, people: Any, count: int, given: NDArray[np.int64], key: str | None, compare: Any) -> Join:
    """Join letters to people by a named key, by the index, or by position.

    Args:
        issued: Table of letters.
        people: People as they were given.
        count: Number of people.
        given: Row numbers of the letters that are not empty.
        key: Name of the key, or None.
        compare: Function from row numbers of letters and of people to the immutable features that differ, by letter.
    """
    if key is not None:
        return _join_by_key(
            _take_keys(issued, key, "issued"), _take_keys(people, key, "people"), given, f"{key!r}", f"the column or index {key!r}"
        )
    index = people.index if isinstance(people, pd.DataFrame) else pd.RangeIndex(count)
    is_numbered = _is_default(issued.index)
    by_index = None
    if not is_numbered or (not _is_default(index) and bool(issued.index[given].isin(index).all())):
        by_index = _join_by_key(_normalize(issued.index), _normalize(index), given, "the index", "the index")
    if not is_numbered:
        assert by_index is not None
        differing = compare(by_index.number, by_index.person)
        if sum(map(bool, differing)) * 2 > len(by_index.number) > 0:
            require_same_people(differing, by_index.number, "the index")
        return by_index
    by_position = Join(given, given, "position") if len(issued) == count else None
    if by_index is not None:
        return _choose_join(by_position, by_index, compare)
    hint = _suggest(issued, people)
    if by_position is None:
        raise DataError(f"issued must have one row per person ({count}), or a key that joins it to people, got {len(issued)} rows. {hint}")
    require_same_people(compare(given, given), given, "position", hint)
    return _confirm_by_shared_keys(issued, people, by_position)


def _choose_join(by_position: Join | None, by_index: Join, compare: Any) -> Join:
    """Choose between the index and the position where letters are numbered from 0 and people are not."""
    fits = [
        join
        for join in (by_position, by_index)
        if join is not None and not any(compare(join.number, join.person)) and (by_position is not None or join.unmatched == ())
    ]
    if by_position is not None and np.array_equal(by_position.person, by_index.person):
        return by_index
    if len(fits) != 1:
        raise DataError(
            "Letters are numbered from 0 and people have another index, so that it is open whether row or index says who is meant. "
            "Give both tables the same index, or name a column that identifies people as id=."
        )
    return fits[0]


def _take_keys(table: Any, key: str, label: str) -> list[Key | None]:
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"id={key!r} names a column, so {label} must be a DataFrame, got {type(table).__name__}. Give raw features.")
    if key in table.columns:
        return _normalize(table[key])
    if key == table.index.name:
        return _normalize(table.index)
    columns = [str(name) for name in table.columns]
    raise DataError(f"{label} must have the key {key!r} as a column{did_you_mean(key, columns)}, and it has {', '.join(columns)}.")


def _join_by_key(letters: Sequence[Key | None], people: Sequence[Key | None], given: NDArray[np.int64], joined_by: str, label: str) -> Join:
    counts = Counter(key for key in people if key is not None)
    twice = [key for key, number in counts.items() if number > 1]
    if twice:
        raise DataError(
            f"People must differ in {label}, which letters are joined by, and {len(twice)} of its values repeat, such as {twice[0]!r}. "
            "Name another column as id=, or drop the doubles."
        )
    person_of = {key: row for row, key in enumerate(people) if key is not None}
    keyless = [int(row) for row in given if letters[row] is None]
    matched = [(int(row), person_of[key]) for row in given if (key := letters[row]) is not None and key in person_of]
    unmatched = [key for row in given if (key := letters[row]) is not None and key not in person_of]
    return Join(
        number=np.array([row for row, _ in matched], dtype=np.int64),
        person=np.array([person for _, person in matched], dtype=np.int64),
        joined_by=joined_by,
        keys=tuple(people),
        unmatched=tuple(unmatched),
        without_key=tuple(keyless),
    )


def _normalize(values: pd.Index[Any] | pd.Series[Any]) -> list[Key | None]:
    """Return keys as text, so that 12, 12.0 and "12" are one key. Empty ones are None."""
    if pd.api.types.is_float_dtype(values.dtype) and bool(
        (np.abs(values.to_numpy(dtype=np.float64, na_value=np.nan)) > _EXACT_FLOAT).any()
    ):
        raise DataError(f"Keys must be exact, and {values.name!r} holds floats beyond 2**53, which lose digits. Read the keys as text.")
    return [normalize_key(value) for value in values.tolist()]


def normalize_key(value: Hashable) -> Key | None:
    """Return one key as text, or None if it is empty."""
    if isinstance(value, tuple):
        parts = [normalize_key(part) for part in value]
        return None if None in parts else " / ".join(str(part) for part in parts)
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    whole = _WHOLE_AS_FLOAT.fullmatch(text)
    return (whole[1] if whole else text) or None


def _is_default(index: pd.Index[Any]) -> bool:
    return not isinstance(index, pd.MultiIndex) and index.equals(pd.RangeIndex(len(index)))


def _shared_keys(issued: pd.DataFrame, people: Any) -> list[str]:
    """Return columns of both tables that seem to number people."""
    if not isinstance(people, pd.DataFrame):
        return []
    shared = [name for name in people.columns if name in issued.columns and isinstance(name, str)]
    return [name for name in shared if people[name].is_unique and (is_identifier_name(name) or is_identifier(people[name]))]


def _suggest(issued: pd.DataFrame, people: Any) -> str:
    shared = _shared_keys(issued, people)
    return f" Both tables have a column {shared[0]!r}. Give id={shared[0]!r}." if shared else NAME_A_KEY


def _confirm_by_shared_keys(issued: pd.DataFrame, people: Any, join: Join) -> Join:
    """Refuse a join by position that a column with identifiers speaks against."""
    for name in _shared_keys(issued, people):
        theirs, ours = _normalize(people[name]), _normalize(issued[name])
        other = [int(row) for row in join.number if ours[row] is not None and ours[row] != theirs[row]]
        if other:
            raise DataError(
                f"Letters have no key, so they are paired by position, and {name!r} differs in {len(other)} of {len(join.number)} rows: "
                f"{name_rows(other)}. Give id={name!r} to join by it."
            )
    return join


def explain_no_match(join: Join) -> str:
    """Return a message on letters none of which names a person of the table."""
    if not join.unmatched:
        return f"Letters must name a person, and {join.joined_by} is empty in all of them. Fill in the key."
    known = next((key for key in join.keys or () if key is not None), "none")
    return (
        f"Letters must name people of the table, and none of {len(join.unmatched)} does by {join.joined_by}: letters have "
        f"{join.unmatched[0]!r}, people {known!r}. Give both tables the same keys, or name a column as id=."
    )


def require_same_people(differing: Sequence[tuple[str, ...]], numbers: NDArray[np.int64], joined_by: str, hint: str = NAME_A_KEY) -> None:
    """Raise if letters paired without a named key differ from their people in what nobody can change."""
    wrong = [int(number) for number, names in zip(numbers, differing, strict=True) if names]
    if wrong:
        names = ", ".join(sorted({name for entry in differing for name in entry}))
        raise DataError(
            f"Letters are paired with people by {joined_by}, and {names} (immutable) differs in {len(wrong)} of {len(numbers)} rows: "
            f"{name_rows(wrong)}. Either the order differs, or these letters ask for what nobody can change. {hint}"
        )
