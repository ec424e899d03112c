"""One form for every convolution, whatever the model's author or the exporter called it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from cfptq.network.layers import kind_of
from cfptq.network.normalize import aten

#: Kind -> the operation that it is written with.
PLAIN = {"conv1d": aten.conv1d.default, "conv2d": aten.conv2d.default}


def plain_convolutions(graph: fx.GraphModule) -> None:
    """Write, in place, each 1-d or 2-d convolution as ``conv1d`` or ``conv2d`` with all its arguments, none left to a default.

    They are (input, weight, bias, stride, padding, dilation, groups), a number for each axis. ``padding="same"`` and ``"valid"``
    become numbers; where "same" adds more zeros behind than before (a kernel of even reach), an operation of its own adds them. The
    general ``aten.convolution`` of decomposed graphs becomes one of the two; a transposed one stays what it is, and no layer.
    """
    for node in list(graph.graph.nodes):
        kind = kind_of(node)
        if kind not in PLAIN:
            continue
        given = _arguments(node)
        weight = cast(fx.Node, given["weight"])
        kernel = weight.meta["val"].shape[2:]
        stride, dilation = _each(given["stride"], len(kernel)), _each(given["dilation"], len(kernel))
        zeros = _zeros(given["padding"], kernel, dilation)
        source = cast(fx.Node, given["input"])
        if any(before != behind for before, behind in zeros):
            with graph.graph.inserting_before(node):
                around = [count for pair in reversed(zeros) for count in pair]
                source = graph.graph.call_function(aten.constant_pad_nd.default, (source, around, 0.0))
            zeros = [(0, 0)] * len(kernel)
        node.target = PLAIN[kind]
        node.args = (source, weight, given["bias"], stride, [before for before, _ in zeros], dilation, given["groups"])
        node.kwargs = {}
    graph.recompile()


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = cast(torch._ops.OpOverload, node.target)._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs


def _zeros(padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind, axis by axis."""
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in reach]
    return [(count, count) for count in _each(0 if isinstance(padding, str) else padding, len(kernel))]


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
