"""Scaled bounds narrow or widen what actions may reach, around the training mean."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cfptq.actions import ActionSet
from cfptq.errors import ActionSetError


@pytest.fixture
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": draw.integers(20, 60, 200),
            "income": draw.normal(0.0, 10.0, 200),
            "hours": draw.integers(0, 81, 200),
            "job": draw.choice(["a", "b"], 200),
        }
    )


@pytest.fixture
def actions(people: pd.DataFrame) -> ActionSet:
    encoder = ColumnTransformer(
        [("n", StandardScaler(), ["age", "income", "hours"]), ("c", OneHotEncoder(sparse_output=False), ["job"])]
    ).fit(people)
    return ActionSet.from_frame(people, immutable=["age"], integer=["hours"], bounds={"income": (-20, 40)}, favourable=1).encoded_by(
        encoder
    )


def test_the_interval_is_scaled_around_the_mean_and_never_below_zero(actions: ActionSet) -> None:
    narrow, wide = actions.scale_bounds(0.5), actions.scale_bounds(1.5)
    mean = actions["income"].statistics.mean  # type: ignore[union-attr]
    assert narrow["income"].reachable_bounds == pytest.approx((mean + 0.5 * (-20 - mean), mean + 0.5 * (40 - mean)))  # type: ignore[union-attr]
    low, high = wide["hours"].reachable_bounds  # type: ignore[union-attr]
    hours = actions["hours"].statistics.mean  # type: ignore[union-attr]
    assert low == 0 and high == np.floor(hours + 1.5 * (80 - hours))
    assert narrow["age"] == actions["age"] and narrow["job"] == actions["job"]
    assert actions.scale_bounds(1)["income"].reachable_bounds == pytest.approx((-20, 40))  # type: ignore[union-attr]


def test_actions_end_within_the_scaled_interval(people: pd.DataFrame, actions: ActionSet) -> None:
    rows = actions.encode(people)
    far = torch.full_like(rows, 50.0)
    for factor in (0.5, 1.0, 1.5):
        scaled = actions.scale_bounds(factor)
        reached = scaled.decode(scaled.apply(rows, scaled.project(rows, far)))
        high = scaled["income"].reachable_bounds[1]  # type: ignore[union-attr]
        assert reached["income"].to_numpy() == pytest.approx(np.maximum(people["income"].to_numpy(), high), abs=1e-3)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), True, "2"])
def test_a_factor_that_makes_no_sense_is_refused(actions: ActionSet, factor: object) -> None:
    with pytest.raises(ActionSetError, match="factor"):
        actions.scale_bounds(factor)  # type: ignore[arg-type]
