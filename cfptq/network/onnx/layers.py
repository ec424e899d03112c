"""Names, weights and biases of the linear layers and convolutions in an ONNX graph."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from cfptq.network.onnx.values import Node, Value, conversion_error, dequantize


def require_tensor(value: Value, node: Node) -> Tensor:
    """Return the tensor that a constant holds.

    Args:
        value: an input of ``node``.
        node: the node, which an error names.

    Raises:
        ModelError: the value is computed while the graph runs.
    """
    if not isinstance(value.constant, Tensor):
        raise conversion_error(node, "its scale, zero point or weight is not an initializer")
    return value.constant


def transpose_weight(weight: Value) -> Value:
    """Transpose a two-dimensional constant."""
    assert isinstance(weight.constant, Tensor)
    return replace(weight, constant=weight.constant.t(), axis=1 - weight.axis % 2)


def is_integer_product(x: Value, weight: Value) -> bool:
    """Return whether a product can be computed exactly on integers.

    The input has one scale. The weight has one scale for all outputs, or one for each.
    """
    if not isinstance(x.scale, float) or weight.scale is None or not isinstance(weight.constant, Tensor):
        return False
    return isinstance(weight.scale, float) or weight.axis % weight.constant.dim() == 0


def is_output_bias(bias: Tensor, outputs: int) -> bool:
    """Return whether a constant holds one number, or one for each output in its last dimension."""
    return bias.numel() == 1 or (bias.numel() == outputs and bias.shape[-1] == outputs)


def convert_bias(node: Node, bias: Value | None, scale: Tensor, outputs: int, is_requantized: bool) -> tuple[Tensor | None, Tensor | None]:
    """Convert a bias to integers of the accumulator, or to real numbers to add afterwards.

    Where the result is quantized again, ONNX Runtime rounds a float bias to the accumulator's scale, and so does this function.

    Args:
        node: the node that adds the bias, which an error names.
        bias: the bias, or None.
        scale: the accumulator's scale, one number or one for each output.
        outputs: number of outputs.
        is_requantized: the product is quantized again.

    Returns:
        Integers to add to the accumulator, and real numbers to add after it. At least one of them is None.
    """
    if bias is None:
        return None, None
    stored = require_tensor(bias, node)
    if not is_output_bias(stored, outputs):
        return None, stored if bias.scale is None else dequantize(stored, bias.scale, bias.axis)
    if bias.scale is not None:
        own = torch.as_tensor(bias.scale, dtype=torch.float32)
        if stored.numel() == outputs and torch.allclose(own.expand_as(scale) if own.dim() == 0 else own, scale, rtol=1e-5, atol=0):
            return stored.flatten(), None
        stored = dequantize(stored, bias.scale, bias.axis)
    stored = stored.flatten().expand(outputs)
    return (torch.round(stored / scale), None) if is_requantized else (None, stored)


def make_identifier(name: str) -> str:
    """Turn a name into a dotted path of identifiers, which is empty where no valid character is left."""
    return ".".join(part for part in re.sub(r"[^A-Za-z0-9_.]+", "_", name).split(".") if part)


def infer_layer_name(weight: Value, bias: Value | None, node: Node) -> str:
    """Infer a layer's module path before export from the names of its initializers, or else from its node."""
    for origin, ending in ((weight.origin, "weight"), (bias.origin if bias else "", "bias")):
        stem = re.sub(r"_(quantized|int8|q)$", "", origin)
        if stem.endswith(f".{ending}"):
            return make_identifier(stem.removesuffix(f".{ending}"))
    return make_identifier(weight.origin) or make_identifier(node.name) or node.op.lower()
