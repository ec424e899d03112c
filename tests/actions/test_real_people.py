"""The public data sets, raw files through scikit-learn encoders, end to end."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from cfptq.actions import ActionSet

DATA = Path(os.environ.get("CFPTQ_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")


def table(name: str, file: str, **how: object) -> pd.DataFrame:
    path = DATA / name / file
    if not path.exists():
        pytest.skip(f"{path} is absent; set CFPTQ_DATA_DIR")
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return pd.read_csv(lines, **how)  # type: ignore[call-overload, no-any-return]
    return pd.read_csv(path, **how)  # type: ignore[call-overload, no-any-return]


def holds(action_set: ActionSet, encoder: ColumnTransformer, frame: pd.DataFrame, tmp_path: Path) -> None:
    """Encoding is scikit-learn's; random actions stay feasible after decoding, through YAML, and re-encoding."""
    x = action_set.encode(frame)
    torch.testing.assert_close(x, torch.tensor(encoder.transform(frame), dtype=torch.float32), rtol=3e-7, atol=1e-6)
    action_set.check(x)
    delta = action_set.project(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(action_set.project(x, delta), delta)
    point = action_set.apply(x, delta)
    action_set.check(point)
    after = action_set.decode(point)
    assert torch.equal(action_set.encode(after), point)
    before = action_set.decode(x)
    assert action_set.max_changes is not None
    changed = (after.astype(object).fillna("") != before.astype(object).fillna("")).sum(axis=1)
    assert changed.max() == action_set.max_changes
    for feature in action_set:
        if feature.is_immutable:
            assert (after[feature.name].fillna("") == before[feature.name].fillna("")).all()
    action_set.save(tmp_path / "actions.yaml")
    again = ActionSet.load(tmp_path / "actions.yaml")
    assert torch.equal(again.project(x, delta * 2), action_set.project(x, delta * 2))
    words = again.describe(x[:50], delta[:50])
    assert all(text.count(" → ") <= action_set.max_changes for text in words)
    assert any(" → " in text for text in words)


@pytest.mark.data
def test_adult(tmp_path: Path) -> None:
    columns = [
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education-num",
        "marital-status",
        "occupation",
        "relationship",
        "race",
        "sex",
        "capital-gain",
        "capital-loss",
        "hours-per-week",
        "native-country",
        "label",
    ]
    frame = table("adult", "adult.data.gz", names=columns, skipinitialspace=True, na_values="?").drop(columns=["fnlwgt", "education"])
    action_set = ActionSet.from_frame(
        frame, immutable=["age", "race", "sex", "native-country"], increase_only=["education-num"], max_changes=5, favourable=1
    )
    numbers = [feature.name for feature in action_set if feature.kind == "integer"]
    levels = [name for name in frame.columns if name not in numbers and name != "label"]
    encoder = ColumnTransformer(
        [("n", StandardScaler(), numbers), ("c", OneHotEncoder(handle_unknown="ignore"), levels)], sparse_threshold=0
    ).fit(frame)
    action_set = action_set.encoded_by(encoder)
    assert action_set.unseen == ("label",)
    holds(action_set, encoder, frame.head(4000), tmp_path)


@pytest.mark.data
def test_german(tmp_path: Path) -> None:
    names = [f"v{place}" for place in range(1, 21)] + ["label"]
    frame = table("german", "german.data", sep=" ", names=names)
    action_set = ActionSet.from_frame(
        frame, immutable=["v9", "v13", "v20"], decrease_only=["v5"], ordinal={"v7": [f"A7{i}" for i in range(1, 6)]}, max_changes=4
    )
    numbers = [feature.name for feature in action_set if feature.kind == "integer" and feature.name != "label"]
    levels = [name for name in names if name not in numbers and name not in ("label", "v7", "v19")]
    encoder = ColumnTransformer(
        [
            ("n", StandardScaler(), numbers),
            ("c", OneHotEncoder(), levels),
            ("o", make_pipeline(OrdinalEncoder(), StandardScaler()), ["v7"]),
            ("b", OneHotEncoder(drop="if_binary"), ["v19"]),
        ],
        sparse_threshold=0,
    ).fit(frame)
    holds(action_set.encoded_by(encoder), encoder, frame, tmp_path)


@pytest.mark.data
def test_compas(tmp_path: Path) -> None:
    wanted = ["sex", "age", "race", "juv_fel_count", "priors_count", "c_charge_degree", "days_b_screening_arrest"]
    frame = table("compas", "compas-scores-two-years.csv.gz")[wanted]
    assert frame["days_b_screening_arrest"].isna().any()
    action_set = ActionSet.from_frame(
        frame, immutable=["sex", "age", "race"], bounds={"priors_count": (0, np.inf), "juv_fel_count": (0, 30)}, max_changes=3
    )
    encoder = ColumnTransformer(
        [
            ("n", StandardScaler(), ["age", "juv_fel_count", "priors_count"]),
            ("m", make_pipeline(SimpleImputer(strategy="mean"), StandardScaler()), ["days_b_screening_arrest"]),
            ("c", OneHotEncoder(drop="first"), ["sex", "race", "c_charge_degree"]),
        ],
        sparse_threshold=0,
    ).fit(frame)
    holds(action_set.encoded_by(encoder), encoder, frame, tmp_path)
