"""Reading scikit-learn encoders, so that encode equals their transform and decode inverts it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)

from cfptq.actions import ActionSet, Categorical, Integer, Ordinal
from cfptq.errors import ActionSetError, DataError

SCHOOL = ["primary", "secondary", "college", "university"]


def people(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 91, rows),
            "income": np.round(rng.lognormal(10, 0.7, rows), 2),
            "hours": rng.integers(1, 80, rows).astype(float),
            "job": rng.choice(["Sales", "Tech", "Farm", "Office"], rows, p=[0.4, 0.3, 0.1, 0.2]),
            "school": rng.choice(SCHOOL, rows),
            "owner": rng.random(rows) < 0.3,
            "region": rng.choice([10, 20, 30], rows),
        }
    )


def action_set_of(frame: pd.DataFrame, **more: Any) -> ActionSet:
    return ActionSet.from_frame(frame, ordinal={"school": SCHOOL}, categorical=["region"], **more)


def transformer(**replaced: Any) -> ColumnTransformer:
    steps = {
        "age": StandardScaler(),
        "income": RobustScaler(),
        "hours": MinMaxScaler(feature_range=(-1, 2)),
        "job": OneHotEncoder(handle_unknown="ignore"),
        "school": OrdinalEncoder(categories=[SCHOOL]),
        "owner": OneHotEncoder(drop="if_binary"),
        "region": OneHotEncoder(drop="first", sparse_output=False),
        **replaced,
    }
    return ColumnTransformer([(name, step, [name]) for name, step in steps.items()], sparse_threshold=0)


def agree(action_set: ActionSet, encoder: Any, frame: pd.DataFrame) -> torch.Tensor:
    """Check that encode equals transform to float32, that rows are valid, and that decoding and encoding restores the columns."""
    ours = action_set.encode(frame)
    theirs = encoder.transform(frame)
    theirs = torch.tensor(np.asarray(theirs.todense() if hasattr(theirs, "todense") else theirs, dtype=np.float64), dtype=torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=1e-7)
    action_set.check(theirs)
    assert torch.equal(action_set.project(theirs, torch.zeros_like(theirs)), torch.zeros_like(theirs))
    assert torch.equal(action_set.encode(action_set.decode(ours)), ours)
    return ours


@pytest.mark.parametrize(
    "replaced",
    [
        {},
        {"age": "passthrough", "hours": "passthrough"},
        {"age": MaxAbsScaler(), "income": StandardScaler(with_mean=False), "hours": RobustScaler(with_centering=False, unit_variance=True)},
        {"age": StandardScaler(with_std=False), "hours": make_pipeline(StandardScaler(), MinMaxScaler())},
        {"job": OneHotEncoder(drop=["Farm"]), "owner": "passthrough", "region": "passthrough"},
        {"job": OneHotEncoder(drop="first", handle_unknown="ignore"), "owner": OrdinalEncoder(), "region": OrdinalEncoder()},
        {"school": OneHotEncoder(), "region": make_pipeline(OrdinalEncoder(), StandardScaler())},
        {
            "school": make_pipeline(OrdinalEncoder(), StandardScaler()),
            "job": make_pipeline(OneHotEncoder(), StandardScaler(with_mean=False)),
        },
        {
            "age": FunctionTransformer(feature_names_out="one-to-one"),
            "job": make_pipeline(OneHotEncoder(sparse_output=False), StandardScaler()),
        },
        {"region": Pipeline([("impute", SimpleImputer(strategy="most_frequent")), ("code", OneHotEncoder())])},
    ],
)
def test_columns_are_those_that_the_encoder_gives(replaced: dict[str, Any]) -> None:
    train, test = people(), people(50, seed=1)
    encoder = transformer(**replaced).fit(train)
    action_set = action_set_of(train, max_changes=3).encoded_by(encoder)
    agree(action_set, encoder, train)
    x = agree(action_set, encoder, test)
    assert action_set.column_names == tuple(encoder.get_feature_names_out())
    delta = action_set.project(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 2)
    point = action_set.apply(x, delta)
    again = action_set.encode(action_set.decode(point))
    assert torch.equal(again, point)
    pd.testing.assert_frame_equal(action_set.decode(x)[test.columns], test, check_dtype=False)


def test_decoded_rows_keep_raw_values_and_types() -> None:
    frame = people()
    action_set = action_set_of(frame).encoded_by(transformer().fit(frame))
    decoded = action_set.decode(action_set.encode(frame))
    assert decoded["age"].dtype == np.int64
    assert decoded["owner"].dtype == bool
    assert decoded["income"].tolist() == frame["income"].tolist()
    assert decoded["region"].tolist() == frame["region"].tolist()


def test_bounds_and_whole_numbers_hold_in_raw_units_behind_a_scaler() -> None:
    frame = people()
    action_set = action_set_of(frame, bounds={"income": (0, 50_000), "hours": (0, 60)}).replace(max_changes=None)
    action_set = action_set.encoded_by(transformer().fit(frame))
    kept = frame[(frame["income"] <= 50_000) & (frame["hours"] <= 60)].reset_index(drop=True)
    x = action_set.encode(kept)
    action_set.check(x)
    after = action_set.decode(action_set.apply(x, action_set.project(x, torch.full_like(x, 40.0))))
    assert after["income"].max() == 50_000
    assert set(after["hours"]) == {60}
    assert set(after["age"]) == {frame["age"].max()}


def test_a_whole_pipeline_is_read_up_to_its_predictor() -> None:
    frame = people()
    label = (frame["income"] > frame["income"].median()).astype(int)
    model = make_pipeline(transformer(), StandardScaler(), LogisticRegression()).fit(frame, label)
    action_set = action_set_of(frame).encoded_by(model)
    agree(action_set, model[:-1], frame)
    assert action_set["job"].off is not None
    assert action_set["job"].off[0] < 0 < action_set["job"].on[0]


def test_nested_transformers_selectors_and_a_remainder_are_followed() -> None:
    frame = people().assign(label=1, note="x")
    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    inner = ColumnTransformer([("hot", OneHotEncoder(), make_column_selector(dtype_include=bool))], remainder=OrdinalEncoder())
    encoder = ColumnTransformer(
        [
            ("numbers", numbers, slice("age", "hours")),
            ("inner", inner, ["owner", "region"]),
            ("gone", "drop", ["label"]),
            ("levels", OneHotEncoder(), [False, False, False, True, False, False, False, False, False]),
            ("more", OrdinalEncoder(categories=[SCHOOL]), [4]),
        ],
        remainder="drop",
    ).fit(frame)
    action_set = action_set_of(frame).encoded_by(encoder)
    agree(action_set, encoder, frame)
    assert action_set.unseen == ("label", "note")
    assert "not seen by the model: label, note" in str(action_set)
    passed = ColumnTransformer([("a", StandardScaler(), ["income"])], remainder="passthrough").fit(frame[["age", "income"]])
    again = ActionSet.from_frame(frame[["age", "income"]]).encoded_by(passed)
    agree(again, passed, frame[["age", "income"]])


def test_missing_values_follow_the_imputer() -> None:
    frame = people()
    frame.loc[:9, "income"] = np.nan
    frame.loc[5:14, "job"] = np.nan
    frame.loc[0:3, "hours"] = np.nan
    encoder = ColumnTransformer(
        [
            ("income", make_pipeline(SimpleImputer(strategy="mean"), StandardScaler()), ["income"]),
            ("hours", make_pipeline(StandardScaler(), SimpleImputer(strategy="mean")), ["hours"]),
            ("job", make_pipeline(SimpleImputer(strategy="constant", fill_value="unknown"), OneHotEncoder()), ["job"]),
        ],
        sparse_threshold=0,
    ).fit(frame)
    used = frame[["income", "hours", "job"]]
    action_set = ActionSet.from_frame(used).encoded_by(encoder)
    x = action_set.encode(frame)
    torch.testing.assert_close(x, torch.tensor(encoder.transform(frame), dtype=torch.float32), rtol=1e-6, atol=1e-6)
    assert not len(action_set.validate(used))
    action_set.check(x)
    job = action_set["job"]
    assert isinstance(job, Categorical)
    assert job.fill == "unknown"
    assert "unknown" not in (job.reachable or ())
    assert torch.equal(action_set.project(x, torch.zeros_like(x)), torch.zeros_like(x))
    # σ is that of the column the model sees, filled values included.
    assert action_set.column_weights[0].item() == pytest.approx(1 / x[:, 0].std(correction=0).item(), rel=1e-4)
    assert action_set.column_weights[2:].tolist() == pytest.approx((1 / x[:, 2:].std(0, correction=0)).tolist(), rel=1e-4)


def test_a_category_for_missing_values_is_a_level_that_no_action_leads_to() -> None:
    frame = people()
    frame["job"] = frame["job"].astype(object)
    frame.loc[5:14, "job"] = np.nan
    for encoder in (
        OneHotEncoder(),
        OrdinalEncoder(encoded_missing_value=-1),
        make_pipeline(OrdinalEncoder(), SimpleImputer(fill_value=9, strategy="constant")),
    ):
        transform = ColumnTransformer([("job", encoder, ["job"])], sparse_threshold=0).fit(frame)
        action_set = ActionSet.from_frame(frame[["job"]]).encoded_by(transform)
        x = agree(action_set, transform, frame[["job"]])
        assert action_set["job"].states[-1] is None
        point = action_set.apply(x, action_set.project(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 5))
        assert set(np.flatnonzero(action_set.decode(point)["job"].isna())) <= set(range(5, 15))


@pytest.mark.filterwarnings("ignore::cfptq.errors.DataWarning")
def test_unknown_categories_become_what_the_encoder_makes_of_them_or_are_refused_by_name() -> None:
    train, strange = people(), people(5)
    strange.loc[2, "job"] = "Sale"
    encoder = transformer().fit(train)
    action_set = action_set_of(train).encoded_by(encoder)
    x = agree_on_unknown(action_set, encoder, strange)
    assert x[2, list(action_set["job"].model_columns)].sum() == 0
    strict = action_set_of(train).encoded_by(transformer(job=OneHotEncoder()).fit(train))
    with pytest.raises(DataError, match=r"job: unknown value 'Sale' in rows 2 \(did you mean 'Sales'\?\)\. The encoder knows 'Farm'"):
        strict.encode(strange)
    assert strict.validate(strange)[["row", "feature", "value"]].values.tolist() == [[2, "job", "Sale"]]
    coded = transformer(job=OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)).fit(train)
    by_code = action_set_of(train).encoded_by(coded)
    x = agree_on_unknown(by_code, coded, strange)
    by_code.check(x)
    point = by_code.apply(x, by_code.project(x, torch.full_like(x, 0.9)))
    assert by_code.decode(point)["job"][2] == "Farm"


def agree_on_unknown(action_set: ActionSet, encoder: Any, frame: pd.DataFrame) -> torch.Tensor:
    ours = action_set.encode(frame)
    torch.testing.assert_close(ours, torch.tensor(encoder.transform(frame), dtype=torch.float32), rtol=3e-7, atol=1e-7)
    return ours


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("category", ["a", "b", "a", "b"]),
        ("string", ["a", "b", "a", "b"]),
        ("object", ["a", "b", "a", "b"]),
        ("bool", [True, False, True, True]),
        ("boolean", [True, False, True, True]),
        ("Int64", [1, 2, 3, 2]),
        ("Float64", [1.5, 2.5, 3, 2]),
        ("float32", [1.5, 2.5, 3, 2]),
        ("uint8", [1, 2, 3, 2]),
    ],
)
def test_every_common_pandas_dtype_is_understood(dtype: str, values: list[Any]) -> None:
    frame = pd.DataFrame({"v": pd.Series(values).astype(dtype)})
    action_set = ActionSet.from_frame(frame)
    plain = frame.astype(object) if action_set["v"].kind == "categorical" else frame.astype(float)
    encoder = ColumnTransformer(
        [("v", OneHotEncoder() if action_set["v"].kind == "categorical" else StandardScaler(), ["v"])], sparse_threshold=0
    ).fit(plain)
    encoded = action_set.encoded_by(encoder)
    torch.testing.assert_close(encoded.encode(frame), torch.tensor(encoder.transform(plain), dtype=torch.float32))
    assert encoded.decode(encoded.encode(frame))["v"].tolist() == values


def test_nullable_columns_with_missing_values_are_numbers_still() -> None:
    frame = pd.DataFrame({"n": pd.array([1, None, 3], dtype="Int64"), "f": [1.0, np.nan, 3.0]})
    action_set = ActionSet.from_frame(frame)
    assert [feature.kind for feature in action_set] == ["integer", "integer"]
    encoder = ColumnTransformer([("n", SimpleImputer(), ["n", "f"])]).fit(frame.astype(float))
    encoded = action_set.encoded_by(encoder)
    assert encoded.encode(frame).tolist() == [[1, 1], [2, 2], [3, 3]]


def one(step: Any, frame: pd.DataFrame, name: str) -> ColumnTransformer:
    return ColumnTransformer([("one", step, [name])]).fit(frame)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: ColumnTransformer([("a", StandardScaler(), ["age"])]), "not fitted"),
        (lambda f: StandardScaler().fit(f[["age"]].to_numpy()), "fitted on an array"),
        (lambda f: one(PolynomialFeatures(), f, "age"), r"PolynomialFeatures \(on age\) is not supported\. Supported are StandardScaler"),
        (lambda f: one(FunctionTransformer(np.tanh), f, "age"), "no inverse_func"),
        (
            lambda f: one(OneHotEncoder(max_categories=2), f, "school"),
            "school: its encoder shows .* alike, .* have no order",
        ),
        (lambda f: ColumnTransformer([("t", TargetEncoder(), ["job"])]).fit(f, f["region"]), "several classes give each category several"),
        (lambda f: one(OneHotEncoder(), f, "age"), r"as categories, but .* as numbers\. Call from_frame\(…, categorical=\['age'\]"),
        (lambda f: one("passthrough", f, "job"), "must be numbers, got 'Farm'"),
        (lambda f: one(MissingIndicator(), f.assign(age=f["age"].where(f["age"] > 20)), "age"), "by its value and at most one indicator"),
        (lambda f: one(SimpleImputer(missing_values=99), f, "age"), r"on age: missing_values must be NaN, got 99\. Replace 99 by NaN"),
        (lambda f: one(MinMaxScaler(clip=True), f, "age"), "clip=False"),
        (lambda f: one(OrdinalEncoder(categories=[[*SCHOOL, "none"]]), f, "school"), r"encoder knows \['none'\]"),
        (lambda f: one(OneHotEncoder(handle_unknown="ignore", categories=[SCHOOL[:2]]), f, "school"), r"does not know \['college', 'univ"),
        (
            lambda f: one(StandardScaler(), f.rename(columns={"age": "Age"}), "Age"),
            r"'Age', which is no feature of the action set \(did you mean",
        ),
        (lambda f: ColumnTransformer([("a", StandardScaler(), ["age"]), ("b", MinMaxScaler(), ["age"])]).fit(f), "through several steps"),
        (lambda f: ColumnTransformer([("a", "drop", ["age"])]).fit(f), "no column on"),
        (lambda f: one(make_pipeline(StandardScaler(), OneHotEncoder()), f, "region"), "follows another encoder or a scaler"),
        (lambda f: "scaler", "got str"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(build: Any, message: str) -> None:
    frame = people()
    with pytest.raises(ActionSetError, match=message):
        action_set_of(frame).encoded_by(build(frame))


def test_encoding_refuses_frames_that_do_not_fit() -> None:
    frame = people()
    action_set = action_set_of(frame).encoded_by(transformer().fit(frame))
    with pytest.raises(DataError, match=r"no column 'hours' \(did you mean 'Hours'\?\)"):
        action_set.encode(frame.rename(columns={"hours": "Hours"}))
    gap = frame.astype({"age": float})
    gap.loc[[3, 8], "age"] = np.nan
    with pytest.raises(DataError, match="age: no value in rows 3, 8"):
        action_set.encode(gap)
    # How the value stands in quotation marks is pandas' choice, and has changed.
    with pytest.raises(DataError, match=r"income: .*['\"]much['\"]"):
        action_set.encode(frame.astype({"income": object}).assign(income="much"))
    with pytest.raises(DataError, match=r"region: unknown value '10' in rows 0, .* \(the level 10 has another type\)"):
        action_set.encode(frame.assign(region="10"))
    with pytest.raises(DataError, match="takes a DataFrame"):
        action_set.encode(frame.to_numpy())  # type: ignore[arg-type]
    with pytest.raises(ActionSetError, match="encoded_by"):
        action_set_of(frame).encode(frame)


def test_weights_are_taken_from_the_encoded_columns() -> None:
    frame = people()
    action_set = action_set_of(frame, weights="std").encoded_by(transformer().fit(frame))
    x = action_set.encode(frame).double()
    expected = 1 / (x.std(0, correction=0) + 1e-6)
    torch.testing.assert_close(action_set.column_weights.double(), expected, rtol=1e-4, atol=0)
    robust = action_set.replace(weights="mad")
    age = x[:, 0]
    mad = (age - age.quantile(0.5)).abs().quantile(0.5)
    assert robust.column_weights[0].item() == pytest.approx(1 / (1.4826 * mad.item()), rel=1e-4)
    dearer = action_set.refine("age", effort=2.5).column_weights / action_set.column_weights
    assert dearer.tolist() == pytest.approx([2.5] + [1.0] * (len(dearer) - 1))


def test_an_ordinal_that_the_encoder_codes_alphabetically_keeps_its_order() -> None:
    frame = people()
    encoder = ColumnTransformer([("s", OrdinalEncoder(), ["school"])]).fit(frame)
    action_set = action_set_of(frame, increase_only=["school"]).encoded_by(encoder)
    school = action_set["school"]
    assert isinstance(school, Ordinal)
    assert school.codes == (1.0, 2.0, 0.0, 3.0)
    x = action_set.encode(frame)
    rank = {level: place for place, level in enumerate(SCHOOL)}
    for seed in range(5):
        delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * 3
        after = action_set.decode(action_set.apply(x, action_set.project(x, delta)))["school"].map(rank)
        assert (after >= frame["school"].map(rank)).all()


def test_reading_an_encoder_leaves_the_action_set_as_it_was() -> None:
    frame = people()
    raw = action_set_of(frame)
    encoded = raw.encoded_by(transformer().fit(frame))
    assert not raw.is_encoded
    assert encoded.is_encoded
    assert raw["age"].column is None
    assert isinstance(encoded["age"], Integer)
    again = encoded.encoded_by(transformer(age=MinMaxScaler()).fit(frame))
    assert again["age"].scale != encoded["age"].scale


# Missing values and letters -----------------------------------------------------------------------------------------------------------


def with_gaps() -> pd.DataFrame:
    frame = people()
    return frame.assign(income=frame["income"].where(frame.index % 5 > 0), hours=frame["hours"].where(frame.index % 4 > 0))


def filling_transformer(frame: pd.DataFrame, strategy: str = "mean") -> ColumnTransformer:
    fill = make_pipeline(SimpleImputer(strategy=strategy), StandardScaler())
    usual = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False))
    return ColumnTransformer([("n", fill, ["income", "hours"]), ("w", usual, ["job"])]).fit(frame)


def test_a_filled_in_value_is_not_described_as_the_persons_own() -> None:
    frame = with_gaps()
    action_set = ActionSet.from_frame(frame[["income", "hours", "job"]], continuous=["income"]).encoded_by(filling_transformer(frame))
    x = action_set.encode(frame)
    delta = action_set.project(x, torch.full_like(x, 0.1))
    without, told = action_set.describe(x, delta), action_set.describe(x, delta, people=frame)
    assert re.search(r"income \S+ \(assumed if missing\) → ", without[0])
    assert "income (missing) → " in told[0]
    assert "income (missing)" not in told[1]
    assert "assumed" not in "".join(told)
    with pytest.raises(DataError, match="people must hold one row for each of the"):
        action_set.describe(x, delta, people=frame.iloc[:3])


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
def test_whole_numbers_decode_to_whole_numbers_or_to_missing_ones(strategy: str) -> None:
    frame = with_gaps()
    encoder = filling_transformer(frame, strategy)
    action_set = ActionSet.from_frame(frame[["income", "hours", "job"]], integer=["hours"]).encoded_by(encoder)
    x = action_set.encode(frame)
    for size in (0.0, 0.4, -0.7):
        point = action_set.apply(x, action_set.project(x, torch.full_like(x, size)))
        decoded = action_set.decode(point)
        assert bool((decoded["hours"].dropna() % 1 == 0).all())
        assert torch.equal(action_set.encode(decoded), point)
        again = torch.tensor(np.asarray(encoder.transform(decoded)), dtype=torch.float32)
        torch.testing.assert_close(again, point, rtol=1e-6, atol=1e-6)


def test_told_the_people_decoding_keeps_what_did_not_change() -> None:
    frame = with_gaps().set_index(np.arange(len(people())) + 100)
    used = frame[["income", "hours", "job"]]
    action_set = ActionSet.from_frame(used).encoded_by(filling_transformer(frame, "median"))
    x = action_set.encode(frame)
    pd.testing.assert_frame_equal(action_set.decode(x, people=frame), used, check_dtype=False)
    point = x.clone()
    point[0] = x[1]
    decoded = action_set.decode(point, people=frame)
    assert decoded.index.tolist() == frame.index.tolist()
    assert decoded["income"].iloc[0] == pytest.approx(frame["income"].iloc[1])
    assert decoded["income"].iloc[5:6].isna().all()
    assert torch.equal(action_set.encode(decoded), point)


@pytest.mark.parametrize("marker", [None, np.nan])
@pytest.mark.parametrize(
    "encoder",
    [
        OneHotEncoder(sparse_output=False),
        OneHotEncoder(sparse_output=False, handle_unknown="ignore"),
        OneHotEncoder(sparse_output=False, drop="first"),
        OrdinalEncoder(encoded_missing_value=-1),
    ],
)
def test_missing_values_that_are_a_level_survive_decoding(encoder: Any, marker: Any) -> None:
    frame = people()[["job"]].astype(object)
    frame.loc[5:14, "job"] = marker
    frame["job"] = pd.Series([marker if value is None or value != value else value for value in frame["job"]], dtype=object)
    transform = ColumnTransformer([("job", encoder, ["job"])]).fit(frame)
    action_set = ActionSet.from_frame(frame).encoded_by(transform)
    x = action_set.encode(frame)
    again = torch.tensor(np.asarray(transform.transform(action_set.decode(x))), dtype=torch.float32)
    assert torch.equal(again, x)


@pytest.mark.filterwarnings("ignore:Found unknown categories")
@pytest.mark.filterwarnings("ignore::cfptq.errors.DataWarning")
def test_a_row_at_no_level_stays_there_where_missing_is_a_level() -> None:
    frame = people()[["job"]].astype(object)
    frame["job"] = frame["job"].where(frame.index > 9, None)
    transform = ColumnTransformer([("job", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["job"])]).fit(frame)
    action_set = ActionSet.from_frame(frame).encoded_by(transform)
    strange = frame.assign(job=frame["job"].where(frame.index != 20, "Pilot"))
    x = action_set.encode(strange)
    assert not x[20].any()
    decoded = action_set.decode(x)
    assert torch.equal(action_set.encode(decoded), x)
    assert torch.equal(torch.tensor(np.asarray(transform.transform(decoded)), dtype=torch.float32), x)


def test_an_encoder_that_knows_two_kinds_of_missing_is_refused() -> None:
    frame = pd.DataFrame({"job": pd.Series(["a", "b", None, np.nan] * 5, dtype=object)})
    transform = ColumnTransformer([("job", OneHotEncoder(), ["job"])]).fit(frame)
    with pytest.raises(ActionSetError, match="both None and NaN as categories of 'job'"):
        ActionSet.from_frame(frame).encoded_by(transform)


def test_rounding_to_float32_covers_what_a_float32_file_changes() -> None:
    frame = people()[["income", "hours"]]
    action_set = ActionSet.from_frame(frame, continuous=["income"]).encoded_by(
        ColumnTransformer([("n", StandardScaler(), ["income", "hours"])]).fit(frame)
    )
    x, kept = action_set.encode(frame), action_set.encode(frame.assign(income=frame["income"].astype("float32")))
    assert bool(((x - kept).abs() <= action_set.rounding(x)).all())
    assert float(action_set.rounding(x).max()) < 1e-5
