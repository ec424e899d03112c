"""Declaring, refining, validating, describing and saving action sets."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from random_action_sets import random_action_set
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cfptq.actions import ActionSet, Categorical, Continuous, Integer, Mutability, Ordinal, Statistics
from cfptq.actions.yaml_format import format_yaml
from cfptq.errors import ActionSetError, CfptqError, DataError, FileError


def people() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [25, 40, 61, 33],
            "hours-per-week": [40, 20, 60, 38],
            "income": [1200.5, 2300.25, 800.0, 4000.75],
            "occupation": ["Sales", "Tech-support", "Sales", "Farming"],
            "grade": pd.Categorical(["low", "high", "mid", "low"], categories=["low", "mid", "high"], ordered=True),
            "member": [True, False, False, True],
        }
    )


def encoded(**more: Any) -> tuple[ActionSet, torch.Tensor]:
    frame = people()
    numbers, levels = ["age", "hours-per-week", "income"], ["occupation", "grade", "member"]
    encoder = ColumnTransformer([("n", StandardScaler(), numbers), ("c", OneHotEncoder(), levels)], sparse_threshold=0).fit(frame)
    action_set = ActionSet.from_frame(frame, **{"immutable": ["age"], **more}).encoded_by(encoder)
    return action_set, action_set.encode(frame)


# From a frame -------------------------------------------------------------------------------------------------------------------------


def test_types_ranges_and_frequencies_are_inferred() -> None:
    action_set = ActionSet.from_frame(people())
    assert {f.name: f.kind for f in action_set} == {
        "age": "integer",
        "hours-per-week": "integer",
        "income": "continuous",
        "occupation": "categorical",
        "grade": "ordinal",
        "member": "categorical",
    }
    assert action_set["hours-per-week"].reachable_bounds == (20, 60)
    income = action_set["income"].statistics
    assert (income.mean, income.minimum, income.maximum, income.missing) == (2075.375, 800.0, 4000.75, 0)
    assert (income.std, income.mad) == pytest.approx((np.std(people()["income"]), 750.125))
    assert action_set["occupation"].levels == ("Farming", "Sales", "Tech-support")
    assert action_set["occupation"].frequencies == (0.25, 0.5, 0.25)
    assert action_set["grade"].domain == ("low", "mid", "high")
    assert action_set["member"].levels == (False, True)
    assert not action_set.is_encoded


def test_what_is_declared_overrules_what_is_inferred() -> None:
    action_set = ActionSet.from_frame(
        people(),
        immutable="age",
        increase_only=["grade"],
        decrease_only=["income"],
        bounds={"hours-per-week": (1, 80), "grade": (None, "mid")},
        bounds_share={"income": (0.5, 2.0)},
        reachable={"occupation": ["Sales"]},
        effort={"income": 2},
        continuous=["hours-per-week"],
        categorical=["age"],
        max_changes=3,
        favourable=1,
        norm=("mix", 1, 0.5),
        weights="mad",
    )
    assert action_set["age"] == Categorical("age", levels=(25, 33, 40, 61), frequencies=(0.25,) * 4, mutability=Mutability.IMMUTABLE)
    assert action_set["hours-per-week"].kind == "continuous"
    assert action_set["hours-per-week"].reachable_bounds == (1, 80)
    assert action_set["income"].declared_bounds == pytest.approx((2400.375, 7201.5))
    assert action_set["income"].effort == 2.0
    assert action_set["grade"].destinations == (True, True, False)
    assert action_set["occupation"].destinations == (False, True, False)
    assert (action_set.max_changes, action_set.favourable, action_set.norm) == (3, 1, ("mix", 1.0, 0.5))


def test_one_sided_and_open_bounds() -> None:
    reach = ActionSet.from_frame(people(), bounds={"age": (None, 90), "income": (0, math.inf)})
    assert reach["age"].reachable_bounds == (25, 90)
    assert reach["age"].declared_bounds == (-math.inf, 90)
    assert reach["income"].reachable_bounds == (0, math.inf)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"immutable": ["Age"]}, r"immutable: the frame has no column 'Age' \(did you mean 'age'\?\)\. It has age, hours-per-week"),
        ({"bounds": {"hours_per_week": (1, 2)}}, r"bounds: the frame has no column 'hours_per_week' .*did you mean 'hours-per-week'"),
        ({"effort": {"zip": 1.0}}, r"effort: the frame has no column 'zip'\. It has"),
        ({"ordinal": {"degree": ["a"]}}, "ordinal: the frame has no column 'degree'"),
        ({"immutable": ["age"], "increase_only": ["age"]}, "age is listed as both immutable and increase_only"),
        ({"categorical": ["age"], "integer": ["age"]}, "age is listed as both integer and categorical"),
        ({"bounds": {"age": (5, 1)}}, "age: the lower bound must be at most the upper bound 1, got 5"),
        ({"bounds": {"age": (math.nan, 1)}}, "age: bounds must be a number, got nan"),
        ({"bounds": {"age": 5}}, r"age: bounds must be a pair \(lowest, highest\), got 5"),
        ({"bounds": {"age": ("a", 7)}}, "age: bounds must be a number, got 'a'"),
        ({"bounds": {"age": (30.2, 30.8)}}, "age: no whole number lies between"),
        ({"bounds": {"age": (30, 40)}, "bounds_share": {"age": (0, 1)}}, "age: bounds and bounds_share exclude one another"),
        ({"bounds_share": {"age": (1, 0)}}, "age: bounds_share must not start above its end 0, got 1"),
        ({"bounds_share": {"occupation": (0, 1)}}, "bounds_share: occupation has levels"),
        ({"bounds": {"occupation": ("a", "b")}}, "bounds: occupation is categorical and has no order"),
        ({"bounds": {"grade": ("high", "low")}}, "grade: the lower bound must not come after the upper bound 'low', got 'high'"),
        ({"bounds": {"grade": ("midd", None)}}, r"grade: a bound must be in its domain .* got 'midd' \(did you mean 'mid'"),
        ({"reachable": {"occupation": ["Salse"]}}, r"a reachable level must be one of its levels .* got 'Salse' \(did you mean 'Sales'"),
        ({"reachable": {"grade": ["low"]}}, "reachable: grade is ordinal"),
        ({"reachable": {"age": [3]}}, "reachable: age is numeric"),
        (
            {"increase_only": ["occupation"]},
            r"occupation: a categorical feature has no order, so it cannot only increase\. Declare it ordinal",
        ),
        ({"integer": ["income"]}, r"income: values must be whole numbers, unlike those in rows 0, 1, 3\. List it as continuous"),
        ({"ordinal": {"occupation": ["Sales", "Farming"]}}, r"occupation: values must be in its domain .* got 'Tech-support' in rows 1"),
        ({"ordinal": {"occupation": []}}, "occupation: domain must not be empty"),
        ({"ordinal": {"occupation": ["Sales", "Sales"]}}, "occupation: domain must hold different values, got 'Sales' twice"),
        ({"continuous": ["occupation"]}, "occupation: .*list the feature as categorical"),
        ({"effort": {"age": 0}}, "age: effort must be above 0"),
        ({"effort": {"age": "much"}}, "age: effort must be a number, got 'much'"),
        ({"max_changes": 0}, "max_changes must be None or a whole number of at least 1"),
        ({"max_changes": 2.5}, "max_changes must be None or a whole number of at least 1"),
        ({"favourable": -1}, "favourable must be None or a whole number of at least 0"),
        ({"norm": "L1"}, r"norm must be .* got 'L1' \(did you mean 'l1'\?\)"),
        ({"norm": ("mix", 0, 0)}, "at least 0 and not both 0"),
        ({"weights": "sd"}, r"weights must be one of std, uniform, mad, got 'sd'"),
    ],
)
def test_contradictions_and_unknown_names_are_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(CfptqError, match=message):
        ActionSet.from_frame(people(), **given_)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame(), "0 rows and 0 columns"),
        (people().iloc[:0], "0 rows and 6 columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "Column names must differ, got a more than once"),
        (pd.DataFrame([[1, 2]]), "Column names must be strings, got 0"),
        (pd.DataFrame({"a": [1.0, math.inf]}), "a: values must be finite, got infinity in rows 1"),
        (pd.DataFrame({"a": [math.nan, math.nan]}), "a: every value is missing"),
        (pd.DataFrame({"a": pd.Series([None, None], dtype="object")}), "a: every value is missing"),
        (pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), "a: values must be numbers or levels, got dtype datetime.* number of days"),
        (np.zeros((2, 2)), "from_columns"),
    ],
)
def test_frames_that_cannot_be_read_are_refused(frame: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ActionSet.from_frame(frame)


# Features ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Continuous(""), "non-empty string"),
        (lambda: Continuous("a", mutability="incraese"), "mutability must be one of .*did you mean 'increase'"),
        (lambda: Continuous("a", scale=0), "a: scale must be above 0"),
        (lambda: Continuous("a", column=-1), "a: a column must be a whole number of at least 0"),
        (lambda: Continuous("a", bounds_share=(0, 1)), "a: bounds_share needs the observed range"),
        (lambda: Statistics(0, -1, 0, 0, 0), "std and mad must be at least 0"),
        (lambda: Statistics(0, 1, 0, 2, 1), r"minimum must be at most maximum \(1\), got 2"),
        (lambda: Ordinal("a", domain="low"), "a: domain must be a list of values, got 'low'"),
        (lambda: Ordinal("a", domain=()), "a: domain must not be empty"),
        (lambda: Ordinal("a", domain=(None, 1)), "a: None .* has no place in an order"),
        (lambda: Ordinal("a", domain=(1, 2), column=0, codes=(1, 1)), "a: codes must be 2 different numbers"),
        (lambda: Ordinal("a", domain=(1, 2), column=0, codes=(1e9, 1e9 + 1)), "a: codes must be 2 different numbers in float32"),
        (lambda: Ordinal("a", domain=(1, 2), column=0, codes=(1, 1e300)), "a: codes must be 2 different numbers in float32"),
        (lambda: Ordinal("a", domain=(1, 2), column=0, unknown=10**400), "a: unknown must be"),
        (lambda: Categorical("a", levels=("x", "y"), columns=(0, 1), on=(1, 1e-320)), "off below on"),
        (lambda: Categorical("a", levels=("x", "y"), columns=(0,)), "a: columns must hold one column for each of the 2 values, got 1"),
        (lambda: Categorical("a", levels=("x", "y"), columns=(3, 3)), "a: columns must differ"),
        (lambda: Categorical("a", levels=("x", "y"), columns=(0, 1), column=2), "column and columns exclude one another"),
        (lambda: Categorical("a", levels=("x", "y"), columns=(0, 1), off=(1, 1), on=(0, 0)), "off below on"),
        (lambda: Categorical("a", levels=("x", ["y"])), r"levels must hold strings.* got \['y'\]"),
        (
            lambda: Categorical("a", levels=("x", "y"), frequencies=(0.5,)),
            "frequencies must hold one share for each of the 2 values, got 1",
        ),
        (lambda: Categorical("a", levels=("x", "y"), fill="z"), "fill must be one of its levels .* got 'z'"),
        (lambda: Categorical("a", levels=("x", "y"), unknown="ignore"), 'unknown must be "error", "zeros" or a code'),
    ],
)
def test_a_feature_that_contradicts_itself_cannot_be_built(build: Any, message: str) -> None:
    with pytest.raises(ActionSetError, match=message):
        build()


def test_refining_gives_a_new_set_and_knows_every_name() -> None:
    action_set = ActionSet.from_frame(people())
    refined = action_set.refine("age", mutability="immutable").refine("hours-per-week", bounds=(1, 80))
    assert refined["age"].is_immutable
    assert not action_set["age"].is_immutable
    assert refined["hours-per-week"].reachable_bounds == (1, 80)
    with pytest.raises(ActionSetError, match=r"no feature 'aeg' \(did you mean 'age'\?\)"):
        action_set.refine("aeg", effort=2)
    with pytest.raises(ActionSetError, match=r"age: a feature of kind integer has no attribute 'mutable' \(did you mean 'mutability'\?\)"):
        action_set.refine("age", mutable=False)
    with pytest.raises(ActionSetError, match=r"An action set has no attribute 'max_change'.*'max_changes'"):
        action_set.replace(max_change=2)
    with pytest.raises(AttributeError):
        action_set["age"].mutability = Mutability.IMMUTABLE  # type: ignore[misc]


# On columns -------------------------------------------------------------------------------------------------------------------------


def test_columns_that_no_feature_claims_are_immutable() -> None:
    action_set = ActionSet.from_columns(torch.rand(5, 3), [Continuous("a", column=1)])
    assert {f.name: f.mutability.value for f in action_set} == {"a": "free", "column_0": "immutable", "column_2": "immutable"}
    assert action_set.feature_columns == ((1,), (0,), (2,))


def test_means_and_scales_put_bounds_and_whole_numbers_in_raw_units() -> None:
    raw = np.array([[20.0, 1.0], [35, 2], [50, 4]])
    mean, scale = raw.mean(0), raw.std(0)
    x = torch.tensor((raw - mean) / scale, dtype=torch.float32)
    features = [Integer("age", column=0, bounds=(18, 60)), Continuous("rate", column=1)]
    action_set = ActionSet.from_columns(x, features, means=mean.tolist(), scales=scale.tolist())
    assert action_set["age"].statistics is not None
    assert action_set["age"].statistics.maximum == 50
    assert action_set.describe(x, action_set.project(x, torch.full_like(x, 0.1)))[0] == "age 20 → 21; rate 1 → 1.12472"


@pytest.mark.parametrize(
    ("x", "features", "message"),
    [
        (torch.zeros(3), [], "shape"),
        (torch.zeros(0, 2), [], "at least one row and one column"),
        (torch.tensor([[0.0, math.nan]]), [], r"NaN or infinity in column 1 \(column_1\), rows 0"),
        (torch.zeros(2, 2, dtype=torch.complex64), [], "real numbers"),
        (torch.rand(2, 2), [Continuous("a")], "a: its column is missing"),
        (torch.rand(2, 2), [Continuous("a", column=2)], "a: column must be below 2, the number of columns, got 2"),
        (torch.rand(2, 2), [Continuous("a", column=0), Continuous("b", column=0)], "Column 0 belongs to both a and b"),
        (torch.rand(2, 2), [Continuous("a", column=0), Continuous("a", column=1)], "Feature names must differ, got a more than once"),
        (
            torch.full((2, 1), 0.5),
            [Integer("a", column=0)],
            r"a: values must be whole numbers, got 0\.5 in row 0 \(rows 0, 1\)\. Give offset and scale",
        ),
        (torch.tensor([[1.0, 1], [0, 0]]), [Categorical("a", levels=("x", "y"), columns=(0, 1))], "a: exactly one of columns .* rows 0, 1"),
        (torch.tensor([[0.5, 0.5]]), [Categorical("a", levels=("x", "y"), columns=(0, 1))], "a: exactly one of columns"),
        (torch.tensor([[1.0], [7]]), [Ordinal("a", domain=(0, 1), column=0)], r"a: column 0 holds none of the codes .*rows 1 \(row 1: 7"),
    ],
)
def test_columns_that_do_not_fit_are_refused(x: torch.Tensor, features: list[Any], message: str) -> None:
    with pytest.raises(CfptqError, match=message):
        ActionSet.from_columns(x, features)


# Rows -------------------------------------------------------------------------------------------------------------------------------


def test_check_names_rows_and_rules() -> None:
    action_set, x = encoded()
    action_set.check(x)
    torn = x[1:2].clone()
    torn[0, action_set["occupation"].model_columns[0]] = 1
    with pytest.raises(ActionSetError, match=r"occupation: exactly one of columns .* broken by rows 0 \(row 0: "):
        action_set.check(torn)


def test_who_is_outside_declared_bounds_may_stay_or_move_towards_them() -> None:
    action_set, x = encoded(bounds={"hours-per-week": (30, 50), "income": (1000, 3000), "grade": ("mid", None)})
    action_set.check(x)
    assert set(action_set.validate(x)["feature"]) == {"hours-per-week", "income", "grade"}
    for size in (-9.0, 9.0):
        after = action_set.decode(action_set.apply(x, action_set.project(x, torch.full_like(x, size))))
        for name, low, high in (("hours-per-week", 30, 50), ("income", 1000, 3000)):
            before = people()[name]
            assert (after[name] >= np.minimum(before, low)).all()
            assert (after[name] <= np.maximum(before, high)).all()
    remarks = [str(remark) for remark in action_set.examine(people())]
    assert remarks[0] == (
        "hours-per-week: 2 of 4 rows lie outside the declared bounds, such as 20. Actions keep these values or move towards 30 to 50."
    )
    assert len(remarks) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, 1:], r"must have shape \(N, 11\)"),
        (lambda x: x[0], r"got \(11,\)"),
        (lambda x: x.double(), "Rows must be float32, got float64"),
        (lambda x: x.where(x != x[1, 2], math.nan), r"NaN or infinity in column 2 \(n__income\), rows 1"),
        (lambda x: "rows", "got str"),
    ],
)
def test_rows_of_a_wrong_kind_are_data_errors(change: Any, message: str) -> None:
    action_set, x = encoded()
    with pytest.raises(DataError, match=message):
        action_set.check(change(x))


def test_validate_lists_broken_rules_on_frames_and_on_columns_alike() -> None:
    action_set, x = encoded(bounds={"age": (18, 60), "hours-per-week": (30, 80), "grade": ("mid", None)})
    found = action_set.validate(x)
    assert found[["row", "feature", "value"]].values.tolist() == [
        [2, "age", 61.0],
        [1, "hours-per-week", 20.0],
        [0, "grade", "low"],
        [3, "grade", "low"],
    ]
    assert action_set.validate(people())[["row", "feature", "rule"]].equals(found[["row", "feature", "rule"]])
    assert action_set.validate(x.numpy())[["row", "feature", "rule"]].equals(found[["row", "feature", "rule"]])
    raw = ActionSet.from_frame(people(), bounds={"age": (18, 60)})
    assert raw.validate(people())["row"].tolist() == [2]
    broken = people().astype({"age": float, "occupation": object})
    broken.loc[1, "age"] = np.nan
    broken.loc[2, "occupation"] = "Pilot"
    rules = action_set.validate(broken)
    assert "a value is missing and the encoder has no rule for it" in set(rules["rule"][rules["row"] == 1])
    assert rules[(rules["feature"] == "occupation")]["value"].tolist() == ["Pilot"]
    spotless = action_set.validate(people().assign(age=30, grade="mid", **{"hours-per-week": 40}))
    assert list(spotless.columns) == ["row", "feature", "rule", "value"]
    assert not len(spotless)
    with pytest.raises(DataError, match="no column 'income'"):
        action_set.validate(people().drop(columns="income"))


@pytest.mark.filterwarnings("ignore::cfptq.errors.DataWarning")
def test_an_observed_range_makes_no_row_invalid() -> None:
    action_set, _ = encoded()
    older = people().assign(age=99, income=1e6)
    assert not len(action_set.validate(older))
    action_set.check(action_set.encode(older))


# Cost -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "expected"), [("l1", 1.5 + 4 + 1), ("l2", math.sqrt(1.5**2 + 4**2 + 1)), (("mix", 2, 0.5), 13 + 0.5 * math.sqrt(19.25))]
)
def test_cost_is_the_weighted_norm(norm: Any, expected: float) -> None:
    x = torch.zeros(2, 3)
    features = [Continuous("a", column=0, effort=3.0), Continuous("b", column=1, effort=2.0), Continuous("c", column=2)]
    action_set = ActionSet.from_columns(x, features, norm=norm, weights="uniform")
    delta = torch.tensor([[0.5, -2, 1], [0, 0, 0]], requires_grad=True)
    cost = action_set.cost(x, delta)
    assert cost.tolist() == pytest.approx([expected, 0])
    cost.sum().backward()
    assert delta.grad is not None
    assert delta.grad.isfinite().all()


def test_weights_need_statistics() -> None:
    bare = ActionSet((Continuous("a", column=0),), width=1)
    with pytest.raises(ActionSetError, match='a: weights="std" needs its statistics'):
        bare.cost(torch.zeros(1, 1), torch.zeros(1, 1))
    assert bare.replace(weights="uniform").cost(torch.zeros(1, 1), torch.ones(1, 1)).tolist() == [1.0]


# Words ------------------------------------------------------------------------------------------------------------------------------


def test_an_action_is_told_in_raw_words() -> None:
    action_set, x = encoded(bounds={"hours-per-week": (1, 80)})
    after = people()
    after.loc[0, "hours-per-week"] = 46
    after.loc[0, "occupation"] = "Tech-support"
    after.loc[1, "income"] = 2300.26
    after.loc[2, "member"] = True
    delta = action_set.project(x, action_set.encode(after) - x)
    assert action_set.describe(x, delta) == [
        "hours-per-week 40 → 46; occupation Sales → Tech-support",
        "income 2300.25 → 2300.26",
        "member no → yes",
        "no change",
    ]


def test_unlisted_and_missing_levels_are_told_as_missing() -> None:
    job = Categorical("job", levels=("a", "b"), columns=(0, 1), unknown="zeros")
    x = torch.tensor([[0.0, 0], [1, 0]])
    action_set = ActionSet.from_columns(x, [job])
    assert action_set.describe(x, action_set.project(x, torch.tensor([[0.0, 1], [0, 0]])))[0] == "job (missing) → b"


def test_the_table_is_readable() -> None:
    action_set, _ = encoded(bounds={"hours-per-week": (1, 80)}, increase_only=["grade"], max_changes=3, favourable=1)
    assert str(action_set) == "\n".join(
        [
            "ActionSet: 6 features, 5 of them mutable, 11 columns; an action changes at most 3; cost l1, weights std; favourable class 1",
            "feature         kind         may move   to                            columns  effort",
            "--------------  -----------  ---------  ----------------------------  -------  ------",
            "age             integer      immutable  itself                        0        1",
            "hours-per-week  integer      free       1 to 80                       1        1",
            "income          continuous   free       800 to 4000.75 (observed)     2        1",
            "occupation      categorical  free       Farming, Sales, Tech-support  3–5      1",
            "grade           ordinal      only up    low < mid < high              6–8      1",
            "member          categorical  free       no, yes                       9, 10    1",
        ]
    )


# Files ------------------------------------------------------------------------------------------------------------------------------


def test_yaml_carries_everything(tmp_path: Path) -> None:
    action_set, x = encoded(bounds={"hours-per-week": (1, math.inf)}, increase_only=["grade"], max_changes=3, norm=("mix", 1.0, 0.25))
    path = tmp_path / "actions.yaml"
    action_set.save(path)
    loaded = ActionSet.load(path)
    assert loaded == action_set
    assert torch.equal(loaded.encode(people()), x)
    assert loaded.decode(x).equals(action_set.decode(x))
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first
    raw = ActionSet.from_frame(people())
    raw.save(path)
    assert ActionSet.load(path) == raw


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_action_set_survives_yaml(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    action_set, _ = random_action_set(seed, features=8)
    path = tmp_path_factory.getbasetemp() / "any_action_set.yaml"
    action_set.save(path)
    assert ActionSet.load(path) == action_set


def test_levels_keep_their_types_in_yaml(tmp_path: Path) -> None:
    levels = ("no", "1", 1, "true", "null", "1e3", 2.5, "ü", "", None)
    action_set = ActionSet((Categorical("a", levels=levels), Categorical("b", levels=(False, True), fill=False)))
    action_set.save(tmp_path / "actions.yaml")
    again = ActionSet.load(tmp_path / "actions.yaml")
    assert again == action_set
    assert [type(level) for level in again["a"].levels] == [type(level) for level in levels]
    assert again["b"].fill is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "is not an action set"),
        ("format: cfptq-action-set\nversion: 99\nfeatures: []", "version must be 1, got 99"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: 3", "features must be a list"),
        ("format: cfptq-action-set\nversion: 1\nmax_change: 3\nfeatures: []", "unknown key 'max_change' .did you mean 'max_changes'"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: []", "at least one feature"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: number}]", "a: kind must be one of continuous"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: ordinal}]", "missing 1 required .* 'domain'"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, bound: [1, 2]}]", "a: unknown key 'bound'.*'bounds'"),
        (
            "format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, bounds: [5, 1]}]",
            "a: the lower bound must be at most the upper bound 1",
        ),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, column: 0}]\nwidth: 2", r"Columns \[1\] belong to no"),
        (
            "format: cfptq-action-set\nversion: 1\nfavourable: 1\nfavourable: 0\nfeatures: []",
            "line 4 repeats the key 'favourable'",
        ),
        ("format: cfptq-action-set\nversion: 1\nfeatures:\n- name: a\n  kind: integer\n  name: b", "line 6 repeats the key 'name'"),
        ("[" * 5000, "is not YAML: line 1 is nested in more than 50 levels"),
        (
            "a: &a [1]\n" + "".join(f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1 or '')] * 9)}]\n" for n in range(1, 20)),
            "is not YAML.* values",
        ),
        ("a: &a [*a]", "is not YAML: .*refers to a value from within itself"),
        ("format: cfptq-action-set\nversion: 1\nwidth: 2020-13-45", "is not YAML: line 3 cannot be read as timestamp"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: []}]", r"a: kind must be one of .*, got \[\]"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: {b: 1}}]", "a: kind must be one of"),
        (
            "format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, statistics: x}]",
            "a: statistics must be a mapping of mean",
        ),
        (
            "format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, statistics: [1, 2]}]",
            "a: statistics must be a mapping",
        ),
        (
            "format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, column: 0}]\nwidth: 1000000000000",
            r"Columns \[1, 2, .*, …\] belong to no",
        ),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: integer, column: 0}]\nwidth: two", "width: a column must be"),
        (f"format: cfptq-action-set\nversion: 1\nfeatures: [{{name: a, kind: integer, effort: {10**400}}}]", "a: effort must be a number"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [{name: a, kind: categorical, levels: {x: 1}}]", "a: levels must be a list"),
        ("format: cfptq-action-set\nversion: 1\nunseen: 5\nfeatures: [{name: a, kind: integer}]", "unseen must be a list of names, got 5"),
        ("format: cfptq-action-set\nversion: 1\nfeatures: [!!python/object/apply:os.getcwd []]", "is not YAML"),
    ],
)
def test_files_that_are_no_action_set_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "actions.yaml"
    path.write_text(text)
    with pytest.raises(CfptqError, match=message) as caught:
        ActionSet.load(path)
    assert "actions.yaml" in str(caught.value) or isinstance(caught.value, ActionSetError)


def test_a_merge_may_be_written_over_for_its_keys_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "actions.yaml"
    shared = "- &root {name: a, kind: integer, column: 0, bounds: [0, 9]}\n- &next {<<: *root, name: b, column: 1}\n"
    path.write_text(f"format: cfptq-action-set\nversion: 1\nwidth: 3\nfeatures:\n{shared}- {{<<: *next, name: c, column: 2}}\n")
    assert [(feature.name, feature.bounds) for feature in ActionSet.load(path).features] == [(name, (0, 9)) for name in "abc"]


def test_missing_and_binary_files_are_file_errors(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"There is no action-set file .*none\.yaml"):
        ActionSet.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FileError, match="not a text file"):
        ActionSet.load(tmp_path / "binary.yaml")
    with pytest.raises(FileError, match="cannot write"):
        ActionSet.from_frame(people()).save(tmp_path / "nowhere" / "a.yaml")


def test_a_saved_file_is_plain_yaml_that_people_can_edit(tmp_path: Path) -> None:
    path = tmp_path / "actions.yaml"
    encoded(max_changes=3)[0].save(path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(document)[:3] == ["format", "version", "width"]
    document["features"][1]["bounds"] = [10, 50]
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert ActionSet.load(path)["hours-per-week"].reachable_bounds == (10, 50)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero"), 5, None):
        with pytest.raises(FileError, match=r"regular file|path must be"):
            ActionSet.load(path)  # type: ignore[arg-type]


def test_columns_come_as_a_frame_with_their_names_and_never_sparse() -> None:
    table = pd.DataFrame({"income": [1.0, 2.0, 3.0], "job_a": [1, 0, 1]})
    action_set = ActionSet.from_columns(table, [Continuous("income", column=0)])
    assert action_set.column_names == ("income", "job_a")
    sparse = torch.tensor(table.to_numpy()).to_sparse()
    for rows in (sparse, scipy.sparse.csr_matrix(table.to_numpy()), table.astype(pd.SparseDtype(float))):
        with pytest.raises(DataError, match="columns must be dense"):
            ActionSet.from_columns(rows, [Continuous("income", column=0)])
    with pytest.raises(DataError, match="column 'job' of the DataFrame holds others"):
        ActionSet.from_columns(table.assign(job="a"), [Continuous("income", column=0)])
    with pytest.raises(DataError, match="Rows must be dense"):
        action_set.check(sparse.float())


_ODD_VALUES = [None, "x", [], {}, {"a": 1}, [1, 2], -1, 0, 1e308, 1e-320, math.nan, math.inf, True, 10**400, 10**12, [None], [[]]]


def list_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, part in parts for found in list_places(part, (*place, key)))]


@functools.cache
def saved_document() -> Any:
    action_set, _ = encoded()
    settings_of_set = {"width": action_set.width, "column_names": action_set.column_names}
    return yaml.safe_load(format_yaml(action_set.features, settings_of_set))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_file_with_an_odd_value_is_refused_or_works(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("odd") / "actions.yaml"
    document = copy.deepcopy(saved_document())
    *first, last = data.draw(st.sampled_from([place for place in list_places(document) if place]))
    holder = document
    for key in first:
        holder = holder[key]
    holder[last] = data.draw(st.sampled_from(_ODD_VALUES))
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    try:
        action_set = ActionSet.load(path)
        x = action_set.encode(people())
        action_set.examine(x)
        action_set.describe(x, action_set.project(x, torch.ones_like(x)))
        action_set.decode(x)
        action_set.cost(x, x)
    except CfptqError:
        return
    assert str(action_set)


def test_a_number_beyond_float32_is_refused_with_its_rows() -> None:
    action_set, _ = encoded()
    frame = people().astype({"income": float})
    frame.loc[2, "income"] = 1e300
    with pytest.raises(DataError, match=r"income: values must fit into float32 columns, but those in rows 2 do not"):
        action_set.encode(frame)


@pytest.mark.parametrize(
    "mark", ["\x85", "\u2028", "\r", "\n", "\t", "\ufeff", "\x07", "'", '"', ": ", "# ", "- ", "\u202e", "\U0001f4a9", "\x85'"]
)
def test_names_and_levels_of_any_characters_are_saved(mark: str, tmp_path: Path) -> None:
    action_set = ActionSet((Categorical(f"a{mark}b", levels=(mark, f"{mark}a", f"a{mark}", f"a{mark}b")),))
    action_set.save(tmp_path / "a.yaml")
    assert ActionSet.load(tmp_path / "a.yaml") == action_set


@pytest.mark.parametrize("number", [-(2**64), 2**63, 1e300])
@pytest.mark.parametrize("field", ["bounds", "fill", "offset", "mean", "minimum", "maximum"])
def test_whole_numbers_that_int64_does_not_hold_are_refused(field: str, number: float, tmp_path: Path) -> None:
    statistics = {"mean": 5.0, "std": 1.0, "mad": 1.0, "minimum": min(3.0, number), "maximum": max(9.0, number)}
    if field in ("bounds", "fill", "offset"):
        fields: dict[str, Any] = {field: (number, None) if field == "bounds" else number}
    else:
        fields = {"statistics": Statistics(**(statistics | {field: number}))}
    with pytest.raises(ActionSetError, match=r"count: the .* must be above -2"):
        Integer("count", **fields)
    named = fields if field != "bounds" else {"bounds": [number, None]}
    listed = named if "statistics" not in named else {"statistics": dict(statistics | {field: number})}
    document = {"format": "cfptq-action-set", "version": 1, "features": [{"name": "count", "kind": "integer", **listed}]}
    (tmp_path / "actions.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ActionSetError, match="count"):
        ActionSet.load(tmp_path / "actions.yaml")


def test_a_whole_number_beyond_int64_in_a_table_decodes_to_itself() -> None:
    action_set = ActionSet((Integer("count", column=0),), width=1)
    frame = pd.DataFrame({"count": [1e19, 3.0]})
    assert action_set.decode(action_set.encode(frame))["count"].tolist() == [float(np.float32(1e19)), 3.0]


def test_a_code_for_unknown_values_fits_float32() -> None:
    with pytest.raises(ActionSetError, match="fits float32"):
        Categorical("job", levels=("a", "b"), column=0, unknown=1e300)
