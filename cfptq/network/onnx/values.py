"""ONNX nodes, and the values that flow between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.errors import ModelError

#: Domains of scikit-learn's operators and of ONNX Runtime's own.
ML = "ai.onnx.ml"
MICROSOFT = "com.microsoft"

#: Integers that describe a shape. They hold ``SymInt`` while torch.export traces, so that a dynamic batch stays dynamic.
Host = np.ndarray[Any, Any]
#: ``operator(node, *inputs)``, where inputs are tensors or shapes, and ``None`` where an optional one is left out.
Operator = Callable[..., Any]


@dataclass(frozen=True)
class Node:
    """One ONNX node.

    Attributes:
        op: operator type.
        domain: the operator's domain; "" is ONNX's own.
        opset: opset version of that domain.
        name: the node's name, which may be empty.
        inputs: names of the inputs; "" where an optional one is left out.
        outputs: names of the outputs.
        attributes: attributes by name.
    """

    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where the node has none of that name."""
        return self.attributes.get(attribute, default)


def conversion_error(node: Node, reason: str) -> ModelError:
    """Return the error for a node that has no equivalent in torch.

    Args:
        node: the node that cannot be converted.
        reason: a clause about the node, without a full stop.
    """
    name = node.name or next(filter(None, node.outputs), "")
    return ModelError(f"Cannot convert node {name!r} ({node.op}) to PyTorch: {reason}.")


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """Return ``value`` as a tensor, on the device of ``like``."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value.tolist(), device=None if like is None else like.device)


def as_ints(value: Any) -> list[Any]:
    """Return a shape, axes or indices as a list of integers."""
    listed = value if isinstance(value, list | tuple) else value.tolist()
    return list(listed) if isinstance(listed, list | tuple) else [listed]


def resolve_axes(node: Node, given: Any) -> list[int] | None:
    """Return the axes that a node works on, or ``None`` for all.

    Newer opsets give them as an input, and older ones as an attribute.
    """
    axes = given if given is not None else node.get("axes")
    return None if axes is None else [int(axis) for axis in as_ints(axes)]


@dataclass(frozen=True)
class Grid:
    """The integer range of a quantized tensor, whose integers are stored minus their zero point.

    Attributes:
        zero: the zero point.
        low: lowest integer of the type.
        high: highest integer of the type.
    """

    zero: float | Tensor
    low: float
    high: float


@dataclass(frozen=True)
class Value:
    """Facts about a tensor of the graph that are known before it runs.

    A quantized tensor is carried as integers and a scale for as long as that is exact. Products of integers below 2^24 are exact in
    float32, so that the next rounding equals that of ONNX Runtime's integer kernels.

    Attributes:
        slot: the tensor's slot while the graph runs; -1 for a constant that no step has needed yet.
        constant: the stored value where it depends on initializers only.
        origin: the initializer that a constant came from, which names layers.
        element: ONNX element type of stored integers (INT4 is held in int8).
        scale: real value = stored value x scale, as one number or a 1-D tensor along ``axis``. ``None`` means the stored value is real.
        axis: the axis of a 1-D ``scale``.
        grid: set between QuantizeLinear and DequantizeLinear.
        accumulated: the tensor is the integer accumulator of a product.
        rectified: a Relu followed that product.
        bounds: the range that the integers were clamped to and still lie in.
    """

    slot: int = -1
    constant: Tensor | Host | None = None
    origin: str = ""
    element: int = 0
    scale: float | Tensor | None = None
    axis: int = 0
    grid: Grid | None = None
    accumulated: bool = False
    rectified: bool = False
    bounds: tuple[float, float] | None = None


def broadcast_along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """Reshape a 1-D ``vector`` to broadcast along ``axis`` of a tensor of ``rank`` dimensions."""
    after = rank - 1 - axis % rank
    return vector.reshape(-1, *[1] * after) if after else vector


def dequantize(stored: Tensor, scale: float | Tensor, axis: int = 0) -> Tensor:
    """Return ``stored`` integers times their scale."""
    return stored * (broadcast_along(scale, axis, stored.dim()) if isinstance(scale, Tensor) else scale)
