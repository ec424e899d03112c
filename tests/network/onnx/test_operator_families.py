"""Operators that prepare tables, pick and place elements, and work on images agree with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import FLOAT, INT64, drawn, graph, largest_difference, node, rows
from onnx import numpy_helper

from cfptq.errors import ModelError
from cfptq.network import capture
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.module import OnnxModule

ML = "ai.onnx.ml"
#: Whole numbers from 0 to 2 in a column of their own, as float "q" and as int64 "code".
CODES = [
    node("Slice", "x zero one one", "s"),
    node("Round", "s", "r"),
    node("Clip", "r low high", "q"),
    node("Cast", "q", "code", to=INT64),
]
OF_CODES = {"zero": [0], "one": [1], "low": np.float32(0), "high": np.float32(2)}
TO_FLOAT = node("Cast", "o", "y", to=FLOAT)

TABLES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "Imputer": ([node("Imputer", "x", "y", imputed_value_floats=[1.0, 2, 3, 4, 5, 6], replaced_value_float=0.0, domain=ML)], {}),
    "Binarizer": ([node("Binarizer", "x", "y", threshold=0.3, domain=ML)], {}),
    "OneHotEncoder": ([*CODES, node("OneHotEncoder", "code", "y", cats_int64s=[0, 1, 5], zeros=1, domain=ML)], OF_CODES),
    "OneHot": ([*CODES, node("OneHot", "code depth values", "y")], {**OF_CODES, "depth": np.int64(3), "values": np.float32([-1, 4])}),
    "OneHot, first axis": (
        [*CODES, node("OneHot", "code depth values", "y", axis=1)],
        {**OF_CODES, "depth": np.int64(3), "values": np.float32([0, 1])},
    ),
    "LabelEncoder, floats": (
        [*CODES, node("LabelEncoder", "q", "y", keys_floats=[0.0, 2.0], values_floats=[7.0, 9.0], default_float=-2.0, domain=ML)],
        OF_CODES,
    ),
    "LabelEncoder, integers": (
        [*CODES, node("LabelEncoder", "code", "o", keys_int64s=[0, 2], values_int64s=[7, 9], default_int64=-2, domain=ML), TO_FLOAT],
        OF_CODES,
    ),
    "FeatureVectorizer": ([*CODES, node("FeatureVectorizer", "x q", "y", inputdimensions=[6, 1], domain=ML)], OF_CODES),
    "LabelEncoder, tensors": (
        [
            *CODES,
            node(
                "LabelEncoder",
                "code",
                "y",
                keys_tensor=numpy_helper.from_array(np.array([0, 2])),
                values_tensor=numpy_helper.from_array(np.float32([0.3, 0.9])),
                default_tensor=numpy_helper.from_array(np.float32([-2])),
                domain=ML,
            ),
        ],
        OF_CODES,
    ),
    "Normalizer, largest number": ([node("Normalizer", "x", "y", norm="MAX", domain=ML)], {}),
    "Normalizer, sum": ([node("Normalizer", "x", "y", norm="L1", domain=ML)], {}),
    "LinearRegressor": (
        [node("LinearRegressor", "x", "y", coefficients=drawn(12).tolist(), intercepts=[1.0, 2], targets=2, domain=ML)],
        {},
    ),
}
ELEMENTS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "IsNaN": ([node("Log", "x", "l"), node("IsNaN", "l", "o"), TO_FLOAT], {}),
    "IsInf": ([node("Div", "x zero", "l"), node("IsInf", "l", "o", detect_negative=0), TO_FLOAT], {"zero": np.float32(0)}),
    "Mod": ([node("Mod", "x b", "y", fmod=1)], {"b": np.float32(0.7)}),
    "Xor": ([node("Greater", "x b", "g"), node("Xor", "g g2", "o"), TO_FLOAT], {"b": np.float32(0), "g2": np.array([True])}),
    "Shrink": ([node("Shrink", "x", "y", bias=0.2, lambd=0.4)], {}),
    "Atan": ([node("Atan", "x", "y")], {}),
    "Hardmax": ([node("Hardmax", "x", "y")], {}),
    "LpNormalization": ([node("LpNormalization", "x", "y", p=1)], {}),
    "ReduceLogSum": ([node("Exp", "x", "e"), node("ReduceLogSum", "e axes", "y", keepdims=0)], {"axes": [1]}),
    "Tile": ([node("Tile", "x n", "y")], {"n": [1, 3]}),
    "CastLike": ([node("Greater", "x b", "g"), node("CastLike", "g x", "y")], {"b": np.float32(0)}),
    "GatherElements": ([node("GatherElements", "x at", "y", axis=0)], {"at": [[3, -1, 0, 1, 2, 2]]}),
    "GatherND": ([node("Transpose", "x", "t"), node("GatherND", "t at", "y")], {"at": [[1], [-2]]}),
    "ScatterND": (
        [node("Transpose", "x", "t"), node("Gather", "t zero", "u"), node("ScatterND", "t at u", "y")],
        {"zero": [0], "at": [[3]]},
    ),
    "ScatterND, added": (
        [node("Transpose", "x", "t"), node("Gather", "t zero", "u"), node("ScatterND", "t at u", "y", reduction="add")],
        {"zero": [0, 1], "at": [[3], [3]]},
    ),
    "ScatterElements": ([node("ScatterElements", "x at u", "y", axis=1)], {"at": [[5, 0]], "u": np.float32([[8, 9]])}),
    "Compress": ([node("Compress", "x kept", "y", axis=1)], {"kept": np.array([True, False, True, True])}),
    "CumSum": ([node("CumSum", "x axis", "y", reverse=1, exclusive=1)], {"axis": np.int64(1)}),
    "ArgMax": ([node("ArgMax", "x", "o", axis=1, select_last_index=1), TO_FLOAT], {}),
    "TopK": ([node("TopK", "x n", "y i")], {"n": [2]}),
    "ConvInteger": (
        [
            node("Abs", "x", "a"),
            node("Mul", "a ten", "m"),
            node("Cast", "m", "c", to=onnx.TensorProto.UINT8),
            node("Reshape", "c s", "r"),
            node("ConvInteger", "r W z v", "k"),
            node("Cast", "k", "f", to=onnx.TensorProto.FLOAT),
            node("Reshape", "f t", "y"),
        ],
        {
            "ten": np.float32(10),
            "s": [-1, 1, 6],
            "W": np.array([[[1, 0, 7]], [[2, 9, 4]]], np.uint8),
            "z": np.uint8(2),
            "v": np.uint8(3),
            "t": [-1, 8],
        },
    ),
    "Trilu": (
        [node("MatMul", "x W", "m"), node("Reshape", "m s", "r"), node("Trilu", "r", "y", upper=0)],
        {"W": drawn(6, 9), "s": [-1, 3, 3]},
    ),
    "RMSNormalization": ([node("RMSNormalization", "x s", "y")], {"s": drawn(6)}),
    "a matrix product with transposed weight": (
        [node("FusedMatMul", "x W", "y", transB=1, alpha=0.5, domain="com.microsoft")],
        {"W": drawn(3, 6)},
    ),
    "a LayerNormalization of a sum": (
        [node("SkipLayerNormalization", "x x s b", "y", domain="com.microsoft")],
        {"s": drawn(6), "b": drawn(6, seed=1)},
    ),
    "a quick Gelu": ([node("QuickGelu", "x", "y", domain="com.microsoft")], {}),
    "a Gelu with its bias": ([node("BiasGelu", "x b", "y", domain="com.microsoft")], {"b": drawn(6)}),
}
IMAGES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "InstanceNormalization": ([node("InstanceNormalization", "x s b", "y")], {"s": drawn(4), "b": drawn(4, seed=1)}),
    "GroupNormalization": ([node("GroupNormalization", "x s b", "y", num_groups=2)], {"s": drawn(4), "b": drawn(4, seed=1)}),
    "MeanVarianceNormalization": ([node("MeanVarianceNormalization", "x", "y", axes=[2, 3])], {}),
    "LpPool": ([node("LpPool", "x", "y", kernel_shape=[2, 3], strides=[2, 1], pads=[1, 0, 0, 1], p=2)], {}),
    "LpPool, absolute values": ([node("LpPool", "x", "y", kernel_shape=[2, 2], p=1)], {}),
    "LpPool, third powers": ([node("LpPool", "x", "y", kernel_shape=[3, 1], p=3, auto_pad="SAME_UPPER")], {}),
    "GridSample": (
        [node("Slice", "x zero two one", "g"), node("Transpose", "g", "t", perm=[0, 2, 3, 1]), node("GridSample", "x t", "y")],
        {"zero": [0], "two": [2], "one": [1]},
    ),
    "LRN": ([node("LRN", "x", "y", size=3, alpha=0.2)], {}),
    "ConvTranspose": (
        [node("ConvTranspose", "x K b", "y", strides=[2, 1], pads=[1, 0, 0, 1], output_padding=[1, 0])],
        {"K": drawn(4, 3, 3, 2), "b": drawn(3)},
    ),
    "ConvTranspose of the input's size": (
        [node("ConvTranspose", "x K", "y", strides=[2, 1], auto_pad="SAME_UPPER")],
        {"K": drawn(4, 3, 3, 2)},
    ),
    "ConvTranspose of a given size": (
        [node("ConvTranspose", "x K", "y", strides=[2, 2], output_shape=[11, 8])],
        {"K": drawn(4, 3, 3, 3)},
    ),
    "GlobalLpPool": ([node("GlobalLpPool", "x", "y", p=3)], {}),
    "DepthToSpace": ([node("DepthToSpace", "x", "y", blocksize=2)], {}),
    "DepthToSpace, column first": ([node("DepthToSpace", "x", "y", blocksize=2, mode="CRD")], {}),
    "SpaceToDepth": ([node("SpaceToDepth", "x", "y", blocksize=2)], {}),
    "Resize": ([node("Resize", "x - n", "y", mode="linear")], {"n": np.float32([1, 1, 2, 1.5])}),
    "Resize to the nearest": (
        [node("Resize", "x - n", "y", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"n": np.float32([1, 1, 2, 2])},
    ),
    "AveragePool with gaps": (
        [node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[2, 3], pads=[1, 0, 0, 1], strides=[1, 2])],
        {},
    ),
    "AveragePool with gaps, padding counted": (
        [node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[3, 1], pads=[1, 1, 1, 1], count_include_pad=1)],
        {},
    ),
}


@pytest.mark.parametrize("name", [*TABLES, *ELEMENTS])
def test_operators_on_rows_of_a_table_agree(name: str) -> None:
    nodes, constants = {**TABLES, **ELEMENTS}[name]
    model = graph(nodes, constants, opset=23 if name == "RMSNormalization" else 18)
    x = rows()
    x[::5, 2] = 0
    ours = OnnxModule(model)(x)
    assert largest_difference(model, x[:, :]) < 1e-5 if not torch.isnan(ours).any() else False


BEFORE_LAYERS = (
    "LabelEncoder, floats",
    "LabelEncoder, tensors",
    "FeatureVectorizer",
    "Normalizer, sum",
    "Compress",
    "Pad",
    "OneHotEncoder",
)


@pytest.mark.parametrize("name", BEFORE_LAYERS)
def test_operators_before_a_layer_are_captured(name: str) -> None:
    pad = ([node("Pad", "x pads value", "y")], {"pads": [0, 1, 0, 2], "value": np.float32(0.5)})
    nodes, constants = {**TABLES, **ELEMENTS, "Pad": pad}[name]
    model = graph(nodes, constants)
    width = OnnxModule(model)(rows()).flatten(1).shape[1]
    nodes = [*nodes, node("Flatten", "y", "c"), node("MatMul", "c U", "z")]
    file = graph(nodes, {**constants, "U": drawn(width, 2)}, outputs={"z": FLOAT})
    network = capture(OnnxModule(file), rows()[:2])
    assert [layer.name for layer in network.layers] == ["U"]
    torch.testing.assert_close(network(rows()), OnnxFile(file).run(rows()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("factor", [2.0, 3.0])
@pytest.mark.parametrize("operator", ["Resize", "Upsample"])
def test_images_are_enlarged_before_a_layer(operator: str, factor: float) -> None:
    scales = "x - n" if operator == "Resize" else "x n"
    nodes = [node(operator, scales, "c"), node("Flatten", "c", "k"), node("MatMul", "k U", "y")]
    size = int(4 * 2 * factor * 3 * factor)
    file = graph(
        nodes, {"n": np.float32([1, 1, factor, factor]), "U": drawn(size, 2)}, row=(4, 2, 3), opset=18 if operator == "Resize" else 9
    )
    x = rows(8, 4, 2, 3)
    torch.testing.assert_close(capture(OnnxModule(file), x[:2])(x), OnnxFile(file).run(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_operators_on_images_agree(name: str) -> None:
    nodes, constants = IMAGES[name]
    model = graph(nodes, constants, row=(4, 6, 4), opset=21)
    assert largest_difference(model, rows(5, 4, 6, 4)) < 1e-4


@pytest.mark.parametrize(
    ("operator", "more"), [("BatchNormalization", {"training_mode": 1}), ("Dropout", {}), ("LabelEncoder", {"domain": ML})]
)
def test_operators_that_cannot_be_read_are_refused_by_name(operator: str, more: dict[str, Any]) -> None:
    nodes = {
        "BatchNormalization": [node("BatchNormalization", "x s b m v", "y rm rv", **more)],
        "Dropout": [node("Dropout", "x ratio yes", "y")],
        "LabelEncoder": [node("LabelEncoder", "x", "y", keys_floats=[0.0], values_strings=["no"], **more)],
    }[operator]
    constants = {name: np.ones(6, np.float32) for name in "sbmv"} | {"ratio": np.float32(0.5), "yes": np.array(True)}
    with pytest.raises(ModelError, match=operator):
        OnnxModule(graph(nodes, constants))(rows())


@pytest.mark.parametrize("taken", [True, False])
def test_a_branch_on_a_constant_is_the_branch_that_it_takes(taken: bool) -> None:
    def branch(name: str, shift: float) -> onnx.GraphProto:
        held = [onnx.numpy_helper.from_array(np.float32(shift), "c")]
        own = [node("Add", "h c", "s"), node("Relu", "s", name)]
        return onnx.helper.make_graph(own, name, [], [onnx.helper.make_tensor_value_info(name, FLOAT, None)], held)

    nodes = [
        node("MatMul", "x c", "h"),  # "c" outside is another tensor than "c" inside
        onnx.helper.make_node("If", ["yes"], ["k"], then_branch=branch("t", 1.0), else_branch=branch("e", -1.0)),
        node("MatMul", "k V", "y"),
    ]
    model = graph(nodes, {"c": drawn(6, 8), "yes": np.array(taken), "V": drawn(8, 2)})
    ours = OnnxModule(model)(rows())
    assert torch.allclose(
        ours, torch.relu(rows() @ torch.from_numpy(drawn(6, 8)) + (1 if taken else -1)) @ torch.from_numpy(drawn(8, 2)), atol=1e-5
    )


def test_a_branch_on_the_rows_is_refused_by_name() -> None:
    def branch(name: str) -> onnx.GraphProto:
        return onnx.helper.make_graph([node("Relu", "x", name)], name, [], [onnx.helper.make_tensor_value_info(name, FLOAT, None)])

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "yes"),
        onnx.helper.make_node("If", ["yes"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    with pytest.raises(ModelError, match="If"):
        OnnxModule(graph(nodes, {"zero": np.float32(0)}))


def branch_on_a_condition(condition: list[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    """A layer, an If with Relu and Sigmoid on what ``condition`` computes as "yes", and a layer."""

    def branch(name: str, operator: str) -> onnx.GraphProto:
        output = onnx.helper.make_tensor_value_info(name, FLOAT, None)
        return onnx.helper.make_graph([node(operator, "h", name)], name, [], [output])

    choice = onnx.helper.make_node("If", ["yes"], ["k"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Sigmoid"))
    nodes = [node("MatMul", "x W", "h"), *condition, choice, node("MatMul", "k V", "y")]
    return graph(nodes, {"W": drawn(6, 8), "V": drawn(8, 2), **constants})


@pytest.mark.parametrize("columns", [8, 1])
def test_a_branch_on_a_shape_is_the_branch_that_it_takes(columns: int) -> None:
    condition = [node("Shape", "h", "s"), node("Gather", "s one", "n"), node("Equal", "n columns", "yes")]
    model = branch_on_a_condition(condition, {"one": np.int64(1), "columns": np.int64(columns)})
    assert largest_difference(model, rows()) < 1e-5
    assert ("Relu" in OnnxModule(model).operators) == (columns == 8)


def test_a_branch_on_the_number_of_rows_is_refused_with_the_reason() -> None:
    condition = [node("Shape", "h", "s"), node("Gather", "s zero", "n"), node("Greater", "n two", "yes")]
    with pytest.raises(ModelError, match=r"If on a value of the rows decides for a whole batch.*cfptq.audit takes such a file"):
        OnnxModule(branch_on_a_condition(condition, {"zero": np.int64(0), "two": np.int64(2)}))


def test_an_operator_without_a_gradient_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"operators NonZero .* has no gradient"):
        OnnxModule(graph([node("NonZero", "x", "o"), node("Cast", "o", "y", to=FLOAT)], {}))


def test_products_on_integers_agree() -> None:
    scales = {"s": np.float32(0.02), "w": np.float32(0.01), "q": np.float32(0.05), "z": np.uint8(128), "n": np.int8(0)}
    weight = np.random.default_rng(0).integers(-60, 60, (6, 4)).astype(np.int8)
    nodes = [
        node("QuantizeLinear", "x s z", "i"),
        node("QLinearMatMul", "i s z W w n q z", "j"),
        node("DequantizeLinear", "j q z", "d"),
        node("MatMul", "d V", "y"),
    ]
    model = graph(nodes, {**scales, "W": weight, "V": drawn(4, 2)})
    assert largest_difference(model, rows()) < 1e-4


def test_convolutions_on_integers_agree() -> None:
    scales = {"s": np.float32(0.02), "w": np.float32([0.01, 0.02, 0.03]), "q": np.float32(0.1)}
    zeros = {"z": np.uint8(128), "n": np.zeros(3, np.int8)}
    draw = np.random.default_rng(0)
    weight = draw.integers(-60, 60, (3, 2, 2, 2)).astype(np.int8)
    nodes = [
        node("QuantizeLinear", "x s z", "i"),
        node("QLinearConv", "i s z W w n q z b", "j", kernel_shape=[2, 2]),
        node("DequantizeLinear", "j q z", "d"),
        node("Flatten", "d", "f"),
        node("MatMul", "f V", "y"),
    ]
    held = {"W": weight, "b": draw.integers(-500, 500, 3).astype(np.int32), "V": drawn(27, 2)}
    assert largest_difference(graph(nodes, {**scales, **zeros, **held}, row=(2, 4, 4)), rows(64, 2, 4, 4)) < 1e-3


RECURRENT = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(operator: str, outputs: str, directions: int = 1, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """Rows of 4 steps with 3 numbers each, a recurrent layer with 5 units, and a linear layer."""
    gates = RECURRENT[operator] * 5
    constants = {"s": [-1, 4, 3], "W": drawn(directions, gates, 3), "R": drawn(directions, gates, 5, seed=1) / 2}
    constants |= {"B": drawn(directions, 2 * gates, seed=2)} if bias else {}
    width = directions * 5 * (4 if outputs.split()[0] != "-" else 1)
    answer = next(name for name in outputs.split() if name != "-")
    order = [2, 0, 1, 3] if outputs.split()[0] != "-" else [1, 0, 2]
    nodes = [
        node("Reshape", "x s", "r"),
        node("Transpose", "r", "t", perm=[1, 0, 2]),
        node(operator, f"t W R {'B' if bias else ''}", outputs, hidden_size=5, **attributes),
        node("Transpose", answer, "o", perm=order),
        node("Flatten", "o", "f"),
        node("MatMul", "f V", "y"),
    ]
    return graph(nodes, {**constants, "V": drawn(width, 2)}, row=(12,))


@pytest.mark.parametrize(
    "model",
    [
        recurrent("RNN", "a"),
        recurrent("RNN", "- h", activations=["Relu"]),
        recurrent("GRU", "- h", linear_before_reset=1),
        recurrent("GRU", "a h", linear_before_reset=0, direction="bidirectional", directions=2),
        recurrent("GRU", "a", linear_before_reset=1, direction="reverse"),
        recurrent("LSTM", "- h c", bias=False),
        recurrent("LSTM", "a", direction="bidirectional", directions=2),
    ],
)
def test_recurrent_layers_agree_and_stay_in_float(model: onnx.ModelProto) -> None:
    assert largest_difference(model, rows(16, 12)) < 1e-5
    network = capture(OnnxModule(model), rows(3, 12))
    assert [name for name, _ in network.skipped if "_hh" in name] and all("_hh" not in layer.name for layer in network.layers)
    x = rows(16, 12)
    torch.testing.assert_close(network(x), OnnxFile(model).run(x), atol=1e-5, rtol=1e-5)


def test_a_recurrent_layer_that_torch_lacks_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match=r"LSTM.*its activations are Sigmoid, Relu, Tanh"):
        OnnxModule(recurrent("LSTM", "a", activations=["Sigmoid", "Relu", "Tanh"]))
