"""People by group and the summaries of Table 9."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from cfptq.errors import DataError
from cfptq.metrics import disparity, group_rows


def test_rows_of_each_group_with_missing_labels_a_group_of_their_own() -> None:
    rows = group_rows(["b", "a", None, "b", float("nan")])
    assert {name: list(members) for name, members in rows.items()} == {"(missing)": [2, 4], "a": [1], "b": [0, 3]}


@pytest.mark.parametrize(
    "labels",
    [np.array([1, 0, 1]), torch.tensor([1, 0, 1]), [1.0, 0.0, 1.0], pd.Series([1, 0, 1], dtype="Int64"), ["1", "0", "1"]],
)
def test_labels_of_any_type_name_the_same_groups(labels: object) -> None:
    assert {name: list(members) for name, members in group_rows(labels).items()} == {"0": [1], "1": [0, 2]}  # type: ignore[arg-type]


def test_categoricals_and_truth_values_are_labels_too() -> None:
    assert list(group_rows(pd.Categorical(["x", None, "x"]))) == ["(missing)", "x"]
    assert list(group_rows(np.array([True, False]))) == ["False", "True"]


def test_a_measurement_is_not_a_group() -> None:
    with pytest.raises(DataError, match=r"'income' must have at most 100 distinct values, got 200.*ranges"):
        group_rows(np.arange(200), "income")
    with pytest.raises(DataError, match="one-dimensional"):
        group_rows(np.ones((2, 2)))


def test_worst_group_and_gap_of_the_papers_table_9() -> None:
    # Adult, MixedPrec: Table 8 gives the groups, Table 9 the summaries.
    validity = disparity({"Female": 0.132, "Male": 0.118})
    assert (validity.worst_group, validity.worst) == ("Female", 0.132)
    assert validity.gap == pytest.approx(0.014)
    assert disparity({"Female": 0.175, "Male": 0.158}).gap == pytest.approx(0.017)


def test_groups_without_a_value_do_not_count() -> None:
    summary = disparity({"a": math.nan, "b": 0.1, "c": 0.4})
    assert (summary.worst_group, summary.worst, summary.gap) == ("c", 0.4, pytest.approx(0.3))
    nobody = disparity({"a": math.nan})
    assert nobody.worst_group is None
    assert math.isnan(nobody.worst)
    assert math.isnan(nobody.gap)


def test_one_group_alone_has_no_gap() -> None:
    alone = disparity({"a": math.nan, "b": 0.1})
    assert (alone.worst_group, alone.worst) == ("b", 0.1) and math.isnan(alone.gap)
