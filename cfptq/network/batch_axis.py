"""Layers whose input does not have its rows on the first axis, as in attention over tokens."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx

from cfptq.network.layers import get_layer_kind
from cfptq.network.normalize import aten

#: Numbers of rows that a graph is run on to find the axis that grows with them.
ROW_COUNTS = (3, 5)

#: Operations whose output holds the numbers of their input in the same order.
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)

#: Standard deviation of the noise that tells rows apart.
NOISE = 1.0


def put_rows_first(graph: fx.GraphModule, example: Tensor) -> None:
    """Rewrite, in place, each linear layer so that the rows lie on the first axis of its input.

    Rounding weighs rows, and so needs to know which they are. An input (tokens, rows, k) is transposed before and after the layer. An
    input (tokens · rows, k) is split and merged again. Other layers get the reason why they stay in float in ``meta["obstacle"]``.

    Args:
        graph: a normalized graph.
        example: rows that the model is meant for, (N, ...) float32, N ≥ 1.
    """
    few, many = (_InputRecorder(graph).record(_repeat_rows(example, count)) for count in ROW_COUNTS)
    moved: dict[tuple[fx.Node, int | str], fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node not in few:
            continue
        shape = few[node].shape
        growing = [axis for axis, sizes in enumerate(zip(shape, many[node].shape, strict=True)) if sizes[0] != sizes[1]]
        if not growing or (growing == [0] and shape[0] == ROW_COUNTS[0]):
            continue
        order = _find_order(graph, node, example, growing, tuple(shape))
        if order is None or get_layer_kind(node) != "linear":
            node.meta["obstacle"] = "the first axis of its input does not hold the rows"
            continue
        _move_rows(graph.graph, node, order, tuple(shape), moved)
    graph.graph.lint()
    graph.recompile()


class _InputRecorder(fx.Interpreter):
    """Run of a graph that records the input of each layer."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.inputs: dict[fx.Node, Tensor] = {}

    def record(self, rows: Tensor) -> dict[fx.Node, Tensor]:
        with torch.no_grad():
            self.run(rows)
        return self.inputs

    def run_node(self, n: fx.Node) -> Any:
        if get_layer_kind(n) is not None:
            self.inputs[n] = self.env[cast(fx.Node, n.args[0] if n.args else n.kwargs["input"])]
        result = super().run_node(n)
        if n in self.inputs:
            n.meta["out"] = result.shape[-1]
        return result


def _repeat_rows(example: Tensor, count: int) -> Tensor:
    return example.repeat(count, *[1] * (example.dim() - 1))[:count]


def _draw_rows(example: Tensor, count: int) -> Tensor:
    rows = _repeat_rows(example, count)
    return rows + NOISE * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))


def _change_one_row(graph: fx.GraphModule, node: fx.Node, example: Tensor) -> Tensor | None:
    """Return where a layer's input changes with the second row, or None where the model takes no such rows.

    Noise tells rows apart. A model that looks up codes takes the rows of the example alone.
    """
    count = ROW_COUNTS[0]
    noisy = _draw_rows(example, count), _draw_rows(example, count + 1)[-1]
    own = _repeat_rows(example, count), example[0]
    for rows, other in (noisy, own):
        changed = rows.clone()
        changed[1] = other
        try:
            before, after = (_InputRecorder(graph).record(tried)[node] for tried in (rows, changed))
        except Exception:
            continue
        return (after != before).flatten(1).any(1)
    return None


def _find_order(graph: fx.GraphModule, node: fx.Node, example: Tensor, growing: list[int], shape: tuple[int, ...]) -> int | str | None:
    """Return the axis that holds the rows, "outer" or "inner" where the first axis holds rows and tokens, or None for other inputs."""
    rows = ROW_COUNTS[0]
    if len(growing) != 1 or growing[0] == len(shape) - 1:
        return None
    if shape[growing[0]] == rows:
        return growing[0]
    if growing[0] != 0 or shape[0] % rows:
        return None
    differs = _change_one_row(graph, node, example)
    if differs is None or not bool(differs.any()):
        return None
    each = shape[0] // rows
    row_if_outer, row_if_inner = torch.arange(shape[0]) // each, torch.arange(shape[0]) % rows
    for order, row in (("outer", row_if_outer), ("inner", row_if_inner)):
        if not bool((differs & (row != 1)).any()):
            return order
    return None


def _move_rows(
    graph: fx.Graph, node: fx.Node, order: int | str, shape: tuple[int, ...], moved: dict[tuple[fx.Node, int | str], fx.Node]
) -> None:
    """Put the rows of the layer's input first, and those of its output back where they were."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    tokens = shape[0] // ROW_COUNTS[0]
    rank = len(shape) if isinstance(order, int) else len(shape) + 1
    axis = order if isinstance(order, int) else {"outer": 0, "inner": 1}[order]
    axes = [axis, *(other for other in range(rank) if other != axis)]
    if (source, order) not in moved:
        with graph.inserting_before(node):
            first = source
            if isinstance(order, str):
                merged: list[Any] = [_count_rows(graph), tokens] if order == "outer" else [tokens, _count_rows(graph)]
                whole = source.args[0] if source.target in VIEWS else source  # A view of a view would guard the number of rows.
                first = graph.call_function(aten.reshape.default, (whole, [*merged, *shape[1:]]))
            moved[source, order] = _permute(graph, first, axes) if axis else first
    users = list(node.users)
    with graph.inserting_before(node.next):
        back = _permute(graph, node, [axes.index(place) for place in range(rank)]) if axis else node
        merged_back = back
        if isinstance(order, str):
            size: list[Any] = [graph.call_function(operator.mul, (_count_rows(graph), tokens)), *shape[1:-1], node.meta["out"]]
            merged_back = graph.call_function(aten.reshape.default, (back, size))
    node.update_arg(0, moved[source, order])
    for user in users:
        user.replace_input_with(node, back if user.target in VIEWS else merged_back)


def _count_rows(graph: fx.Graph) -> fx.Node:
    """Add a node for the number of rows. A size of -1 would guard it in an export."""
    rows = next(node for node in graph.nodes if node.op == "placeholder")
    return graph.call_function(aten.sym_size.int, (rows, 0))


def _permute(graph: fx.Graph, node: fx.Node, axes: list[int]) -> fx.Node:
    """Permute a tensor into new memory. Views of permuted tensors would guard the number of rows in an export."""
    permuted = graph.call_function(aten.permute.default, (node, axes))
    return graph.call_function(aten.clone.default, (permuted,), {"memory_format": torch.contiguous_format})
