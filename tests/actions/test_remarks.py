"""Rows that are read in a way their owner may not have meant, said by column and number of rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from cfptq.actions import ActionSet, Remark
from cfptq.actions.dummy_columns import find_dummy_groups
from cfptq.actions.identifiers import has_dates, is_identifier
from cfptq.actions.missing_codes import find_missing_codes
from cfptq.errors import ActionSetError, DataError, DataWarning


def tenants(count: int = 300, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "rooms": draw.integers(1, 9, count),
            "rent": draw.normal(900.0, 200.0, count).round(2),
            "years": draw.integers(0, 30, count).astype(float),
            "heating": draw.choice(["gas", "oil", "wood"], count),
        }
    )


def placed(frame: pd.DataFrame, heating: Any = None, numbers: Any = None, **more: Any) -> ActionSet:
    steps = [
        ("n", numbers or StandardScaler(), ["rooms", "rent", "years"]),
        ("h", heating or OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["heating"]),
    ]
    return ActionSet.from_frame(frame, favourable=1, **more).encoded_by(ColumnTransformer(steps).fit(frame))


def heard(action_set: ActionSet, frame: pd.DataFrame) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        action_set.encode(frame)
    return [str(one.message) for one in said]


def kinds(action_set: ActionSet, frame: pd.DataFrame) -> dict[str, tuple[str, int]]:
    return {remark.column: (remark.kind, remark.count) for remark in action_set.examine(frame)}


def test_people_like_those_of_training_get_no_remark() -> None:
    action_set = placed(tenants())
    assert action_set.examine(tenants()) == ()
    assert action_set.examine(tenants(200, seed=1)) == ()
    assert action_set.examine(action_set.encode(tenants(200, seed=1))) == ()


@pytest.mark.parametrize(
    ("encoder", "reading"),
    [
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), "The model sees none of its levels."),
        (
            OneHotEncoder(sparse_output=False, handle_unknown="ignore", drop="first"),
            "The model sees 'gas', the level that the encoder drops.",
        ),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), "The model sees the code -1."),
    ],
)
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_categories_that_the_encoder_does_not_know_are_counted_with_their_reading(encoder: Any, reading: str) -> None:
    frame = tenants()
    action_set = placed(frame, heating=encoder)
    renamed = frame.assign(heating=frame["heating"].replace("wood", "Wood"))
    count = int((frame["heating"] == "wood").sum())
    words = f"heating: {count} of 300 rows hold a category that the encoder does not know, such as 'Wood'. {reading}"
    assert heard(action_set, renamed) == [words]
    absent = frame.assign(heating=frame["heating"].where(frame.index % 3 > 0))
    assert heard(action_set, absent) == [f"heating: 100 of 300 rows have no value. {reading}"]


def test_imputed_values_are_counted_and_warned_of_only_where_training_rows_had_fewer() -> None:
    frame = tenants()
    gaps = frame.assign(years=frame["years"].where(frame.index % 10 > 0))
    filled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    action_set = placed(gaps, numbers=filled)
    median = gaps["years"].median()
    assert [str(remark) for remark in action_set.examine(gaps)] == [
        f"years: 30 of 300 rows have no value. The encoder fills in {median:g}."
    ]
    assert heard(action_set, gaps) == []
    assert len(heard(action_set, frame.assign(years=frame["years"].where(frame.index % 2 > 0)))) == 1
    assert len(heard(action_set, frame.assign(rent=frame["rent"].where(frame.index % 10 > 0)))) == 1


@pytest.mark.parametrize("factor", [100.0, 1000.0, 0.001])
def test_another_unit_is_remarked(factor: float) -> None:
    frame = tenants()
    action_set = placed(frame)
    assert kinds(action_set, frame.assign(rent=frame["rent"] * factor)) == {"rent": ("other range", 300)}
    shrunk = action_set.examine(frame.assign(years=frame["years"] / 1000))
    assert ("other range", 300) in {(remark.kind, remark.count) for remark in shrunk}
    columns = action_set.encode(frame)
    columns[:, 1] *= 50
    assert [remark.column for remark in action_set.examine(columns)] == ["rent"]


def test_rows_that_are_encoded_already_are_warned_of() -> None:
    frame = tenants()
    action_set = placed(frame)
    again = pd.DataFrame(StandardScaler().fit_transform(frame[["rooms", "rent", "years"]]), columns=["rooms", "rent", "years"])
    words = heard(action_set, again.assign(heating=frame["heating"]))
    assert {message.partition(":")[0] for message in words} == {"rooms", "rent", "years"}
    assert any("encoded already" in message for message in words)
    assert any(message.startswith("rooms: 300 of 300 rows hold no whole number") for message in words)


def test_one_row_far_outside_is_remarked_and_a_few_near_ones_are_not() -> None:
    action_set = placed(tenants())
    frame = tenants(200, seed=2)
    frame.loc[7, "rent"] = 900_000.0
    assert kinds(action_set, frame) == {"rent": ("other range", 1)}
    frame.loc[7, "rent"] = tenants()["rent"].max() + 1
    assert kinds(action_set, frame) == {}


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([-999.0] * 3 + list(range(40)), (-999.0,)),
        ([-1.0, -1.0, *range(40)], (-1.0,)),
        ([-9.0, -8.0, -9.0, -8.0, *range(5, 40)], (-9.0, -8.0)),
        ([999.0, 999.0, *range(40)], (999.0,)),
        ([99.0] * 4 + list(range(18, 80)), (99.0,)),
        ([-999.0, *range(40)], (-999.0,)),
        ([1e9, 1e9, *range(40)], (1e9,)),
        ([-999.0, -999.0, 9999.0, 9999.0, *range(40)], (-999.0, 9999.0)),
        (list(range(40)), ()),
        (list(range(-20, 20)), ()),
        ([0.0, 0.0, 0.0, 1.0, 1.0, 5.0, 5.0, 0.0, 1.0, 0.0, 1.0], ()),
        ([500.0, *range(40)], ()),  # Once, and not written as a code.
        ([-999.0, 1.0, 2.0], ()),  # So few rows do not show it.
    ],
)
def test_codes_for_missing_values_are_told_from_numbers(values: list[float], codes: tuple[float, ...]) -> None:
    assert find_missing_codes(np.array(values)) == codes


def test_a_code_that_would_open_the_range_is_warned_of_when_it_is_declared_and_counted_when_it_is_used() -> None:
    frame = tenants().assign(years=lambda it: it["years"].where(it.index % 10 > 0, -999))
    with pytest.warns(DataWarning, match=r"years: 30 of 300 rows hold what looks like a code .* -999\. .*Replace it by a missing value"):
        action_set = placed(frame)
    assert kinds(action_set, frame) == {"years": ("code for missing", 30)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert placed(frame, bounds={"years": (0, None)})["years"].reachable_bounds[0] == 0
        placed(frame, immutable=["years"])
    clean = placed(tenants())
    assert "code for missing" in {remark.kind for remark in clean.examine(frame)}


def test_digits_that_float32_loses_are_warned_of() -> None:
    frame = pd.DataFrame({"account": np.arange(50) + 1_234_567_890, "opened": 1.7e9 + np.arange(50.0), "near": np.arange(50.0) / 7})
    encoder = ColumnTransformer([("p", "passthrough", list(frame))]).fit(frame)
    action_set = ActionSet.from_frame(frame, immutable=["account"], continuous=["opened"]).encoded_by(encoder)
    assert {column: kind for column, (kind, _) in kinds(action_set, frame).items()} == {"account": "lost digits", "opened": "lost digits"}
    with pytest.warns(DataWarning, match="float32"):
        columns = action_set.encode(frame)
    # Told the people, decoding gives back what nobody changed.
    assert action_set.decode(columns, people=frame)["account"].tolist() == frame["account"].tolist()
    scaled = ActionSet.from_frame(frame, immutable=["account"], continuous=["opened"]).encoded_by(
        ColumnTransformer([("s", StandardScaler(), list(frame))]).fit(frame)
    )
    assert scaled.examine(frame) == ()


def test_remarks_are_plain_values() -> None:
    remark = Remark("when", "unknown category", 1, 2, pd.Timestamp("2020-01-01"), "Nothing.")
    assert remark.to_dict()["example"] == "2020-01-01 00:00:00"
    assert str(Remark("a", "imputed", 1, 2, None, "Nothing.")) == "a: 1 of 2 rows have no value. Nothing."


# When an action set is declared -----------------------------------------------------------------------------------------------------


def test_one_hot_columns_of_a_frame_are_refused_by_name_unless_nobody_can_change_them() -> None:
    frame = pd.get_dummies(tenants(), columns=["heating"], dtype=int)
    hot = ["heating_gas", "heating_oil", "heating_wood"]
    with pytest.raises(ActionSetError, match=r"heating_gas, heating_oil, heating_wood must be one feature.*from_dummies.*OneHotEncoder"):
        ActionSet.from_frame(frame, immutable=["rooms"])
    with pytest.raises(ActionSetError, match="heating_oil"):
        ActionSet.from_frame(frame.rename(columns=lambda name: name.replace("heating_", "")).rename(columns={"oil": "heating_oil"}))
    assert ActionSet.from_frame(frame, immutable=hot)["heating_gas"].is_immutable
    assert ActionSet.from_frame(frame, integer=hot)["heating_gas"].kind == "integer"


def test_groups_of_one_hot_columns_are_found_whatever_their_names_and_types() -> None:
    frame = tenants().assign(sex=np.random.default_rng(5).choice(["f", "m"], 300))
    both = pd.get_dummies(frame, columns=["heating", "sex"], prefix_sep="=")
    assert find_dummy_groups(both) == (("heating=gas", "heating=oil", "heating=wood"), ("sex=f", "sex=m"))
    bare = both.rename(columns=lambda name: name.rpartition("=")[2])
    assert find_dummy_groups(bare.astype(float)) == (("gas", "oil", "wood"), ("f", "m"))
    first = pd.get_dummies(frame, columns=["heating"], drop_first=True)
    assert find_dummy_groups(first.drop(columns="sex")) == (("heating_oil", "heating_wood"),)
    draw = np.random.default_rng(1)
    flags = pd.DataFrame({f"has_{name}": draw.integers(0, 2, 300) for name in ("car", "dog", "garden")})
    assert find_dummy_groups(flags) == ()


def test_a_column_that_numbers_the_rows_is_immutable_with_a_warning() -> None:
    numbers = np.random.default_rng(3).permutation(300)
    with pytest.warns(DataWarning, match=r"person: 300 of 300 rows have a value of their own, such as \d+\. .*read as immutable"):
        action_set = ActionSet.from_frame(tenants().assign(person=numbers))
    assert action_set["person"].is_immutable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ActionSet.from_frame(tenants().assign(person=numbers), integer=["person"])["person"].is_immutable
        assert ActionSet.from_frame(tenants().assign(person=numbers), immutable=["person"])["person"].is_immutable


@pytest.mark.parametrize(
    ("name", "values", "numbers_rows"),
    [
        ("row", list(range(100)), True),
        ("customerId", [7919 * place for place in range(100)], True),
        ("tax_id", [f"DE{place}" for place in range(100)], True),
        ("surname", [f"name {place}" for place in range(100)], True),
        ("income", [7919 * place for place in range(100)], False),
        ("width", [place / 8 for place in range(100)], False),
        ("age", [place % 60 for place in range(100)], False),
        ("days", list(range(10)), False),
    ],
)
def test_identifiers_are_told_from_quantities(name: str, values: list[Any], numbers_rows: bool) -> None:
    assert is_identifier(pd.Series(values, name=name)) is numbers_rows


def test_dates_as_text_are_warned_of_and_dates_as_dates_refused() -> None:
    days = pd.date_range("2020-01-01", periods=300).to_series(index=range(300))
    assert has_dates(days.dt.strftime("%d.%m.%Y"))
    assert not has_dates(pd.Series(["gas", "oil"] * 20))
    with pytest.warns(DataWarning, match=r"since: 300 of 300 rows hold a date as text, such as '2020-01-01'\. .*number of days"):
        ActionSet.from_frame(tenants().assign(since=days.dt.strftime("%Y-%m-%d")))
    action_set = placed(tenants())
    for dates in (days, days - days[0]):
        with pytest.raises(DataError, match="years: values must be numbers, got dates"):
            action_set.encode(tenants().assign(years=dates))


def test_bounds_that_no_training_row_keeps_are_refused() -> None:
    with pytest.raises(ActionSetError, match="rent: bounds must hold a training row, got 90000 to 200000 for values from"):
        ActionSet.from_frame(tenants(), bounds={"rent": (90_000, 200_000)})
    ActionSet.from_frame(tenants(), bounds={"rent": (900, None)})


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"immutable": 5}, "immutable must be a list of names, got 5"),
        ({"integer": 5.0}, "integer must be a list of names"),
        ({"bounds": ["rent"]}, r"bounds must map names of features to values, got \['rent'\]"),
        ({"effort": ["rent"]}, "effort must map names"),
        ({"ordinal": ["heating"]}, "ordinal must map names"),
        ({"reachable": "heating"}, "reachable must map names"),
        ({"bounds_share": 1}, "bounds_share must map names"),
        ({"reachable": {"rent": {"gas": ["oil"]}}}, "Transitions: rent must have levels"),
        ({"constraints": 5}, "constraints must be a list of constraints, got 5"),
        ({"reachable": {"heating": "gas"}}, "heating: reachable must be a list of values, got 'gas'"),
        ({"ordinal": {"heating": {"gas": 1, "oil": 2, "wood": 3}}}, "heating: domain must be a list of values that holds"),
        ({"bounds": {"rent": {"low": 1, "high": 2}}}, "rent: bounds must be a pair"),
    ],
)
def test_declarations_of_a_wrong_type_are_refused_by_name(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ActionSetError, match=message):
        ActionSet.from_frame(tenants(), **given_)


def test_a_spread_that_float32_cannot_weigh_is_refused_by_name() -> None:
    frame = tenants()
    action_set = placed(frame)
    seen = action_set["rent"].statistics  # type: ignore[union-attr]
    changed = action_set.refine("rent", statistics=type(seen)(900.0, 1e308, 1.0, 0.0, 1e308))
    with pytest.raises(ActionSetError, match=r"rent: the weight of a change.*Correct its std or effort"):
        changed.cost(torch.zeros(1, 6), torch.zeros(1, 6))
