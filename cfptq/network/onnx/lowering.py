"""Lowering of ONNX nodes that need more than one function, such as quantization and layers.

Quantized tensors are carried as exact integers, and a product is computed on integers where its input and weight are quantized.
Each ``lower_*`` function adds steps to a builder and returns the node's output. It returns None where the plain operator of
``cfptq.network.onnx.operators`` serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.integer_formats import (
    RANGES,
    dequantize_blocks,
    quantize,
    quantize_along,
    subtract_zero_point,
    to_number_or_vector,
    unpack_matmul_n_bits,
)
from cfptq.network.onnx.layers import make_identifier, require_tensor
from cfptq.network.onnx.operators import bind_operator
from cfptq.network.onnx.products import lower_conv, lower_einsum, lower_gemm, lower_matmul, lower_product
from cfptq.network.onnx.recurrent_operators import lower_recurrent
from cfptq.network.onnx.steps import StepBuilder
from cfptq.network.onnx.values import Grid, Node, Value, conversion_error

#: Operators that only move elements, so that one scale for the whole tensor passes through them.
MOVING = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Slice", "Gather", "MaxPool"})


def lower_quantize(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value:
    """Lower QuantizeLinear, and return its integers minus the zero point."""
    x, scale, zero = (*inputs, None, None)[:3]
    if x is None or scale is None or not isinstance(scale.constant, Tensor) or node.get("block_size", 0):
        raise conversion_error(node, "its scale is not an initializer, or there is one for each block")
    element = zero.element if zero is not None else node.get("output_dtype", 0) or TensorProto.UINT8
    if element not in RANGES:
        raise conversion_error(node, f"it writes the ONNX type {element}")
    step, zero_point = to_number_or_vector(scale.constant), 0.0 if zero is None else to_number_or_vector(require_tensor(zero, node))
    low, high = RANGES[element][0] - zero_point, RANGES[element][1] - zero_point
    axis = node.get("axis", 1)
    grid = Grid(zero_point, RANGES[element][0], RANGES[element][1])
    if isinstance(x.constant, Tensor):
        return Value(constant=_quantize_constant(builder.apply_scale(x).constant, step, low, high, axis), origin=x.origin, grid=grid)
    if x.bounds == (low, high) and x.scale == step:
        return replace(x, scale=None, grid=grid)
    # ONNX Runtime's kernels multiply an accumulator by (input scale x weight scale / output scale). Where a Relu prevents fusion, or
    # the output's scales differ along the axis, they compute the real value first.
    if x.scale is None or isinstance(step, Tensor) or isinstance(low, Tensor) or not x.accumulated or (x.rectified and low != 0):
        x = builder.apply_scale(x)
    if isinstance(step, Tensor) or isinstance(low, Tensor) or isinstance(high, Tensor):
        steps = torch.as_tensor(step).expand(low.shape) if isinstance(low, Tensor) else torch.as_tensor(step)
        arguments = [x.slot, builder.register_tensor("scales.scale", steps)]
        arguments += [builder.register_tensor("scales.bound", b) if isinstance(b, Tensor) else builder.add_literal(b) for b in (low, high)]
        return Value(builder.emit(partial(quantize_along, axis=axis, multiply=False), arguments), grid=grid)
    if x.scale is None:
        return Value(builder.emit(partial(quantize, scale=step, low=low, high=high, multiply=False), (x.slot,)), grid=grid)
    factor = torch.as_tensor(x.scale, dtype=torch.float32) / torch.as_tensor(step, dtype=torch.float32)
    if factor.dim() == 0:
        return Value(builder.emit(partial(quantize, scale=float(factor), low=low, high=high, multiply=True), (x.slot,)), grid=grid)
    arguments = [x.slot, builder.register_tensor("scales.scale", factor), builder.add_literal(low), builder.add_literal(high)]
    return Value(builder.emit(partial(quantize_along, axis=x.axis, multiply=True), arguments), grid=grid)


def lower_dequantize(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value:
    """Lower DequantizeLinear, and keep its scale pending for as long as possible."""
    x, scale, zero = (*inputs, None, None)[:3]
    if x is None or scale is None or not isinstance(scale.constant, Tensor) or (zero is not None and zero.constant is None):
        raise conversion_error(node, "its scale or zero point is not an initializer")
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if block and isinstance(x.constant, Tensor) and x.grid is None:
        floats = dequantize_blocks(x.constant, scale.constant, None if zero is None else require_tensor(zero, node), axis, block)
        return Value(constant=floats, origin=x.origin)
    step, zero_point = to_number_or_vector(scale.constant), 0.0 if zero is None else to_number_or_vector(require_tensor(zero, node))
    if x.grid is not None:
        is_same = type(zero_point) is type(x.grid.zero) and bool(torch.equal(torch.as_tensor(zero_point), torch.as_tensor(x.grid.zero)))
        if not is_same:
            raise conversion_error(node, "its zero point differs from that of its QuantizeLinear")
        bounds = None if isinstance(x.grid.zero, Tensor) else (x.grid.low - x.grid.zero, x.grid.high - x.grid.zero)
        return replace(x, grid=None, scale=step, axis=axis, bounds=bounds)
    if not isinstance(x.constant, Tensor):
        raise conversion_error(node, "its input is neither an initializer nor the output of a QuantizeLinear")
    return Value(constant=subtract_zero_point(x.constant, zero_point, axis), origin=x.origin, scale=step, axis=axis)


def lower_moving(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower an operator that only moves elements, through which one scale or grid for the whole tensor passes."""
    x = inputs[0]
    if x is None or x.constant is not None or len(node.outputs) != 1 or (x.scale is None and x.grid is None):
        return None
    if isinstance(x.scale, Tensor) or (x.grid is not None and isinstance(x.grid.zero, Tensor)):
        return None
    return replace(x, slot=builder.emit(bind_operator(node), [x.slot, *(builder.resolve_argument(v) for v in inputs[1:])]))


def lower_relu(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower a Relu of scaled integers without dequantizing them."""
    x = inputs[0]
    if x is None or x.scale is None:
        return None
    return replace(x, slot=builder.emit(torch.relu, (x.slot,)), rectified=True)


def lower_matmul_n_bits(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value | None:
    """Lower MatMulNBits with its weight unpacked to float32."""
    x, packed, scales, zero, order, bias = (*inputs, None, None, None)[:6]
    if x is None or packed is None or scales is None or order is not None:
        raise conversion_error(node, "its columns are reordered")
    weight = unpack_matmul_n_bits(
        node, require_tensor(packed, node), require_tensor(scales, node), None if zero is None else require_tensor(zero, node)
    )
    return lower_product(builder, node, F.linear, x, Value(constant=weight, origin=packed.origin), bias, -1)


def lower_linear_classifier(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value:
    """Lower LinearClassifier to a linear layer and its output function."""
    (x,) = inputs
    labels = node.get("classlabels_ints") or node.get("classlabels_strings") or []
    after = {"NONE": None, "LOGISTIC": torch.sigmoid, "SOFTMAX": partial(torch.softmax, dim=1)}
    transform = node.get("post_transform", "NONE")
    intercepts = torch.tensor(node.get("intercepts") or [0.0] * len(labels))
    coefficients = torch.tensor(node.get("coefficients"))
    if x is None or transform not in after or len(intercepts) != len(labels) or not len(labels) or len(node.outputs) != 2:
        raise conversion_error(node, f"it has {len(intercepts)} rows for {len(labels)} classes, and post_transform {transform}")
    name = make_identifier(node.name) or "LinearClassifier"
    weight = Value(constant=coefficients.reshape(len(intercepts), -1), origin=f"{name}.weight")
    scores = builder.apply_scale(lower_product(builder, node, F.linear, x, weight, Value(constant=intercepts), -1))
    function = after[transform]
    return scores if function is None else Value(builder.emit(function, (scores.slot,)))


def lower_linear_regressor(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value:
    """Lower LinearRegressor to a linear layer."""
    (x,) = inputs
    outputs, intercepts = node.get("targets", 1), node.get("intercepts")
    if x is None or node.get("post_transform", "NONE") != "NONE" or (intercepts and len(intercepts) != outputs):
        raise conversion_error(node, f"its post_transform is {node.get('post_transform')}, or its intercepts are not one a target")
    name = make_identifier(node.name) or "LinearRegressor"
    weight = Value(constant=torch.tensor(node.get("coefficients"), dtype=torch.float32).reshape(outputs, -1), origin=f"{name}.weight")
    bias = Value(constant=torch.tensor(intercepts, dtype=torch.float32)) if intercepts else None
    return lower_product(builder, node, F.linear, x, weight, bias, -1)


def lower_scaler(builder: StepBuilder, node: Node, inputs: list[Value | None]) -> Value:
    """Lower Scaler, which subtracts an offset and multiplies by a scale."""
    (x,) = inputs
    assert x is not None
    offset, scale = (builder.register_tensor(f"constants.{key}", torch.tensor(node.get(key))) for key in ("offset", "scale"))
    return Value(builder.emit(_standardize, (builder.apply_scale(x).slot, offset, scale)))


def _standardize(x: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    return (x - offset) * scale


def _quantize_constant(x: Any, step: float | Tensor, low: Any, high: Any, axis: int) -> Tensor:
    if isinstance(step, float) and isinstance(low, float):
        return quantize(x, step, low, high, False)
    return quantize_along(x, torch.as_tensor(step), low, high, axis, False)


#: Adds a node's steps and returns its output, or None where the plain operator serves.
Lowering = Callable[[StepBuilder, Node, list[Value | None]], Value | None]

#: Lowerings by operator type, of ONNX's own domain and of ``ai.onnx.ml`` and ``com.microsoft``.
LOWERINGS: Mapping[str, Lowering] = {
    "QuantizeLinear": lower_quantize,
    "DequantizeLinear": lower_dequantize,
    "Relu": lower_relu,
    "MatMul": lower_matmul,
    "Gemm": lower_gemm,
    "Conv": lower_conv,
    "Einsum": lower_einsum,
    "MatMulNBits": lower_matmul_n_bits,
    "LinearClassifier": lower_linear_classifier,
    "LinearRegressor": lower_linear_regressor,
    "Scaler": lower_scaler,
    "RNN": lower_recurrent,
    "GRU": lower_recurrent,
    "LSTM": lower_recurrent,
} | dict.fromkeys(MOVING, lower_moving)
