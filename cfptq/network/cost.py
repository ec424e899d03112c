"""Multiply-adds of a network for one row, by layer and in total."""

from __future__ import annotations

import torch

from cfptq.network.graph import Network


def multiply_adds_by_layer(network: Network) -> tuple[int, ...]:
    """MACs_ℓ of one row: a layer's weights times the positions that they are applied at."""
    values = network.observe(torch.zeros(1, *network.input_shape), {layer.node for layer in network.layers})
    return tuple(layer.parameters * (values[layer.node].numel() // layer.weight_shape[0]) for layer in network.layers)


def multiply_adds(network: Network) -> int:
    """Multiply-adds that the quantizable layers take for one row."""
    return sum(multiply_adds_by_layer(network))
