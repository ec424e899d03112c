"""Shifted populations move what they may, keep what they must, and have the shares that were asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfptq.actions import ActionSet
from cfptq.auditing import add_feature_noise, draw_with_shares
from cfptq.errors import DataError


@pytest.fixture
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": draw.integers(20, 60, 4000),
            "income": draw.normal(50.0, 10.0, 4000),
            "hours": draw.integers(0, 81, 4000),
            "job": draw.choice(["a", "b"], 4000),
        }
    )
    frame.loc[:9, "income"] = np.nan
    return frame


@pytest.fixture
def actions(people: pd.DataFrame) -> ActionSet:
    return ActionSet.from_frame(people, immutable=["age"], integer=["hours"], bounds={"income": (0, 200)}, favourable=1)


def test_noise_has_its_size_and_leaves_alone_what_nobody_can_change(people: pd.DataFrame, actions: ActionSet) -> None:
    shifted = add_feature_noise(people, actions, scale=0.2, seed=1)
    assert shifted["age"].equals(people["age"]) and shifted["job"].equals(people["job"])
    change = shifted["income"].astype(float) - people["income"]
    assert change.std() == pytest.approx(0.2 * people["income"].std(), rel=0.05)
    assert shifted["income"].isna().sum() == 10
    hours = shifted["hours"]
    assert bool((hours == hours.round()).all()) and hours.min() >= 0 and hours.max() <= 80 and not hours.equals(people["hours"])
    assert shifted.equals(add_feature_noise(people, actions, scale=0.2, seed=1))


def test_people_are_drawn_with_the_shares_asked_for(people: pd.DataFrame) -> None:
    rows = draw_with_shares(people["job"], {"a": 0.8, "b": 0.2}, seed=3)
    assert len(rows) == len(people)
    assert float((people["job"].to_numpy()[rows] == "a").mean()) == pytest.approx(0.8, abs=0.03)
    assert set(people["job"].to_numpy()[draw_with_shares(people["job"], {"a": 0.0, "b": 1.0})]) == {"b"}


def test_shifts_that_make_no_sense_are_refused(people: pd.DataFrame, actions: ActionSet) -> None:
    with pytest.raises(DataError, match="scale"):
        add_feature_noise(people, actions, scale=-1)
    with pytest.raises(DataError, match="income"):
        add_feature_noise(people.drop(columns="income"), actions)
    for shares in ({"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": -0.5, "b": 1.5}):
        with pytest.raises(DataError, match="shares"):
            draw_with_shares(people["job"], shares)
