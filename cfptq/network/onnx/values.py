"""One ONNX node, and the two kinds of value that flow between nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Integers that describe a shape; they hold ``SymInt`` while torch.export traces, so that a dynamic batch stays dynamic.
Host = np.ndarray[Any, Any]
#: ``operator(node, *inputs)``: inputs are tensors or shapes, ``None`` where an optional one is left out.
Operator = Callable[..., Any]


@dataclass(frozen=True)
class Node:
    """One ONNX node: operator type, domain ("" is ONNX's own), opset of that domain, names and attributes."""

    op: str
    domain: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where the node has none of that name."""
        return self.attributes.get(attribute, default)


def tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """``value`` as a tensor, on the device of ``like``."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value.tolist(), device=None if like is None else like.device)


def ints(value: Any) -> list[Any]:
    """A shape, axes or indices as a list of integers."""
    listed = value if isinstance(value, list | tuple) else value.tolist()
    return list(listed) if isinstance(listed, list | tuple) else [listed]


def axes_of(node: Node, given: Any) -> list[int] | None:
    """The axes a node works on: an input in newer opsets, an attribute in older ones, ``None`` for all."""
    axes = given if given is not None else node.get("axes")
    return None if axes is None else [int(axis) for axis in ints(axes)]


@dataclass(frozen=True)
class Grid:
    """The integers of a quantized tensor, held minus their zero point."""

    zero: float | Tensor
    low: float
    high: float


@dataclass(frozen=True)
class Value:
    """What is known of a tensor of the graph before it runs.

    Quantized tensors are carried as integers times a scale for as long as that is exact: products of integers have no
    rounding in float32 below 2^24, so the next rounding falls as it does in ONNX Runtime's integer kernels.

    Attributes:
        slot: where it lies while the graph runs; -1 for a constant that no step has needed yet.
        constant: its stored value where it depends on initializers only.
        origin: the initializer that a constant came from; names layers.
        element: ONNX element type of stored integers (INT4 lies in int8).
        scale: real value = stored value x scale; one number, or a 1-D tensor along ``axis``. ``None``: stored is real.
        grid: set between QuantizeLinear and DequantizeLinear.
        accumulated: it is the integer accumulator of a product.
        bounds: the range that its integers were clamped to, and all that follows leaves them in.
        rectified: a Relu came after that product.
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


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """A 1-D ``vector`` shaped to broadcast along ``axis`` of a tensor of ``rank`` dimensions."""
    after = rank - 1 - axis % rank
    return vector.reshape(-1, *[1] * after) if after else vector


def real(stored: Tensor, scale: float | Tensor, axis: int = 0) -> Tensor:
    """``stored`` integers times their scale."""
    return stored * (along(scale, axis, stored.dim()) if isinstance(scale, Tensor) else scale)
