"""A wrong argument is one error that names it, what was given and what is accepted, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfptq.errors import CfptqError, ConfigurationError, DataError, FileError
from cfptq.io.arguments import BOOLEAN, COUNT, PATH, SEED, Argument, check_arguments, number, one_of, optional, share


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None, [1]])
def test_a_count_is_a_whole_number_of_at_least_one(value: object) -> None:
    with pytest.raises(ConfigurationError, match="rows must be a whole number of at least 1, got"):
        COUNT.check("rows", value)
    COUNT.check("rows", np.int64(3))


@pytest.mark.parametrize("value", ["no", 0, 1, None])
def test_only_true_and_false_are_booleans(value: object) -> None:
    with pytest.raises(ConfigurationError, match="check must be True or False, got"):
        BOOLEAN.check("check", value)
    BOOLEAN.check("check", np.bool_(True))


@pytest.mark.parametrize("value", [5, None, b"a", "a\0b", ["a"]])
def test_a_path_is_text_or_a_path(value: object) -> None:
    with pytest.raises(FileError, match="path must be the path of a file or folder"):
        PATH.check("path", value)
    PATH.check("path", Path("a"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "0.5", 1j, True])
def test_a_number_is_finite(value: object) -> None:
    with pytest.raises(ConfigurationError, match="radius must be a finite number"):
        number().check("radius", value)
    with pytest.raises(ConfigurationError, match="share from 0 to 1"):
        share().check("limit", value)


def test_a_misspelt_name_is_answered_with_a_similar_one() -> None:
    with pytest.raises(ConfigurationError, match=r"got 'faithfull' \(did you mean 'faithful'\?\)"):
        one_of(("faithful", "ptq")).check("method", "faithfull")


def test_none_is_accepted_where_it_is_named() -> None:
    optional(COUNT).check("rows", None)
    with pytest.raises(ConfigurationError, match="at least 1, or None, got 0"):
        optional(COUNT).check("rows", 0)


def test_arguments_are_checked_before_the_body_runs() -> None:
    ran = []

    @check_arguments(rows=Argument(lambda value: value == 3, "3", error=DataError), seed=SEED)
    def work(rows: Any, *, seed: int = 0) -> int:
        ran.append(rows)
        return 7

    assert work(3, seed=2**32 - 1) == 7 and ran == [3]
    calls: dict[str, Any] = {
        r"rows must be 3, got a list \[1\]": lambda: work([1]),
        "seed must be a whole number": lambda: work(3, seed=2**32),
        r"work has no argument 'sead' \(did you mean 'seed'\?\)": lambda: work(3, sead=1),
        "missing a required argument: 'rows'": lambda: work(),
        "too many positional arguments": lambda: work(3, 4),
    }
    for told, call in calls.items():
        with pytest.raises(CfptqError, match=told):
            call()
    assert ran == [3]
