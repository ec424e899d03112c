"""A user who has only an ONNX file: it is calibrated as it is, and what comes out has its names."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import FileError, ModelError
from cfptq.network import OnnxModule, as_predictor, capture, rename_tensors

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


def as_from_keras(path: Path, rows: torch.Tensor) -> tuple[str, str]:
    """What ``model.export(path, format="onnx")`` of Keras 3.15 writes on its PyTorch backend: Dense is MatMul and Add among idle Casts."""
    draw = np.random.default_rng(0)
    widths = (COLUMNS, 16, 8, 2)
    constants, nodes, tensor, casts = [], [], "keras_tensor", 0

    def cast(count: int) -> None:
        nonlocal tensor, casts
        for _ in range(count):
            casts += 1
            nodes.append(helper.make_node("Cast", [tensor], [f"/Cast_{casts}_output_0"], to=TensorProto.FLOAT))
            tensor = nodes[-1].output[0]

    cast(3)
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        names = f"onnx::MatMul_{35 + 2 * number}", f"onnx::Add_{36 + 2 * number}"
        values = draw.normal(0, inputs**-0.5, (inputs, outputs)), draw.normal(0, 0.1, outputs)
        constants += [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in zip(names, values, strict=True)]
        for operator, name in zip(("MatMul", "Add"), names, strict=True):
            nodes.append(helper.make_node(operator, [tensor, name], [f"/{operator}_{number}_output_0"]))
            tensor = nodes[-1].output[0]
            cast(1)
        if outputs != widths[-1]:
            cast(1)
            nodes.append(helper.make_node("Relu", [tensor], [f"/Relu_{number}_output_0"]))
            tensor = nodes[-1].output[0]
            cast(1)
    nodes.append(helper.make_node("Softmax", [tensor], ["34"], axis=-1))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", w]) for name, w in (("keras_tensor", COLUMNS), ("34", 2))]
    graph = helper.make_graph(nodes, "main_graph", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return "keras_tensor", "34"


MAKERS = {
    "PyTorch": from_torch,
    "Keras": as_from_keras,
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
    given = onnx.load(source).graph
    for field in ("input", "output"):
        assert [value.name for value in getattr(written, field)] == [value.name for value in getattr(given, field)]
    assert names[1] in [value.name for value in written.output]
    before, after = (as_predictor(path, example=rows[:8]).logits(rows) for path in (source, target))
    assert (before.argmax(dim=1) == after.argmax(dim=1)).float().mean() > 0.98


def test_dense_layers_of_keras_become_layers_with_a_bias_and_nothing_else(rows: torch.Tensor, tmp_path: Path) -> None:
    as_from_keras(tmp_path / "model.onnx", rows)
    module = OnnxModule(tmp_path / "model.onnx")
    network = capture(module, rows[:4])
    assert [layer.bias is not None for layer in network.layers] == [True] * 3
    assert module.operators == ("MatMul", "Relu", "MatMul", "Relu", "MatMul", "Softmax")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"keras_tensor": rows.numpy()})[0]
    np.testing.assert_allclose(network(rows).detach().numpy(), expected, atol=1e-6)


def test_operators_without_a_form_here_are_named(rows: torch.Tensor, action_set: ActionSet, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Bernoulli", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(np.zeros((2, COLUMNS), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match="Bernoulli"):
        cfptq.calibrate(tmp_path / "odd.onnx", [rows], action_set, progress=False)


def test_a_file_that_is_not_there_is_one_clear_error(rows: torch.Tensor, action_set: ActionSet, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        cfptq.calibrate(tmp_path / "nowhere.onnx", [rows], action_set, progress=False)
