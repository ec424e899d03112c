"""Compilation of ONNX nodes to steps of torch, with constants folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cfptq.errors import ModelError
from cfptq.network.onnx.lowering import LOWERINGS
from cfptq.network.onnx.operators import CASTS, OPERATORS, bind_operator
from cfptq.network.onnx.steps import StepBuilder
from cfptq.network.onnx.values import MICROSOFT, ML, Node, Value

#: Domains of the operators in ``LOWERINGS``.
LOWERED_DOMAINS = ("", ML, MICROSOFT)
#: Operators that lowering folds itself where their inputs are constant.
FOLDED_BY_LOWERING = ("QuantizeLinear", "DequantizeLinear", "LinearClassifier", "LinearRegressor", "MatMulNBits")
#: Operators of several outputs that anybody may read.
SEVERAL_OUTPUTS = ("Split", "TopK")
#: Operators to which a constant of one element is passed as a Python number, which is faster than a tensor.
NUMERIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Clip", "Pad"})
#: Operators that compute the size of their output from constants.
SCALING = frozenset({"Resize", "Upsample"})


class GraphCompiler(StepBuilder):
    """Compiler of one graph to the steps that compute its output.

    Args:
        root: the module that parameters and buffers are registered on.
        nodes: the graph's nodes, in order.
        constants: the graph's initializers by name.
        rows: name of the graph's input.
        output: name of the graph's output.

    Attributes:
        input: slot of the graph's input.
        output: slot of the graph's output.

    Raises:
        ModelError: a node cannot be converted, or the output does not depend on the input.
    """

    def __init__(self, root: nn.Module, nodes: Sequence[Node], constants: dict[str, Value], rows: str, output: str) -> None:
        super().__init__(root, nodes, constants, output)
        self.values[rows] = Value(self.allocate_slot())
        remaining = [node for node in nodes if not self._fold(node)]
        for node in remaining:
            if node.outputs[0] not in self.done:
                self._compile(node)
        result = self.apply_scale(self.values[output])
        if result.constant is not None:
            raise ModelError("The ONNX model's output does not depend on its input. Export the model again.")
        self.input, self.output = self.values[rows].slot, result.slot

    def get_plain_slots(self) -> dict[str, int]:
        """Return the slots of the tensors that are computed as the graph has them, by name."""
        plain = {name: value for name, value in self.values.items() if value.slot >= 0 and value.constant is None}
        return {name: value.slot for name, value in plain.items() if value.scale is None and value.grid is None and name not in self.fused}

    def _fold(self, node: Node) -> bool:
        """Evaluate a node that depends on initializers only, and return whether it does."""
        inputs = [self.values.get(name) if name else None for name in node.inputs]
        if any(name and (value is None or value.constant is None) for name, value in zip(node.inputs, inputs, strict=True)):
            return False
        if node.op in FOLDED_BY_LOWERING:
            self._compile(node)
            return True
        first = next((value for value in inputs if value is not None), Value())
        if node.op == "Cast" and isinstance(first.constant, Tensor) and first.scale is None and node.get("to") not in CASTS:
            stored = first.constant if not first.constant.is_floating_point() else first.constant.to(torch.int64)
            self.values[node.outputs[0]] = replace(first, constant=stored, element=node.get("to"))
            return True
        if node.op in ("Transpose", "Identity") and first.scale is not None:
            axis, stored = first.axis, bind_operator(node)(first.constant)
            if node.op == "Transpose":
                rank = stored.dim()
                axis = list(node.get("perm") or reversed(range(rank))).index(first.axis % rank)
            self.values[node.outputs[0]] = replace(first, constant=stored, axis=axis)
            return True
        result = bind_operator(node)(*[None if value is None else self.apply_scale(value).constant for value in inputs])
        results = result if isinstance(result, tuple) else (result,)
        for name, constant in zip(node.outputs, results, strict=False):
            self.values[name] = Value(constant=constant, origin=first.origin, element=first.element)
        return True

    def _compile(self, node: Node) -> None:
        """Add the steps of a node."""
        self.running = node.op
        inputs = [self.values[name] if name else None for name in node.inputs]
        lower = LOWERINGS.get(node.op) if node.domain in LOWERED_DOMAINS else None
        result = lower(self, node, inputs) if lower else None
        if result is not None:
            name = node.outputs[-1] if node.op == "LinearClassifier" else node.outputs[0]
            if name:  # A recurrent layer may leave out its first output.
                self.values[name] = result
            return
        arguments = [
            self.resolve_argument(
                None if value is None else self.apply_scale(value), node.op in NUMERIC and place > 0, node.op in SCALING and place > 0
            )
            for place, value in enumerate(inputs)
        ]
        function = bind_operator(node)
        if len(node.outputs) == 1:
            self.values[node.outputs[0]] = Value(self.emit(function, arguments))
            return
        slots = tuple(self.allocate_slot() for _ in node.outputs)
        self.steps.append((function if node.op in SEVERAL_OUTPUTS else _wrap_only_output(function), tuple(arguments), slots))
        self.operators.append(node.op)
        self.values |= {name: Value(slot) for name, slot in zip(node.outputs, slots, strict=True) if name}


def is_supported(node: Node) -> bool:
    """Return whether a node of this type can be converted to torch."""
    return (node.domain, node.op) in OPERATORS or (node.op in LOWERINGS and node.domain in LOWERED_DOMAINS)


def _wrap_only_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function's result in a tuple, for operators whose further outputs nobody reads.

    These are Dropout's mask and BatchNormalization's statistics.
    """
    return lambda *arguments: (function(*arguments),)
