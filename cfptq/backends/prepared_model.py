"""The prepared model, a float32 module with every planned weight on its grid, which other quantizers start from."""

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
    """A tensor and the planned layers that take it rounded.

    Attributes:
        form: the tensor's activation format.
        layers: names of the planned layers that take the tensor.
        producer: the planned layer whose integer kernel can write the tensor rounded, with or without a ReLU in between. None where
            the format is not 8 bits, or where another operation takes the tensor unrounded.
        name: name of the ``nn.Identity`` that the tensor goes through where ``producer`` is None.
    """

    form: ActivationFormat
    layers: tuple[str, ...]
    producer: str | None

    @property
    def name(self) -> str:
        """Return the name of the edge's ``nn.Identity``."""
        return f"input_of_{self.layers[0].replace('.', '_')}"


def find_edges(network: Network, plan: QuantizationPlan) -> tuple[Edge, ...]:
    """Return an edge for every tensor that ``plan`` has a format for, in execution order."""
    nodes = {node.name: node for node in network.graph.graph.nodes}
    edges = []
    for form in plan.activations:
        takers = tuple(layer.name for layer in plan.layers if layer.input == form.tensor)
        edges.append(Edge(form, takers, _find_producer(network, nodes[form.tensor]) if form.bits == 8 else None))
    return tuple(edges)


def _find_producer(network: Network, node: fx.Node) -> str | None:
    """Return the ``producer`` of an ``Edge``."""
    layers = {layer.node: layer for layer in network.layers}
    if any(user.name not in layers or layers[user.name].input != node.name for user in node.users):
        return None
    if node.target == aten.relu.default and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
    return layers[node.name].name if node.name in layers else None


def build_prepared_module(network: Network, plan: QuantizationPlan) -> fx.GraphModule:
    """Build the prepared model as a module that any PyTorch quantizer reads.

    Layers are ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` under the names that they have in the user's model. All other operations
    are ATen operations. BatchNorm is folded and channels are equalized. Weights are integers times scales, and biases lie on the grid
    of the integer kernels' accumulators. A toolchain that rounds them again therefore changes nothing. A tensor that several
    operations take goes through an ``nn.Identity`` to the layers that round it, so that it is rounded for these layers alone.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.

    Raises:
        ModelError: the plan was made for another network.
    """
    check_matches(network, plan)
    ready = prepared_network(network, plan)

    def edit(graph: fx.GraphModule) -> None:
        nodes = {node.name: node for node in graph.graph.nodes}
        for edge in find_edges(network, plan):
            node = nodes[edge.form.tensor]
            if edge.producer is None:
                is_layer_output = node.name in {layer.node for layer in network.layers}
                takers = [nodes[network.layer(name).node] for name in edge.layers]
                _insert_identity(graph, node, edge.name, takers, is_layer_output)
            elif node.target == aten.relu.default:
                node.target = functional.relu  # FX fuses this form with the layer before it
        for layer in network.layers:
            _replace_by_module(graph, nodes[layer.node], layer, ready)

    return ready.edit_copy(edit)


def build_float_module(network: Network) -> fx.GraphModule:
    """Build the unquantized network with layers as ``nn`` modules and ReLUs as ``functional.relu``, the forms that FX reads."""

    def edit(graph: fx.GraphModule) -> None:
        nodes = {node.name: node for node in graph.graph.nodes}
        for layer in network.layers:
            _replace_by_module(graph, nodes[layer.node], layer, network)
        for node in graph.graph.nodes:
            if node.target == aten.relu.default:
                node.target = functional.relu

    return network.edit_copy(edit)


def calibrate_observers(observed: nn.Module, rows: torch.Tensor, batch: int = 256) -> None:
    """Run a toolchain's observers on calibration rows, batch by batch.

    Args:
        observed: the module with observers.
        rows: (N, ...) float32.
        batch: rows a batch.
    """
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            observed(rows[start : start + batch])


def warn_about_two_step_input(plan: QuantizationPlan) -> None:
    """Warn the caller's caller where a plan has a two-step input, which no PyTorch toolchain can express."""
    if any(form.fine_scale is not None for form in plan.activations):
        warnings.warn(
            "PyTorch's toolchains have no two-step input. Layers with such an input hold the plan's integers and compute in float. "
            "Use result.to_onnx() to run them in int8, or calibrate with input_bits=8.",
            stacklevel=3,
        )


def check_prepared(state: Mapping[str, torch.Tensor], network: Network, plan: QuantizationPlan) -> None:
    """Raise ModelError unless a model's parameters equal the prepared model's bit for bit.

    Args:
        state: the model's tensors by name.
        network: the captured full-precision network that the plan is for.
        plan: the plan.
    """
    advice = "Apply the toolchain to result.prepared_model(), whose weights lie on the plan's grid."
    expected = build_prepared_module(network, plan).state_dict()
    for name, value in expected.items():
        if name not in state or state[name].shape != value.shape or not torch.equal(state[name].detach().cpu(), value):
            problem = "has other values" if name in state else "is missing"
            raise ModelError(f"This is not the plan's prepared model: {name!r} {problem}. {advice}")
    unknown = [name for name in state if name not in expected]
    if unknown:
        raise ModelError(f"This is not the plan's prepared model: it also has {unknown[0]!r}. {advice}")


def check_weight(layer: LayerPlan, weight: torch.Tensor) -> None:
    """Raise ModelError unless ``weight`` is the plan's for ``layer``."""
    if weight.shape != layer.integers.shape or not torch.equal(weight.detach().cpu(), layer.weight()):
        raise ModelError(
            f"The weight of layer {layer.name!r} is not the plan's. Apply the toolchain to result.prepared_model(), not to another model."
        )


def _insert_identity(graph: fx.GraphModule, node: fx.Node, name: str, layers: list[fx.Node], is_layer_output: bool) -> None:
    """Let ``layers`` take the tensor of ``node`` through an ``nn.Identity``."""
    graph.add_module(name, nn.Identity())
    source = node
    if is_layer_output:
        # Quantizers do not know alias, so that they cannot move the rounding of these inputs to the output of the layer before.
        with graph.graph.inserting_after(node):
            source = graph.graph.call_function(aten.alias.default, (node,))
    with graph.graph.inserting_after(source):
        identity = graph.graph.call_module(name, (source,))
    for layer in layers:
        layer.update_arg(0, identity)


def _replace_by_module(graph: fx.GraphModule, node: fx.Node, layer: Layer, ready: Network) -> None:
    """Replace the operation of ``layer`` by a call of its ``nn`` module."""
    module = _build_layer_module(node, layer, ready)
    parent, _, last = layer.name.rpartition(".")
    owner = graph.get_submodule(parent)
    for name, child in cast(nn.Module, owner._modules[last]).named_children():
        module.add_module(name, child)  # a layer's name may be the prefix of another's
    owner._modules[last] = module
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(layer.name, (node.args[0],))
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _build_layer_module(node: fx.Node, layer: Layer, ready: Network) -> nn.Module:
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
