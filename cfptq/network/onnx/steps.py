"""Steps of torch that replace an ONNX graph, and the slots and tensors that they use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfptq.errors import ModelError
from cfptq.network.onnx.layers import make_identifier
from cfptq.network.onnx.values import Host, Node, Value, dequantize

#: A function, the slots of its arguments, and the slot of its result (several slots where it returns a tuple; -1 drops the part).
Step = tuple[Callable[..., Any], tuple[int, ...], int | tuple[int, ...]]

#: The slot that always holds None, for an optional input that is left out.
ABSENT = 0


class StepBuilder:
    """Builder of the steps of one graph, which registers parameters and buffers on a module.

    Args:
        root: the module that tensors are registered on.
        nodes: the graph's nodes, in order.
        constants: the graph's initializers by name.
        output: name of the graph's output.

    Attributes:
        values: what is known of each tensor, by name.
        steps: the steps, in order.
        operators: the ONNX operator of each step.
        literals: slot and value of every argument that is neither a parameter nor a buffer.
        held: slot, owning module, kind ("_parameters" or "_buffers") and key of every registered tensor.
        slots: number of slots in use.
        running: type of the node whose steps are being added.
        uses: number of readers of each tensor.
        readers: the last node that reads each tensor.
        done: tensors that an earlier node's steps compute as well.
        fused: tensors of the graph that no step computes as the graph has them.
    """

    def __init__(self, root: nn.Module, nodes: Sequence[Node], constants: dict[str, Value], output: str) -> None:
        self.root = root
        self.values = constants
        self.steps: list[Step] = []
        self.operators: list[str] = []
        self.literals: list[tuple[int, Any]] = []
        self.held: list[tuple[int, nn.Module, str, str]] = []
        self.slots = 1
        self.running = ""
        self.uses = Counter(name for node in nodes for name in set(node.inputs)) + Counter([output])
        self.readers = {name: node for node in nodes for name in node.inputs}
        self.done: set[str] = set()
        self.fused: set[str] = set()
        self._kept: dict[tuple[int, bool], tuple[int, Any]] = {}
        self._weights: dict[str, list[tuple[int, Tensor]]] = {}

    def allocate_slot(self) -> int:
        """Return a new slot."""
        self.slots += 1
        return self.slots - 1

    def add_literal(self, value: Any) -> int:
        """Return a new slot that holds ``value``."""
        slot = self.allocate_slot()
        self.literals.append((slot, value))
        return slot

    def register_tensor(self, path: str, value: Tensor, is_parameter: bool = False) -> int:
        """Register a tensor and return its slot.

        Args:
            path: dotted path below ``root``, made unique by a number.
            value: the tensor, which is copied.
            is_parameter: register a parameter without ``requires_grad`` instead of a buffer.
        """
        *folders, leaf = path.split(".")
        module = self.root
        for part in folders:
            part = f"{part}_" if hasattr(type(module), part) or part in module.__dict__ else part
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        key, number = leaf, 1
        while hasattr(module, key):
            number += 1
            key = f"{leaf}_{number}"
        if is_parameter:
            module.register_parameter(key, nn.Parameter(value.detach().clone().contiguous(), requires_grad=False))
        else:
            module.register_buffer(key, value.detach().clone().contiguous())
        slot = self.allocate_slot()
        self.held.append((slot, module, "_parameters" if is_parameter else "_buffers", key))
        return slot

    def register_weight(self, origin: str, layer: str, floats: Tensor) -> int:
        """Register a float layer's weight and return its slot, which layers that read one initializer the same way share."""
        for slot, shared in self._weights.get(origin, []):
            if torch.equal(shared, floats):
                return slot
        slot = self.register_tensor(f"{layer}.weight", floats, is_parameter=True)
        if origin:
            self._weights.setdefault(origin, []).append((slot, floats))
        return slot

    def resolve_argument(self, value: Value | None, as_number: bool = False, as_array: bool = False) -> int:
        """Return the slot of a real value.

        Args:
            value: the value, or None for an optional input that is left out.
            as_number: store a constant of one element as a Python number.
            as_array: store a constant as an array, from which shapes can be computed.
        """
        if value is None:
            return ABSENT
        if value.constant is None:
            return value.slot
        if as_array and isinstance(value.constant, Tensor):
            return self.add_literal(value.constant.numpy())
        key = (id(value.constant), as_number)
        if key not in self._kept:
            # The constant is kept beside its slot, so that no other object gets its id.
            self._kept[key] = self._store_constant(value.constant, value.origin, as_number), value.constant
        return self._kept[key][0]

    def _store_constant(self, constant: Tensor | Host, origin: str, as_number: bool) -> int:
        if isinstance(constant, np.ndarray):
            return self.add_literal(constant)
        if not constant.is_floating_point() and constant.dim() <= 1:
            return self.add_literal(constant.numpy())
        if as_number and constant.is_floating_point() and constant.dim() == 0:
            return self.add_literal(float(constant))
        return self.register_tensor("constants." + (make_identifier(origin).replace(".", "_") or "value"), constant)

    def emit(self, function: Callable[..., Any], arguments: Sequence[int]) -> int:
        """Add a step and return the slot of its result.

        Args:
            function: the step's function.
            arguments: slots of its arguments.
        """
        slot = self.allocate_slot()
        self.steps.append((function, tuple(arguments), slot))
        self.operators.append(self.running)
        return slot

    def apply_scale(self, value: Value) -> Value:
        """Return a value as real numbers, with its scale multiplied in.

        Raises:
            ModelError: the value lies between QuantizeLinear and DequantizeLinear.
        """
        if value.grid is not None:
            raise ModelError(
                "Cannot convert the ONNX model to PyTorch: it computes on the integers between QuantizeLinear and DequantizeLinear."
            )
        if value.scale is None:
            return value
        if isinstance(value.constant, Tensor):
            return Value(constant=dequantize(value.constant, value.scale, value.axis), origin=value.origin)
        if isinstance(value.scale, Tensor):
            scale = self.register_tensor("scales.scale", value.scale)
            return Value(self.emit(partial(_dequantize_along, axis=value.axis), (value.slot, scale)))
        return Value(self.emit(partial(dequantize, scale=value.scale), (value.slot,)))


def _dequantize_along(stored: Tensor, scale: Tensor, axis: int) -> Tensor:
    return dequantize(stored, scale, axis)
