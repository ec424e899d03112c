"""The torch twin of an ONNX graph says what ONNX Runtime says, has straight-through gradients, and refuses what it cannot read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.module import OnnxModule
from cfptq.network.predictor import as_predictor

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(name: str, value: Any, kind: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value).astype(kind), name)


def model_of(nodes: list[onnx.NodeProto], constants: list[TensorProto], shape: list[Any], opset: int = 21) -> onnx.ModelProto:
    """A model from "input" (rows of ``shape``) to "output"; the scikit-learn and ONNX Runtime domains are open to it."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", F32, ["N", *shape])],
        [helper.make_tensor_value_info("output", F32, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13 if opset > 23 else 10)


def agreement(source: Any, x: Tensor, tolerance: float) -> float:
    """Share of rows on which the twin is within ``tolerance`` of ONNX Runtime."""
    said = OnnxFile(source).run(x)
    with torch.no_grad():
        twin = OnnxModule(source)(x)
    assert twin.shape == said.shape
    off = (twin - said).abs().reshape(len(x), -1).amax(dim=1)
    return float((off <= tolerance).float().mean())


class Rows(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Tensor) -> None:
        self.batches: Iterator[dict[str, Any]] = iter([{"input": x.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(12 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        return self.head(torch.relu(self.second(x)).flatten(1))


def exported(model: nn.Module, x: Tensor, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ({0: torch.export.Dim("batch")},)
        names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
        torch.onnx.export(model.eval(), (x,), str(path), dynamo=True, dynamic_shapes=batch, opset_version=21, external_data=False, **names)
    return path


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    return model, exported(model, rows(8, 40), tmp_path_factory.mktemp("onnx") / "perceptron.onnx")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Convolutional()
    return model, exported(model, rows(4, 3, 16, 16), tmp_path_factory.mktemp("onnx") / "convolutional.onnx")


def quantized(source: Path, x: Tensor, bits: int, symmetric: bool = False) -> Path:
    target = source.with_name(f"{source.stem}-{bits}-{symmetric}.onnx")
    weights = [i.name for i in onnx.load(source).graph.initializer if i.name.endswith(".weight")]
    override = {name: [{"quant_type": QuantType.QInt4, "symmetric": True, "axis": 0}] for name in weights}
    options: dict[str, Any] = {"ActivationSymmetric": symmetric} | ({"TensorQuantOverrides": override} if bits == 4 else {})
    kinds = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    quantize_static(str(source), str(target), Rows(x), per_channel=True, extra_options=options, **kinds)
    return target


# Whole models --------------------------------------------------------------------------------------------------------------


def test_an_exported_perceptron_agrees_and_keeps_its_layer_names(perceptron: tuple[nn.Module, Path]) -> None:
    model, path = perceptron
    x = rows(2000, 40)
    assert agreement(path, x, 1e-5) == 1
    twin = OnnxModule(path)
    assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert torch.allclose(twin(x), model(x), atol=1e-6)


def test_an_exported_convolutional_network_agrees(convolutional: tuple[nn.Module, Path]) -> None:
    _, path = convolutional
    assert agreement(path, rows(300, 3, 16, 16), 1e-5) == 1
    assert {name for name, _ in OnnxModule(path).named_parameters()} >= {"first.weight", "second.bias", "head.weight"}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_perceptron_quantized_by_onnx_runtime_agrees(perceptron: tuple[nn.Module, Path], bits: int, symmetric: bool) -> None:
    path = quantized(perceptron[1], rows(256, 40, seed=1), bits, symmetric)
    assert agreement(path, rows(5000, 40), 1e-3) >= 0.999


@pytest.mark.parametrize("bits", [8, 4])
def test_a_convolutional_network_quantized_by_onnx_runtime_agrees(convolutional: tuple[nn.Module, Path], bits: int) -> None:
    path = quantized(convolutional[1], rows(64, 3, 16, 16, seed=1), bits)
    assert agreement(path, rows(2500, 3, 16, 16), 1e-3) >= 0.999


def test_what_depends_on_initializers_only_is_computed_at_load(perceptron: tuple[nn.Module, Path]) -> None:
    path = quantized(perceptron[1], rows(256, 40, seed=1), 8)
    stored = [node.op_type for node in onnx.load(path).graph.node]
    left = OnnxModule(path).operators
    assert stored.count("DequantizeLinear") > 6
    assert left.count("Gemm") == 3
    assert len(left) <= 8


def test_the_twin_can_be_captured_for_quantization_by_name(perceptron: tuple[nn.Module, Path]) -> None:
    from cfptq.network.capture import capture

    twin = OnnxModule(perceptron[1])
    network = capture(twin, rows(8, 40))
    assert [layer.name for layer in network.layers] == ["0", "2", "4"]
    x = rows(17, 40)
    assert torch.allclose(network(x), twin(x), atol=1e-6)


def test_a_deep_copy_is_a_model_of_its_own(perceptron: tuple[nn.Module, Path]) -> None:
    twin, x = OnnxModule(perceptron[1]), rows(5, 40)
    before = twin(x)
    other = copy.deepcopy(twin)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert torch.equal(twin(x), before)
    assert not torch.equal(other(x), before)


# Quantized graphs written by hand ------------------------------------------------------------------------------------------

KINDS = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16, "int4": ml_dtypes.int4, "int2": ml_dtypes.int2}


def qdq_layer(
    weight: str, activation: str, cast: bool, matmul: bool = False, domain: str = "", float_bias: bool = False, low: int | None = None
) -> onnx.ModelProto:
    """Q → DQ → product with a dequantized weight → Relu → Q → DQ → the same with two outputs."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []
    zero = {"uint8": 120, "uint16": 30000, "int8": -5, "int16": 100}[activation]
    bound = {"int8": 127, "int4": 7, "int2": 1}[weight]

    def activate(source: str, scale: float, shift: int) -> str:
        constants.extend((constant(f"{source}.s", scale), constant(f"{source}.z", shift, KINDS[activation])))
        parameters = [f"{source}.s", f"{source}.z"]
        nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{source}.q"], domain=domain))
        nodes.append(helper.make_node("DequantizeLinear", [f"{source}.q", *parameters], [f"{source}.d"], domain=domain))
        return f"{source}.d"

    current, scale_in = activate("input", np.float32(0.03 if "8" in activation else 0.0002), zero), np.float32(0.03)
    sizes = [(12, 16), (16, 2)]
    for i, (fan_in, fan_out) in enumerate(sizes):
        stored = rng.integers(-bound, bound + 1, (fan_out, fan_in))
        scales = rng.uniform(0.3, 1.0, fan_out).astype(np.float32) / bound
        axis = 0
        if matmul:
            stored, axis = stored.T, 1
        constants.extend((constant(f"w{i}", stored, KINDS[weight]), constant(f"w{i}.s", scales)))
        source = f"w{i}"
        if cast:
            nodes.append(helper.make_node("Cast", [source], [f"{source}.cast"], to=TensorProto.INT8))
            source = f"{source}.cast"
        constants.append(constant(f"w{i}.z", np.zeros(fan_out), np.int8 if cast else KINDS[weight]))
        nodes.append(helper.make_node("DequantizeLinear", [source, f"w{i}.s", f"w{i}.z"], [f"w{i}.d"], axis=axis))
        if matmul:
            constants.append(constant(f"b{i}", rng.normal(size=fan_out)))
            nodes.append(helper.make_node("MatMul", [current, f"w{i}.d"], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"y{i}"]))
        elif float_bias:
            constants.append(constant(f"b{i}", rng.normal(size=fan_out)))
            nodes.append(helper.make_node("Gemm", [current, f"w{i}.d", f"b{i}"], [f"y{i}"], transB=1))
        else:
            constants.extend((constant(f"b{i}", rng.integers(-200, 200, fan_out), np.int32), constant(f"b{i}.s", scale_in * scales)))
            nodes.append(helper.make_node("DequantizeLinear", [f"b{i}", f"b{i}.s"], [f"b{i}.d"], axis=0))
            nodes.append(helper.make_node("Gemm", [current, f"w{i}.d", f"b{i}.d"], [f"y{i}"], transB=1))
        if i + 1 < len(sizes):
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i}"]))
            low = {"uint8": 0, "int8": -128, "uint16": 0, "int16": -32768}[activation] if low is None else low
            scale_in = np.float32(0.04 if "8" in activation else 0.0002)
            current = activate(f"r{i}", scale_in, low)
    nodes[-1].output[0] = "output"
    return model_of(nodes, constants, [12], 25 if weight == "int2" else 21)


@pytest.mark.parametrize("activation", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize(("weight", "cast"), [("int8", False), ("int4", False), ("int4", True), ("int2", True)])
def test_hand_written_qdq_agrees(weight: str, cast: bool, activation: str) -> None:
    assert agreement(qdq_layer(weight, activation, cast), rows(3000, 12), 1e-3) >= 0.999


@pytest.mark.parametrize(("weight", "cast"), [("int8", False), ("int4", False), ("int4", True)])
@pytest.mark.parametrize(("activation", "low"), [("uint8", None), ("int8", None), ("int8", 0), ("int8", -100)])
def test_float_biases_of_quantized_layers_agree(weight: str, cast: bool, activation: str, low: int | None) -> None:
    """ONNX Runtime rounds such a bias where the layer's result is quantized, and only there."""
    assert agreement(qdq_layer(weight, activation, cast, float_bias=True, low=low), rows(3000, 12), 1e-3) >= 0.999


@pytest.mark.parametrize("weight", ["int8", "int4"])
def test_matmul_and_add_of_quantized_tensors_agree(weight: str) -> None:
    assert agreement(qdq_layer(weight, "uint8", cast=weight == "int4", matmul=True), rows(3000, 12), 1e-3) >= 0.999


def test_onnx_runtime_s_own_quantize_operators_agree() -> None:
    assert agreement(qdq_layer("int8", "uint16", cast=False, domain="com.microsoft"), rows(3000, 12), 1e-3) >= 0.999


@pytest.mark.parametrize("shifts", [[0, 0, 0, 0, 0], [10, 0, -20, 100, -128]])
def test_an_input_with_a_step_for_each_column_agrees(shifts: list[int]) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1),
        helper.make_node("Gemm", ["d", "w", "b"], ["output"], transB=1),
    ]
    scales = [0.01, 0.02, 0.03, 0.04, 0.5]
    constants = [constant("s", scales), constant("z", shifts, np.int8), constant("w", rng.normal(size=(2, 5))), constant("b", [0.5, 0])]
    assert agreement(model_of(nodes, constants, [5]), rows(2000, 5), 1e-3) >= 0.999


def test_blockwise_weights_agree() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=4),
        helper.make_node("MatMul", ["input", "d"], ["output"]),
    ]
    constants = [
        constant("w", rng.integers(-8, 8, (8, 3)), ml_dtypes.int4),
        constant("s", rng.uniform(0.1, 1, (2, 3))),
        constant("z", rng.integers(-2, 3, (2, 3)), ml_dtypes.int4),
    ]
    assert agreement(model_of(nodes, constants, [8]), rows(50, 8), 1e-5) == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_packed_for_matmul_n_bits_agree(bits: int) -> None:
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (6, 2, 16 * bits // 8))
    attributes: dict[str, Any] = {"K": 32, "N": 6, "bits": bits, "block_size": 16}
    nodes = [helper.make_node("MatMulNBits", ["input", "w", "s"], ["output"], domain="com.microsoft", **attributes)]
    constants = [constant("w", packed, np.uint8), constant("s", rng.uniform(0.01, 0.1, 12))]
    assert agreement(model_of(nodes, constants, [32]), rows(50, 32), 1e-4) == 1


# Gradients -----------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_quantized_graph_is_straight_through_and_zero_where_it_clamps() -> None:
    rng = np.random.default_rng(0)
    scale, zero, weight = 0.25, 3, rng.normal(size=(4, 2)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["output"]),
    ]
    constants = [constant("s", scale), constant("z", zero, np.int8), constant("w", weight)]
    x = (60 * rows(200, 4)).requires_grad_()
    OnnxModule(model_of(nodes, constants, [4]))(x)[:, 0].sum().backward()
    integers = np.rint(x.detach().numpy() / scale) + zero
    inside = (integers >= -128) & (integers <= 127)
    assert 0.1 < inside.mean() < 0.9
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), inside * weight[:, 0], rtol=1e-6)


def test_the_gradient_through_integer_products_is_that_of_the_dequantized_network() -> None:
    model = qdq_layer("int4", "uint8", cast=True)
    x = rows(64, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(OnnxModule(model)(x)[:, 1].sum(), x)

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            return t.round()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    values = {i.name: torch.from_numpy(numpy_helper.to_array(i).astype(np.float32)) for i in model.graph.initializer}
    current = x
    for i, (source, low) in enumerate((("input", 0), ("r0", 0))):
        scale, zero = values[f"{source}.s"], values[f"{source}.z"]
        current = (torch.clamp(Rounded.apply(current / scale) + zero, low, 255) - zero) * scale  # type: ignore[no-untyped-call]
        current = current @ (values[f"w{i}"] * values[f"w{i}.s"][:, None]).T + values[f"b{i}"] * values[f"b{i}.s"]
        current = torch.relu(current) if i == 0 else current
    (expected,) = torch.autograd.grad(current[:, 1].sum(), x)
    assert torch.allclose(gradient, expected, atol=1e-4)


# One operator at a time ----------------------------------------------------------------------------------------------------

ELEMENTWISE: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}),
    ("LeakyRelu", {"alpha": 0.2}),
    ("Sigmoid", {}),
    ("Tanh", {}),
    ("Elu", {"alpha": 0.7}),
    ("Selu", {}),
    ("Celu", {"alpha": 0.7}),
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("HardSigmoid", {"alpha": 0.3}),
    ("HardSwish", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("Mish", {}),
    ("ThresholdedRelu", {"alpha": 0.4}),
    ("Softmax", {}),
    ("Softmax", {"axis": 1}),
    ("LogSoftmax", {"axis": -1}),
    ("Flatten", {}),
    ("Flatten", {"axis": 0}),
    ("Flatten", {"axis": -1}),
    ("Transpose", {"perm": [0, 2, 1]}),
    ("Neg", {}),
    ("Exp", {}),
    ("Erf", {}),
    ("Abs", {}),
    ("Floor", {}),
    ("Ceil", {}),
    ("Round", {}),
    ("Sign", {}),
    ("Sin", {}),
    ("Cos", {}),
    ("Identity", {}),
    ("ReduceMean", {}),
    ("ReduceSum", {"keepdims": 0}),
    ("ReduceMax", {}),
    ("ReduceMin", {}),
    ("ReduceL1", {}),
    ("ReduceL2", {}),
    ("ReduceProd", {}),
    ("ReduceSumSquare", {}),
    ("ReduceLogSumExp", {}),
]


@pytest.mark.parametrize(("op", "attributes"), ELEMENTWISE, ids=lambda value: str(value))
def test_operators_of_one_input_agree(op: str, attributes: dict[str, Any]) -> None:
    model = model_of([helper.make_node(op, ["input"], ["output"], **attributes)], [], [3, 4], opset=22)
    x = rows(7, 3, 4)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-5)


WITH_CONSTANTS: list[tuple[str, dict[str, Any], dict[str, tuple[Any, Any]], int]] = [
    ("Add", {}, {"b": (1.5, np.float32)}, 21),
    ("Sub", {}, {"b": ([1, 2, 3, 4], np.float32)}, 21),
    ("Mul", {}, {"b": (-2, np.float32)}, 21),
    ("Div", {}, {"b": ([[1], [2], [3]], np.float32)}, 21),
    ("Pow", {}, {"b": (2, np.float32)}, 21),
    ("Clip", {}, {"lo": (-0.5, np.float32), "hi": (0.7, np.float32)}, 21),
    ("Clip", {"min": -0.5, "max": 0.7}, {}, 9),
    ("Min", {}, {"b": (0.1, np.float32)}, 21),
    ("Max", {}, {"b": (0.1, np.float32)}, 21),
    ("Sum", {}, {"b": ([1, 2, 3, 4], np.float32)}, 21),
    ("Mean", {}, {"b": ([1, 2, 3, 4], np.float32)}, 21),
    ("PRelu", {}, {"b": ([[0.1], [0.2], [0.3]], np.float32)}, 21),
    ("Reshape", {}, {"s": ([0, -1], np.int64)}, 21),
    ("Reshape", {}, {"s": ([-1, 12], np.int64)}, 21),
    ("Reshape", {}, {"s": ([-1, 2, 6], np.int64)}, 21),
    ("Unsqueeze", {}, {"a": ([1, -1], np.int64)}, 21),
    ("Unsqueeze", {"axes": [1]}, {}, 11),
    ("Softmax", {}, {}, 11),
    ("Softmax", {"axis": 2}, {}, 11),
    ("Slice", {}, {"s": ([1], np.int64), "e": ([2**62], np.int64), "a": ([2], np.int64)}, 21),
    ("Slice", {}, {"s": ([-1, 0], np.int64), "e": ([-(2**62), 4], np.int64), "a": ([1, 2], np.int64), "t": ([-1, 2], np.int64)}, 21),
    ("Slice", {"starts": [1], "ends": [3], "axes": [1]}, {}, 9),
    ("Gather", {"axis": 2}, {"i": ([3, -4, 1], np.int64)}, 21),
    ("Gather", {"axis": 1}, {"i": (1, np.int64)}, 21),
    ("Gather", {"axis": 2}, {"i": ([[0, 1], [2, 3]], np.int64)}, 21),
    ("ReduceSum", {}, {"a": ([1], np.int64)}, 21),
    ("ReduceMean", {"axes": [1, 2], "keepdims": 0}, {}, 13),
    ("ReduceMax", {}, {"a": ([-1], np.int64)}, 21),
    ("Pad", {}, {"p": ([0, 1, 0, 0, 0, 2], np.int64), "v": (0.5, np.float32)}, 21),
    ("Pad", {"mode": "reflect"}, {"p": ([0, 0, 1, 0, 0, 2], np.int64)}, 21),
    ("Expand", {}, {"s": ([2, 1, 3, 4], np.int64)}, 21),
    ("LayerNormalization", {}, {"g": ([1, 2, 3, 4], np.float32), "b": ([0, 1, 0, 1], np.float32)}, 21),
    ("MatMul", {}, {"b": (np.arange(8).reshape(4, 2), np.float32)}, 21),
    (
        "BatchNormalization",
        {},
        {"g": ([1, 2, 3], np.float32), "b": ([0, 1, 0], np.float32), "m": ([0.1, 0, 0], np.float32), "v": ([1, 2, 3], np.float32)},
        21,
    ),
]


@pytest.mark.parametrize(("op", "attributes", "constants", "opset"), WITH_CONSTANTS, ids=lambda value: str(value)[:40])
def test_operators_with_constants_agree(op: str, attributes: dict[str, Any], constants: dict[str, tuple[Any, Any]], opset: int) -> None:
    held = [constant(name, value, kind) for name, (value, kind) in constants.items()]
    model = model_of([helper.make_node(op, ["input", *constants], ["output"], **attributes)], held, [3, 4], opset=opset)
    x = rows(7, 3, 4)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-5)


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("AveragePool", {"kernel_shape": [2, 3]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}),
    ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}),
]


@pytest.mark.parametrize(("op", "attributes"), WINDOWS, ids=lambda value: str(value)[:60])
def test_pooling_agrees(op: str, attributes: dict[str, Any]) -> None:
    model = model_of([helper.make_node(op, ["input"], ["output"], **attributes)], [], [3, 8, 9])
    x = rows(4, 3, 8, 9)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (6, 4, 3, 3)),
        ({"pads": [0, 1, 2, 0], "dilations": [2, 1]}, (6, 4, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (6, 4, 2, 3)),
        ({"group": 2}, (6, 2, 3, 3)),
    ],
)
def test_convolutions_agree(attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    held = [constant("w", rng.normal(size=shape)), constant("b", rng.normal(size=shape[0]))]
    model = model_of([helper.make_node("Conv", ["input", "w", "b"], ["output"], **attributes)], held, [4, 9, 10])
    x = rows(3, 4, 9, 10)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-4)


@pytest.mark.parametrize(
    "attributes", [{}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1}, {"transB": 1, "alpha": 2.0}], ids=lambda value: str(value)
)
@pytest.mark.parametrize("bias", [None, [1.0], [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0, 4.0]]], ids=lambda value: str(value))
def test_gemm_agrees_in_all_its_forms(attributes: dict[str, Any], bias: Any) -> None:
    weight = np.arange(16).reshape(4, 4) / 7
    held = [constant("w", weight)] + ([] if bias is None else [constant("c", bias)])
    inputs = ["input", "w"] + ([] if bias is None else ["c"])
    model = model_of([helper.make_node("Gemm", inputs, ["output"], **attributes)], held, [4])
    x = rows(6, 4)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-5)


def test_a_weight_read_both_ways_round_is_not_mistaken_for_one_layer() -> None:
    nodes = [
        helper.make_node("Gemm", ["input", "w"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "w"], ["g"]),
        helper.make_node("Gemm", ["g", "w"], ["output"], transB=1),
    ]
    model = model_of(nodes, [constant("w", np.arange(9).reshape(3, 3) / 9)], [3])
    x = rows(5, 3)
    twin = OnnxModule(model)
    assert torch.allclose(twin(x), OnnxFile(model).run(x), atol=1e-5)
    assert len(list(twin.parameters())) == 2


def test_several_steps_through_shapes_splits_and_conditions_agree() -> None:
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["input", "target"], ["flat"]),
        helper.make_node("Split", ["flat"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Greater", ["a", "b"], ["larger"]),
        helper.make_node("Where", ["larger", "a", "b"], ["c"]),
        helper.make_node("Cast", ["larger"], ["d"], to=F32),
        helper.make_node("Concat", ["c", "d"], ["e"], axis=-1),
        helper.make_node("Dropout", ["e"], ["f", "mask"]),
        helper.make_node("ReduceMean", ["f", "axis1"], ["g"], keepdims=1),
        helper.make_node("Sub", ["f", "g"], ["output"]),
    ]
    held = [
        constant("zero", 0, np.int64),
        constant("axis", [0], np.int64),
        constant("rest", [-1], np.int64),
        constant("axis1", [1], np.int64),
    ]
    model = model_of(nodes, held, [3, 4])
    x = rows(9, 3, 4)
    assert torch.allclose(OnnxModule(model)(x), OnnxFile(model).run(x), atol=1e-6)


# scikit-learn --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipmap", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_scikit_learn_classifiers_agree_with_their_probabilities(classes: int, zipmap: bool) -> None:
    convert: Callable[..., Any] = pytest.importorskip("skl2onnx").to_onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = rows(300, 6)
    label = (x[:, 0] + x[:, 1] ** 2 > 0.5).long() + (x[:, 2] > 0).long() * (classes == 3)
    estimators = (LogisticRegression(), make_pipeline(StandardScaler(), MLPClassifier((8, 8), max_iter=30, random_state=0)))
    for estimator in estimators:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(x.numpy(), label.numpy())
            model = convert(estimator, x.numpy()[:1], options={"zipmap": zipmap})
        predictor = as_predictor(model, example=x)
        assert predictor.is_differentiable
        probabilities = torch.from_numpy(estimator.predict_proba(x.numpy())).float()
        assert torch.allclose(predictor.logits(x).softmax(1), probabilities, atol=1e-5)
        assert torch.allclose(predictor.surrogate(x), predictor.logits(x), atol=1e-3)


# What cannot be read -------------------------------------------------------------------------------------------------------


def test_operators_without_a_twin_are_all_named() -> None:
    nodes = [
        helper.make_node("Det", ["input"], ["a"]),
        helper.make_node("NonZero", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["output"]),
    ]
    with pytest.raises(ModelError, match="Det, NonZero"):
        OnnxModule(model_of(nodes, [], [3, 3]))


def test_a_graph_that_reads_what_nobody_made_is_corrupt() -> None:
    with pytest.raises(FileError, match="'nothing'"):
        OnnxModule(model_of([helper.make_node("Add", ["input", "nothing"], ["output"])], [], [3]))


def test_an_output_that_ignores_the_input_is_refused() -> None:
    with pytest.raises(ModelError, match="does not depend"):
        OnnxModule(model_of([helper.make_node("Relu", ["w"], ["output"])], [constant("w", [[1.0, 2.0]])], [3]))


def test_cut_off_and_garbled_files_are_file_errors(perceptron: tuple[nn.Module, Path], tmp_path: Path) -> None:
    whole = quantized(perceptron[1], rows(64, 40, seed=1), 8).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    files = [b"", b"\x00" * 64, b"not a model", rng.bytes(500)] + [
        whole[: int(len(whole) * share)] for share in (0.05, 0.3, 0.6, 0.9, 0.99)
    ]
    for data in files:
        path.write_bytes(data)
        for read in (OnnxModule, OnnxFile):
            with pytest.raises(FileError):
                read(path)


def test_flipped_bytes_never_raise_anything_but_our_errors(perceptron: tuple[nn.Module, Path]) -> None:
    whole = perceptron[1].read_bytes()
    rng = np.random.default_rng(0)
    x = rows(3, 40)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            data[place] = rng.integers(0, 256)
        try:
            garbled = onnx.load_from_string(bytes(data))
        except Exception:
            continue
        try:
            OnnxModule(garbled)
        except CfptqError:
            continue
    assert OnnxModule(perceptron[1])(x).shape == (3, 2)


def test_missing_files_pickles_and_lost_external_data_are_file_errors(perceptron: tuple[nn.Module, Path], tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        OnnxModule(tmp_path / "absent.onnx")
    with pytest.raises(FileError, match="unpickles"):
        OnnxModule(tmp_path / "model.pt2")
    onnx.save(onnx.load(perceptron[1]), tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    assert OnnxModule(tmp_path / "split.onnx")(rows(2, 40)).shape == (2, 2)
    (tmp_path / "split.data").unlink()
    for read in (OnnxModule, OnnxFile):
        with pytest.raises(FileError, match="beside it"):
            read(tmp_path / "split.onnx")


def test_onnx_runtime_is_recent_enough_for_what_is_tested_here() -> None:
    assert tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 24)
