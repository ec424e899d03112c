"""Files run without saturation, whatever the processor; where a default session decides otherwise, it is counted and said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cfptq.network import as_predictor
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.session import add_zero_points, describe_runtime, int8_saturates, open_session
from cfptq.network.predictor import count_saturated_decisions

INPUTS = 64


def full_range(outputs: int = 2) -> onnx.ModelProto:
    """A quantized layer whose sums saturate without VNNI: logits (s, 0.6 S) for rows of one value each, s their sum, S the largest sum."""
    step = np.float32(1 / 255)
    weight = np.zeros((outputs, INPUTS), np.int8)
    weight[0] = 127
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "step", "zero"], ["dequantized"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_step", "weight_zero"], ["grid"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "bias_step"], ["bias_grid"], axis=0),
        helper.make_node("Gemm", ["dequantized", "grid", "bias_grid"], ["output"], transB=1),
    ]
    initializers = {
        "step": step,
        "zero": np.uint8(0),
        "weight": weight,
        "weight_step": np.full(outputs, 1 / 127, np.float32),
        "weight_zero": np.zeros(outputs, np.int8),
        "bias": np.array([0, round(0.6 * INPUTS * 255 * 127)], np.int32),
        "bias_step": np.full(outputs, step * np.float32(1 / 127), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "full-range",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


ROWS = torch.linspace(0, 1, 41)[:, None].expand(-1, INPUTS).contiguous()


def test_full_range_products_are_exact_in_our_session() -> None:
    said = OnnxFile(full_range()).run(ROWS)[:, 0]
    assert torch.allclose(said, ROWS.sum(dim=1), atol=INPUTS / 255)


def test_the_probe_tells_what_a_default_session_computes() -> None:
    said = open_session(full_range().SerializeToString(), precise=False).run(None, {"input": ROWS.numpy()})[0][:, 0]
    exact = bool(np.allclose(said, ROWS.sum(dim=1).numpy(), atol=INPUTS / 255))
    assert exact is not int8_saturates()


def test_a_weight_shared_by_two_products_runs_precisely_too() -> None:
    model = full_range()
    twice = helper.make_node("Gemm", ["dequantized", "grid", "bias_grid"], ["again"], transB=1)
    total = helper.make_node("Add", ["once", "again"], ["output"])
    model.graph.node[-1].output[0] = "once"
    model.graph.node.extend([twice, total])
    said = OnnxFile(model).run(ROWS)[:, 0]
    assert torch.allclose(said, 2 * ROWS.sum(dim=1), atol=2 * INPUTS / 255)


def dynamic(operator: str = "MatMulInteger", weights: object = np.int8, in_constant: bool = False) -> onnx.ModelProto:
    """A product of integers whose weight has no zero point, as other quantizers write it."""
    shape = (INPUTS, 2) if operator == "MatMulInteger" else (2, 1, INPUTS)
    weight = numpy_helper.from_array(np.full(shape, 3, weights), "weight")
    nodes = [helper.make_node("DynamicQuantizeLinear", ["input"], ["quantized", "step", "zero"])]
    if operator == "ConvInteger":
        nodes += [helper.make_node("Unsqueeze", ["quantized", "axis"], ["row"])]
    nodes += [
        helper.make_node(operator, ["quantized" if operator == "MatMulInteger" else "row", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["scaled"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scaled", "step"], ["output"]),
    ]
    held = [numpy_helper.from_array(np.array([1]), "axis")]
    if in_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["weight"], value=weight))
    else:
        held.append(weight)
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", INPUTS])
    graph = helper.make_graph(nodes, "dynamic", [given], [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("operator", ["MatMulInteger", "ConvInteger"])
@pytest.mark.parametrize("in_constant", [False, True])
def test_int8_weights_get_the_zero_point_that_older_runtimes_need(operator: str, in_constant: bool) -> None:
    model = dynamic(operator, in_constant=in_constant)
    before = model.SerializeToString()
    completed = add_zero_points(model)
    assert completed is not None and model.SerializeToString() == before
    (product,) = (node for node in completed.graph.node if node.op_type == operator)
    (zero,) = (tensor for tensor in completed.graph.initializer if tensor.name == product.input[3])
    assert zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any()
    assert product.input[2] == "zero" and add_zero_points(completed) is None
    assert torch.allclose(OnnxFile(model).run(ROWS).reshape(len(ROWS), 2), 3 * ROWS.sum(dim=1)[:, None].expand(-1, 2), atol=1)


def test_a_dequantized_int8_weight_gets_one_zero_point_a_step() -> None:
    model = full_range()
    del model.graph.node[2].input[2:]
    completed = add_zero_points(model)
    assert completed is not None
    (zero,) = (tensor for tensor in completed.graph.initializer if tensor.name == completed.graph.node[2].input[2])
    assert list(zero.dims) == [2]
    assert torch.equal(OnnxFile(model).run(ROWS), OnnxFile(full_range()).run(ROWS))


def test_weights_that_need_no_zero_point_are_left_alone() -> None:
    assert add_zero_points(dynamic(weights=np.uint8)) is None
    assert add_zero_points(full_range()) is None


@pytest.mark.parametrize("saturates", [True, False])
def test_rows_that_a_default_session_decides_otherwise_are_counted(saturates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfptq.network.onnx.file.int8_saturates", lambda: saturates)
    predictor = as_predictor(full_range(), example=ROWS, head="logits")
    decided = predictor.logits(ROWS).argmax(dim=1)
    default = torch.from_numpy(open_session(full_range().SerializeToString(), precise=False).run(None, {"input": ROWS.numpy()})[0])
    expected = int((default.argmax(dim=1) != decided).sum()) if saturates else 0
    assert count_saturated_decisions(predictor, ROWS, decided) == expected
    assert bool(expected) is (saturates and int8_saturates())


def test_the_runtime_is_named() -> None:
    told = describe_runtime()
    assert told["session.x64quantprecision"] == "1" and told["int8_saturates"] is int8_saturates()
    assert told["processor"] and told["onnxruntime"].count(".") == 2
