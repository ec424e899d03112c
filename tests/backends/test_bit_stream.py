"""Integers of a small network in one stream of bits: ONNX Runtime reads back the plan, and the file has the bytes that are counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_networks import MODELS, made, planned_by_channel
from torch import nn

import cfptq.backends.onnxruntime as export
from cfptq.backends.bit_stream import StreamBuilder
from cfptq.backends.onnxruntime import OPSET, OPSET_INT2, order_for_file, read_integers, to_onnx_model
from cfptq.backends.rounding_replay import replay_roundings
from cfptq.network import Network, OnnxModule, capture
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.session import open_session
from cfptq.quantize import CHANNEL_WIDTHS, Activations, LayerPlan, QuantizationPlan
from cfptq.quantize.formats import align_limits
from cfptq.quantize.split_inputs import find_integer_factors, limit_columns
from cfptq.quantize.storage import is_streamed


@pytest.fixture
def always_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store every network in a stream, also one for which containers are smaller."""
    monkeypatch.setattr(export, "is_streamed", lambda layers: True)


def adult_sized(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> tuple[Network, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = torch.randn(300, 104)
        model = nn.Sequential(nn.Linear(104, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 2)).eval()
    return capture(model, rows[:2]), rows


def count_weight_bits(plan: QuantizationPlan) -> int:
    return sum(layer.total_bits for layer in plan.layers)


def measure_stream(model: onnx.ModelProto) -> int:
    """Bytes of the nodes and initializers with short names, which are those of the stream, less the head of one initializer a layer."""
    graph = model.graph
    entries = [node for node in graph.node if len(node.output[0]) < 3] + [it for it in graph.initializer if len(it.name) < 3]
    sizes = [entry.ByteSize() for entry in entries]
    grids = [node for node in graph.node if node.output[0].endswith(".weight_grid")]
    return sum(size + (2 if size < 128 else 3) for size in sizes) - 31 * len(grids)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_integers_of_any_widths_shapes_and_split_columns_come_back_from_the_stream(data: st.DataObject) -> None:
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    layers = []
    for number in range(data.draw(st.integers(1, 4))):
        is_split = data.draw(st.booleans())
        widths = tuple(data.draw(st.lists(st.sampled_from([w for w in CHANNEL_WIDTHS if not is_split or w < 8]), min_size=1, max_size=6)))
        shape = (len(widths), 5) if is_split else (len(widths), *data.draw(st.sampled_from([(5,), (8,), (3, 2), (2, 3, 3)])))
        fine = tuple(data.draw(st.lists(st.booleans(), min_size=5, max_size=5))) if is_split else ()
        limits = limit_columns(widths, fine) if is_split else align_limits(widths, torch.zeros(shape))
        integers = torch.round((2 * torch.rand(shape, generator=rng) - 1) * limits).to(torch.int8)
        if is_split:
            integers = integers * find_integer_factors(fine)
        layers.append(LayerPlan(f"l{number}", "linear", widths, integers, torch.ones(len(widths)), None, "x", fine_inputs=fine))
    constants: dict[str, onnx.TensorProto] = {}

    def store(name: str, values: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    has_uint4 = data.draw(st.booleans())
    found, nodes = StreamBuilder(store, has_uint4, {"a", "c"}).build(layers, {"l0"})
    kinds = {name: TensorProto.INT32 if name == "l0" else TensorProto.INT8 for name in found}
    outputs = [helper.make_tensor_value_info(tensor, kinds[name], None) for name, tensor in found.items()]
    assert not {"a", "c"} & {*constants, *(output for node in nodes for output in node.output)}
    graph = helper.make_graph(nodes, "reading", [], outputs, list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET if has_uint4 else 18)], ir_version=10)
    for read, layer in zip(open_session(model.SerializeToString()).run(None, {}), layers, strict=True):
        assert np.array_equal(read, layer.integers.numpy())


@pytest.mark.usefixtures("always_streamed")
@pytest.mark.parametrize(("kind", "opset"), [*((kind, OPSET_INT2) for kind in MODELS), ("cnn", OPSET), ("mlp", 18)])
def test_streamed_and_plain_files_agree_bit_for_bit_and_hold_the_plan(kind: str, opset: int) -> None:
    network, rows = made(kind)
    plan = planned_by_channel(network, rows, activations=Activations(8, 32 if kind == "residual" else 8))
    streamed, plain = to_onnx_model(network, plan, opset=opset), to_onnx_model(network, plan, storage="plain", opset=opset)
    assert "CumSum" in [node.op_type for node in streamed.graph.node] and streamed.opset_import[0].version <= min(opset, OPSET)
    people = torch.randn(400, *network.input_shape, generator=torch.Generator().manual_seed(9))
    found, expected = OnnxFile(streamed).run(people).numpy(), OnnxFile(plain).run(people).numpy()
    assert np.allclose(found, expected, rtol=0, atol=1e-6 if kind == "residual" else 0)
    for layer, ordered in zip(plan.layers, order_for_file(network, plan, opset).layers, strict=True):
        assert np.array_equal(read_integers(streamed, layer.name), ordered.integers.numpy())
        assert layer.is_sortable or np.array_equal(ordered.scale, layer.scale)
    with torch.no_grad():
        assert np.abs(OnnxModule(streamed)(people).numpy() - found).max() <= 1e-4
    replay = replay_roundings(streamed, network, plan, people)
    assert replay is not None and bool(replay.follows.all())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("widths", [(0, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5)])
def test_a_small_networks_weights_take_at_most_a_tenth_more_than_their_bits(activation: type[nn.Module], widths: tuple[int, ...]) -> None:
    network, rows = adult_sized(activation=activation)
    plan = planned_by_channel(network, rows, widths)
    assert is_streamed([layer.stored for layer in plan.layers])
    model = to_onnx_model(network, plan)
    others = ("scale", "zero_point", "bias_integers")
    held = sum(len(tensor.raw_data) for tensor in model.graph.initializer if not tensor.name.endswith(others))
    assert held <= 1.1 * count_weight_bits(plan) / 8
    scales_and_biases = sum(8 * layer.stored_channels for layer in plan.layers)
    assert abs(measure_stream(model) - (plan.stored_bytes - scales_and_biases)) <= 30


def test_channels_stay_in_order_and_dropped_ones_are_left_out() -> None:
    network, rows = adult_sized()
    plan = planned_by_channel(network, rows, (0, 3, 5))
    stored = order_for_file(network, plan)
    for layer, found in zip(plan.layers[:2], stored.layers[:2], strict=True):
        kept = [place for place, width in enumerate(layer.channel_bits) if width]
        assert 0 < len(kept) < 64 and torch.equal(found.scale, layer.scale[kept])


def test_large_and_tiny_networks_and_widths_of_layers_have_containers() -> None:
    network, rows = adult_sized()
    layers = [layer.stored for layer in planned_by_channel(network, rows, (2, 3, 4, 5)).layers]
    assert is_streamed(layers)
    assert not is_streamed([replace(layer, parameters=4 * layer.parameters) for layer in layers])  # 43,520 weights
    assert not is_streamed([replace(layer, bits=4) for layer in layers])
    assert not is_streamed([replace(layer, bits=(3,) * 2, parameters=8) for layer in layers])
    assert not is_streamed([replace(layer, bits=(4,) * len(tuple(layer.bits))) for layer in layers])  # type: ignore[arg-type]
