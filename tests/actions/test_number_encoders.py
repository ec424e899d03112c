"""Encoders of one number that are no scalers, compared with scikit-learn's own transform on random frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer, FunctionTransformer, KBinsDiscretizer, PowerTransformer, QuantileTransformer, StandardScaler

from cfptq.actions import ActionSet
from cfptq.errors import ActionSetError


class CubeRoot(BaseEstimator, TransformerMixin):  # type: ignore[misc]
    """A step of a user's own, which knows its inverse."""

    def fit(self, x: Any, y: Any = None) -> CubeRoot:
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: Any) -> Any:
        return np.cbrt(np.asarray(x, dtype=float))

    def encode(self, values: Any) -> Any:
        return np.cbrt(values)

    def decode(self, columns: Any) -> Any:
        return columns**3


def twice_log(values: Any) -> Any:
    return 2 * np.log1p(values)


def undo_twice_log(columns: Any) -> Any:
    return np.expm1(columns / 2)


CURVES = {
    "log1p": lambda: make_pipeline(FunctionTransformer(np.log1p, np.expm1), StandardScaler()),
    "sqrt": lambda: FunctionTransformer(np.sqrt, np.square),
    "a user's function": lambda: make_pipeline(StandardScaler(with_mean=False), FunctionTransformer(twice_log, undo_twice_log)),
    "a user's step": CubeRoot,
    "yeo-johnson": PowerTransformer,
    "box-cox": lambda: PowerTransformer("box-cox", standardize=False),
    "quantiles": lambda: QuantileTransformer(n_quantiles=20),
    "normal quantiles": lambda: make_pipeline(QuantileTransformer(n_quantiles=20, output_distribution="normal"), StandardScaler()),
}
BINS = {
    "one-hot bins": lambda: KBinsDiscretizer(4, encode="onehot-dense", quantile_method="averaged_inverted_cdf"),
    "numbered bins": lambda: KBinsDiscretizer(4, encode="ordinal", strategy="uniform"),
    "threshold": lambda: Binarizer(threshold=20000),
}


def people(seed: int, rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"income": rng.lognormal(10, 0.6, rows).round(2), "savings": rng.integers(1, 60000, rows)})


def fitted(encoder: Any, frame: pd.DataFrame) -> ColumnTransformer:
    return ColumnTransformer([("income", encoder(), ["income"]), ("savings", encoder(), ["savings"])]).fit(frame)


@pytest.mark.parametrize("name", [*CURVES, *BINS])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000), step=st.floats(-3, 3))
def test_columns_advice_and_the_way_back_agree_with_scikit_learn(name: str, seed: int, step: float) -> None:
    frame = people(seed)
    encoder = fitted((CURVES | BINS)[name], frame)
    space = ActionSet.from_frame(frame, bounds={"income": (5000, 80000)}, increase_only=["savings"], favourable=1).encoded_by(encoder)
    x = space.encode(frame)
    assert torch.allclose(x, torch.tensor(np.asarray(encoder.transform(frame), "f4")), rtol=1e-6, atol=1e-6)
    points = space.apply(x, space.project(x, torch.full_like(x, step)))
    advice = space.decode(points, frame)
    assert torch.equal(space.encode(advice), points)
    assert np.allclose(np.asarray(encoder.transform(advice), "f4"), points.numpy(), rtol=1e-6, atol=1e-6)
    moved = (points != x).any(1).numpy()
    income = advice.income.to_numpy()
    within = (income >= 5000) & (income <= 80000)
    assert (within | (income == frame.income.to_numpy()) | ~moved | ((frame.income < 5000) | (frame.income > 80000)).to_numpy()).all()
    assert (advice.savings >= frame.savings).all()
    assert (advice.savings == advice.savings.round()).all()


@pytest.mark.parametrize("name", [name for name in [*CURVES, *BINS] if "user" not in name])
def test_a_saved_set_encodes_as_before(name: str, tmp_path: Path) -> None:
    frame = people(1)
    space = ActionSet.from_frame(frame, favourable=1).encoded_by(fitted((CURVES | BINS)[name], frame))
    space.save(tmp_path / "actions.yaml")
    again = ActionSet.load(tmp_path / "actions.yaml")
    assert torch.equal(again.encode(frame), space.encode(frame))


def test_a_users_own_encoder_is_refused_in_a_file(tmp_path: Path) -> None:
    frame = people(1)
    space = ActionSet.from_frame(frame, favourable=1).encoded_by(fitted(CubeRoot, frame))
    with pytest.raises(ActionSetError, match="CubeRoot is your own"):
        space.save(tmp_path / "actions.yaml")


def test_what_cannot_be_inverted_is_refused_with_the_protocol() -> None:
    frame = people(1)
    with pytest.raises(ActionSetError, match=r"no inverse_func.*NumberEncoder"):
        ActionSet.from_frame(frame, favourable=1).encoded_by(fitted(lambda: FunctionTransformer(np.tanh), frame))


class Falling(CubeRoot):
    """A step of a user's own that falls where the raw value rises."""

    def encode(self, values: Any) -> Any:
        return -np.cbrt(values)

    def decode(self, columns: Any) -> Any:
        return -(columns**3)


@pytest.mark.parametrize("encoder", [lambda: FunctionTransformer(np.negative, np.negative), Falling])
def test_an_encoder_that_falls_is_refused(encoder: Any) -> None:
    frame = people(1)
    with pytest.raises(ActionSetError, match=r"income: its encoder must not fall .* increasing function"):
        ActionSet.from_frame(frame, increase_only=["income"], favourable=1).encoded_by(fitted(encoder, frame))


def test_examine_says_where_costs_behind_a_curve_are_measured() -> None:
    frame = people(1)
    encoder = ColumnTransformer([("a", FunctionTransformer(np.log1p, np.expm1), ["income"]), ("b", "passthrough", ["savings"])]).fit(frame)
    remarks = ActionSet.from_frame(frame, favourable=1).encoded_by(encoder).examine(frame)
    told = [remark for remark in remarks if remark.kind == "curve"]
    assert [(remark.column, remark.is_expected) for remark in told] == [("income", True)]
    assert "measured in the encoded column" in str(told[0])
