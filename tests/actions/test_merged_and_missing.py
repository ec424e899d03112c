"""Encoders that merge categories or show a missing value in a column, compared with their own transform on random frames."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from cfptq.actions import ActionSet
from cfptq.errors import ActionSetError, DataWarning
from cfptq.recourse.exact.action_model import build_action_models

JOBS = ["Sales", "Tech", "Office", "Farm", "Mine", "Fish"]
RARE = ["Farm", "Mine", "Fish"]
CATEGORIES = {
    "one-hot, unknown text is infrequent": lambda: OneHotEncoder(min_frequency=0.1, handle_unknown="infrequent_if_exist"),
    "one-hot, at most four": lambda: make_pipeline(OneHotEncoder(max_categories=4, sparse_output=False), StandardScaler()),
    "one-hot, unknown is zero": lambda: OneHotEncoder(min_frequency=0.1, handle_unknown="ignore"),
    "one-hot, infrequent dropped": lambda: OneHotEncoder(min_frequency=0.1, drop="first", handle_unknown="infrequent_if_exist"),
    "codes": lambda: OrdinalEncoder(min_frequency=0.1, handle_unknown="use_encoded_value", unknown_value=-1),
    "target": lambda: make_pipeline(TargetEncoder(random_state=0), StandardScaler()),
}
IMPUTERS = {
    "imputer": lambda: make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
    "median": lambda: SimpleImputer(strategy="median", add_indicator=True),
    "union": lambda: FeatureUnion([("value", SimpleImputer()), ("missing", MissingIndicator(features="all"))]),
}


def people(seed: int, rows: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "income": rng.lognormal(10, 0.6, rows).round(2),
            "hours": rng.integers(1, 80, rows),
            "job": [*JOBS, *rng.choice(JOBS, rows - len(JOBS), p=[0.4, 0.3, 0.18, 0.05, 0.04, 0.03])],
        }
    )


def with_gaps(seed: int) -> pd.DataFrame:
    frame = people(seed)
    return frame.assign(income=frame["income"].where(frame.index % 5 > 0), hours=frame["hours"].where(frame.index % 7 > 0))


def transform(encoder: Any, frame: pd.DataFrame) -> torch.Tensor:
    shown = encoder.transform(frame)
    return torch.tensor(np.asarray(shown.todense() if hasattr(shown, "todense") else shown, dtype="f4"))


@pytest.mark.parametrize("name", CATEGORIES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.floats(-3, 3))
@pytest.mark.filterwarnings("ignore::cfptq.errors.DataWarning", "ignore:Found unknown categories")
def test_merged_categories_are_one_choice_that_advice_does_not_name(name: str, seed: int, step: float) -> None:
    frame = people(seed)
    accepted = (frame["income"] > frame["income"].median()).astype(int)
    encoder = ColumnTransformer([("job", CATEGORIES[name](), ["job"]), ("hours", StandardScaler(), ["hours"])]).fit(frame, accepted)
    space = ActionSet.from_frame(frame[["job", "hours"]], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.allclose(x, transform(encoder, frame), rtol=1e-6, atol=1e-6)
    space.check(x)
    assert torch.equal(space.project(x, torch.zeros_like(x)), torch.zeros_like(x))
    generator = torch.Generator().manual_seed(seed)
    delta = space.project(x, step * torch.randn(x.shape, generator=generator))
    points = space.apply(x, delta)
    advice = space.decode(points, frame)
    assert torch.equal(space.encode(advice), points)
    assert torch.allclose(transform(encoder, advice), points, rtol=1e-6, atol=1e-6)
    alone = space.decode(points)
    assert torch.allclose(transform(encoder, alone), points, rtol=1e-6, atol=1e-6)
    changed = (advice["job"] != frame["job"]).to_numpy()
    if name != "target":
        step_of_job = encoder.named_transformers_["job"]
        listed = (step_of_job[0] if hasattr(step_of_job, "steps") else step_of_job).infrequent_categories_[0]
        assert not set(advice["job"][changed]) & set(() if listed is None else listed)
    shares = [float(np.mean(transform(encoder, frame).numpy()[:, place])) for place in space["job"].model_columns]
    if name.startswith("one-hot, unknown"):
        assert space["job"].frequencies == pytest.approx(shares)


def test_any_other_text_is_infrequent_with_a_warning_where_the_encoder_reads_it_so() -> None:
    frame = people(0)
    encoder = ColumnTransformer([("job", CATEGORIES["one-hot, unknown text is infrequent"](), ["job"])]).fit(frame)
    space = ActionSet.from_frame(frame[["job"]], favourable=1).encoded_by(encoder)
    strange = frame.assign(job="Pilot")
    with pytest.warns(DataWarning, match="job: 150 of 150 rows .* 'Pilot'. The model sees an infrequent category"):
        x = space.encode(strange)
    assert torch.equal(x, transform(encoder, strange))
    told = space.describe(x[:1], space.project(x[:1], torch.tensor([[0.0, 0.0, 2.0, 0.0]])))
    assert told == ["job (infrequent) → Tech"]


def test_a_missing_value_may_be_infrequent() -> None:
    frame = people(0)
    frame["job"] = frame["job"].where(frame.index % 30 > 0, np.nan)
    encoder = ColumnTransformer([("job", CATEGORIES["one-hot, unknown text is infrequent"](), ["job"])]).fit(frame)
    space = ActionSet.from_frame(frame[["job"]], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.equal(x, transform(encoder, frame))
    told = [remark for remark in space.examine(frame) if remark.kind == "missing"]
    assert [(remark.count, remark.is_expected, remark.reading) for remark in told] == [(5, True, "The model sees an infrequent category.")]


def test_reachable_levels_hold_for_merged_ones() -> None:
    frame = people(0)
    encoder = ColumnTransformer([("job", CATEGORIES["one-hot, unknown text is infrequent"](), ["job"])]).fit(frame)
    some = ActionSet.from_frame(frame[["job"]], favourable=1, reachable={"job": ["Tech", "Farm"]}).encoded_by(encoder)
    every = ActionSet.from_frame(frame[["job"]], favourable=1, reachable={"job": ["Tech", *RARE]}).encoded_by(encoder)
    assert [state for state, allowed in zip(some["job"].states, some["job"].destinations, strict=True) if allowed] == ["Tech"]
    assert [s for s, allowed in zip(every["job"].states, every["job"].destinations, strict=True) if allowed] == ["Tech", "(infrequent)"]


@pytest.mark.parametrize("name", IMPUTERS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.floats(-3, 3))
def test_a_missing_value_with_an_indicator_stays_missing(name: str, seed: int, step: float) -> None:
    frame = with_gaps(seed)
    encoder = ColumnTransformer([("numbers", IMPUTERS[name](), ["income", "hours"])]).fit(frame)
    space = ActionSet.from_frame(frame[["income", "hours"]], continuous=["income"], integer=["hours"], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.allclose(x, transform(encoder, frame), rtol=1e-6, atol=1e-6)
    space.check(x)
    points = space.apply(x, space.project(x, torch.full_like(x, step)))
    space.check(points)
    for advice in (space.decode(points), space.decode(points, frame)):
        assert (advice.isna() == frame[["income", "hours"]].isna()).all().all()
        assert torch.equal(space.encode(advice), points)
        assert torch.allclose(transform(encoder, advice), points, rtol=1e-6, atol=1e-6)
    low, high = space.column_bounds(x)
    assert torch.equal(low[::35], x[::35])
    assert torch.equal(high[::35], x[::35])
    assert not any(build_action_models(space, x[:1])[0].features)
    torn = x[:1].clone()
    torn[0, 0] += 0.5
    with pytest.raises(ActionSetError, match="tells whether the value is missing"):
        space.check(torn)


def test_an_indicator_of_a_category_is_read_beside_its_fill() -> None:
    frame = people(0)
    frame["job"] = frame["job"].where(frame.index % 4 > 0, np.nan)
    value = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False))
    encoder = ColumnTransformer([("job", value, ["job"]), ("gap", MissingIndicator(), ["job"])]).fit(frame)
    space = ActionSet.from_frame(frame[["job"]], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.equal(x, transform(encoder, frame))
    points = space.apply(x, space.project(x, torch.full_like(x, 1.0)))
    advice = space.decode(points)
    assert (advice["job"].isna() == frame["job"].isna()).all()
    assert torch.equal(transform(encoder, advice), points)


@pytest.mark.parametrize("build", [lambda f: (CATEGORIES["codes"](), "job"), lambda f: (IMPUTERS["median"](), "income")])
def test_a_saved_set_encodes_as_before(build: Any, tmp_path: Path) -> None:
    frame = with_gaps(1)
    step, name = build(frame)
    space = ActionSet.from_frame(frame[[name]], favourable=1).encoded_by(ColumnTransformer([("one", step, [name])]).fit(frame))
    space.save(tmp_path / "actions.yaml")
    again = ActionSet.load(tmp_path / "actions.yaml")
    assert again == space
    assert torch.equal(again.encode(frame), space.encode(frame))


@pytest.mark.skipif(importlib.util.find_spec("optbinning") is None, reason="optbinning is not installed (extra optbinning)")
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_of_evidence_are_read_from_a_binning_process(seed: int) -> None:
    from optbinning import BinningProcess

    frame = people(seed, 600)
    accepted = ((frame["income"] > 22_000) ^ (frame["job"] == "Tech")).astype(int).to_numpy()
    frame["income"] = frame["income"].where(frame.index % 9 > 0)
    names = ["income", "hours", "job"]
    process = BinningProcess(names, categorical_variables=["job"])
    encoder = ColumnTransformer([("woe", process, names)]).fit(frame, accepted)
    space = ActionSet.from_frame(frame, increase_only=["hours"], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.allclose(x, transform(encoder, frame), rtol=1e-6, atol=1e-6)
    points = space.apply(x, space.project(x, 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))))
    advice = space.decode(points, frame)
    assert torch.equal(space.encode(advice), points)
    assert torch.allclose(transform(encoder, advice), points, rtol=1e-6, atol=1e-6)
    assert (advice["hours"] >= frame["hours"]).all()
    assert bool((points != x).any())
