"""ONNX operators in torch, one function each, which follow the ONNX specification and take ``(node, *inputs)``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.image_operators import IMAGE_OPERATORS
from cfptq.network.onnx.indexing_operators import INDEXING_OPERATORS
from cfptq.network.onnx.shape_operators import SHAPE_OPERATORS
from cfptq.network.onnx.table_operators import TABLE_OPERATORS
from cfptq.network.onnx.values import MICROSOFT, ML, Node, Operator, as_tensor, conversion_error, resolve_axes

#: Every float type is computed in float32. The file's own run shows whether that is enough.
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
CASTS = dict.fromkeys(FLOATS, torch.float32) | {TensorProto.BOOL: torch.bool}
#: Side that gets the odd element of automatic padding (0 is after, 1 is before).
AUTO_PAD = {"SAME_UPPER": 0, "SAME_LOWER": 1}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, x: function(x)


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    """Return the ONNX operator of a Python operator, which works on tensors, shapes and numbers."""

    def operator(node: Node, a: Any, b: Any) -> Any:
        if isinstance(b, float):
            return function(as_tensor(a), b)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return np.asarray(function(a, b))
        return function(as_tensor(a, b if isinstance(b, Tensor) else None), as_tensor(b, a if isinstance(a, Tensor) else None))

    return operator


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    return a // b


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(node: Node, *inputs: Tensor) -> Tensor:
        result = inputs[0]
        for other in inputs[1:]:
            result = function(result, other)
        return result

    return operator


def _mean(node: Node, *inputs: Tensor) -> Tensor:
    total: Tensor = _variadic(torch.add)(node, *inputs)
    return total / len(inputs)


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh" if node.get("approximate") == "tanh" else "none")


def _fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, border = node.get("bias", 0.0), node.get("lambd", 0.5)
    return torch.where(x < -border, x + bias, torch.where(x > border, x - bias, torch.zeros_like(x)))


def _modulo(node: Node, a: Any, b: Any) -> Tensor:
    return torch.fmod(as_tensor(a), as_tensor(b)) if node.get("fmod", 0) else torch.remainder(as_tensor(a), as_tensor(b))


def _shift_bits(node: Node, a: Any, b: Any) -> Tensor:
    values, places = as_tensor(a), as_tensor(b)
    return values << places if node.get("direction") == "LEFT" else values >> places


def _is_infinite(node: Node, x: Tensor) -> Tensor:
    never = torch.zeros_like(x, dtype=torch.bool)
    high = torch.isposinf(x) if node.get("detect_positive", 1) else never
    return high | torch.isneginf(x) if node.get("detect_negative", 1) else high


def _hardmax(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1 if node.opset >= 13 else 1)
    if node.opset < 13:
        return _hardmax_last(x.flatten(axis % x.dim())).reshape(x.shape)
    return _hardmax_last(x.movedim(axis, -1)).movedim(-1, axis)


def _hardmax_last(x: Tensor) -> Tensor:
    return (torch.arange(x.shape[-1], device=x.device) == x.argmax(-1, keepdim=True)).to(x.dtype)


def _einsum(node: Node, *inputs: Any) -> Tensor:
    return torch.einsum(node.get("equation").replace(" ", ""), *map(as_tensor, inputs))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813232421875)
    return torch.mul(F.elu(x, alpha), gamma)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


def _cast(node: Node, x: Any) -> Any:
    to = node.get("to")
    if isinstance(x, np.ndarray):
        return as_tensor(x).to(CASTS[to]) if to in CASTS else x
    if to in CASTS:
        return x.to(CASTS[to])
    # Integers are held as int64 at most. The graph tells the types that quantization uses apart.
    return x.to(torch.int64) if x.is_floating_point() or x.dtype == torch.bool else x


def _where(node: Node, condition: Any, a: Any, b: Any) -> Tensor:
    return torch.where(as_tensor(condition).bool(), as_tensor(a), as_tensor(b))


# Normalization and softmax -------------------------------------------------------------------------------------------------


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def operator(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.get("axis", -1))
        axis = node.get("axis", 1) % x.dim()
        return function(x.flatten(axis), axis).reshape(x.shape)

    return operator


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.get("training_mode", 0):
        raise conversion_error(node, "it is in training mode and uses the statistics of the batch. Export the model in evaluation mode")
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=node.get("epsilon", 1e-5))


def _dropout(node: Node, x: Tensor, ratio: Any = None, is_training: Any = None) -> Tensor:
    if is_training is not None and bool(is_training):
        raise conversion_error(node, "it is in training mode and draws random numbers. Export the model in evaluation mode")
    return x


def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    mean = x.square().mean(tuple(range(axis, x.dim())), keepdim=True)
    return x * torch.rsqrt(mean + node.get("epsilon", 1e-5)) * scale


def _lp_normalization(node: Node, x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, node.get("p", 2), dim=node.get("axis", -1), keepdim=True)
    return torch.where(length == 0, torch.zeros_like(x), x / length)


def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = tuple(node.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.dim()
    return F.layer_norm(x, x.shape[axis:], scale, bias, node.get("epsilon", 1e-5))


# Reductions ----------------------------------------------------------------------------------------------------------------


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    def operator(node: Node, x: Any, axes: Any = None) -> Any:
        chosen = resolve_axes(node, axes)
        if not chosen and node.get("noop_with_empty_axes", 0):
            return x
        if isinstance(x, np.ndarray):
            return np.asarray(np.prod(x), dtype=object).reshape([1] * bool(node.get("keepdims", 1)))
        return function(x, tuple(chosen or range(x.dim())), bool(node.get("keepdims", 1)))

    return operator


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


# Products, convolution, pooling --------------------------------------------------------------------------------------------


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.t() if node.get("transA", 0) else a) @ (b.t() if node.get("transB", 0) else b)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _window(node: Node, x: Tensor, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, dilation, padding before and padding after, for each spatial axis."""
    n = len(kernel)
    stride, dilation = tuple(node.get("strides") or [1] * n), tuple(node.get("dilations") or [1] * n)
    automatic = node.get("auto_pad", "NOTSET")
    if automatic in AUTO_PAD:
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        spatial = zip(x.shape[2:], stride, extent, strict=True)
        total = [max((math.ceil(size / s) - 1) * s + r - size, 0) for size, s, r in spatial]
        before = tuple((t + AUTO_PAD[automatic]) // 2 for t in total)
        return stride, dilation, before, tuple(t - b for t, b in zip(total, before, strict=True))
    pads = node.get("pads") or [0] * (2 * n)
    return stride, dilation, tuple(pads[:n]), tuple(pads[n:])


def _pad(x: Tensor, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Tensor:
    """Pad the last axes of ``x`` with ``value``."""
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, flat, value=value)


def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ONNX ``Conv`` in one to three spatial dimensions.

    Args:
        node: the node, whose attributes hold strides, padding, dilations and groups.
        x: ``(N, in, *spatial)``.
        weight: ``(out, in / group, *kernel)``.
        bias: ``(out,)``, or None.
    """
    stride, dilation, before, after = _window(node, x, tuple(weight.shape[2:]))
    if before != after:
        x, before = _pad(x, before, after, 0.0), (0,) * len(before)
    function = (F.conv1d, F.conv2d, F.conv3d)[len(stride) - 1]
    return function(x, weight, bias, stride, before, dilation, node.get("group", 1))


def _convolve_integers(node: Node, x: Tensor, weight: Tensor, zero: Any = None, weight_zero: Any = None) -> Tensor:
    """Convolve integers less their zero points. Float64 holds every sum exactly."""
    least, step = (0 if it is None else as_tensor(it).to(torch.float64) for it in (zero, weight_zero))
    steps = step.reshape(-1, *[1] * (weight.dim() - 1)) if isinstance(step, Tensor) else step
    return convolve(node, x.to(torch.float64) - least, weight.to(torch.float64) - steps).to(torch.int32)


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = tuple(node.get("kernel_shape"))
    stride, dilation, before, after = _window(node, x, kernel)
    if before != after or any(2 * pad > k for pad, k in zip(before, kernel, strict=True)):
        x, before = _pad(x, before, after, -math.inf), (0,) * len(kernel)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return function(x, kernel, stride, before, dilation, bool(node.get("ceil_mode", 0)))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = tuple(node.get("kernel_shape"))
    stride, dilation, before, after = _window(node, x, kernel)
    if max(dilation) > 1:
        return _average_dilated(node, x, kernel)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    ceil = bool(node.get("ceil_mode", 0))
    if before == after:
        return function(x, kernel, stride, before, ceil, bool(node.get("count_include_pad", 0)))  # type: ignore[no-any-return]
    total = function(_pad(x, before, after, 0.0), kernel, stride, 0, ceil)
    if node.get("count_include_pad", 0):
        return total  # type: ignore[no-any-return]
    return total / function(_pad(torch.ones_like(x[:1, :1]), before, after, 0.0), kernel, stride, 0, ceil)  # type: ignore[no-any-return]


def _average_dilated(node: Node, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Average over windows with gaps, as sums of strided slices."""
    stride, dilation, before, after = _window(node, x, kernel)
    if node.get("ceil_mode", 0):
        raise conversion_error(node, "it has both dilations and ceil_mode")

    def add_up(values: Tensor) -> Tensor:
        padded = _pad(values, before, after, 0.0)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        size = [(whole - reach) // s + 1 for whole, reach, s in zip(padded.shape[2:], extent, stride, strict=True)]
        total: Any = 0
        for place in itertools.product(*map(range, kernel)):
            starts = [at * d for at, d in zip(place, dilation, strict=True)]
            window = [slice(first, first + (n - 1) * s + 1, s) for first, n, s in zip(starts, size, stride, strict=True)]
            total = total + padded[(slice(None), slice(None), *window)]
        return total  # type: ignore[no-any-return]

    count = math.prod(kernel) if node.get("count_include_pad", 0) else add_up(torch.ones_like(x[:1, :1]))
    return add_up(x) / count


def _global_pool(function: Callable[..., Tensor]) -> Operator:
    return lambda node, x: function(x, tuple(range(2, x.dim())), True)


def _fused_matmul(node: Node, left: Tensor, right: Tensor) -> Tensor:
    if node.get("transBatchA", 0) or node.get("transBatchB", 0):
        raise conversion_error(node, "it transposes the batch axes")
    left, right = left.mT if node.get("transA", 0) else left, right.mT if node.get("transB", 0) else right
    product = left @ right
    return product if node.get("alpha", 1.0) == 1 else product * node.get("alpha")


def _skip_layer_norm(
    node: Node, x: Tensor, skipped: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    total = x + skipped if bias is None else x + skipped + bias
    return F.layer_norm(total, total.shape[-1:], scale, shift, node.get("epsilon", 1e-12))


def _global_lp_pool(node: Node, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, node.get("p", 2), tuple(range(2, x.dim())), keepdim=True)  # type: ignore[no-any-return]


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    """Compute the p-norm of each window. Its gradient is 0 where the window holds zeros alone."""
    kernel, p = tuple(node.get("kernel_shape")), node.get("p", 2)
    stride, dilation, before, after = _window(node, x, kernel)
    if max(dilation) > 1 or node.get("ceil_mode", 0):
        raise conversion_error(node, "it has dilations or ceil_mode")
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    total = function(_pad(x.abs() ** p, before, after, 0.0), kernel, stride) * math.prod(kernel)
    return torch.where(total > 0, torch.where(total > 0, total, 1.0) ** (1 / p), 0.0)


_PLAIN: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(lambda a, b: a + b),
    "And": _binary(lambda a, b: a & b),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CastLike": lambda node, x, like: as_tensor(x).to(as_tensor(like).dtype),
    "BitShift": _shift_bits,
    "BitwiseAnd": _binary(lambda a, b: a & b),
    "BitwiseOr": _binary(lambda a, b: a | b),
    "BitwiseXor": _binary(lambda a, b: a ^ b),
    "Ceil": _unary(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Conv": convolve,
    "ConvInteger": _convolve_integers,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": _binary(_divide),
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Elu": lambda node, x: F.elu(x, node.get("alpha", 1.0)),
    "Equal": _binary(lambda a, b: a == b),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_pool(torch.amax),
    "Greater": _binary(lambda a, b: a > b),
    "GreaterOrEqual": _binary(lambda a, b: a >= b),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Hardmax": _hardmax,
    "Identity": lambda node, x: x,
    "IsInf": _is_infinite,
    "IsNaN": _unary(torch.isnan),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "Less": _binary(lambda a, b: a < b),
    "LessOrEqual": _binary(lambda a, b: a <= b),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_normalization,
    "LpPool": _lp_pool,
    "MatMul": lambda node, a, b: a @ b,
    "Max": _variadic(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": _mean,
    "MeanVarianceNormalization": _mean_variance,
    "Min": _variadic(torch.minimum),
    "Mish": _unary(F.mish),
    "Mod": _modulo,
    "Mul": _binary(lambda a, b: a * b),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(lambda a, b: a | b),
    "PRelu": _prelu,
    "Pow": _binary(lambda a, b: a**b),
    "RMSNormalization": _rms_norm,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Softmax": _softmax(torch.softmax),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(lambda a, b: a - b),
    "Sum": _variadic(torch.add),
    "Swish": lambda node, x: x * torch.sigmoid(node.get("alpha", 1.0) * x),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _binary(lambda a, b: a ^ b),
}

#: Operators by (domain, type).
OPERATORS: dict[tuple[str, str], Operator] = {
    **{("", op): function for op, function in (_PLAIN | SHAPE_OPERATORS | INDEXING_OPERATORS | IMAGE_OPERATORS).items()},
    **{(ML, op): function for op, function in TABLE_OPERATORS.items()},
    (MICROSOFT, "Gelu"): _gelu,
    (MICROSOFT, "FastGelu"): _fast_gelu,
    (MICROSOFT, "QuickGelu"): lambda node, x: x * torch.sigmoid(node.get("alpha", 1.702) * x),
    (MICROSOFT, "BiasGelu"): lambda node, x, bias: F.gelu(x + bias),
    (MICROSOFT, "FusedMatMul"): _fused_matmul,
    (MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
}


def bind_operator(node: Node) -> Callable[..., Any]:
    """Return the torch function of a node, which takes the node's inputs."""
    return partial(OPERATORS[node.domain, node.op], node)
