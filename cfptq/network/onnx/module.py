"""An ONNX graph as a differentiable PyTorch module."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.network.onnx.compiler import GraphCompiler, is_supported
from cfptq.network.onnx.file import find_rows_input, find_score_output, read_onnx, summarize_error
from cfptq.network.onnx.integer_formats import HOLDING_TYPES
from cfptq.network.onnx.values import Node, Value

#: Dtypes of the graph's input other than float32. Half precision is computed in float32.
INPUT_DTYPES: dict[int, torch.dtype] = {TensorProto.DOUBLE: torch.float64}
#: Other names of operator domains, and the names used here.
DOMAINS = {"ai.onnx": ""}


class OnnxModule(nn.Module):
    """The torch twin of an ONNX graph, differentiable and as fast as a module written by hand.

    Everything that depends on initializers only is computed at construction. Weights of float layers are parameters without
    ``requires_grad``. They keep the names that the exporter kept, so that ``hidden.0.weight`` stays layer ``hidden.0`` when the module is
    captured. QuantizeLinear has the straight-through gradient, which is zero where it clamps. Products of quantized tensors are computed
    exactly on integers, so that rounding equals that of ONNX Runtime's integer kernels.

    Args:
        source: path of an ONNX file, or a model in memory.
        output: the output to compute; None is the one that holds class scores.

    Attributes:
        operators: the ONNX operators that run, in order. Dequantizing a tensor counts as the operator that reads it.
        input_name: the graph's name of the rows.
        output_name: the graph's name of the scores.

    Raises:
        FileError: the file cannot be read, or its graph is inconsistent.
        ModelError: some operators have no torch equivalent (the message names all of them), or there are several inputs, or no
            output of scores.
    """

    def __init__(self, source: str | os.PathLike[str] | onnx.ModelProto, *, output: str | None = None) -> None:
        super().__init__()
        model = read_onnx(source)
        where = "the ONNX model" if isinstance(source, onnx.ModelProto) else os.fspath(source)
        if model.functions:
            model = inline_local_functions(model)
        rows = find_rows_input(model)
        names = [value.name for value in model.graph.output]
        result = output if output is not None and output not in names else find_score_output(model, output)
        try:
            nodes, constants = _read_graph(model, rows.name, result)
            compiler = GraphCompiler(self, nodes, constants, rows.name, result)
        except CfptqError:
            raise
        except Exception as error:
            raise FileError(
                f"The graph of {where} cannot be read ({summarize_error(error)}). Check it with onnx.checker, or export it again."
            ) from error
        self._dtype = INPUT_DTYPES.get(rows.type.tensor_type.elem_type, torch.float32)
        self._steps = compiler.steps
        self._template: list[Any] = [None] * compiler.slots
        for slot, literal in compiler.literals:
            self._template[slot] = literal
        # Tensors are read from the modules' own dictionaries, because getattr on a module costs as much as a small layer.
        self._weights = [(slot, module, key) for slot, module, kind, key in compiler.held if kind == "_parameters"]
        self._fixed = [(slot, module, key) for slot, module, kind, key in compiler.held if kind == "_buffers"]
        self._input, self._output = compiler.input, compiler.output
        self.operators = tuple(compiler.operators)
        zipped = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "ZipMap"}
        self.input_name, self.output_name = rows.name, zipped.get(result, result)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the raw output, float32 and differentiable with respect to ``x``.

        Args:
            x: rows of the shape that the graph takes.
        """
        values = self._template.copy()
        for slot, module, key in self._weights:
            values[slot] = module._parameters[key]
        for slot, module, key in self._fixed:
            values[slot] = module._buffers[key]
        values[self._input] = x if x.dtype == self._dtype else x.to(self._dtype)
        for function, arguments, target in self._steps:
            result = function(*[values[slot] for slot in arguments])
            if isinstance(target, int):
                values[target] = result
            else:
                for slot, part in zip(target, result, strict=False):
                    values[slot] = part
        answer: Tensor = values[self._output]
        return answer if answer.dtype == torch.float32 else answer.to(torch.float32)


def _read_graph(model: onnx.ModelProto, rows: str, output: str) -> tuple[list[Node], dict[str, Value]]:
    """Return the nodes that the output needs, in order, and the initializers that they read."""
    opsets = {DOMAINS.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    nodes = _select_needed(model.graph.node, output)
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
        raise ModelError(f"Cannot convert the ONNX operators {', '.join(missing)} to PyTorch. Rewrite the model without them.")
    return read, constants


def _select_needed(nodes: Iterable[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
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
    return list(value) if hasattr(value, "__iter__") else value
