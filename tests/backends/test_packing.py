"""Widths of channels in a file: what ONNX Runtime unpacks, reads back and computes equals the plan."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_networks import MODELS, made, planned_by_channel
from torch import nn

from cfptq.backends.matmul_nbits import build_weight_only_model, with_float_activations
from cfptq.backends.onnxruntime import OPSET, OPSET_INT2, order_for_file, read_integers, to_onnx_model
from cfptq.backends.packing import Unpacker
from cfptq.network import OnnxModule, capture
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.session import open_session
from cfptq.quantize import CHANNEL_WIDTHS, Activations, fake_quantize_network, find_sortable_layers, integer_limit
from cfptq.quantize.storage import CONTAINERS, ChannelGroup, count_layer_bytes, group_channels


def run(model: onnx.ModelProto, rows: torch.Tensor) -> np.ndarray:
    return OnnxFile(model).run(rows).numpy()


def payload(model: onnx.ModelProto) -> int:
    """Bytes of all initializers but scales, zero points and biases."""
    others = ("scale", "zero_point", "bias_integers", "bias_grid")
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer if not tensor.name.endswith(others))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_integers_of_any_widths_and_shape_come_back_from_their_containers(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(5,), (8,), (3, 2), (2, 3, 3)]))
    widths = data.draw(st.lists(st.sampled_from(CHANNEL_WIDTHS), min_size=1, max_size=9))
    forced = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    integers = np.stack([rng.integers(-integer_limit(w), integer_limit(w), shape, endpoint=True, dtype=np.int8) for w in widths])
    if forced:  # one container a width, whatever it costs
        stored = np.maximum(widths, 2)
        groups = tuple(ChannelGroup(CONTAINERS[w], tuple(np.flatnonzero(stored == w).tolist())) for w in sorted(set(stored.tolist())))
    else:
        groups = group_channels(widths, integers[0].size, is_sortable=False)
    factor = data.draw(st.sampled_from([1, 4])) if max(widths) <= 6 else 1
    constants: dict[str, onnx.TensorProto] = {}

    def store(name: str, values: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    found, nodes = Unpacker(store, data.draw(st.booleans())).build(integers, groups, factor)
    output = helper.make_tensor_value_info(found, TensorProto.INT8, None)
    graph = helper.make_graph(nodes, "unpacking", [], [output], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET_INT2)], ir_version=13)
    assert np.array_equal(open_session(model.SerializeToString()).run(None, {})[0], integers * factor)


@pytest.mark.parametrize(("kind", "opset"), [*((kind, OPSET_INT2) for kind in MODELS), ("cnn", OPSET), ("mlp", 18)])
def test_packed_and_plain_files_agree_bit_for_bit_and_hold_the_plan(kind: str, opset: int) -> None:
    network, rows = made(kind)
    plan = planned_by_channel(network, rows, activations=Activations(8, 32 if kind == "residual" else 8))
    packed, plain = to_onnx_model(network, plan, opset=opset), to_onnx_model(network, plan, storage="plain", opset=opset)
    assert packed.opset_import[0].version <= opset
    people = torch.randn(400, *network.input_shape, generator=torch.Generator().manual_seed(9))
    assert np.allclose(run(packed, people), run(plain, people), rtol=0, atol=1e-6 if kind == "residual" else 0)
    for layer, ordered in zip(plan.layers, order_for_file(network, plan, opset).layers, strict=True):
        assert np.array_equal(read_integers(plain, layer.name), layer.integers.numpy())
        assert np.array_equal(read_integers(packed, layer.name), ordered.integers.numpy())
    with torch.no_grad():
        expected = fake_quantize_network(network, plan)(people).numpy()
    difference = np.abs(run(packed, people) - expected).reshape(len(people), -1).max(axis=1)
    assert (difference <= 1e-3).mean() >= 0.995


@pytest.mark.parametrize(("activation", "has_permutation"), [(nn.ReLU, False), (nn.Sigmoid, True)])
def test_channels_are_sorted_where_that_saves_the_permutation(activation: type[nn.Module], has_permutation: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(300, 64)
    network = capture(nn.Sequential(nn.Linear(64, 64), activation(), nn.Linear(64, 2)).eval(), rows[:2])
    plan = planned_by_channel(network, rows, (2, 3, 8))
    packed = to_onnx_model(network, plan)
    assert ("Gather" in [node.op_type for node in packed.graph.node]) == has_permutation
    assert list(find_sortable_layers(network)) == ([] if has_permutation else ["0"])
    assert np.array_equal(run(packed, rows), run(to_onnx_model(network, plan, storage="plain"), rows))
    with torch.no_grad():
        read = OnnxModule(packed)(rows).numpy()
    assert np.abs(read - run(packed, rows)).max() <= 1e-4


def test_the_file_of_channel_widths_is_as_small_as_the_plan_counts() -> None:
    network, rows = made("mlp")
    plan = planned_by_channel(network, rows)
    held = payload(to_onnx_model(network, plan))
    counted = sum(count_layer_bytes(layer.bits, layer.parameters, layer.is_sortable, layer.kept_inputs) for layer in plan.layers)
    assert held <= counted <= plan.stored_bytes
    assert held < payload(to_onnx_model(network, plan, storage="plain"))


def test_a_large_layer_is_stored_in_little_more_than_its_bits() -> None:
    widths = (2,) * 300 + (3,) * 200 + (4,) * 300 + (5,) * 100 + (6,) * 80 + (7,) * 20
    assert count_layer_bytes(widths, 2048 * len(widths), is_sortable=False) <= 1.01 * 2048 * sum(widths) / 8
    # Few weights share a container, because another part would cost more than it saves.
    assert len(group_channels((2, 3, 3, 4), 8, is_sortable=True)) == 1


def test_the_weight_only_file_holds_the_widest_channel_of_each_layer() -> None:
    network, rows = made("mlp")
    plan = planned_by_channel(network, rows, (2, 3, 5))
    model = build_weight_only_model(network, plan)
    bits = [attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "bits"]
    assert bits == [8, 8, 8 if 5 in plan.layers[-1].channel_bits else 4]
    with torch.no_grad():
        expected = fake_quantize_network(network, with_float_activations(plan))(rows[:100]).numpy()
    assert np.abs(run(model, rows[:100]) - expected).max() <= 1e-4
