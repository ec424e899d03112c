"""Export of plain networks to ONNX, node by node, in milliseconds.

``torch.onnx.export`` takes about a second for any network. Only operations that ONNX has under another name are here. A network with any
other operation goes through ``torch.onnx.export``; see ``cfptq.network.onnx.export``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from cfptq.network.attributes import get_attribute
from cfptq.network.graph import Network
from cfptq.network.normalize import aten

#: Function from an operation's arguments after the tensors (defaults filled in) to the ONNX operator and its attributes.
#: It returns None where ONNX has no such form.
Rule = Callable[..., tuple[str, dict[str, Any]] | None]


def _rename_to(operator: str) -> Rule:
    return lambda: (operator, {})


def _convolution(stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[str, dict[str, Any]]:
    return "Conv", {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}


def _max_pool(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> tuple[str, dict[str, Any]] | None:
    if ceil_mode:
        return None
    return "MaxPool", {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding], "dilations": dilation}


def _sum(alpha: Any) -> tuple[str, dict[str, Any]] | None:
    return ("Add", {}) if alpha == 1 else None


def _flatten(start: int, end: int) -> tuple[str, dict[str, Any]] | None:
    # ONNX Runtime moves quantizers through a Reshape but not through a Flatten.
    return ("Reshape", {}) if (start, end) == (1, -1) else None


def _pool_to(size: Any) -> tuple[str, dict[str, Any]] | None:
    return ("GlobalAveragePool", {}) if list(size) == [1, 1] else None


#: Rules by ATen operation.
RULES: dict[Any, Rule] = {
    aten.linear.default: lambda: ("Gemm", {"transB": 1}),
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.max_pool2d.default: _max_pool,
    aten.adaptive_avg_pool2d.default: _pool_to,
    aten.relu.default: _rename_to("Relu"),
    aten.sigmoid.default: _rename_to("Sigmoid"),
    aten.tanh.default: _rename_to("Tanh"),
    aten.leaky_relu.default: lambda slope: ("LeakyRelu", {"alpha": slope}),
    aten.softmax.int: lambda axis, dtype: None if dtype else ("Softmax", {"axis": axis}),
    aten.log_softmax.int: lambda axis, dtype: None if dtype else ("LogSoftmax", {"axis": axis}),
    aten.add.Tensor: _sum,
    aten.mul.Tensor: _rename_to("Mul"),
    aten.cat.default: lambda axis: ("Concat", {"axis": axis}),
    aten.flatten.using_ints: _flatten,
}

#: Shape that flattens each row and keeps the batch.
FLAT = numpy_helper.from_array(np.array([0, -1], np.int64), "flat_rows")


def export_directly(network: Network, opset: int, names: tuple[str, str, str]) -> onnx.ModelProto | None:
    """Export a network node by node, or return None where ``RULES`` do not cover an operation.

    Args:
        network: the float network.
        opset: opset of the model.
        names: names of the input, of the output and of the batch dimension.
    """
    source, target, batch = names
    example = torch.zeros(2, *network.input_shape)
    inputs = network.observe(example, {layer.input for layer in network.layers if layer.kind == "linear"})
    output = network.observe(example, [network.output_name])[network.output_name]
    if output.shape[:1] != (2,) or any(value.dim() != 2 for value in inputs.values()):
        return None
    onnx_names = {network.input_name: source, network.output_name: target}
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    has_reshape = False
    for node in network.graph.graph.nodes:
        if node.op == "get_attr":
            value = get_attribute(network.graph, str(node.target))
            if not isinstance(value, Tensor) or value.dtype != torch.float32:
                return None
            onnx_names[node.name] = str(node.target)
            initializers.append(numpy_helper.from_array(value.detach().numpy(), str(node.target)))
        elif node.op == "call_function":
            form = _find_onnx_form(node)
            if form is None:
                return None
            operator, attributes = form
            operands = [onnx_names[operand.name] for operand in _iterate_operands(node)]
            if operator == "Reshape":
                operands.append(FLAT.name)
                has_reshape = True
            nodes.append(helper.make_node(operator, operands, [onnx_names.setdefault(node.name, node.name)], node.name, **attributes))
    if not nodes or network.output_name not in {node.name for node in nodes}:
        return None
    shape = [batch, *network.input_shape], [batch, *output.shape[1:]]
    ends = [helper.make_tensor_value_info(*end) for end in ((source, TensorProto.FLOAT, shape[0]), (target, TensorProto.FLOAT, shape[1]))]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], [*initializers, FLAT] if has_reshape else initializers)
    version = helper.make_opsetid("", opset)
    return helper.make_model(graph, opset_imports=[version], ir_version=helper.find_min_ir_version_for([version]))


def _iterate_operands(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes among a node's arguments, also from lists."""
    for argument in node.args:
        yield from (entry for entry in (argument if isinstance(argument, list | tuple) else (argument,)) if isinstance(entry, fx.Node))


def _find_onnx_form(node: fx.Node) -> tuple[str, dict[str, Any]] | None:
    """Return the ONNX operator and attributes of a node, or None."""
    rule = RULES.get(node.target)
    if rule is None:
        return None
    settings = []
    for place, argument in enumerate(cast(torch._ops.OpOverload, node.target)._schema.arguments):
        tensors = "Tensor" in str(argument.type)
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        if tensors:
            entries = given if isinstance(given, list | tuple) else (given,)
            if any(not isinstance(entry, fx.Node) for entry in entries if entry is not None):
                return None  # a number in place of a tensor
        else:
            settings.append(given)
    if any(isinstance(entry, fx.Node) for entry in settings):
        return None
    return rule(*settings)
