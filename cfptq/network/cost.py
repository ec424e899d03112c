"""Multiply-accumulate operations (MACs) of a network for one row."""

from __future__ import annotations

import torch

from cfptq.network.graph import Network


def count_multiply_adds_by_layer(network: Network) -> tuple[int, ...]:
    """Count the multiply-adds MACs_ℓ of each layer for one row.

    They are the number of its weights times the number of positions at which the weights are applied.
    """
    values = network.observe(torch.zeros(1, *network.input_shape), {layer.node for layer in network.layers})
    return tuple(layer.parameters * (values[layer.node].numel() // layer.weight_shape[0]) for layer in network.layers)


def count_multiply_adds(network: Network) -> int:
    """Count the multiply-adds of all quantizable layers for one row."""
    return sum(count_multiply_adds_by_layer(network))
