"""ℓ1 norm of each row's own weight gradient, layer by layer, which is the summand of eq. 23."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn.functional import cross_entropy

from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Layer, Network, infer_head

#: Numbers that the weight gradients held at one time may take, 64 MiB of float32. More rows are processed a few at a time.
MAX_HELD_NUMBERS = 2**24


def compute_gradient_norms(
    network: Network,
    rows: Tensor,
    target: Tensor,
    *,
    decision: DecisionRule | None = None,
    chunk_rows: int = 1024,
    progress: bool = True,
) -> Tensor:
    """Compute ‖∇_{W_l} CE(f(u), y)‖₁ of every row u and layer l.

    One forward and one backward pass for each chunk of rows give each layer's input a and the gradient g at its output. For a linear layer
    on a vector, the row's gradient is the outer product of g and a, so that its norm is ‖g‖₁ ‖a‖₁. Where one row meets the weight many
    times (sequences, convolutions), its gradient is formed, a few rows at a time.

    Args:
        network: the full-precision network f.
        rows: (N, ...) float32.
        target: class y of each row, (N,).
        decision: head of the network's raw output and decision threshold. None infers the head from all rows.
        chunk_rows: rows that run at once.
        progress: show a bar when it takes long.

    Returns:
        (N, L) float64, layers in execution order.

    Raises:
        DataError: there are no rows, or a target does not fit.
    """
    if len(rows) == 0:
        raise DataError("There are no rows to take gradients at. Give at least one.")
    if target.shape != rows.shape[:1] or target.is_floating_point():
        raise DataError(f"target must hold one class index per row, ({len(rows)},), got {tuple(target.shape)} of {target.dtype}.")
    decision = decision or DecisionRule(infer_head(run_in_chunks(network, rows, chunk_rows)))
    batched = find_batched_layers(network, rows[:1])
    norms = torch.empty(len(rows), len(network.layers), dtype=torch.float64)
    starts = range(0, len(rows), chunk_rows)
    for start in track(starts, "gradients", enabled=progress):
        part = slice(start, start + chunk_rows)
        norms[part] = _compute_chunk_norms(network, batched, rows[part], target[part], decision)
    return norms


def average_channel_norms(
    network: Network,
    rows: Tensor,
    target: Tensor,
    share: Tensor,
    *,
    decision: DecisionRule | None = None,
    chunk_rows: int = 1024,
    progress: bool = True,
) -> list[Tensor]:
    """Average the ℓ1 norm of each row's gradient in the weights of each output channel.

    A layer's norm is the sum of its channels' norms.

    Args:
        network: the full-precision network f.
        rows: (N, ...) float32.
        target: class y of each row, (N,).
        share: weight of each row in the average, (N,) float64.
        decision: head of the network's raw output and decision threshold. None infers the head from all rows.
        chunk_rows: rows that run at once.
        progress: show a bar when it takes long.

    Returns:
        The norms of each layer's channels in execution order, (out,) float64.
    """
    decision = decision or DecisionRule(infer_head(run_in_chunks(network, rows, chunk_rows)))
    is_batched = len(find_batched_layers(network, rows[:1])) == len(network.layers)
    step = chunk_rows if is_batched else 1
    totals = [torch.zeros(layer.weight_shape[0], dtype=torch.float64) for layer in network.layers]
    nodes = {node.name: node for node in network.graph.graph.nodes}
    for start in track(range(0, len(rows), step), "gradients", enabled=progress):
        part = slice(start, start + step)
        gradients, inputs = run_backward(network, rows[part], _build_loss(target[part], decision))
        for total, layer, gradient in zip(totals, network.layers, gradients, strict=True):
            a, weight = inputs[layer.node], network.weight(layer.name)
            if not is_batched:
                norms = _compute_weight_gradient(nodes[layer.node], weight, a, gradient).abs().flatten(1).sum(1)[None]
            elif layer.kind == "linear" and a.dim() == 2:
                norms = gradient.abs() * a.abs().sum(1, keepdim=True)
            else:
                norms = _compute_row_norms(nodes[layer.node], weight, a, gradient, by_channel=True)
            total += share[part].double() @ norms.double()
    return totals


def run_in_chunks(network: Network, rows: Tensor, chunk_rows: int = 1024) -> Tensor:
    """Return the network's raw output at every row, computed without gradients.

    Args:
        network: the network.
        rows: (N, ...).
        chunk_rows: rows that run at once.
    """
    with torch.no_grad():
        return torch.cat([network(chunk) for chunk in torch.split(rows, chunk_rows)])


def find_batched_layers(network: Network, row: Tensor) -> set[str]:
    """Find the nodes of layers whose input and output have the batch as first axis, by running two rows and then three."""
    batched = {layer.node for layer in network.layers}
    for count in (2, 3):
        run = _RecordedPass(network)
        run.run(row.expand(count, *row.shape[1:]))
        batched -= {node for node in batched if not len(run.inputs[node]) == len(run.outputs[node]) == count}
    return batched


def _compute_chunk_norms(network: Network, batched: set[str], rows: Tensor, target: Tensor, decision: DecisionRule) -> Tensor:
    gradients, inputs = run_backward(network, rows, _build_loss(target, decision))
    nodes = {node.name: node for node in network.graph.graph.nodes}
    columns = []
    for layer, gradient in zip(network.layers, gradients, strict=True):
        a = inputs[layer.node]
        if layer.node not in batched:
            columns.append(_compute_norms_row_by_row(network, layer, rows, target, decision))
        elif layer.kind == "linear" and a.dim() == 2:
            columns.append(gradient.abs().sum(1) * a.abs().sum(1))
        elif layer.kind == "linear":
            columns.append(_compute_sequence_norms(a, gradient))
        else:
            columns.append(_compute_row_norms(nodes[layer.node], network.weight(layer.name), a, gradient))
    return torch.stack([column.double() for column in columns], dim=1)


def _build_loss(target: Tensor, decision: DecisionRule) -> Callable[[Tensor], Tensor]:
    """Return the function from a raw output to the summed cross-entropy towards the targets."""
    return lambda output: cross_entropy(decision.class_logits(output), target, reduction="sum")


def run_backward(network: Network, rows: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the gradients of a sum over rows at each layer's output, and each layer's input by node name.

    Rows are independent of each other. The sum's gradient at a row's activations is therefore that row's own.

    Args:
        network: the network.
        rows: (N, ...) float32.
        total: function from the network's raw output to the sum, a scalar.
    """
    with torch.inference_mode(False), torch.enable_grad():
        run = _RecordedPass(network)
        summed = total(run.run(rows))
        tops = [run.outputs[layer.node] for layer in network.layers]
        return torch.autograd.grad(summed, tops, materialize_grads=True), run.inputs


class _RecordedPass(fx.Interpreter):
    """Run of the graph that keeps each layer's input and output, with gradients recorded at the outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.graph)
        self.layers = {layer.node for layer in network.layers}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and keep the inputs and outputs of layers."""
        value = super().run_node(n)
        if n.name in self.layers:
            self.inputs[n.name] = self.env[cast(fx.Node, n.args[0])].detach()
            if not value.requires_grad:
                # The parameters are frozen, so that gradients are recorded from the first layer's output on.
                value = value.detach().requires_grad_()
            self.outputs[n.name] = value
        return value


def _compute_sequence_norms(a: Tensor, gradient: Tensor) -> Tensor:
    """Compute the norms of a linear layer on (N, ..., in), where a row's gradient is a sum of outer products over positions."""
    a, gradient = a.flatten(1, -2), gradient.flatten(1, -2)
    step = max(1, MAX_HELD_NUMBERS // (a.shape[2] * gradient.shape[2]))
    parts = zip(torch.split(a, step), torch.split(gradient, step), strict=True)
    return torch.cat([torch.bmm(g.transpose(1, 2), x).abs().sum((1, 2)) for x, g in parts])


def _compute_row_norms(node: fx.Node, weight: Tensor, a: Tensor, gradient: Tensor, by_channel: bool = False) -> Tensor:
    """Compute the norms of any layer operation by its backward pass for each row, batched by vmap, a few rows at a time.

    Args:
        node: the layer's node.
        weight: its weight, (out, ...).
        a: its input, (N, ...).
        gradient: the gradient at its output, (N, ...).
        by_channel: return a norm for each output channel, (N, out), and not (N,).
    """

    def norm(row: Tensor, row_gradient: Tensor) -> Tensor:
        size = _compute_weight_gradient(node, weight, row.unsqueeze(0), row_gradient.unsqueeze(0)).abs()
        return size.flatten(1).sum(1) if by_channel else size.sum()

    # The batched backward pass holds a few copies of the weight gradients.
    return torch.func.vmap(norm, chunk_size=max(1, MAX_HELD_NUMBERS // (4 * weight.numel())))(a, gradient)


def _compute_norms_row_by_row(network: Network, layer: Layer, rows: Tensor, target: Tensor, decision: DecisionRule) -> Tensor:
    """Compute the norms of a layer whose first axis is not the batch (rows merged with positions, or axes swapped), one pass a row."""
    weight = network.weight(layer.name)
    node = next(node for node in network.graph.graph.nodes if node.name == layer.node)
    norms = []
    for row, y in zip(torch.split(rows, 1), torch.split(target, 1), strict=True):
        gradients, inputs = run_backward(network, row, _build_loss(y, decision))
        gradient = _compute_weight_gradient(node, weight, inputs[layer.node], gradients[network.layers.index(layer)])
        norms.append(gradient.abs().sum())
    return torch.stack(norms)


def _compute_weight_gradient(node: fx.Node, weight: Tensor, a: Tensor, gradient: Tensor) -> Tensor:
    """Compute the gradient in the weight of the operation ``target(input, weight, bias, ...)`` from that at its output."""
    operation = cast(Callable[..., Tensor], node.target)

    def inner(w: Tensor) -> Tensor:
        return (operation(a, w, None, *node.args[3:], **node.kwargs) * gradient).sum()

    return cast(Tensor, torch.func.grad(inner)(weight))
