"""Modules of numbers and category codes: calibrated on raw people, exported with the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OrdinalEncoder, StandardScaler
from torch import Tensor, nn

import cfptq
from cfptq.errors import ModelError


class EntityEmbeddings(nn.Module):
    """Embeddings of two categories beside two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.job, self.region = nn.Embedding(6, 4), nn.Embedding(3, 2)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        scores: Tensor = self.layers(torch.cat([x_num, self.job(x_cat[:, 0]), self.region(x_cat[:, 1])], dim=1))
        return scores


@pytest.fixture(scope="module")
def trained() -> Any:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "job": rng.choice(list("abcdef"), 400),
            "income": rng.lognormal(10, 0.6, 400),
            "region": rng.choice(list("xyz"), 400),
            "age": rng.integers(18, 80, 400),
        }
    )
    encoder = ColumnTransformer(
        [("job", OrdinalEncoder(), ["job"]), ("n", StandardScaler(), ["income", "age"]), ("region", OrdinalEncoder(), ["region"])]
    ).fit(frame)
    action_set = cfptq.ActionSet.from_frame(frame, immutable=["age"], favourable=1).encoded_by(encoder)
    x = action_set.encode(frame)
    numbers, codes = x[:, 1:3], x[:, [0, 3]].long()
    y = (x[:, 1] + (x[:, 0] > 3).float() > 0.5).long()
    torch.manual_seed(0)
    model = EntityEmbeddings()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(numbers, codes), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    inputs = {"x_num": ["n__income", "n__age"], "x_cat": ["job__job", 3]}
    result = cfptq.calibrate(model, x, action_set, inputs=inputs, method="ptq", progress=False)
    return model, action_set, result, frame


def test_the_file_keeps_names_types_and_order_of_the_inputs(trained: Any, tmp_path: Path) -> None:
    model, action_set, result, frame = trained
    result.save(tmp_path / "plan")
    for number, saved in enumerate((result, cfptq.load(tmp_path / "plan"))):
        path = tmp_path / f"{number}.onnx"
        saved.to_onnx(path, check=True)
        session = onnxruntime.InferenceSession(path)
        kinds = [(value.name, value.type, value.shape[1]) for value in session.get_inputs()]
        assert kinds == [("x_num", "tensor(float)", 2), ("x_cat", "tensor(int64)", 2)]
        x = action_set.encode(frame)
        (scores,) = session.run(None, {"x_num": x[:, 1:3].numpy(), "x_cat": x[:, [0, 3]].long().numpy()})
        decided = model(x[:, 1:3], x[:, [0, 3]].long()).argmax(1).numpy()
        assert np.mean(scores.argmax(1) == decided) > 0.97
    report = cfptq.audit(result.module(), tmp_path / "0.onnx", frame[:30], action_set, progress=False)
    assert report.validity_drop <= 0.05


def test_numbers_and_codes_are_told_apart_without_being_told(trained: Any) -> None:
    from cfptq.pipeline.raw_inputs import read_model

    model, action_set, result, _ = trained
    module: Any = read_model(model, action_set=action_set).module
    assert module.parts == result.inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x_num": [0, 1, 2, 3]}, "must give the columns of x_num, x_cat"),
        ({"x_num": ["n__incme"], "x_cat": [0]}, "got 'n__incme'. It has job__job, n__income"),
        ({"x_num": [1], "x_cat": [0, 3]}, "'n__age' is in none"),
        ({"x_num": [1, 2, 3], "x_cat": [0, 3]}, "'region__region' is in 2"),
        ({"x_num": [0, 1], "x_cat": [2, 3]}, None),
    ],
)
def test_inputs_that_do_not_fit_are_refused(trained: Any, inputs: Any, message: str | None) -> None:
    from cfptq.network.several_inputs import join_inputs

    model, action_set, _, _ = trained
    if message is None:
        join_inputs(model, inputs, action_set.column_names)
        return
    with pytest.raises(ModelError, match=message):
        join_inputs(model, inputs, action_set.column_names)
