"""A model as an ATen graph with frozen parameters and a list of its quantizable layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, fx

from cfptq.errors import DataError, ModelError
from cfptq.network.attributes import get_attribute, get_tensor, set_tensor

#: Kinds of quantizable layers, with the number of dimensions of their weight.
WEIGHT_DIMENSIONS = {"linear": 2, "conv1d": 3, "conv2d": 4}


@dataclass(frozen=True)
class Layer:
    """One quantizable layer of a ``Network``.

    Attributes:
        name: dotted name of the module in the user's model (``"hidden.0"``). A functional layer has the name of its parameter
            without ``".weight"``, or of its node if the parameter has none.
        kind: ``"linear"``, ``"conv1d"`` or ``"conv2d"``.
        node: name of the layer's node in ``Network.graph``.
        input: name of the node whose tensor feeds the layer. Layers fed by one tensor share one activation quantizer.
        weight: the weight's attribute name on the graph module, always ``f"{name}.weight"``.
        bias: the bias's attribute name, always ``f"{name}.bias"``; None if the layer has no bias.
        weight_shape: ``(out, in)`` of a linear layer, ``(out, in / groups, *kernel)`` of a convolution.
        parameters: number of weights n_ℓ (the bias does not count).
    """

    name: str
    kind: str
    node: str
    input: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    parameters: int

    def __post_init__(self) -> None:
        if self.kind not in WEIGHT_DIMENSIONS:
            raise ModelError(f"Layer {self.name!r}: kind must be one of {', '.join(WEIGHT_DIMENSIONS)}, got {self.kind!r}.")
        if len(self.weight_shape) != WEIGHT_DIMENSIONS[self.kind]:
            dimensions = WEIGHT_DIMENSIONS[self.kind]
            raise ModelError(f"Layer {self.name!r}: a {self.kind} weight must have {dimensions} dimensions, got shape {self.weight_shape}.")
        size = 1
        for extent in self.weight_shape:
            size *= extent
        if size != self.parameters or size == 0:
            raise ModelError(f"Layer {self.name!r}: shape {self.weight_shape} does not hold {self.parameters} weights.")


@dataclass(frozen=True, eq=False)
class Network:
    """A model in evaluation mode, as a graph of ATen operations from one tensor to one tensor.

    BatchNorm is folded and the parameters are frozen.

    Made by ``cfptq.network.capture`` or ``cfptq.network.serialize.deserialize_network``. It is immutable.
    Methods that alter something return a new network.
    Gradients flow to the *input*.

    Attributes:
        graph: the graph module, which may be used as any ``torch.nn.Module``. Deep-copy it before you change it. ``get_attr`` nodes
            read its parameters. Its placeholder is the first node.
        layers: the quantizable layers in execution order.
        skipped: ``(name, reason)`` of every layer that stays in float.
        input_shape: shape of one row, without the batch dimension.
    """

    graph: fx.GraphModule
    layers: tuple[Layer, ...]
    skipped: tuple[tuple[str, str], ...]
    input_shape: tuple[int, ...]
    _probes: dict[tuple[str, ...], fx.GraphModule] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        nodes = {node.name: node for node in self.graph.graph.nodes}
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ModelError(f"Layer names must be unique, got {names}.")
        for layer in self.layers:
            if layer.node not in nodes or layer.input not in nodes:
                raise ModelError(f"Layer {layer.name!r}: the graph has no node {layer.node!r} fed by {layer.input!r}.")
            shape = tuple(get_tensor(self.graph, layer.weight).shape)
            if shape != layer.weight_shape:
                raise ModelError(f"Layer {layer.name!r}: its weight must have shape {layer.weight_shape}, got {shape}.")
            if layer.bias is not None and get_tensor(self.graph, layer.bias).shape != shape[:1]:
                raise ModelError(f"Layer {layer.name!r}: its bias must have shape {shape[:1]}.")

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the model's raw output for ``x`` of shape ``(N, *input_shape)``, float32.

        Raises:
            DataError: ``x`` has another shape or dtype.
        """
        self._check(x)
        return cast(Tensor, self.graph(x))

    @property
    def input_name(self) -> str:
        """Name of the node that holds the model's input."""
        return str(next(node.name for node in self.graph.graph.nodes if node.op == "placeholder"))

    @property
    def output_name(self) -> str:
        """Name of the node whose tensor the model returns."""
        return str(cast(fx.Node, self.graph.graph.output_node().args[0]).name)

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name``.

        Raises:
            ModelError: there is no such layer. The message lists the layers.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        reason = dict(self.skipped).get(name)
        hint = f"It stays in float ({reason})." if reason else f"The layers are {', '.join(entry.name for entry in self.layers)}."
        raise ModelError(f"No quantizable layer is called {name!r}. {hint}")

    def weight(self, name: str) -> Tensor:
        """Return the weight of layer ``name`` itself, which must not be written to."""
        return get_tensor(self.graph, self.layer(name).weight)

    def bias(self, name: str) -> Tensor | None:
        """Return the bias of layer ``name``, shape ``(out,)``, or None."""
        bias = self.layer(name).bias
        return None if bias is None else get_tensor(self.graph, bias)

    def observe(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Run the network on ``x`` without gradients and return the values of some nodes.

        Operations that no named node depends on are not computed.

        Args:
            x: ``(N, *input_shape)`` float32.
            names: node names, such as ``Layer.input`` and ``Layer.node``, in any order.

        Raises:
            DataError: ``x`` has another shape or dtype.
            ModelError: there is no such node.
        """
        self._check(x)
        wanted = tuple(dict.fromkeys(names))
        if wanted not in self._probes:
            self._probes[wanted] = self._build_probe(wanted)
        with torch.no_grad():
            return dict(zip(wanted, self._probes[wanted](x.detach()), strict=True))

    def with_parameters(self, parameters: Mapping[str, tuple[Tensor, Tensor | None]]) -> Network:
        """Return a new network with other weights and biases in some layers.

        All other parameters are shared with this network.

        Args:
            parameters: ``(weight, bias)`` by layer name. None removes the bias. A layer without a bias may be given one.

        Raises:
            ModelError: a layer is unknown, or a tensor has the wrong shape or dtype.
        """
        graph = fx.GraphModule(self.graph, copy.deepcopy(self.graph.graph))
        nodes = {node.name: node for node in graph.graph.nodes}
        layers = {layer.name: layer for layer in self.layers}
        for name, (weight, bias) in parameters.items():
            layer = self.layer(name)
            _check_parameter(f"{name}.weight", weight, layer.weight_shape)
            set_tensor(graph, layer.weight, weight.clone())
            if bias is not None:
                _check_parameter(f"{name}.bias", bias, layer.weight_shape[:1])
                set_tensor(graph, f"{name}.bias", bias.clone())
            if (bias is None) != (layer.bias is None):
                layers[name] = replace(layer, bias=None if bias is None else f"{name}.bias")
                _connect_bias(graph, nodes[layer.node], layers[name].bias)
                if bias is None:
                    delattr(get_attribute(graph, name), "bias")
        if tuple(layers.values()) != self.layers:
            graph.graph.lint()
            graph.recompile()
        return Network(graph, tuple(layers.values()), self.skipped, self.input_shape)

    def edit_copy(self, edit: Callable[[fx.GraphModule], None]) -> fx.GraphModule:
        """Deep-copy the graph module, let ``edit`` change the copy in place, and recompile it without unused nodes.

        Each node of the copy keeps its name, so that ``Layer.node`` and ``Layer.input`` are valid in it.
        """
        changed = copy.deepcopy(self.graph)
        edit(changed)
        changed.graph.eliminate_dead_code()
        changed.graph.lint()
        changed.recompile()
        return changed

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.input_shape:
            raise DataError(f"Rows must have shape (N, {', '.join(map(str, self.input_shape))}), got {tuple(x.shape)}.")
        if x.dtype != torch.float32:
            raise DataError(f"Rows must be float32, got {x.dtype}. Call .float() on them.")

    def _build_probe(self, names: tuple[str, ...]) -> fx.GraphModule:
        graph = copy.deepcopy(self.graph.graph)
        nodes = {node.name: node for node in graph.nodes}
        unknown = [name for name in names if name not in nodes]
        if unknown:
            raise ModelError(f"The network's graph has no node called {', '.join(unknown)}.")
        graph.output_node().args = (tuple(nodes[name] for name in names),)
        graph.eliminate_dead_code()
        return fx.GraphModule(self.graph, graph)


def _check_parameter(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape or value.dtype != torch.float32:
        raise ModelError(f"{name} must be float32 of shape {shape}, got {value.dtype} of shape {tuple(value.shape)}.")


def _connect_bias(graph: fx.GraphModule, node: fx.Node, bias: str | None) -> None:
    """Set the third argument of a layer's node, which is its bias in every layer operation."""
    argument = None
    if bias is not None:
        with graph.graph.inserting_before(node):
            argument = graph.graph.get_attr(bias)
    node.args = (*node.args[:2], argument, *node.args[3:])
    graph.graph.eliminate_dead_code()
