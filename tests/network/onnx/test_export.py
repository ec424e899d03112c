"""The ONNX model computes what the network does, and each layer is found in it by name."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cfptq.errors import ModelError
from cfptq.network import capture, find_layer_nodes, to_onnx_model
from cfptq.network.serialize import deserialize_network, serialize_network


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def rows(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_onnx_runtime_agrees_with_the_model_and_the_layers_keep_their_names(captured):
    model, network = captured
    exported = to_onnx_model(network)
    onnx.checker.check_model(exported, full_check=True)
    for count in (1, 7):
        x = rows(count, *network.input_shape)
        with torch.no_grad():
            torch.testing.assert_close(run(exported, x), model(x), atol=1e-5, rtol=1e-4)

    stored = initializers(exported)
    nodes = {node.name: node for node in exported.graph.node}
    places = find_layer_nodes(exported, network)
    assert list(places) == [layer.name for layer in network.layers]
    for layer in network.layers:
        place = places[layer.name]
        assert nodes[place.node_name].op_type == ("Gemm" if layer.kind == "linear" else "Conv")
        assert (place.weight_name, place.bias_name, place.is_transposed) == (f"{layer.name}.weight", layer.bias, False)
        assert np.array_equal(stored[place.weight_name], network.weight(layer.name).numpy())
        if layer.bias is not None:
            assert np.array_equal(stored[layer.bias], network.bias(layer.name).numpy())
        assert place.input_tensor == nodes[place.node_name].input[0]
        assert place.output_tensor == nodes[place.node_name].output[0]
    fed_by = {layer.input: places[layer.name].input_tensor for layer in network.layers}
    assert all(places[layer.name].input_tensor == fed_by[layer.input] for layer in network.layers)

    (taken,), (given,) = exported.graph.input, exported.graph.output
    assert (taken.name, given.name) == ("input", "output")
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in (taken, given)} == {"batch"}


def alike() -> nn.Sequential:
    """Layers that hold the very same values: an identity and zeros."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for layer in (model[0], model[2], model[4]):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def test_equal_parameters_are_not_merged_and_the_bytes_depend_on_the_network_alone(tmp_path):
    network = capture(alike(), rows(3, 4))
    exported = to_onnx_model(network)
    assert {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"} <= set(initializers(exported))
    assert torch.equal(run(exported, rows(5, 4)), torch.relu(rows(5, 4)))

    written = exported.SerializeToString(deterministic=True)
    assert to_onnx_model(deserialize_network(serialize_network(network))).SerializeToString(deterministic=True) == written
    assert b"/" not in written  # no path of the machine that wrote it


def test_the_exporter_says_nothing_and_a_later_opset_can_be_asked_for(caplog, capfd):
    network = capture(nn.Linear(4, 2), rows(3, 4))
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")}
    exported = to_onnx_model(network, opset=23)
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")
    assert {entry.domain: entry.version for entry in exported.opset_import}[""] == 23
    torch.testing.assert_close(run(exported, rows(5, 4)), network(rows(5, 4)))

    exported.graph.node[0].op_type = "MatMul"
    with pytest.raises(ModelError, match=r"exactly one Gemm that takes 'linear\.weight', the weight of layer 'linear'"):
        find_layer_nodes(exported, network)


def test_an_operation_without_an_onnx_form_is_named():
    with torch.library._scoped_library("cfptq_test_export", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.cfptq_test_export.twice(self.layer(x))

        with pytest.raises(ModelError, match="no ONNX form"):
            to_onnx_model(capture(Twice(), rows(3, 4)))
