"""Weight-only files: the plan's integers, read back by unpacking, and the twin's answers with float activations."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_networks import MODELS, made, planned

from cfptq.backends.matmul_nbits import build_weight_only_model, with_float_activations
from cfptq.errors import ModelError
from cfptq.quantize import LayerPlan, container_bits, fake_quantize_network


def unpacked(model: onnx.ModelProto, layer: LayerPlan) -> np.ndarray:
    """Unsigned integers of a row in order, low bits first, less half the range."""
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    bits = container_bits(layer.bits)
    rows = stored[f"{layer.name}.weight_packed"].reshape(layer.integers.shape[0], -1)
    values = [[(int(byte) >> shift) % 2**bits - 2 ** (bits - 1) for byte in row for shift in range(0, 8, bits)] for row in rows]
    return np.array(values)[:, : layer.integers.shape[1]]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("widths", [(4, 3, 8), (2, 8, 2)])
def test_the_file_holds_the_plans_integers_and_computes_with_float_activations(kind: str, widths: tuple[int, ...]) -> None:
    network, rows = made(kind)
    plan = planned(network, rows, widths)
    model = build_weight_only_model(network, plan)
    linear = [layer for layer in plan.layers if layer.kind == "linear"]
    assert [node.op_type for node in model.graph.node].count("MatMulNBits") == len(linear)
    for layer in linear:
        assert np.array_equal(unpacked(model, layer), layer.integers.numpy())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = fake_quantize_network(network, with_float_activations(plan))(rows).numpy()
    assert np.abs(session.run(None, {"input": rows.numpy()})[0] - expected).max() < 1e-5


def test_rows_longer_than_a_block_are_padded_to_whole_blocks() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(300, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        rows = torch.randn(400, 300)
    from cfptq.network import capture

    network = capture(model, rows[:2])
    plan = planned(network, rows, (4,))
    file = build_weight_only_model(network, plan)
    assert np.array_equal(unpacked(file, plan.layers[0]), plan.layers[0].integers.numpy())
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = fake_quantize_network(network, with_float_activations(plan))(rows).numpy()
    assert np.abs(session.run(None, {"input": rows.numpy()})[0] - expected).max() < 1e-5


def test_activations_are_not_rounded_on_the_way() -> None:
    network, rows = made("mlp")
    levels = {
        attribute.i
        for node in build_weight_only_model(network, planned(network, rows)).graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    }
    assert levels == {0}


def test_a_plan_for_another_network_is_refused() -> None:
    network, rows = made("mlp")
    other, _ = made("mlp", seed=1)
    with pytest.raises(ModelError, match="another model"):
        build_weight_only_model(other, planned(network, rows))
