"""The prepared model: float32, every planned weight on its grid. What other quantizers are handed, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from cfptq.errors import ModelError
from cfptq.network import Layer, Network
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan, check_matches
from cfptq.quantize import quantize_weights as prepared_network

aten = torch.ops.aten


@dataclass(frozen=True)
class Edge:
    """A tensor on its way to the planned layers that round it.

    Attributes:
        form: its format.
        layers: names of the planned layers that take it.
        producer: the planned layer that an integer kernel lets put it out rounded, with or without a ReLU in between; None where
            the format is not 8 bits, or anything else takes the tensor too and must see it unrounded.
        name: of the submodule that passes the tensor on where there is no such producer.
    """

    form: ActivationFormat
    layers: tuple[str, ...]
    producer: str | None

    @property
    def name(self) -> str:
        return f"input_of_{self.layers[0].replace('.', '_')}"


def edges(network: Network, plan: QuantizationPlan) -> tuple[Edge, ...]:
    """Every tensor that ``plan`` has a format for, in execution order."""
    nodes = {node.name: node for node in network.graph.graph.nodes}
    found = []
    for form in plan.activations:
        fed = tuple(layer.name for layer in plan.layers if layer.input == form.tensor)
        found.append(Edge(form, fed, _producer(network, nodes[form.tensor]) if form.bits == 8 else None))
    return tuple(found)


def _producer(network: Network, node: fx.Node) -> str | None:
    layers = {layer.node: layer for layer in network.layers}
    if any(user.name not in layers or layers[user.name].input != node.name for user in node.users):
        return None
    if node.target == aten.relu.default and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
    return layers[node.name].name if node.name in layers else None


def build_prepared_module(network: Network, plan: QuantizationPlan) -> fx.GraphModule:
    """``network`` under ``plan`` as a module that any PyTorch quantizer reads: layers are ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d``
    under the names that they have in the user's model, everything else ATen operations.

    BatchNorm is folded, channels are equalized, weights are integers times scales, and biases lie on the grid that integer kernels
    add: a toolchain that rounds them again changes nothing. A tensor that several operations take goes to the layers that round it
    through an ``nn.Identity``, so that it can be rounded for them alone.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    ready = prepared_network(network, plan)

    def edit(graph: fx.GraphModule) -> None:
        nodes = {node.name: node for node in graph.graph.nodes}
        for edge in edges(network, plan):
            node = nodes[edge.form.tensor]
            if edge.producer is None:
                direct = node.name in {layer.node for layer in network.layers}
                _pass_on(graph, node, edge.name, [nodes[network.layer(name).node] for name in edge.layers], direct)
            elif node.target == aten.relu.default:
                node.target = functional.relu  # the form that is fused with the layer before it
        for layer in network.layers:
            _place_layer(graph, nodes[layer.node], layer, ready)

    return ready.transformed(edit)


def build_float_module(network: Network) -> fx.GraphModule:
    """``network`` as it is, unquantized, with its layers as ``nn`` modules and its ReLUs as ``functional.relu``: what FX reads."""

    def edit(graph: fx.GraphModule) -> None:
        nodes = {node.name: node for node in graph.graph.nodes}
        for layer in network.layers:
            _place_layer(graph, nodes[layer.node], layer, network)
        for node in graph.graph.nodes:
            if node.target == aten.relu.default:
                node.target = functional.relu

    return network.transformed(edit)


def show(observed: nn.Module, rows: torch.Tensor, batch: int = 256) -> None:
    """Let a toolchain's observers see ``rows``, a batch at a time."""
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            observed(rows[start : start + batch])


def warn_about_two_step_input(plan: QuantizationPlan) -> None:
    """Say, to the caller's caller, where a plan has a two-step input: no PyTorch toolchain has that format."""
    if any(form.fine_scale is not None for form in plan.activations):
        warnings.warn(
            "PyTorch's toolchains have no two-step input: the layers that take it hold the plan's integers and compute in float; "
            "result.to_onnx() runs them in int8, and so does every toolchain after calibrating with input_bits=8",
            stacklevel=3,
        )


def check_prepared(state: Mapping[str, torch.Tensor], network: Network, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``state``, a model's parameters by name, is bit for bit the prepared model's."""
    mend = "apply the toolchain to result.prepared_model(), whose weights lie on the plan's grid"
    expected = build_prepared_module(network, plan).state_dict()
    for name, value in expected.items():
        if name not in state or state[name].shape != value.shape or not torch.equal(state[name].detach().cpu(), value):
            kind = "has other values" if name in state else "is missing"
            raise ModelError(f"this is not the plan's prepared model: {name!r} {kind}; {mend}")
    strange = [name for name in state if name not in expected]
    if strange:
        raise ModelError(f"this is not the plan's prepared model: it has a {strange[0]!r} besides; {mend}")


def check_weight(layer: LayerPlan, weight: torch.Tensor) -> None:
    """Raise ModelError unless ``weight`` is the plan's for ``layer``."""
    if weight.shape != layer.integers.shape or not torch.equal(weight.detach().cpu(), layer.weight()):
        raise ModelError(
            f"the weight of {layer.name!r} is not the plan's; apply the toolchain to result.prepared_model(), not to another model"
        )


def _pass_on(graph: fx.GraphModule, node: fx.Node, name: str, layers: list[fx.Node], direct: bool) -> None:
    graph.add_module(name, nn.Identity())
    source = node
    if direct:
        # An operation that no quantizer knows keeps the rounding of these inputs apart from the output of the layer before.
        with graph.graph.inserting_after(node):
            source = graph.graph.call_function(aten.alias.default, (node,))
    with graph.graph.inserting_after(source):
        passed = graph.graph.call_module(name, (source,))
    for layer in layers:
        layer.update_arg(0, passed)


def _place_layer(graph: fx.GraphModule, node: fx.Node, layer: Layer, ready: Network) -> None:
    module = _layer_module(node, layer, ready)
    parent, _, last = layer.name.rpartition(".")
    owner = graph.get_submodule(parent)
    for name, child in cast(nn.Module, owner._modules[last]).named_children():
        module.add_module(name, child)  # a layer's name may also be the beginning of another's
    owner._modules[last] = module
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(layer.name, (node.args[0],))
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _layer_module(node: fx.Node, layer: Layer, ready: Network) -> nn.Module:
    weight, bias = ready.weight(layer.name), ready.bias(layer.name)
    module: nn.Linear | nn.Conv1d | nn.Conv2d
    if layer.kind == "linear":
        module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        build: Any = nn.Conv1d if layer.kind == "conv1d" else nn.Conv2d
        *window, groups = cast(tuple[Any, ...], node.args[3:])  # stride, padding and dilation, axis by axis
        sizes = map(tuple, (weight.shape[2:], *window))
        module = build(weight.shape[1] * groups, weight.shape[0], *sizes, groups, bias is not None, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return module.eval()
