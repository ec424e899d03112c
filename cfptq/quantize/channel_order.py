"""Order of output channels in a file, which may differ from the network's where one other layer alone takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from cfptq.network import Layer, Network
from cfptq.quantize.cross_layer_equalization import find_channel_pairs
from cfptq.quantize.formats import Bits
from cfptq.quantize.plan import LayerPlan, QuantizationPlan


def find_sortable_layers(network: Network) -> dict[str, str]:
    """Find the layers whose output channels may be reordered together with the columns of one other layer.

    Args:
        network: the captured network.

    Returns:
        The name of the layer that takes the channels, by the name of the layer that computes them.
    """
    return {producer.name: consumer.name for producer, consumer in find_channel_pairs(network) if not _has_groups(network, producer)}


def _has_groups(network: Network, layer: Layer) -> bool:
    """Return True if a layer is a grouped convolution, whose channels are bound to their group."""
    if layer.kind == "linear":
        return False
    node = next(node for node in network.graph.graph.nodes if node.name == layer.node)
    return bool(node.args[-1] != 1)


def find_kept_inputs(network: Network, bits: Mapping[str, Bits]) -> dict[str, tuple[bool, ...]]:
    """Find the input channels that layers keep where the layer before drops some.

    Args:
        network: the captured network.
        bits: width of each layer by name. A tuple holds a width for each output channel.

    Returns:
        False for each dropped input channel and True for each kept one, by the name of each layer that has dropped ones.
    """
    found = {}
    for producer, consumer in find_sortable_layers(network).items():
        own = bits[producer]
        if not isinstance(own, int) and 0 in own:
            found[consumer] = tuple(width > 0 for width in own)
    return found


def sort_channels(network: Network, plan: QuantizationPlan, order: Callable[[LayerPlan], Sequence[int]]) -> QuantizationPlan:
    """Reorder the channels of all sortable layers of a plan, so that the network computes the same.

    Dropped channels may be left out, together with the columns that they feed.

    The result has the digest of the same network. It describes a file and is no plan for the network itself.

    Args:
        network: the captured network that the plan is for.
        plan: the plan.
        order: function from a layer to its channels in their new order, all of them or those that are not dropped.
    """
    layers = {layer.name: layer for layer in plan.layers}
    for producer, consumer in find_sortable_layers(network).items():
        before = layers[producer]
        if not before.is_sortable:
            continue
        places = list(order(before))
        layers[producer] = replace(
            before,
            bits=before.bits if isinstance(before.bits, int) else tuple(before.bits[place] for place in places),
            integers=before.integers[places],
            scale=before.scale[places],
            bias=None if before.bias is None else before.bias[places],
        )
        after = layers[consumer]
        layers[consumer] = replace(
            after,
            integers=after.integers[:, torch.tensor(places)],
            kept_inputs=tuple(after.kept_inputs[place] for place in places) if after.kept_inputs else (),
        )
    return replace(plan, layers=tuple(layers.values()))
