"""The fake-quantized twin: the captured network computing with the plan's integers, differentiable in its input."""

from __future__ import annotations

import torch
from torch import fx, nn

from cfptq.errors import ModelError
from cfptq.network import Network
from cfptq.quantize.formats import ActivationFormat, fake_quantize
from cfptq.quantize.plan import QuantizationPlan


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
    if plan.network != network.digest():
        raise ModelError(
            "this plan was made for another model (its digest differs); calibrate the model at hand, or give the one it was made for"
        )


def prepared(network: Network, plan: QuantizationPlan) -> Network:
    """The network with every planned weight on its grid and every planned bias corrected; still float32, activations untouched.

    A toolchain that rounds this network's weights finds each already at q·s and changes nothing.
    """
    check_matches(network, plan)
    return network.with_parameters({layer.name: (layer.weight(), layer.bias) for layer in plan.layers})


def twin(network: Network, plan: QuantizationPlan) -> fx.GraphModule:
    """The fake-quantized form of ``network`` under ``plan``: (N, ...) -> the network's own output.

    Weights are q·s, biases lie on the grid that integer kernels add, and each tensor that feeds a planned layer is rounded
    to its format with a straight-through gradient. Other uses of such a tensor (a residual sum) see it unrounded.
    """
    check_matches(network, plan)
    deployed = network.with_parameters(
        {layer.name: (layer.weight(), layer.deployed_bias(plan.input_format(layer))) for layer in plan.layers}
    )
    nodes = {layer.name: layer.node for layer in network.layers}
    feeds = {nodes[layer.name]: layer.input for layer in plan.layers}

    def insert(graph: fx.GraphModule) -> None:
        by_name = {node.name: node for node in graph.graph.nodes}
        for number, form in enumerate(form for form in plan.activations if not form.is_float):
            source = by_name[form.tensor]
            users = [by_name[node] for node, tensor in feeds.items() if tensor == form.tensor]
            target = f"activation_{number}"
            graph.add_submodule(target, FakeQuantize(form))
            with graph.graph.inserting_after(source):
                rounded = graph.graph.call_module(target, (source,))
            for user in users:
                user.replace_input_with(source, rounded)

    return deployed.transformed(insert)
