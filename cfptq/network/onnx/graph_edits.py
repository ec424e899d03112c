"""Edits of an ONNX graph before it is read, which keep what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from cfptq.network.onnx.file import OnnxFile, find_rows_input, get_fixed_rows

#: Layers on integers, and the float layer of each.
SPLIT = {"QLinearMatMul": "MatMul", "QLinearConv": "Conv"}


def inline_constant_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in which each If on a constant is the branch that it takes, or ``model`` if it has no If."""
    if not any(node.op_type == "If" for node in model.graph.node):
        return model
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    _fix_conditions_on_shapes(edited)
    while _inline_one(edited.graph):
        pass
    return edited


def _fix_conditions_on_shapes(model: onnx.ModelProto) -> None:
    """Make each If's condition that depends on the rows' shape alone an initializer, where any number of rows gives the same value.

    Exporters write such an If around a Squeeze.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "If"]:
        name = node.input[0]
        if name not in makers or not _depends_on_shapes_alone(name, makers, find_rows_input(model).name):
            continue
        answers = {_compute_of_zeros(model, name, count) for count in (1, 2, 5)}
        if len(answers) == 1 and None not in answers:
            held = numpy_helper.from_array(np.array(answers.pop()), f"{name}_of_any_rows")
            graph.initializer.append(held)
            node.input[0] = held.name


def _depends_on_shapes_alone(name: str, makers: dict[str, onnx.NodeProto], rows: str) -> bool:
    """Return whether a tensor reaches the rows through Shape and Size alone."""
    if name == rows:
        return False
    node = makers.get(name)
    if node is None or node.op_type in ("Shape", "Size"):
        return True
    return node.op_type not in ("If", "Loop", "Scan") and all(_depends_on_shapes_alone(one, makers, rows) for one in node.input)


def _compute_of_zeros(model: onnx.ModelProto, name: str, count: int) -> bool | None:
    """Run the graph up to the condition ``name`` on rows of zeros, or return None where it cannot be run."""
    sizes = [dimension.dim_value for dimension in find_rows_input(model).type.tensor_type.shape.dim][1:]
    if not all(sizes):
        return None
    partial = onnx.ModelProto()
    partial.CopyFrom(model)
    del partial.graph.output[:]
    partial.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None))
    try:
        return bool(OnnxFile(partial, output=name).run_tensors(torch.zeros(count, *sizes), [name])[name])
    except Exception:  # The If stays, and is refused by name.
        return None


def split_integer_layers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in which QLinearMatMul and QLinearConv are dequantized layers, or ``model`` if it has neither.

    ONNX Runtime computes DequantizeLinear, the layer and QuantizeLinear by the same integer kernels.
    """
    if not any(node.op_type in SPLIT for node in model.graph.node):
        return model
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in edited.graph.node:
        if node.op_type not in SPLIT or len(node.input) < 8:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        name = node.output[0]
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero, *bias = node.input
        axis = 0 if node.op_type == "QLinearConv" else 1  # Of the weight's outputs.
        nodes.append(onnx.helper.make_node("DequantizeLinear", [a, a_scale, a_zero], [f"{name}_a"]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [b, b_scale, b_zero], [f"{name}_b"], axis=axis))
        inputs = [f"{name}_a", f"{name}_b"]
        if bias:
            constants = _read_constants(edited.graph)
            scale = constants[a_scale].astype(np.float32) * constants[b_scale].astype(np.float32)
            edited.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_bias_scale"))
            nodes.append(onnx.helper.make_node("DequantizeLinear", [bias[0], f"{name}_bias_scale"], [f"{name}_c"], axis=0))
            inputs.append(f"{name}_c")
        layer = onnx.helper.make_node(SPLIT[node.op_type], inputs, [f"{name}_real"], name=node.name)
        layer.attribute.extend(node.attribute)
        nodes.append(layer)
        nodes.append(onnx.helper.make_node("QuantizeLinear", [f"{name}_real", y_scale, y_zero], [name]))
    del edited.graph.node[:]
    edited.graph.node.extend(nodes)
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
