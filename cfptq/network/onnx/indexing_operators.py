"""ONNX operators that pick, place, sort and encode elements by index, which take ``(node, *inputs)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfptq.network.onnx.values import Node, Operator, as_ints, as_tensor, conversion_error


def _positive(index: Tensor, size: Any) -> Tensor:
    return torch.where(index < 0, index + size, index)


def _arg(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def operator(node: Node, x: Tensor) -> Tensor:
        axis = node.get("axis", 0) % x.dim()
        found = x.shape[axis] - 1 - function(x.flip(axis), axis) if node.get("select_last_index", 0) else function(x, axis)
        return found.unsqueeze(axis) if node.get("keepdims", 1) else found

    return operator


def _compress(node: Node, x: Tensor, condition: Any) -> Tensor:
    axis = node.get("axis")
    x, axis = (x.flatten(), 0) if axis is None else (x, axis)
    kept = [place for place, is_kept in enumerate(as_ints(condition)) if is_kept]
    return x.index_select(axis, torch.tensor(kept, dtype=torch.int64, device=x.device))


def _cumulative_sum(node: Node, x: Tensor, axis: Any) -> Tensor:
    along = int(as_ints(axis)[0]) % x.dim()
    if node.get("reverse", 0):
        x = x.flip(along)
    total = x.cumsum(along)
    if node.get("exclusive", 0):
        total = total - x
    return total.flip(along) if node.get("reverse", 0) else total


def _gather_elements(node: Node, x: Tensor, indices: Any) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    return torch.gather(x, axis, _positive(as_tensor(indices, x).long(), x.shape[axis]))


def _gather_nd(node: Node, x: Tensor, indices: Any) -> Tensor:
    if node.get("batch_dims", 0):
        raise conversion_error(node, "its batch_dims is not 0")
    return x[_split_indices(x, as_tensor(indices, x).long())]


def _scatter_nd(node: Node, x: Tensor, indices: Any, updates: Any) -> Tensor:
    places, values = _split_indices(x, as_tensor(indices, x).long()), as_tensor(updates, x)
    reduction = node.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise conversion_error(node, f"its reduction is {reduction}")
    return x.index_put(places, values.to(x.dtype), accumulate=reduction == "add")


def _scatter_elements(node: Node, x: Tensor, indices: Any, updates: Any) -> Tensor:
    axis = node.get("axis", 0) % x.dim()
    places, values = _positive(as_tensor(indices, x).long(), x.shape[axis]), as_tensor(updates, x).to(x.dtype)
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, values)
    if reduction == "add":
        return x.scatter_add(axis, places, values)
    raise conversion_error(node, f"its reduction is {reduction}")


def _split_indices(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """Split the last axis of ``indices`` into one index for each leading axis of ``x``."""
    return tuple(_positive(indices[..., axis], x.shape[axis]) for axis in range(indices.shape[-1]))


def _one_hot(node: Node, indices: Any, depth: Any, values: Any) -> Tensor:
    size = int(as_ints(depth)[0])
    codes = as_tensor(indices).long()
    off, on = as_tensor(values).flatten().unbind()
    axis = node.get("axis", -1)
    is_on = torch.arange(size, device=codes.device) == _positive(codes, size).unsqueeze(-1)
    hot = torch.where(is_on, on, off)
    return hot if axis == -1 else hot.movedim(-1, axis)


def _top_k(node: Node, x: Tensor, count: Any = None) -> tuple[Tensor, Tensor]:
    size = int(as_ints(count)[0]) if count is not None else node.get("k")
    values, indices = torch.topk(x, size, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1)))
    return values, indices


#: Operators of ONNX's own domain, by type.
INDEXING_OPERATORS: dict[str, Operator] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Compress": _compress,
    "CumSum": _cumulative_sum,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
