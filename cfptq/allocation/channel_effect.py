"""Effect of rounding each output channel alone, for all channels and widths in one pass over each layer.

Rounding channel c changes the layer's output z_c by Δz_c, and a number that the network computes, such as the target margin, by about
∂m/∂z_c Δz_c. The gradient comes from one backward pass, and Δz of all channels from one product of the layer's inputs with the change of
its weight. Nothing is run again for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from cfptq.allocation.per_row_gradients import find_batched_layers, run_backward
from cfptq.io.progress import track
from cfptq.network import Layer, Network
from cfptq.quantize import RoundedWeight

#: Numbers that the outputs of one layer held at one time may take. More rows are processed a few at a time.
MAX_HELD_NUMBERS = 2**24

#: Function from a layer and its inputs to the layer's rounding at each width.
RoundAtWidths = Callable[[Layer, Tensor], Iterable[RoundedWeight]]


def measure_channel_effects(
    network: Network,
    rows: Tensor,
    share: Tensor,
    compute: Callable[[Tensor, slice], Tensor],
    round_at_widths: RoundAtWidths,
    progress: bool = True,
) -> list[Tensor]:
    """Measure the mean squared change of one number a row when one output channel alone is rounded, to first order.

    Args:
        network: the full-precision network.
        rows: (N, ...) float32.
        share: weight of each row in the mean, (N,).
        compute: function from the network's raw output and the rows' positions to one number for each row.
        round_at_widths: function that rounds a layer at each width.
        progress: show a bar when it takes long.

    Returns:
        The mean squared change of each channel at each width, one float64 tensor (out, widths) for each layer.
    """
    step = len(rows) if len(find_batched_layers(network, rows[:1])) == len(network.layers) else 1
    chunks = [slice(start, start + step) for start in range(0, len(rows), step)]
    passes = [run_backward(network, rows[chunk], lambda output, chunk=chunk: compute(output, chunk).sum()) for chunk in chunks]  # type: ignore[misc]
    nodes = {node.name: node for node in network.graph.graph.nodes}
    effects = []
    for number, layer in enumerate(track(network.layers, "measuring channels", enabled=progress)):
        inputs = torch.cat([found[layer.node] for _, found in passes])
        slopes = [gradients[number] for gradients, _ in passes]
        columns = []
        for rounded in round_at_widths(layer, inputs):
            change, bias = rounded.weight() - network.weight(layer.name), rounded.bias
            given = network.bias(layer.name)
            shift = bias if given is None or bias is None else bias - given
            total = torch.zeros(layer.weight_shape[0], dtype=torch.float64)
            for chunk, (_, found), slope in zip(chunks, passes, slopes, strict=True):
                total += _sum_squares(nodes[layer.node], layer, found[layer.node], slope, change, shift, share[chunk])
            columns.append(total)
        effects.append(torch.stack(columns, dim=1))
    return effects


def _sum_squares(node: fx.Node, layer: Layer, inputs: Tensor, slope: Tensor, change: Tensor, shift: Tensor | None, share: Tensor) -> Tensor:
    """Sum the squared effect of each channel over rows by their share, (out,) float64.

    Args:
        node: the layer's node.
        layer: the layer.
        inputs: its inputs. Their first axis is that of ``share``, or there is one row.
        slope: gradient in the layer's output.
        change: change of the weight.
        shift: change of the bias, or None.
        share: weight of each row, (n,).
    """
    step = len(inputs) if len(share) == 1 else max(1, MAX_HELD_NUMBERS // slope[0].numel())
    total = torch.zeros(len(change), dtype=torch.float64)
    for start in range(0, len(inputs), step):
        part = slice(start, start + step)
        with torch.no_grad():
            output: Tensor = node.target(inputs[part], change, shift, *node.args[3:])  # type: ignore[operator]
        product = output.mul_(slope[part])
        channel = product.dim() - 1 if layer.kind == "linear" else 1
        by_channel = product.movedim(channel, 0).reshape(len(change), len(share[part]), -1)
        total += by_channel.double().sum(dim=2).square() @ share[part].double()
    return total
