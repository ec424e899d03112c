"""One form for all 1-d and 2-d convolutions of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from cfptq.network.layers import get_layer_kind
from cfptq.network.normalize import aten

#: Operation of each kind of convolution.
OPERATIONS = {"conv1d": aten.conv1d.default, "conv2d": aten.conv2d.default}


def unify_convolutions(graph: fx.GraphModule) -> None:
    """Rewrite, in place, each 1-d or 2-d convolution as ``conv1d`` or ``conv2d`` with all its arguments.

    The arguments are (input, weight, bias, stride, padding, dilation, groups), with one number for each axis. ``padding="same"`` and
    ``"valid"`` become numbers. A separate operation pads the input if "same" adds more zeros after than before (even kernels). The
    general ``aten.convolution`` of decomposed graphs becomes one of the two. Transposed convolutions are not changed.
    """
    for node in list(graph.graph.nodes):
        kind = get_layer_kind(node)
        if kind not in OPERATIONS:
            continue
        given = _read_arguments(node)
        weight = cast(fx.Node, given["weight"])
        kernel = weight.meta["val"].shape[2:]
        stride, dilation = _expand_to_axes(given["stride"], len(kernel)), _expand_to_axes(given["dilation"], len(kernel))
        zeros = _count_zeros(given["padding"], kernel, dilation)
        source = cast(fx.Node, given["input"])
        if any(before != after for before, after in zeros):
            with graph.graph.inserting_before(node):
                around = [count for pair in reversed(zeros) for count in pair]
                source = graph.graph.call_function(aten.constant_pad_nd.default, (source, around, 0.0))
            zeros = [(0, 0)] * len(kernel)
        node.target = OPERATIONS[kind]
        node.args = (source, weight, given["bias"], stride, [before for before, _ in zeros], dilation, given["groups"])
        node.kwargs = {}
    graph.recompile()


def _read_arguments(node: fx.Node) -> dict[str, Any]:
    schema = cast(torch._ops.OpOverload, node.target)._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs


def _count_zeros(padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Return the numbers of zeros before and after, for each axis."""
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in reach]
    return [(count, count) for count in _expand_to_axes(0 if isinstance(padding, str) else padding, len(kernel))]


def _expand_to_axes(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
