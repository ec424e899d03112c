"""Equalization: each hidden channel's scale moved between the two layers around it, so that one 8-bit step suits them all.

A positively homogeneous function between two layers lets f(s z) = s f(z) pass, so dividing a channel's producer by s and multiplying
its consumer by s changes nothing in full precision (Nagel et al. 2019). s = (a / w)^½ makes the channel's largest activation and the
consumer's largest weight meet in the middle. Where the weights of both layers are as fine as the activations, s = a instead: every
channel then uses the whole range of the activations' one step, and what little the weights lose by it is not what limits.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from cfptq.network import Layer, Network, multiply_adds
from cfptq.quantize.row_sampling import every_nth

#: What may stand between the two layers: functions of one channel with f(s z) = s f(z) for s > 0.
HOMOGENEOUS = frozenset(
    {
        torch.ops.aten.relu.default,
        torch.ops.aten.leaky_relu.default,
        torch.ops.aten.max_pool1d.default,
        torch.ops.aten.max_pool2d.default,
        torch.ops.aten.avg_pool1d.default,
        torch.ops.aten.avg_pool2d.default,
    }
)

#: Height that a channel has at least, as a share of its largest value before the function: one that hardly ever fires must leave room
#: for what rounding the layers before it makes of it, or it alone would set the step of all.
LEAST_HEIGHT = 2.0**-8


def equalize_network(network: Network, rows: torch.Tensor, fine: Collection[str] = ()) -> Network:
    """The same function with hidden channels equalized over ``rows``; pairs that cannot be are left as they are.

    Args:
        network: the captured network.
        rows: (N, ...) calibration rows.
        fine: layers whose weights are as fine as activations; between two of them only the activations decide.
    """
    pairs = _pairs(network)
    if not pairs:
        return network
    kept = rows[every_nth(len(rows), multiply_adds(network))]
    values = network.observe(kept, [name for producer, consumer in pairs for name in (producer.node, consumer.input)])
    largest = {name: value.transpose(0, 1).flatten(1).abs().amax(dim=1) for name, value in values.items()}
    weights = {layer.name: (network.weight(layer.name), network.bias(layer.name)) for layer in network.layers}
    for producer, consumer in pairs:
        weight, bias = weights[producer.name]
        following, its_bias = weights[consumer.name]
        reach = following.transpose(0, 1).flatten(1).abs().amax(dim=1)
        height = torch.maximum(largest[consumer.input], LEAST_HEIGHT * largest[producer.node])
        usable = (height > 0) & (reach > 0)
        # The producer may itself have been rescaled as a consumer: that touched its inputs, not its channels.
        scale = height if {producer.name, consumer.name} <= set(fine) else (height / reach.clamp_min(1e-30)).sqrt()
        scale = torch.where(usable, scale, torch.ones_like(scale))
        weights[producer.name] = (weight / _along(scale, weight, 0), None if bias is None else bias / scale)
        weights[consumer.name] = (following * _along(scale, following, 1), its_bias)
    return network.with_parameters(weights)


def _pairs(network: Network) -> list[tuple[Layer, Layer]]:
    """Layers whose output reaches exactly one other layer, of the same kind, through homogeneous functions alone."""
    by_node = {layer.node: layer for layer in network.layers}
    nodes = {node.name: node for node in network.graph.graph.nodes}
    pairs = []
    for consumer in network.layers:
        node: fx.Node = nodes[consumer.input]
        while node.op == "call_function" and node.target in HOMOGENEOUS and len(node.users) == 1:
            node = node.all_input_nodes[0]
        producer = by_node.get(node.name)
        if producer is None or producer.kind != consumer.kind or len(node.users) != 1 or len(nodes[consumer.input].users) != 1:
            continue
        if consumer.weight_shape[1] == producer.weight_shape[0]:  # not a grouped convolution
            pairs.append((producer, consumer))
    return pairs


def _along(scale: torch.Tensor, weight: torch.Tensor, axis: int) -> torch.Tensor:
    return scale.reshape([-1 if dimension == axis else 1 for dimension in range(weight.dim())])
