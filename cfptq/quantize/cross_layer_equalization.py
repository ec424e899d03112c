"""Cross-layer equalization, which rescales hidden channels so that one 8-bit step suits them all.

A positively homogeneous function between two layers satisfies f(s z) = s f(z). Dividing a channel's producer by s and multiplying its
consumer by s therefore changes nothing in full precision (Nagel et al. 2019). s = (a / w)^½ makes the channel's largest activation a equal
to the consumer's largest weight w. Where the weights of both layers are as fine as the activations, s = a. Every channel then uses the
whole range of the activations' step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx

from cfptq.network import Layer, Network, count_multiply_adds
from cfptq.quantize.row_sampling import every_nth

#: Functions that may stand between two layers, with f(s z) = s f(z) for s > 0. Each acts on one number.
HOMOGENEOUS = frozenset({torch.ops.aten.relu.default, torch.ops.aten.leaky_relu.default})

#: Further such functions between two convolutions. Each acts on one channel. A linear layer's channels lie on the axis that they pool.
HOMOGENEOUS_POOLING = frozenset(
    {
        torch.ops.aten.max_pool1d.default,
        torch.ops.aten.max_pool2d.default,
        torch.ops.aten.avg_pool1d.default,
        torch.ops.aten.avg_pool2d.default,
    }
)

#: Least height of a channel, as a share of its largest value before the function. A channel that is almost always 0 must leave room for
#: the rounding errors of the layers before it. Otherwise it alone would set the step of all channels.
MIN_HEIGHT_SHARE = 2.0**-8


def equalize_network(
    network: Network,
    rows: torch.Tensor,
    fine: Collection[str] = (),
    exponent: float = 0.5,
    heights: Mapping[str, torch.Tensor] | None = None,
) -> Network:
    """Equalize hidden channels over calibration rows without changing the function. Pairs that cannot be equalized stay.

    Args:
        network: the captured network.
        rows: calibration rows, (N, ...).
        fine: names of layers whose weights are as fine as activations. Between two of them, s = a.
        exponent: α, from 0 to 1.
        heights: largest activation a of each channel, (channels,), by the name of a tensor that feeds layers. Without it, the largest
            values of the rows are taken.
    """
    pairs = find_channel_pairs(network)
    if not pairs:
        return network
    if heights is not None:
        return _scale_channels(network, pairs, heights, fine, exponent)
    kept = rows[every_nth(len(rows), count_multiply_adds(network))]
    values = network.observe(kept, [name for producer, consumer in pairs for name in (producer.node, consumer.input)])
    channel_axis = {name: -1 if layer.kind == "linear" else 1 for layer, other in pairs for name in (layer.node, other.input)}
    largest = {name: value.movedim(channel_axis[name], 0).flatten(1).abs().amax(dim=1) for name, value in values.items()}
    observed = {
        consumer.input: torch.maximum(largest[consumer.input], MIN_HEIGHT_SHARE * largest[producer.node]) for producer, consumer in pairs
    }
    return _scale_channels(network, pairs, observed, fine, exponent)


def find_hidden_channels(network: Network) -> dict[str, str]:
    """Find the tensors whose channels can be equalized, and the node of the layer that produces each."""
    return {consumer.input: producer.node for producer, consumer in find_channel_pairs(network)}


def _scale_channels(
    network: Network, pairs: Sequence[tuple[Layer, Layer]], heights: Mapping[str, torch.Tensor], fine: Collection[str], exponent: float
) -> Network:
    """Divide each producer's channels by their scale and multiply the consumer's by it."""
    parameters = {layer.name: (network.weight(layer.name), network.bias(layer.name)) for layer in network.layers}
    for producer, consumer in pairs:
        weight, bias = parameters[producer.name]
        next_weight, next_bias = parameters[consumer.name]
        largest_weight = next_weight.transpose(0, 1).flatten(1).abs().amax(dim=1)
        height = heights[consumer.input]
        usable = (height > 0) & (largest_weight > 0)
        # The producer may have been rescaled as a consumer. That changed its inputs, not its channels.
        are_fine = {producer.name, consumer.name} <= set(fine)
        scale = height if are_fine else _compute_scale(height, largest_weight.clamp_min(1e-30), exponent)
        scale = torch.where(usable, scale, torch.ones_like(scale))
        parameters[producer.name] = (weight / _align_with_axis(scale, weight, 0), None if bias is None else bias / scale)
        parameters[consumer.name] = (next_weight * _align_with_axis(scale, next_weight, 1), next_bias)
    return network.with_parameters(parameters)


def _compute_scale(height: torch.Tensor, weight: torch.Tensor, exponent: float) -> torch.Tensor:
    """Compute s = a^α / w^(1-α)."""
    return (height / weight).sqrt() if exponent == 0.5 else height**exponent / weight ** (1 - exponent)


def find_channel_pairs(network: Network) -> list[tuple[Layer, Layer]]:
    """Find layers whose output reaches exactly one other layer, of the same kind, through homogeneous functions alone."""
    by_node = {layer.node: layer for layer in network.layers}
    nodes = {node.name: node for node in network.graph.graph.nodes}
    pairs = []
    for consumer in network.layers:
        node: fx.Node = nodes[consumer.input]
        allowed = HOMOGENEOUS if consumer.kind == "linear" else HOMOGENEOUS | HOMOGENEOUS_POOLING
        while node.op == "call_function" and node.target in allowed and len(node.users) == 1:
            node = node.all_input_nodes[0]
        producer = by_node.get(node.name)
        if producer is None or producer.kind != consumer.kind or len(node.users) != 1 or len(nodes[consumer.input].users) != 1:
            continue
        if consumer.weight_shape[1] == producer.weight_shape[0]:  # not a grouped convolution
            pairs.append((producer, consumer))
    return pairs


def _align_with_axis(scale: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Reshape ``scale`` so that it broadcasts over ``weight`` along one axis."""
    return scale.reshape([-1 if dimension == axis else 1 for dimension in range(weight.dim())])
