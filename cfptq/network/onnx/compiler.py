"""From ONNX nodes to steps of torch: constants folded, products found, quantized tensors carried as exact integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from cfptq.errors import ModelError
from cfptq.network.onnx.integer_formats import RANGES, blockwise, centred, matmul_n_bits, number, quantize, quantize_along
from cfptq.network.onnx.layers import exact, identifier, integer_bias, layer_name, per_output, tensor_of, turned
from cfptq.network.onnx.operators import CASTS, MICROSOFT, ML, OPERATORS, convolve
from cfptq.network.onnx.values import Grid, Host, Node, Value, real

#: A function, the slots of its arguments, and where its result goes (several slots where it gives a tuple; -1: nowhere).
Step = tuple[Callable[..., Any], tuple[int, ...], int | tuple[int, ...]]

#: Operators that only move elements, so that a scale for the whole tensor passes through them.
MOVING = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Slice", "Gather", "MaxPool"})
#: Operators to which a constant of one element is handed as a Python number, which is faster than a tensor.
NUMERIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Clip"})
#: The slot that always holds None: an optional input left out.
ABSENT = 0


class GraphCompiler:
    """Compiles the nodes of one graph; parameters and buffers are registered on ``root``.

    Attributes:
        steps: what to run, in order.
        operators: the ONNX operator that each step came from.
        literals: slot and value of what is neither parameter nor buffer.
        held: slot, module that holds the tensor, kind ("_parameters" or "_buffers") and key.
        slots: number of slots in use.
    """

    def __init__(self, root: nn.Module, nodes: Sequence[Node], constants: dict[str, Value], rows: str, output: str) -> None:
        self.root = root
        self.values = constants
        self.steps: list[Step] = []
        self.literals: list[tuple[int, Any]] = []
        self.held: list[tuple[int, nn.Module, str, str]] = []
        self.slots = 1
        self.operators: list[str] = []
        self._running = ""
        self._kept: dict[tuple[int, bool], tuple[int, Any]] = {}
        self._weights: dict[str, list[tuple[int, Tensor]]] = {}
        self._done: set[str] = set()
        self._uses = Counter(name for node in nodes for name in set(node.inputs)) + Counter([output])
        self._users = {name: node for node in nodes for name in node.inputs}
        self.values[rows] = Value(self._slot())
        runtime = [node for node in nodes if not self._fold(node)]
        for node in runtime:
            if node.outputs[0] not in self._done:
                self._compile(node)
        result = self._real(self.values[output])
        if result.constant is not None:
            raise ModelError("the ONNX model's output does not depend on its input")
        self.input, self.output = self.values[rows].slot, result.slot

    # Constants -------------------------------------------------------------------------------------------------------------

    def _fold(self, node: Node) -> bool:
        """Evaluate a node that depends on initializers only."""
        inputs = [self.values.get(name) if name else None for name in node.inputs]
        if any(name and (value is None or value.constant is None) for name, value in zip(node.inputs, inputs, strict=True)):
            return False
        if node.op in ("QuantizeLinear", "DequantizeLinear", "LinearClassifier", "MatMulNBits"):
            self._compile(node)
            return True
        first = next((value for value in inputs if value is not None), Value())
        if node.op == "Cast" and isinstance(first.constant, Tensor) and first.scale is None and node.get("to") not in CASTS:
            stored = first.constant if not first.constant.is_floating_point() else first.constant.to(torch.int64)
            self.values[node.outputs[0]] = replace(first, constant=stored, element=node.get("to"))
            return True
        if node.op in ("Transpose", "Identity") and first.scale is not None:
            axis, stored = first.axis, self._operator(node)(first.constant)
            if node.op == "Transpose":
                rank = stored.dim()
                axis = list(node.get("perm") or reversed(range(rank))).index(first.axis % rank)
            self.values[node.outputs[0]] = replace(first, constant=stored, axis=axis)
            return True
        result = self._operator(node)(*[None if value is None else self._real(value).constant for value in inputs])
        results = result if isinstance(result, tuple) else (result,)
        for name, constant in zip(node.outputs, results, strict=False):
            self.values[name] = Value(constant=constant, origin=first.origin, element=first.element)
        return True

    def _operator(self, node: Node) -> Callable[..., Any]:
        return partial(OPERATORS[node.domain, node.op], node)

    # Slots -----------------------------------------------------------------------------------------------------------------

    def _slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def _literal(self, value: Any) -> int:
        slot = self._slot()
        self.literals.append((slot, value))
        return slot

    def _hold(self, path: str, value: Tensor, parameter: bool = False) -> int:
        """Register a tensor at a dotted path, made unique; returns its slot."""
        *folders, leaf = path.split(".")
        module = self.root
        for part in folders:
            part = part + "_" if not part.isdigit() and (hasattr(nn.Module, part) or part == "training") else part
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        key, number_ = leaf, 1
        while hasattr(module, key):
            number_ += 1
            key = f"{leaf}_{number_}"
        if parameter:
            module.register_parameter(key, nn.Parameter(value.detach().clone().contiguous(), requires_grad=False))
        else:
            module.register_buffer(key, value.detach().clone().contiguous())
        slot = self._slot()
        self.held.append((slot, module, "_parameters" if parameter else "_buffers", key))
        return slot

    def _argument(self, value: Value | None, numeric: bool = False) -> int:
        """The slot of a value that is real already."""
        if value is None:
            return ABSENT
        if value.constant is None:
            return value.slot
        key = (id(value.constant), numeric)
        if key not in self._kept:
            # The constant is kept beside its slot, lest another be given its id.
            self._kept[key] = self._place(value.constant, value.origin, numeric), value.constant
        return self._kept[key][0]

    def _place(self, constant: Tensor | Host, origin: str, numeric: bool) -> int:
        if isinstance(constant, np.ndarray):
            return self._literal(constant)
        if not constant.is_floating_point() and constant.dim() <= 1:
            return self._literal(constant.numpy())
        if numeric and constant.is_floating_point() and constant.dim() == 0:
            return self._literal(float(constant))
        return self._hold("constants." + (identifier(origin).replace(".", "_") or "value"), constant)

    def _emit(self, function: Callable[..., Any], arguments: Sequence[int]) -> int:
        slot = self._slot()
        self.steps.append((function, tuple(arguments), slot))
        self.operators.append(self._running)
        return slot

    def _real(self, value: Value) -> Value:
        """The value as real numbers: a pending scale is multiplied in."""
        if value.grid is not None:
            raise ModelError("the ONNX model computes on integers between QuantizeLinear and DequantizeLinear; its twin cannot")
        if value.scale is None:
            return value
        if isinstance(value.constant, Tensor):
            return Value(constant=real(value.constant, value.scale, value.axis), origin=value.origin)
        if isinstance(value.scale, Tensor):
            scale = self._hold("scales.scale", value.scale)
            return Value(self._emit(partial(_real_along, axis=value.axis), (value.slot, scale)))
        return Value(self._emit(partial(real, scale=value.scale), (value.slot,)))

    # Nodes -----------------------------------------------------------------------------------------------------------------

    def _compile(self, node: Node) -> None:
        self._running = node.op
        inputs = [self.values[name] if name else None for name in node.inputs]
        special = _SPECIAL.get(node.op) if node.domain in ("", ML, MICROSOFT) else None
        result = special(self, node, inputs) if special else None
        if result is not None:
            self.values[node.outputs[-1] if node.op == "LinearClassifier" else node.outputs[0]] = result
            return
        arguments = [self._argument(None if v is None else self._real(v), node.op in NUMERIC and i > 0) for i, v in enumerate(inputs)]
        function = self._operator(node)
        if len(node.outputs) == 1:
            self.values[node.outputs[0]] = Value(self._emit(function, arguments))
            return
        slots = tuple(self._slot() for _ in node.outputs)
        self.steps.append((function if node.op == "Split" else _alone(function), tuple(arguments), slots))
        self.operators.append(node.op)
        self.values |= {name: Value(slot) for name, slot in zip(node.outputs, slots, strict=True) if name}

    def _quantize(self, node: Node, inputs: list[Value | None]) -> Value:
        x, scale, zero = (*inputs, None, None)[:3]
        if x is None or scale is None or not isinstance(scale.constant, Tensor) or node.get("block_size", 0):
            raise ModelError("QuantizeLinear with a scale that is computed, or one for each block, has no torch twin")
        element = zero.element if zero is not None else node.get("output_dtype", 0) or TensorProto.UINT8
        if element not in RANGES:
            raise ModelError(f"QuantizeLinear to ONNX type {element} has no torch twin")
        step, shift = number(scale.constant), 0.0 if zero is None else number(tensor_of(zero))
        low, high = RANGES[element][0] - shift, RANGES[element][1] - shift
        axis = node.get("axis", 1)
        grid = Grid(shift, RANGES[element][0], RANGES[element][1])
        if isinstance(x.constant, Tensor):
            return Value(constant=_quantize_constant(self._real(x).constant, step, low, high, axis), origin=x.origin, grid=grid)
        if x.bounds == (low, high) and x.scale == step:
            return replace(x, scale=None, grid=grid)
        # ONNX Runtime's kernels multiply an accumulator by (input scale x weight scale / output scale); where a Relu keeps it
        # from fusing, or the output's scales differ along the axis, it computes the real value first.
        if x.scale is None or isinstance(step, Tensor) or isinstance(low, Tensor) or not x.accumulated or (x.rectified and low != 0):
            x = self._real(x)
        if isinstance(step, Tensor) or isinstance(low, Tensor) or isinstance(high, Tensor):
            steps = torch.as_tensor(step).expand(low.shape) if isinstance(low, Tensor) else torch.as_tensor(step)
            arguments = [x.slot, self._hold("scales.scale", steps)]
            arguments += [self._hold("scales.bound", b) if isinstance(b, Tensor) else self._literal(b) for b in (low, high)]
            return Value(self._emit(partial(quantize_along, axis=axis, multiply=False), arguments), grid=grid)
        if x.scale is None:
            return Value(self._emit(partial(quantize, scale=step, low=low, high=high, multiply=False), (x.slot,)), grid=grid)
        factor = torch.as_tensor(x.scale, dtype=torch.float32) / torch.as_tensor(step, dtype=torch.float32)
        if factor.dim() == 0:
            return Value(self._emit(partial(quantize, scale=float(factor), low=low, high=high, multiply=True), (x.slot,)), grid=grid)
        arguments = [x.slot, self._hold("scales.scale", factor), self._literal(low), self._literal(high)]
        return Value(self._emit(partial(quantize_along, axis=x.axis, multiply=True), arguments), grid=grid)

    def _dequantize(self, node: Node, inputs: list[Value | None]) -> Value:
        x, scale, zero = (*inputs, None, None)[:3]
        if x is None or scale is None or not isinstance(scale.constant, Tensor) or (zero is not None and zero.constant is None):
            raise ModelError("DequantizeLinear with a scale that is computed has no torch twin")
        axis, block = node.get("axis", 1), node.get("block_size", 0)
        if block and isinstance(x.constant, Tensor) and x.grid is None:
            floats = blockwise(x.constant, scale.constant, None if zero is None else tensor_of(zero), axis, block)
            return Value(constant=floats, origin=x.origin)
        step, shift = number(scale.constant), 0.0 if zero is None else number(tensor_of(zero))
        if x.grid is not None:
            same = type(shift) is type(x.grid.zero) and bool(torch.equal(torch.as_tensor(shift), torch.as_tensor(x.grid.zero)))
            if not same:
                raise ModelError("DequantizeLinear with another zero point than its QuantizeLinear has no torch twin")
            bounds = None if isinstance(x.grid.zero, Tensor) else (x.grid.low - x.grid.zero, x.grid.high - x.grid.zero)
            return replace(x, grid=None, scale=step, axis=axis, bounds=bounds)
        if not isinstance(x.constant, Tensor):
            raise ModelError("DequantizeLinear of integers that no QuantizeLinear made has no torch twin")
        return Value(constant=centred(x.constant, shift, axis), origin=x.origin, scale=step, axis=axis)

    def _moving(self, node: Node, inputs: list[Value | None]) -> Value | None:
        """A scale for the whole tensor, or a grid, passes through what only moves elements."""
        x = inputs[0]
        if x is None or x.constant is not None or len(node.outputs) != 1 or (x.scale is None and x.grid is None):
            return None
        if isinstance(x.scale, Tensor) or (x.grid is not None and isinstance(x.grid.zero, Tensor)):
            return None
        return replace(x, slot=self._emit(self._operator(node), [x.slot, *(self._argument(v) for v in inputs[1:])]))

    def _relu(self, node: Node, inputs: list[Value | None]) -> Value | None:
        x = inputs[0]
        if x is None or x.scale is None:
            return None
        return replace(x, slot=self._emit(torch.relu, (x.slot,)), rectified=True)

    def _matmul(self, node: Node, inputs: list[Value | None]) -> Value | None:
        x, weight = inputs
        if x is None or weight is None or x.constant is not None or not isinstance(weight.constant, Tensor) or weight.constant.dim() != 2:
            return None
        weight = turned(weight)
        bias, out = None, tensor_of(weight).shape[0]
        adding = self._users.get(node.outputs[0])
        if adding is not None and adding.op == "Add" and self._uses[node.outputs[0]] == 1:
            other = self.values.get(next((n for n in adding.inputs if n != node.outputs[0]), ""))
            if other is not None and isinstance(other.constant, Tensor) and per_output(other.constant, out):
                bias = self._real(other)
                self._done.add(adding.outputs[0])
        result = self._product(adding if bias is not None and adding is not None else node, F.linear, x, weight, bias, -1)
        if bias is not None and adding is not None:
            self.values[adding.outputs[0]] = result
        return result

    def _gemm(self, node: Node, inputs: list[Value | None]) -> Value | None:
        x, weight, bias = (*inputs, None)[:3]
        if x is None or weight is None or x.constant is not None or not isinstance(weight.constant, Tensor) or node.get("transA", 0):
            return None
        if node.get("alpha", 1.0) != 1 or (bias is not None and (node.get("beta", 1.0) != 1 or not isinstance(bias.constant, Tensor))):
            return None
        weight = weight if node.get("transB", 0) else turned(weight)
        return self._product(node, F.linear, x, weight, bias, -1)

    def _conv(self, node: Node, inputs: list[Value | None]) -> Value | None:
        x, weight, bias = (*inputs, None)[:3]
        if x is None or weight is None or not isinstance(weight.constant, Tensor) or (bias is not None and bias.constant is None):
            return None
        return self._product(node, partial(convolve, node), x, weight, bias, 1)

    def _n_bits(self, node: Node, inputs: list[Value | None]) -> Value | None:
        x, packed, scales, zero, order, bias = (*inputs, None, None, None)[:6]
        if x is None or packed is None or scales is None or order is not None:
            raise ModelError("MatMulNBits with reordered columns has no torch twin")
        weight = matmul_n_bits(node, tensor_of(packed), tensor_of(scales), None if zero is None else tensor_of(zero))
        return self._product(node, F.linear, x, Value(constant=weight, origin=packed.origin), bias, -1)

    def _linear_classifier(self, node: Node, inputs: list[Value | None]) -> Value:
        (x,) = inputs
        labels = node.get("classlabels_ints") or node.get("classlabels_strings") or []
        after = {"NONE": None, "LOGISTIC": torch.sigmoid, "SOFTMAX": partial(torch.softmax, dim=1)}
        transform = node.get("post_transform", "NONE")
        intercepts = torch.tensor(node.get("intercepts") or [0.0] * len(labels))
        coefficients = torch.tensor(node.get("coefficients"))
        if x is None or transform not in after or len(intercepts) != len(labels) or not len(labels) or len(node.outputs) != 2:
            raise ModelError(f"LinearClassifier with {len(intercepts)} rows for {len(labels)} classes, {transform}, has no torch twin")
        name = identifier(node.name) or "LinearClassifier"
        weight = Value(constant=coefficients.reshape(len(intercepts), -1), origin=f"{name}.weight")
        scores = self._real(self._product(node, F.linear, x, weight, Value(constant=intercepts), -1))
        function = after[transform]
        return scores if function is None else Value(self._emit(function, (scores.slot,)))

    def _scaler(self, node: Node, inputs: list[Value | None]) -> Value:
        (x,) = inputs
        assert x is not None
        offset, scale = (self._hold(f"constants.{key}", torch.tensor(node.get(key))) for key in ("offset", "scale"))
        return Value(self._emit(_standardize, (self._real(x).slot, offset, scale)))

    def _requantized(self, node: Node) -> bool:
        """Whether only a QuantizeLinear reads a product, directly or behind a Relu."""
        name = node.outputs[0]
        reader = self._users.get(name)
        if reader is not None and reader.op == "Relu" and self._uses[name] == 1:
            name = reader.outputs[0]
            reader = self._users.get(name)
        return reader is not None and reader.op == "QuantizeLinear" and self._uses[name] == 1

    def _weight(self, origin: str, layer: str, floats: Tensor) -> int:
        """The parameter of a float layer; two layers that read one initializer the same way share it."""
        for slot, shared in self._weights.get(origin, []):
            if torch.equal(shared, floats):
                return slot
        slot = self._hold(f"{layer}.weight", floats, parameter=True)
        if origin:
            self._weights.setdefault(origin, []).append((slot, floats))
        return slot

    def _product(self, node: Node, function: Callable[..., Tensor], x: Value, weight: Value, bias: Value | None, axis: int) -> Value:
        """A linear layer or convolution, on exact integers where input and weight are quantized (``weight`` has outputs first)."""
        layer = layer_name(weight, bias, node)
        assert isinstance(weight.constant, Tensor)
        outputs = weight.constant.shape[0]
        if exact(x, weight):
            scale = torch.as_tensor(x.scale, dtype=torch.float32) * torch.as_tensor(weight.scale, dtype=torch.float32)
            whole, rest = integer_bias(bias, scale, outputs, self._requantized(node))
            arguments = [x.slot, self._hold(f"{layer}.weight", weight.constant)]
            arguments.append(ABSENT if whole is None else self._hold(f"{layer}.bias", whole))
            result = Value(self._emit(function, arguments), scale=number(scale), axis=axis, accumulated=True)
            if rest is None:
                return result
            rank_one = rest if axis == -1 else rest.reshape(-1, *[1] * (weight.constant.dim() - 2))
            return Value(self._emit(torch.add, (self._real(result).slot, self._hold(f"{layer}.bias", rank_one))))
        floats = self._real(weight).constant
        assert isinstance(floats, Tensor)
        matrix = self._weight(weight.origin, layer, floats)
        shift = ABSENT
        if bias is not None:
            offsets = self._real(bias).constant
            assert isinstance(offsets, Tensor)
            if not per_output(offsets, outputs):
                added = self._emit(function, [self._real(x).slot, matrix])
                return Value(self._emit(torch.add, (added, self._hold(f"{layer}.bias", offsets))))
            shift = self._hold(f"{layer}.bias", offsets.flatten().expand(outputs), parameter=True)
        return Value(self._emit(function, [self._real(x).slot, matrix, shift]))


_SPECIAL: Mapping[str, Callable[[GraphCompiler, Node, list[Value | None]], Value | None]] = {
    "QuantizeLinear": GraphCompiler._quantize,
    "DequantizeLinear": GraphCompiler._dequantize,
    "Relu": GraphCompiler._relu,
    "MatMul": GraphCompiler._matmul,
    "Gemm": GraphCompiler._gemm,
    "Conv": GraphCompiler._conv,
    "MatMulNBits": GraphCompiler._n_bits,
    "LinearClassifier": GraphCompiler._linear_classifier,
    "Scaler": GraphCompiler._scaler,
} | dict.fromkeys(MOVING, GraphCompiler._moving)


def supported(node: Node) -> bool:
    """Whether a node has a torch twin at all."""
    return (node.domain, node.op) in OPERATORS or (node.op in _SPECIAL and node.domain in ("", ML, MICROSOFT))


def _real_along(stored: Tensor, scale: Tensor, axis: int) -> Tensor:
    return real(stored, scale, axis)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Only the first output is computed (Dropout's mask, BatchNormalization's statistics are never read)."""
    return lambda *arguments: (function(*arguments),)


def _standardize(x: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    return (x - offset) * scale


def _quantize_constant(x: Any, step: float | Tensor, low: Any, high: Any, axis: int) -> Tensor:
    if isinstance(step, float) and isinstance(low, float):
        return quantize(x, step, low, high, False)
    return quantize_along(x, torch.as_tensor(step), low, high, axis, False)
