"""Lowering of products with a constant weight to linear layers and convolutions, in whatever form the graph writes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.integer_formats import to_number_or_vector
from cfptq.network.onnx.layers import convert_bias, infer_layer_name, is_integer_product, is_output_bias, require_tensor, transpose_weight
from cfptq.network.onnx.operators import convolve
from cfptq.network.onnx.steps import ABSENT, StepBuilder
from cfptq.network.onnx.values import Node, Value


def lower_matmul(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower a MatMul with a constant matrix on either side, and the Add of a bias behind a matrix on the right."""
    x, weight = inputs
    if x is not None and weight is not None and _is_matrix(x) and weight.constant is None:
        return _transpose(builder, lower_product(builder, node, F.linear, _transpose(builder, weight), x, None, -1))
    if x is None or weight is None or x.constant is not None or not _is_matrix(weight):
        return None
    weight = transpose_weight(weight)
    bias, out = None, require_tensor(weight, node).shape[0]
    adding = builder.readers.get(node.outputs[0])
    if adding is not None and adding.op == "Add" and builder.uses[node.outputs[0]] == 1:
        other = builder.values.get(next((n for n in adding.inputs if n != node.outputs[0]), ""))
        if other is not None and isinstance(other.constant, Tensor) and is_output_bias(other.constant, out):
            bias = builder.apply_scale(other)
            builder.done.add(adding.outputs[0])
            builder.fused.add(node.outputs[0])
    result = lower_product(builder, adding if bias is not None and adding is not None else node, F.linear, x, weight, bias, -1)
    if bias is not None and adding is not None:
        builder.values[adding.outputs[0]] = result
    return result


def lower_gemm(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower a Gemm with a constant matrix on either side. Factors are multiplied into weight and bias."""
    left, right, bias = (*inputs, None)[:3]
    if left is None or right is None:
        return None
    is_left = _is_matrix(left) and right.constant is None
    if not is_left and not (_is_matrix(right) and left.constant is None):
        return None
    weight, x = (left, right) if is_left else (right, left)
    has_rows_last, has_outputs_first = node.get("transB" if is_left else "transA", 0), node.get("transA" if is_left else "transB", 0)
    if is_left:  # y = W x is the transpose of x' W'.
        has_rows_last, has_outputs_first = not has_rows_last, not has_outputs_first
    weight = _multiply(weight if has_outputs_first else transpose_weight(weight), node.get("alpha", 1.0))
    x = _transpose(builder, x) if has_rows_last else x
    added = None if bias is None else _scale_bias(builder, bias, node.get("beta", 1.0))
    if is_left and added is not None and isinstance(added.constant, Tensor):
        floats = builder.apply_scale(added).constant
        assert isinstance(floats, Tensor)
        added = Value(constant=floats.t() if floats.dim() == 2 else floats.reshape(-1, 1), origin=added.origin)
    own = added if added is not None and isinstance(added.constant, Tensor) else None
    result = lower_product(builder, node, F.linear, x, weight, own, -1)
    result = _transpose(builder, result) if is_left else result
    if added is None or own is not None:
        return result
    return Value(builder.emit(torch.add, (builder.apply_scale(result).slot, added.slot)))


def lower_conv(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower a Conv with constant weight and bias."""
    x, weight, bias = (*inputs, None)[:3]
    if x is None or weight is None or not isinstance(weight.constant, Tensor) or (bias is not None and bias.constant is None):
        return None
    return lower_product(builder, node, partial(convolve, node), x, weight, bias, 1)


def lower_einsum(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower an Einsum of one tensor and one constant weight that is a linear layer after moving axes."""
    equation = str(node.get("equation")).replace(" ", "")
    if len(inputs) != 2 or any(value is None for value in inputs) or "->" not in equation or "." in equation:
        return None
    operands, result = equation.split("->")
    terms = operands.split(",")
    place = next((at for at, value in enumerate(inputs) if value is not None and isinstance(value.constant, Tensor)), None)
    if place is None or any(len(set(term)) != len(term) for term in (*terms, result)):
        return None
    weight, x = inputs[place], inputs[1 - place]
    assert weight is not None and x is not None
    stored, moving = terms[place], terms[1 - place]
    summed = [letter for letter in stored if letter in moving and letter not in result]
    outputs = [letter for letter in stored if letter not in moving and letter in result]
    kept = [letter for letter in moving if letter not in summed]
    if x.constant is not None or not summed or not outputs or len(summed) + len(outputs) != len(stored) or set(kept) - set(result):
        return None
    floats = builder.apply_scale(weight).constant
    assert isinstance(floats, Tensor)
    sizes = [floats.shape[stored.index(letter)] for letter in outputs]
    matrix = floats.permute([stored.index(letter) for letter in (*outputs, *summed)]).reshape(math.prod(sizes), -1)
    before = partial(_flatten_last, axes=[moving.index(letter) for letter in (*kept, *summed)], count=len(summed))
    flat = Value(builder.emit(before, (builder.apply_scale(x).slot,)))
    product = lower_product(builder, node, F.linear, flat, Value(constant=matrix, origin=weight.origin), None, -1)
    after = partial(_unflatten_last, sizes=sizes, axes=[(*kept, *outputs).index(letter) for letter in result])
    return Value(builder.emit(after, (product.slot,)))


def _is_matrix(value: Value) -> bool:
    return isinstance(value.constant, Tensor) and value.constant.dim() == 2


def _transpose(builder: StepBuilder, value: Value) -> Value:
    """Swap the last two axes of a tensor that is computed while the graph runs."""
    if value.grid is not None or isinstance(value.scale, Tensor) or value.accumulated:
        value = builder.apply_scale(value)
    return replace(value, slot=builder.emit(_swap_last, (value.slot,)))


def _swap_last(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)


def _multiply(weight: Value, factor: float) -> Value:
    """Multiply a constant weight by a number, in its scale where it is quantized."""
    if factor == 1 or not isinstance(weight.constant, Tensor):
        return weight
    if weight.scale is not None:
        return replace(weight, scale=weight.scale * factor)
    return replace(weight, constant=weight.constant * factor)


def _scale_bias(builder: StepBuilder, bias: Value, factor: float) -> Value:
    """Multiply a bias by a number."""
    if isinstance(bias.constant, Tensor):
        return _multiply(bias, factor)
    real = builder.apply_scale(bias)
    return real if factor == 1 else Value(builder.emit(partial(torch.mul, other=factor), (real.slot,)))


def _flatten_last(x: Tensor, axes: list[int], count: int) -> Tensor:
    moved = x.permute(axes)
    return moved if count == 1 else moved.flatten(-count)


def _unflatten_last(x: Tensor, sizes: list[int], axes: list[int]) -> Tensor:
    split = x if len(sizes) == 1 else x.reshape(*x.shape[:-1], *sizes)
    return split if axes == sorted(axes) else split.permute(axes)


def lower_product(
    builder: StepBuilder, node: Node, function: Callable[..., Tensor], x: Value, weight: Value, bias: Value | None, axis: int
) -> Value:
    """Lower a linear layer or convolution, exactly on integers where input and weight are quantized.

    Args:
        builder: the builder to add steps to.
        node: the node that names the layer.
        function: computes the product of input, weight and bias.
        x: the input.
        weight: the weight, with outputs first.
        bias: the bias, or None.
        axis: axis of the outputs in the result.
    """
    layer = infer_layer_name(weight, bias, node)
    assert isinstance(weight.constant, Tensor)
    outputs = weight.constant.shape[0]
    if is_integer_product(x, weight):
        scale = torch.as_tensor(x.scale, dtype=torch.float32) * torch.as_tensor(weight.scale, dtype=torch.float32)
        integers, floats_after = convert_bias(node, bias, scale, outputs, _is_requantized(builder, node))
        arguments = [x.slot, builder.register_tensor(f"{layer}.weight", weight.constant)]
        arguments.append(ABSENT if integers is None else builder.register_tensor(f"{layer}.bias", integers))
        result = Value(builder.emit(function, arguments), scale=to_number_or_vector(scale), axis=axis, accumulated=True)
        if floats_after is None:
            return result
        rank_one = floats_after if axis == -1 else floats_after.reshape(-1, *[1] * (weight.constant.dim() - 2))
        return Value(builder.emit(torch.add, (builder.apply_scale(result).slot, builder.register_tensor(f"{layer}.bias", rank_one))))
    floats = builder.apply_scale(weight).constant
    assert isinstance(floats, Tensor)
    matrix = builder.register_weight(weight.origin, layer, floats)
    bias_slot = ABSENT
    if bias is not None:
        offsets = builder.apply_scale(bias).constant
        assert isinstance(offsets, Tensor)
        if not is_output_bias(offsets, outputs):
            added = builder.emit(function, [builder.apply_scale(x).slot, matrix])
            return Value(builder.emit(torch.add, (added, builder.register_tensor(f"{layer}.bias", offsets))))
        bias_slot = builder.register_tensor(f"{layer}.bias", offsets.flatten().expand(outputs), is_parameter=True)
    return Value(builder.emit(function, [builder.apply_scale(x).slot, matrix, bias_slot]))


def _is_requantized(builder: StepBuilder, node: Node) -> bool:
    """Return whether only a QuantizeLinear reads a product, directly or after a Relu."""
    name = node.outputs[0]
    reader = builder.readers.get(name)
    if reader is not None and reader.op == "Relu" and builder.uses[name] == 1:
        name = reader.outputs[0]
        reader = builder.readers.get(name)
    return reader is not None and reader.op == "QuantizeLinear" and builder.uses[name] == 1
