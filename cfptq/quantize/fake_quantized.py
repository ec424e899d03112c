"""The fake-quantized twin: the captured network computing with the plan's integers, differentiable in its input."""

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
    """One activation quantizer of the twin."""

    def __init__(self, form: ActivationFormat) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, self.form)

    def extra_repr(self) -> str:
        return f"bits={self.form.bits}, scale={self.form.scale:.6g}, zero_point={self.form.zero_point}"


def check_matches(network: Network, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``plan`` was made for ``network``."""
    if plan.network != digest(network):
        raise ModelError(
            "this plan was made for another model (its digest differs); calibrate the model at hand, or give the one it was made for"
        )


def quantize_weights(network: Network, plan: QuantizationPlan) -> Network:
    """The network with every planned weight and bias on the grid that it is deployed on; still float32, activations untouched.

    A toolchain that rounds this network's weights finds each already at q·s and changes nothing.
    """
    check_matches(network, plan)
    return network.with_parameters({layer.name: (layer.weight(), layer.deployed_bias(plan.input_format(layer))) for layer in plan.layers})


def fake_quantize_network(network: Network, plan: QuantizationPlan) -> fx.GraphModule:
    """The fake-quantized form of ``network`` under ``plan``: (N, ...) -> the network's own output.

    Weights are q·s, biases lie on the grid that integer kernels add, and each tensor that feeds a planned layer is rounded
    to its format with a straight-through gradient. Other uses of such a tensor (a residual sum) see it unrounded.
    """
    check_matches(network, plan)
    return fake_quantized(network, plan.layers, {form.tensor: form for form in plan.activations})


def run_prefix(
    network: Network, layers: Sequence[LayerPlan], formats: Mapping[str, ActivationFormat], tensor: str, rows: torch.Tensor
) -> torch.Tensor:
    """What node ``tensor`` puts out when ``layers`` are quantized and the rest is not; nothing behind it is computed."""
    with torch.no_grad():
        values: torch.Tensor = fake_quantized(network, layers, formats, until=tensor)(rows)
    return values


def fake_quantized(
    network: Network, layers: Sequence[LayerPlan], formats: Mapping[str, ActivationFormat], until: str | None = None
) -> fx.GraphModule:
    """The network with ``layers`` quantized and tensors rounded to ``formats``; cut off behind node ``until``. Not checked to match."""
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

    return deployed.transformed(insert)
