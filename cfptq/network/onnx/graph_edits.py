"""Edits of an ONNX graph before it is read, which keep what it computes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from cfptq.network.onnx.file import find_rows_input, get_fixed_rows


def inline_constant_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in which each If on a constant is the branch that it takes, or ``model`` if it has no If."""
    if not any(node.op_type == "If" for node in model.graph.node):
        return model
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    while _inline_one(edited.graph):
        pass
    return edited


def _inline_one(graph: onnx.GraphProto) -> bool:
    """Inline the first If whose condition is constant, and return whether there was one."""
    constants = _read_constants(graph)
    for at, node in enumerate(graph.node):
        if node.op_type != "If" or node.input[0] not in constants:
            continue
        taken = "then_branch" if constants[node.input[0]].item() else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
        known = {name for other in graph.node for name in (*other.input, *other.output)} | {tensor.name for tensor in graph.initializer}
        inner = [name for own in branch.node for name in own.output] + [tensor.name for tensor in branch.initializer]
        names = {name: f"{name}_of_{node.output[0]}" for name in inner if name in known}
        moved: list[onnx.NodeProto] = []
        for own in branch.node:
            kept = onnx.NodeProto()
            kept.CopyFrom(own)
            kept.input[:] = [names.get(name, name) for name in own.input]
            kept.output[:] = [names.get(name, name) for name in own.output]
            moved.append(kept)
        for tensor in branch.initializer:
            stored = onnx.TensorProto()
            stored.CopyFrom(tensor)
            stored.name = names.get(tensor.name, tensor.name)
            graph.initializer.append(stored)
        for given, wanted in zip(branch.output, node.output, strict=True):
            moved.append(onnx.helper.make_node("Identity", [names.get(given.name, given.name)], [wanted]))
        nodes = [onnx.NodeProto.FromString(own.SerializeToString()) for own in (*graph.node[:at], *moved, *graph.node[at + 1 :])]
        del graph.node[:]
        graph.node.extend(nodes)
        return True
    return False


def free_batch_dimension(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` whose Reshapes take any number of rows, or ``model`` where its batch is not fixed.

    Older exporters write the number of rows into the shapes. The result is compared with the file's own run before it is used.
    """
    rows = get_fixed_rows(find_rows_input(model))
    constants = _read_constants(model.graph)
    reshapes = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[1:2] and node.input[1] in constants]
    if rows is None or not reshapes:
        return model
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        return model
    shapes = {value.name: _read_shape(value) for value in (*inferred.graph.value_info, *inferred.graph.output)}
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    for node in edited.graph.node:
        shape = shapes.get(node.output[0]) if node.output else None
        if (
            node.op_type != "Reshape"
            or shape is None
            or node.input[1] not in constants
            or node.input[0] in constants
            or shape[:1] != [rows]
        ):
            continue
        freed = numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), f"{node.output[0]}_shape_of_any_batch")
        edited.graph.initializer.append(freed)
        node.input[1] = freed.name
    return edited


def _read_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the graph's small initializers and Constants by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def _read_shape(value: onnx.ValueInfoProto) -> list[int] | None:
    """Return a tensor's shape, or None where a dimension is unknown."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    dimensions = value.type.tensor_type.shape.dim
    return [dimension.dim_value for dimension in dimensions] if all(d.HasField("dim_value") for d in dimensions) else None
