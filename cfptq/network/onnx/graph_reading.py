"""Reading of an ONNX graph's nodes and initializers for conversion to torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from cfptq.errors import FileError, ModelError
from cfptq.network.onnx.compiler import is_supported
from cfptq.network.onnx.integer_formats import HOLDING_TYPES
from cfptq.network.onnx.values import Node, Value

#: Reasons why an operator has no gradient, or no form that takes any number of rows.
WITHOUT_GRADIENT = {
    "If": "If on a value of the rows decides for a whole batch, and has no gradient with respect to the value.",
    "Loop": "Loop may run another number of times for each batch.",
    "Scan": "Scan runs a graph of its own for each step. Unroll it at export.",
    "NonZero": "NonZero returns another number of places for each batch, and has no gradient.",
    "Unique": "Unique returns another number of values for each batch, and mixes its rows.",
    "ai.onnx.ml.TreeEnsembleClassifier": "Trees are constant between their thresholds, and have no gradient.",
    "ai.onnx.ml.TreeEnsembleRegressor": "Trees are constant between their thresholds, and have no gradient.",
    "RandomNormalLike": "RandomNormalLike draws random numbers.",
    "RandomUniformLike": "RandomUniformLike draws random numbers.",
}

#: Other names of operator domains, and the names used here.
DOMAINS = {"ai.onnx": ""}


def read_graph(model: onnx.ModelProto, rows: str, output: str) -> tuple[list[Node], dict[str, Value]]:
    """Return the nodes that the output needs, in order, and the initializers that they read."""
    opsets = {DOMAINS.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    nodes = select_needed(model.graph.node, output)
    idle = _find_idle_casts(model, nodes, output)
    wanted = {name for node in nodes for name in node.input}
    constants: dict[str, Value] = {}
    for initializer in model.graph.initializer:
        if initializer.name in wanted:
            constants[initializer.name] = Value(constant=_to_torch(initializer), origin=initializer.name, element=initializer.data_type)
    if model.graph.sparse_initializer:
        raise ModelError("The ONNX model has sparse initializers. Export it with dense weights.")
    read: list[Node] = []
    known = {rows, "", *constants}
    missing: dict[str, None] = {}
    for proto in nodes:
        if proto.output[0] in idle:
            continue
        inputs = tuple(idle.get(name, name) for name in proto.input)
        unknown = [name for name in inputs if name not in known]
        if unknown:
            raise FileError(f"The ONNX graph is corrupt, because no earlier node computes {unknown[0]!r}. Export it again.")
        known |= set(proto.output)
        domain = DOMAINS.get(proto.domain, proto.domain)
        if proto.op_type == "Constant" and not domain:
            constants[proto.output[0]] = _read_constant(proto)
            continue
        attributes = {a.name: _read_attribute(a) for a in proto.attribute if a.type not in (a.GRAPH, a.GRAPHS)}
        node = Node(proto.op_type, domain, opsets.get(domain, 1), proto.name, inputs, tuple(proto.output), attributes)
        if not is_supported(node):
            missing[f"{domain}.{node.op}" if domain else node.op] = None
        read.append(node)
    if missing:
        reasons = "".join(f" {WITHOUT_GRADIENT[name]}" for name in missing if name in WITHOUT_GRADIENT)
        raise ModelError(
            f"Cannot convert the ONNX operators {', '.join(missing)} to PyTorch, which calibration and gradients need.{reasons} "
            "Rewrite the model without them. cfptq.audit takes such a file as it is, and searches for recourse without gradients."
        )
    return read, constants


def select_needed(nodes: Iterable[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """Return the nodes that ``output`` depends on, in order."""
    wanted, needed = {output}, []
    for node in reversed(list(nodes)):
        if wanted & set(node.output):
            needed.append(node)
            wanted |= {name for name in node.input if name}
    return needed[::-1]


def _find_idle_casts(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], output: str) -> dict[str, str]:
    """Return each output of a Cast to the type that its input already has, with that input.

    Keras writes such casts around every operation.
    """
    casts = [node for node in nodes if node.op_type == "Cast" and node.output[0] != output]
    if not casts:
        return {}
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    idle: dict[str, str] = {}
    for node in casts:
        if types.get(node.input[0]) == next(attribute.i for attribute in node.attribute if attribute.name == "to"):
            idle[node.output[0]] = idle.get(node.input[0], node.input[0])
    return idle


def _to_torch(tensor: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(tensor)
    holding_type = HOLDING_TYPES.get(array.dtype.name)
    if holding_type is not None:
        array = array.astype(holding_type)
    if array.dtype.kind not in "fiub":
        raise ModelError(f"Cannot convert the ONNX initializer {tensor.name!r} to PyTorch: its type is {array.dtype.name}.")
    return torch.from_numpy(np.array(array))


def _read_constant(node: onnx.NodeProto) -> Value:
    if len(node.attribute) != 1:
        raise FileError("The ONNX graph is corrupt, because a Constant has no value or several. Export it again.")
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return Value(constant=_to_torch(value), origin=value.name or node.output[0], element=value.data_type)
    if not isinstance(value, int | float | list | tuple) and not hasattr(value, "__iter__"):
        raise ModelError(f"Cannot convert the ONNX Constant {node.output[0]!r} to PyTorch: it is not a number.")
    return Value(constant=torch.tensor(list(value) if hasattr(value, "__iter__") else value), origin=node.output[0])


def _read_attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _to_torch(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not hasattr(value, "__iter__"):
        return value
    return [entry.decode("utf-8", "replace") if isinstance(entry, bytes) else entry for entry in value]
