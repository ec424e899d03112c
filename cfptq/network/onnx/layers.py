"""Linear layers and convolutions of an ONNX graph: their names, their weights, their biases."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from cfptq.errors import ModelError
from cfptq.network.onnx.values import Node, Value, real


def tensor_of(value: Value) -> Tensor:
    """The tensor that a constant holds.

    Raises:
        ModelError: it is computed while the graph runs.
    """
    if not isinstance(value.constant, Tensor):
        raise ModelError("a scale, zero point or packed weight that is computed has no torch twin")
    return value.constant


def turned(weight: Value) -> Value:
    """A two-dimensional constant transposed."""
    assert isinstance(weight.constant, Tensor)
    return replace(weight, constant=weight.constant.t(), axis=1 - weight.axis % 2)


def exact(x: Value, weight: Value) -> bool:
    """Whether the product can be computed on integers: one scale for the input, one for all outputs or one for each."""
    if not isinstance(x.scale, float) or weight.scale is None or not isinstance(weight.constant, Tensor):
        return False
    return isinstance(weight.scale, float) or weight.axis % weight.constant.dim() == 0


def per_output(bias: Tensor, outputs: int) -> bool:
    """Whether a constant that is added to a product is a bias: one number, or one for each output in the last dimension."""
    return bias.numel() == 1 or (bias.numel() == outputs and bias.shape[-1] == outputs)


def integer_bias(bias: Value | None, scale: Tensor, outputs: int, requantized: bool) -> tuple[Tensor | None, Tensor | None]:
    """The bias as integers of the accumulator, or as the real numbers to add afterwards.

    Where the result is quantized again, ONNX Runtime rounds a float bias to the accumulator's scale, and so does the twin.
    """
    if bias is None:
        return None, None
    stored = tensor_of(bias)
    if not per_output(stored, outputs):
        return None, stored if bias.scale is None else real(stored, bias.scale, bias.axis)
    if bias.scale is not None:
        own = torch.as_tensor(bias.scale, dtype=torch.float32)
        if stored.numel() == outputs and torch.allclose(own.expand_as(scale) if own.dim() == 0 else own, scale, rtol=1e-5, atol=0):
            return stored.flatten(), None
        stored = real(stored, bias.scale, bias.axis)
    stored = stored.flatten().expand(outputs)
    return (torch.round(stored / scale), None) if requantized else (None, stored)


def identifier(name: str) -> str:
    """A name as a dotted path of identifiers; empty where nothing is left of it."""
    return ".".join(part for part in re.sub(r"[^A-Za-z0-9_.]+", "_", name).split(".") if part)


def layer_name(weight: Value, bias: Value | None, node: Node) -> str:
    """The module path a layer had before export, as far as the names of its initializers still tell."""
    for origin, ending in ((weight.origin, "weight"), (bias.origin if bias else "", "bias")):
        stem = re.sub(r"_(quantized|int8|q)$", "", origin)
        if stem.endswith(f".{ending}"):
            return identifier(stem.removesuffix(f".{ending}"))
    return identifier(weight.origin) or identifier(node.name) or node.op.lower()
