"""ONNX operators that rearrange values, such as reshaping, slicing, joining and padding, and take ``(node, *inputs)``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.values import Host, Node, Operator, as_ints, as_tensor, resolve_axes


def _shape(node: Node, x: Tensor) -> Host:
    return np.array(list(x.shape)[node.get("start", 0) : node.get("end")], dtype=object)


def _reshape(node: Node, x: Any, shape: Any = None) -> Any:
    sizes = as_ints(shape if shape is not None else node.get("shape"))
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(tuple(sizes))


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.flatten(1) if axis == 1 and x.dim() > 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = resolve_axes(node, axes)
    if isinstance(x, np.ndarray):
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    chosen = resolve_axes(node, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = np.expand_dims(x, axis) if isinstance(x, np.ndarray) else x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm") or tuple(reversed(range(x.dim()))))


def _concat(node: Node, *parts: Any) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, axis=node.get("axis"))
    return torch.cat([as_tensor(part) for part in parts], dim=node.get("axis"))


def _split(node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    given = sizes if sizes is not None else node.get("split")
    if given is not None:
        return tuple(torch.split(x, as_ints(given), dim=axis))
    count = node.get("num_outputs") or len(node.outputs)
    return tuple(torch.split(x, math.ceil(x.shape[axis] / count), dim=axis))


def _slice(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first = as_ints(starts if starts is not None else node.get("starts"))
    last = as_ints(ends if ends is not None else node.get("ends"))
    where = resolve_axes(node, axes) or list(range(len(first)))
    strides = as_ints(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, where, strides, strict=True):
        axis = axis % x.ndim
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, end, step),)]
        else:
            chosen = range(*slice(start, None if end < -x.shape[axis] else end, step).indices(x.shape[axis]))
            x = x[(slice(None),) * axis + (list(chosen),)]
    return x


def _gather(node: Node, x: Any, indices: Any) -> Any:
    axis = node.get("axis", 0)
    if isinstance(x, np.ndarray):
        chosen = np.array(as_ints(indices)).reshape(indices.shape)
        return np.asarray(np.take(x, chosen, axis=axis), dtype=object)
    index = as_tensor(indices, x).long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    if index.dim() == 1:
        return x.index_select(axis, index)
    axis = axis % x.dim()
    picked = x.index_select(axis, index.flatten())
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _expand(node: Node, x: Any, shape: Any) -> Tensor:
    sizes = as_ints(shape)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return as_tensor(x).expand(*(mine if size == 1 else size for mine, size in zip(own[-len(sizes) :], sizes, strict=True)))


def _constant_of_shape(node: Node, shape: Any) -> Any:
    value = node.get("value")
    filling = torch.zeros(1) if value is None else value.flatten()
    return filling.expand(tuple(as_ints(shape))).clone()


def _tile(node: Node, x: Any, repeats: Any) -> Tensor:
    return as_tensor(x).repeat(*as_ints(repeats))


def _size(node: Node, x: Any) -> Host:
    return np.array(math.prod(x.shape), dtype=object)


def _trilu(node: Node, x: Tensor, diagonal: Any = None) -> Tensor:
    offset = int(as_ints(diagonal)[0]) if diagonal is not None else 0
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


def _range(node: Node, start: Any, limit: Any, step: Any) -> Any:
    return torch.arange(*(entry.item() for entry in (start, limit, step)))


def _pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    sizes = as_ints(pads if pads is not None else node.get("pads", node.get("paddings")))
    where = [axis % x.dim() for axis in as_ints(axes)] if axes is not None else list(range(x.dim()))
    flat = [0] * (2 * x.dim())
    for i, axis in enumerate(where):
        flat[2 * (x.dim() - 1 - axis)], flat[2 * (x.dim() - 1 - axis) + 1] = sizes[i], sizes[i + len(where)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[node.get("mode", "constant")]
    if mode == "constant" and isinstance(value, Tensor):
        return torch.where(F.pad(torch.ones_like(x), flat) == 1, F.pad(x, flat), value.to(x.dtype))
    if mode == "constant":
        return F.pad(x, flat, value=node.get("value", 0.0) if value is None else float(value))
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return F.pad(x, flat, mode=mode)


#: Operators of ONNX's own domain, by type.
SHAPE_OPERATORS: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
