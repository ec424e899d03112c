"""Export of a network to an ONNX model whose layers and parameters keep their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import onnx
import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network.graph import Network
from cfptq.network.normalize import aten
from cfptq.network.onnx.direct_export import export_directly
from cfptq.network.onnx.file import summarize_error
from cfptq.network.quiet import quiet_exporters

#: Names of the exported model's input, output and batch dimension.
INPUT, OUTPUT, BATCH = "input", "output", "batch"
#: Oldest opset with 4-bit integers in QuantizeLinear and DequantizeLinear.
OPSET = 21


@dataclass(frozen=True)
class OnnxLayer:
    """Names of one layer's node and tensors in an ONNX model.

    Attributes:
        node_name: name of the Gemm or Conv node.
        weight_name: initializer with the weight, which no other node takes.
        bias_name: initializer with the bias, or None.
        is_transposed: the initializer is stored (in, out) instead of torch's (out, in). ``to_onnx_model`` never does so.
        input_tensor: name of the tensor that the node takes. Layers with the same ``Layer.input`` share it.
        output_tensor: name of the node's output.
    """

    node_name: str
    weight_name: str
    bias_name: str | None
    is_transposed: bool
    input_tensor: str
    output_tensor: str


def to_onnx_model(network: Network, *, opset: int = OPSET) -> onnx.ModelProto:
    """Export a float network to ONNX, node by node where it is plain, and by ``torch.onnx.export`` otherwise.

    The same network gives the same bytes with the same versions of torch and ONNX.

    Input ``"input"`` and output ``"output"`` have a dynamic first dimension ``"batch"``. Each layer is one Gemm (``transB=1``) or
    Conv node that takes the initializers ``"<layer>.weight"`` and, if it adds a bias, ``"<layer>.bias"``, which nothing else takes.
    A linear layer on more than two dimensions becomes Reshape → Gemm → Reshape.

    Args:
        network: the network.
        opset: opset of the model.

    Raises:
        ModelError: an operation of the network has no ONNX form.
    """
    direct = export_directly(network, opset, (INPUT, OUTPUT, BATCH))
    if direct is not None:
        find_layer_nodes(direct, network)
        return direct
    graph = _flatten_linear_inputs(_mark_parameters(network))
    rows = torch.zeros(2, *network.input_shape)
    try:
        with quiet_exporters():
            program = torch.export.export(graph, (rows,), dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},), strict=False)
            exported = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], opset_version=opset
            )
    except Exception as error:
        raise ModelError(
            f"The model has no ONNX form ({type(error).__name__}: {summarize_error(error)}). "
            "Rewrite the operation, or hand the model over with result.prepared_model()."
        ) from error
    assert exported is not None
    model = exported.model_proto
    _strip_metadata(model)
    _rename_batch(model.graph)
    _fill_parameters(model, network)
    find_layer_nodes(model, network)
    return model


def find_layer_nodes(model: onnx.ModelProto, network: Network) -> dict[str, OnnxLayer]:
    """Find each layer of ``network`` in its exported model.

    Args:
        model: a model that ``to_onnx_model`` returned.
        network: the exported network.

    Returns:
        By the layer's name, in execution order.

    Raises:
        ModelError: a layer's weight is missing, or other than exactly one Gemm or Conv node takes it.
    """
    initializers = {tensor.name for tensor in model.graph.initializer}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    found = {}
    for layer in network.layers:
        nodes = consumers.get(layer.weight, [])
        operation = "Gemm" if layer.kind == "linear" else "Conv"
        if layer.weight not in initializers or [node.op_type for node in nodes] != [operation]:
            takers = ", ".join(f"{node.op_type} {node.name!r}" for node in nodes) or "no node"
            raise ModelError(
                f"The ONNX model must have exactly one {operation} that takes {layer.weight!r}, the weight of layer {layer.name!r}. "
                f"It has {takers}."
            )
        node = nodes[0]
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        is_by_row = operation == "Conv" or any(attribute.name == "transB" and attribute.i == 1 for attribute in node.attribute)
        found[layer.name] = OnnxLayer(node.name, layer.weight, bias, not is_by_row, node.input[0], node.output[0])
    return found


def rename_tensors(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors of a model's graph in place.

    Another tensor that already has a new name gets the ending ``_inner``.

    Args:
        model: the model, changed in place.
        names: new names by old names.
    """
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    renamed = {old: new for old, new in names.items() if old != new}
    displaced = {new: f"{new}_inner" for new in renamed.values() if new in taken and new not in renamed}
    while taken & set(displaced.values()):
        displaced = {new: f"{other}_" for new, other in displaced.items()}
    renamed |= displaced
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)


def _flatten_linear_inputs(network: Network) -> fx.GraphModule:
    """Return the graph with each linear layer on (N, ..., F) as one on (rows, F), because ONNX's Gemm takes matrices only."""
    linears = [layer for layer in network.layers if layer.kind == "linear"]
    names = [name for layer in linears for name in (layer.input, layer.node)]
    shapes = [{name: tuple(value.shape) for name, value in network.observe(_zeros(network, n), names).items()} for n in (2, 3)]
    deep = {layer.node for layer in linears if len(shapes[0][layer.input]) != 2}
    if not deep:
        return network.graph

    def flatten(graph: fx.GraphModule) -> None:
        flat: dict[fx.Node, fx.Node] = {}
        for node in [node for node in graph.graph.nodes if node.name in deep]:
            source = cast(fx.Node, node.args[0])
            if source not in flat:
                with graph.graph.inserting_before(node):
                    flat[source] = graph.graph.call_function(aten.reshape.default, (source, [-1, shapes[0][source.name][-1]]))
            node.update_arg(0, flat[source])
            with graph.graph.inserting_after(node):
                shaped = graph.graph.call_function(aten.reshape.default, (node, []))
            node.replace_all_uses_with(shaped, delete_user_cb=shaped.__ne__)
            shaped.update_arg(1, _build_shape(graph, shaped, source, node, [s[node.name] for s in shapes]))

    return network.edit_copy(flatten)


def _build_shape(
    graph: fx.GraphModule, before: fx.Node, source: fx.Node, node: fx.Node, shapes: list[tuple[int, ...]]
) -> list[int | fx.Node]:
    """Build the target shape of the reshape that undoes the flattening.

    One dimension that depends on the batch is -1. Where there are several, they are read from ``source``.
    """
    two, three = shapes
    dynamic = [axis for axis, extent in enumerate(two) if extent != three[axis]]
    shape: list[int | fx.Node] = list(two)
    for axis in dynamic:
        shape[axis] = -1
        if len(dynamic) > 1:
            with graph.graph.inserting_before(before):
                shape[axis] = graph.graph.call_function(aten.sym_size.int, (source, axis))
    return shape


def _zeros(network: Network, rows: int) -> Tensor:
    return torch.zeros(rows, *network.input_shape)


def _iterate_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and the bodies of its If nodes at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _iterate_graphs(attribute.g)


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about the source code, which hold paths of this machine."""
    del model.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        _clear(function.node)
    for graph in _iterate_graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        _clear(graph.node)
        for values in (graph.input, graph.output, graph.value_info, graph.initializer):
            _clear(values)


def _clear(entries: Iterable[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]) -> None:
    """Remove docstrings and metadata."""
    for entry in entries:
        entry.doc_string = ""
        del entry.metadata_props[:]


def _rename_batch(top: onnx.GraphProto) -> None:
    """Rename the symbol of the first input's first dimension to ``batch``, also inside expressions."""
    symbol = top.input[0].type.tensor_type.shape.dim[0].dim_param
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for graph in _iterate_graphs(top):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.HasField("dim_param"):
                    dimension.dim_param = pattern.sub(BATCH, dimension.dim_param)


def _mark(number: int, bias: bool) -> float:
    """Return a constant that no other parameter has and that the exporter does not treat specially, unlike zero and one."""
    return 2.25 + 2 * number + bias


def _mark_parameters(network: Network) -> Network:
    """Return the network with a distinct constant for each parameter of its layers.

    The exporter merges initializers that hold the same values, such as two biases of zeros, and drops or folds special ones. It
    cannot do so with these constants. ``_fill_parameters`` writes the real values by name afterwards.
    """
    marks = {}
    for number, layer in enumerate(network.layers):
        bias = None if layer.bias is None else torch.full(layer.weight_shape[:1], _mark(number, True))
        marks[layer.name] = (torch.full(layer.weight_shape, _mark(number, False)), bias)
    return network.with_parameters(marks)


def _fill_parameters(model: onnx.ModelProto, network: Network) -> None:
    """Write the layers' values into their initializers.

    Raises:
        ModelError: an initializer is missing, or the exporter has folded something into it.
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, layer in enumerate(network.layers):
        for name, value in ((layer.weight, network.weight(layer.name)), (layer.bias, network.bias(layer.name))):
            if name is None or value is None:
                continue
            tensor = initializers.get(name)
            if tensor is None or tuple(tensor.dims) != tuple(value.shape):
                raise ModelError(
                    f"torch.onnx.export wrote no initializer {name!r} of shape {tuple(value.shape)}. Use another version of torch."
                )
            if not (onnx.numpy_helper.to_array(tensor) == _mark(number, name == layer.bias)).all():
                raise ModelError(f"torch.onnx.export folded another constant into initializer {name!r}. Use another version of torch.")
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.detach().numpy(), name))
