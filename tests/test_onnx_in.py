"""A user who has only an ONNX file: it is calibrated as it is, and what comes out has its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import FileError, ModelError
from cfptq.network import as_predictor, rename_tensors

COLUMNS = 5


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(500, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def action_set(rows: torch.Tensor) -> ActionSet:
    return ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(COLUMNS)], favourable=1)


def from_torch(path: Path, rows: torch.Tensor) -> tuple[str, str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(COLUMNS, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)).eval()
    torch.onnx.export(
        model, (rows[:4],), path, dynamo=True, verbose=False, input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )  # fmt: skip
    file = onnx.load(path)
    rename_tensors(file, {"x": "relu", "y": "scores"})  # "relu" is what our own export calls a tensor inside
    onnx.checker.check_model(file)
    onnx.save(file, path)
    return "relu", "scores"


def from_scikit_learn(classifier: MLPClassifier | LogisticRegression, path: Path, rows: torch.Tensor) -> tuple[str, str]:
    skl2onnx = pytest.importorskip("skl2onnx")
    columns = rows.numpy()
    classifier.fit(columns, (columns[:, 0] + columns[:, 1] * columns[:, 2] > 0).astype(int))
    path.write_bytes(skl2onnx.to_onnx(classifier, columns[:1]).SerializeToString())
    return "X", "output_probability"


MAKERS = {
    "PyTorch": from_torch,
    "MLPClassifier": lambda path, rows: from_scikit_learn(MLPClassifier((16, 8), max_iter=300, random_state=0), path, rows),
    "LogisticRegression": lambda path, rows: from_scikit_learn(LogisticRegression(), path, rows),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("maker", MAKERS)
def test_an_onnx_file_is_calibrated_and_its_names_are_kept(maker: str, rows: torch.Tensor, action_set: ActionSet, tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    names = MAKERS[maker](source, rows)
    result = cfptq.calibrate(source, [rows], action_set, budget=8.0, progress=False)
    result.save(tmp_path / "saved")
    cfptq.load(tmp_path / "saved").to_onnx(target, check=True)
    written = onnx.load(target).graph
    assert ([value.name for value in written.input], [value.name for value in written.output]) == ([names[0]], [names[1]])
    before, after = (as_predictor(path, example=rows[:8]).logits(rows) for path in (source, target))
    assert (before.argmax(dim=1) == after.argmax(dim=1)).float().mean() > 0.98


def test_operators_without_a_form_here_are_named(rows: torch.Tensor, action_set: ActionSet, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Det", ["h"], ["d"]),
        helper.make_node("LpNormalization", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(np.zeros((2, COLUMNS), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match="LpNormalization"):
        cfptq.calibrate(tmp_path / "odd.onnx", [rows], action_set, progress=False)


def test_a_file_that_is_not_there_is_one_clear_error(rows: torch.Tensor, action_set: ActionSet, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is not there"):
        cfptq.calibrate(tmp_path / "nowhere.onnx", [rows], action_set, progress=False)
