"""Fake-quantized form of a network, which computes in float32 with a plan's integers and is differentiable in its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from cfptq.errors import ModelError
from cfptq.network import Network
from cfptq.network.serialize import digest
from cfptq.quantize.formats import ActivationFormat, fake_quantize
from cfptq.quantize.plan import LayerPlan, QuantizationPlan


class FakeQuantize(nn.Module):
    """Activation quantizer of a fake-quantized module."""

    def __init__(self, form: ActivationFormat) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round ``x`` to the format."""
        return fake_quantize(x, self.form)

    def extra_repr(self) -> str:
        """Return the format in words."""
        return f"bits={self.form.bits}, scale={self.form.scale:.6g}, zero_point={self.form.zero_point}"


def check_matches(network: Network, plan: QuantizationPlan) -> None:
    """Check that a plan was made for a network.

    Raises:
        ModelError: it was made for another one.
    """
    if plan.network != digest(network):
        raise ModelError("The plan was made for another model, as its digest differs. Calibrate this model, or give the plan's own.")


def quantize_weights(network: Network, plan: QuantizationPlan) -> Network:
    """Return the network with every weight and bias on the grid that it is deployed on.

    The result is still float32, and activations are not quantized. A toolchain that rounds its weights finds each already at q·s and
    changes nothing.

    Args:
        network: the captured full-precision network.
        plan: a plan for it.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    return network.with_parameters({layer.name: (layer.weight(), layer.deployed_bias(plan.input_format(layer))) for layer in plan.layers})


def fake_quantize_network(network: Network, plan: QuantizationPlan) -> fx.GraphModule:
    """Build the fake-quantized module of a network under a plan.

    It maps (N, ...) to the network's own raw output. Weights are q·s, and biases lie on the grid that integer kernels add. Each tensor
    that feeds a quantized layer is rounded to its format with a straight-through gradient. Other uses of such a tensor (a residual sum)
    see it unrounded.

    Args:
        network: the captured full-precision network.
        plan: a plan for it.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    return insert_fake_quantization(network, plan.layers, {form.tensor: form for form in plan.activations})


def run_prefix(
    network: Network, layers: Sequence[LayerPlan], formats: Mapping[str, ActivationFormat], tensor: str, rows: torch.Tensor
) -> torch.Tensor:
    """Compute the output of one node with some layers quantized. Nothing behind the node is computed.

    Args:
        network: the captured network.
        layers: the layers that are quantized.
        formats: formats of the tensors that feed them, by node name.
        tensor: name of the node.
        rows: (N, ...).
    """
    with torch.no_grad():
        values: torch.Tensor = insert_fake_quantization(network, layers, formats, until=tensor)(rows)
    return values


def insert_fake_quantization(
    network: Network, layers: Sequence[LayerPlan], formats: Mapping[str, ActivationFormat], until: str | None = None
) -> fx.GraphModule:
    """Build the network with some layers quantized and some tensors rounded. It is not checked that they match the network.

    Args:
        network: the captured network.
        layers: the layers to quantize.
        formats: formats of the tensors that feed them, by node name.
        until: name of a node behind which the network is cut off, or None.
    """
    deployed = network.with_parameters({layer.name: (layer.weight(), layer.deployed_bias(formats[layer.input])) for layer in layers})
    nodes = {layer.name: layer.node for layer in network.layers}
    feeds = {nodes[layer.name]: layer.input for layer in layers}

    def insert(graph: fx.GraphModule) -> None:
        by_name = {node.name: node for node in graph.graph.nodes}
        if until is not None:
            graph.graph.output_node().args = (by_name[until],)
        for number, form in enumerate(form for form in formats.values() if not form.is_float):
            source = by_name[form.tensor]
            target = f"activation_{number}"
            graph.add_submodule(target, FakeQuantize(form))
            with graph.graph.inserting_after(source):
                rounded = graph.graph.call_module(target, (source,))
            for node, tensor in feeds.items():
                if tensor == form.tensor:
                    by_name[node].replace_input_with(source, rounded)

    return deployed.edit_copy(insert)
