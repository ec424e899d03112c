"""Names, order and types of a file's input and outputs are those of the file that replaces it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import DOUBLE, FLOAT, HALF, INT64, drawn, graph, node, perceptron, rows
from onnx import TensorProto

from cfptq.errors import FileError, ModelError
from cfptq.network import INPUT, OUTPUT, capture, rename_tensors, to_onnx_model
from cfptq.network.onnx.interface import OnnxInterface
from cfptq.network.onnx.module import OnnxModule

WEIGHTS = {"W": drawn(6, 8), "V": drawn(8, 2, seed=1)}
LOGITS = [node("MatMul", "x W", "h"), node("Relu", "h", "k"), node("MatMul", "k V", "z")]


def replaced(model: onnx.ModelProto, change: float = 0.0) -> onnx.ModelProto:
    """The model as our export writes it, under its interface. ``change`` is added to the weights of the last layer's class 0."""
    module = OnnxModule(model)
    network = capture(module, rows()[:2])
    weight = network.weight("V").clone()
    weight[0] += change
    bare = to_onnx_model(network.with_parameters({"V": (weight, network.bias("V"))}))
    rename_tensors(bare, {INPUT: module.input_name, OUTPUT: module.output_name})
    return bare if module.source.interface is None else OnnxInterface.from_dict(module.source.interface.to_dict()).apply(bare)


def run(model: onnx.ModelProto, kind: Any = np.float32, count: int = 64) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: rows().numpy().astype(kind)[:count]}), strict=True))


def ends(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize(("kind", "element"), [(np.float16, HALF), (np.float64, DOUBLE)])
def test_half_and_double_precision_go_in_and_out(kind: Any, element: int) -> None:
    model = perceptron(kind, kind=element)
    written = replaced(model)
    assert ends(written) == ends(model) == [("x", element), ("y", element)]
    np.testing.assert_allclose(run(written, kind)["y"], run(model, kind)["y"], atol=2e-2 if element == HALF else 1e-5)


def test_half_precision_inside_float_ends_is_no_interface() -> None:
    nodes = [node("Cast", "x", "s", to=HALF), node("MatMul", "s W", "t"), node("Cast", "t", "y", to=FLOAT)]
    assert OnnxModule(graph(nodes, {"W": drawn(6, 2).astype(np.float16)})).source.interface is None


@pytest.mark.parametrize("source", ["z", "p"])
def test_labels_are_the_decisions_of_the_new_scores(source: str) -> None:
    nodes = [
        *LOGITS,
        node("Softmax", "z", "p"),
        node("ArgMax", f"{source}", "at", axis=1, keepdims=0),
        node("ArrayFeatureExtractor", "labels at", "two", domain="ai.onnx.ml"),
        node("Reshape", "two flat", "label"),
    ]
    constants = {**WEIGHTS, "labels": [10, 20], "flat": [-1]}
    model = graph(nodes, constants, outputs={"label": INT64, "p": FLOAT})
    assert ends(replaced(model)) == ends(model)
    answers, before = run(replaced(model, change=0.7)), run(model)
    assert (answers["label"] == np.array([10, 20])[answers["p"].argmax(1)]).all()
    assert (answers["label"] != before["label"]).any()


def test_a_label_that_does_not_come_from_the_scores_is_refused_by_name() -> None:
    nodes = [*LOGITS, node("Softmax", "z", "p"), node("ReduceSum", "k", "s", keepdims=0), node("Cast", "s", "label", to=INT64)]
    with pytest.raises(ModelError, match=r"'label'.*scores 'p'"):
        OnnxModule(graph(nodes, WEIGHTS, outputs={"label": INT64, "p": FLOAT}))


def test_an_output_beside_the_scores_stays_in_float_and_is_listed() -> None:
    nodes = [*LOGITS, node("ReduceMean", "h", "novelty", axes=[1])]
    model = graph(nodes, WEIGHTS, outputs={"novelty": FLOAT, "logits": FLOAT}, opset=13)
    model.graph.node[2].output[0] = "logits"
    interface = OnnxModule(model).source.interface
    assert interface is not None and interface.in_float == ("novelty",) and "novelty, logits" in str(interface)
    answers = run(replaced(model, change=0.5))
    np.testing.assert_array_equal(answers["novelty"], run(model)["novelty"])
    assert list(answers) == ["novelty", "logits"]


def test_what_scikit_learn_s_classifiers_give_is_kept() -> None:
    classifier = node(
        "LinearClassifier", "x", "label scores", coefficients=drawn(2, 6).ravel().tolist(), intercepts=[0.1, -0.1],
        classlabels_strings=["no", "yes"], post_transform="SOFTMAX", domain="ai.onnx.ml",
    )  # fmt: skip
    zipped = node("ZipMap", "scores", "probabilities", classlabels_strings=["no", "yes"], domain="ai.onnx.ml")
    model = graph([classifier, zipped], {}, outputs={"label": TensorProto.STRING, "probabilities": FLOAT})
    model.graph.output[1].CopyFrom(onnx.helper.make_value_info("probabilities", onnx.TypeProto()))
    module = OnnxModule(model)
    bare = to_onnx_model(capture(module, rows()[:2]))
    rename_tensors(bare, {INPUT: "x", OUTPUT: module.output_name})
    assert module.source.interface is not None
    answers, before = run(module.source.interface.apply(bare)), run(model)
    assert list(answers) == ["label", "probabilities"] and list(answers["label"]) == list(before["label"])
    assert all(entry.keys() == {"no", "yes"} for entry in answers["probabilities"])
    assert all(max(entry, key=entry.get) == label for entry, label in zip(answers["probabilities"], answers["label"], strict=True))


def test_a_file_for_one_row_is_replaced_by_one_for_any_number() -> None:
    model = graph([*LOGITS, node("ArgMax", "z", "label", axis=1)], WEIGHTS, batch=1, outputs={"z": FLOAT, "label": INT64})
    assert len(run(replaced(model))["label"]) == 64


def test_a_damaged_interface_is_a_file_error() -> None:
    module = OnnxModule(perceptron(np.float16, kind=HALF))
    assert module.source.interface is not None
    for damage in ({"shell": "AAAA"}, {"shell": "&"}, {"scores_type": "many"}):
        with pytest.raises(FileError, match="damaged"):
            OnnxInterface.from_dict({**module.source.interface.to_dict(), **damage})


@pytest.mark.parametrize(
    ("outputs", "scores"),
    [(("z", "p"), "z"), (("p", "z"), "z"), (("anomaly_score", "logits"), "logits"), (("label", "z"), "z")],
)
def test_the_scores_among_several_outputs_are_found(outputs: tuple[str, ...], scores: str) -> None:
    nodes = [*LOGITS, node("Softmax", "z", "p"), node("Identity", "z", "logits"), node("ReduceMean", "h", "anomaly_score")]
    nodes.append(node("ArgMax", "z", "label", axis=1))
    kinds = {name: INT64 if name == "label" else FLOAT for name in outputs}
    assert OnnxModule(graph(nodes, WEIGHTS, outputs=kinds)).output_name == scores


@pytest.mark.parametrize("outputs", [("z", "anomaly_score"), ("default_probability", "fraud_probability")])
def test_a_name_alone_does_not_make_an_output_the_scores(outputs: tuple[str, ...]) -> None:
    nodes = [*LOGITS, node("ReduceMean", "h", "anomaly_score"), node("Sigmoid", "k", "default_probability")]
    nodes.append(node("Sigmoid", "h", "fraud_probability"))
    model = graph(nodes, WEIGHTS, outputs=dict.fromkeys(outputs, FLOAT))
    with pytest.raises(ModelError, match=rf"{outputs[0]}, {outputs[1]}.*output="):
        OnnxModule(model)
    if outputs[0] == "z":
        assert OnnxModule(model, output="z").output_name == "z"
