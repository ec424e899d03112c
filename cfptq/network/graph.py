"""What a model is to cfptq: an ATen graph with frozen parameters and a list of the layers that can be quantized."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, fx

from cfptq.errors import DataError, ModelError
from cfptq.network.attributes import get_attribute, get_tensor, set_tensor

#: The kinds of layer that can be quantized, by the number of dimensions of their weight.
KINDS = {"linear": 2, "conv1d": 3, "conv2d": 4}


@dataclass(frozen=True)
class Layer:
    """One quantizable layer of a :class:`Network`.

    Attributes:
        name: the module's dotted name in the user's model (``"hidden.0"``); for a functional layer the parameter's name without
            ``".weight"``; the node's name where neither exists.
        kind: ``"linear"``, ``"conv1d"`` or ``"conv2d"``.
        node: name of the layer's node in :attr:`Network.graph`.
        input: name of the node whose tensor feeds the layer. Layers fed by one tensor share one activation quantizer.
        weight: the weight's attribute name on the graph module, always ``f"{name}.weight"``.
        bias: the bias's attribute name, always ``f"{name}.bias"``; None where the layer adds none.
        weight_shape: linear ``(out, in)``; convolution ``(out, in / groups, *kernel)``. Channels are the first dimension.
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
        if self.kind not in KINDS:
            raise ModelError(f"layer {self.name!r} is of kind {self.kind!r}; only {', '.join(KINDS)} can be quantized")
        if len(self.weight_shape) != KINDS[self.kind]:
            raise ModelError(f"layer {self.name!r}: a {self.kind} weight has {KINDS[self.kind]} dimensions, not shape {self.weight_shape}")
        size = 1
        for extent in self.weight_shape:
            size *= extent
        if size != self.parameters or size == 0:
            raise ModelError(f"layer {self.name!r}: shape {self.weight_shape} does not hold {self.parameters} weights")


@dataclass(frozen=True, eq=False)
class Network:
    """A model in evaluation mode, as one tensor in and one tensor out: ATen operations, BatchNorm folded, parameters frozen.

    Made by :func:`cfptq.network.capture` or :func:`cfptq.network.serialize.deserialize_network`. It is immutable.
    Methods that alter something return a new network.
    Gradients flow to the *input* (its parameters do not require any).

    Attributes:
        graph: the graph module; its parameters are attributes reached by ``get_attr`` nodes, its placeholder is the first node.
        layers: the quantizable layers in the order in which they run.
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
            raise ModelError(f"layer names are not unique: {names}")
        for layer in self.layers:
            if layer.node not in nodes or layer.input not in nodes:
                raise ModelError(f"layer {layer.name!r}: the graph has no node {layer.node!r} fed by {layer.input!r}")
            shape = tuple(get_tensor(self.graph, layer.weight).shape)
            if shape != layer.weight_shape:
                raise ModelError(f"layer {layer.name!r}: its weight has shape {shape}, not {layer.weight_shape}")
            if layer.bias is not None and get_tensor(self.graph, layer.bias).shape != shape[:1]:
                raise ModelError(f"layer {layer.name!r}: its bias must have shape {shape[:1]}")

    def __call__(self, x: Tensor) -> Tensor:
        """The model's raw output for ``x`` of shape ``(N, *input_shape)``, float32.

        Raises:
            DataError: ``x`` has another shape or dtype.
        """
        self._check(x)
        return cast(Tensor, self.graph(x))

    @property
    def input_name(self) -> str:
        """Name of the node that holds the model's input: the ``Layer.input`` of the layers fed by it."""
        return str(next(node.name for node in self.graph.graph.nodes if node.op == "placeholder"))

    @property
    def output_name(self) -> str:
        """Name of the node whose tensor the model returns."""
        return str(cast(fx.Node, self.graph.graph.output_node().args[0]).name)

    def layer(self, name: str) -> Layer:
        """The layer called ``name``.

        Raises:
            ModelError: there is none; the message lists those there are.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        reason = dict(self.skipped).get(name)
        because = f"it stays in float: {reason}" if reason else f"the layers are {', '.join(entry.name for entry in self.layers)}"
        raise ModelError(f"no quantizable layer is called {name!r}; {because}")

    def weight(self, name: str) -> Tensor:
        """The weight of layer ``name`` (not a copy; do not write to it)."""
        return get_tensor(self.graph, self.layer(name).weight)

    def bias(self, name: str) -> Tensor | None:
        """The bias of layer ``name``, shape ``(out,)``, or None."""
        bias = self.layer(name).bias
        return None if bias is None else get_tensor(self.graph, bias)

    def observe(self, x: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Values of the nodes called ``names`` while the network runs on ``x``, without gradients.

        Nothing behind the last of these nodes is computed. Node names are those of ``Layer.input`` and ``Layer.node``.

        Args:
            x: ``(N, *input_shape)`` float32.
            names: node names, in any order.

        Raises:
            DataError: ``x`` has another shape or dtype.
            ModelError: there is no such node.
        """
        self._check(x)
        wanted = tuple(dict.fromkeys(names))
        if wanted not in self._probes:
            self._probes[wanted] = self._probe(wanted)
        with torch.no_grad():
            return dict(zip(wanted, self._probes[wanted](x.detach()), strict=True))

    def with_parameters(self, parameters: Mapping[str, tuple[Tensor, Tensor | None]]) -> Network:
        """A new network with other weights and biases in some layers; all other parameters are shared with this one.

        Args:
            parameters: by layer name, ``(weight, bias)``. The bias may be None (the layer then adds none), and may be given to a
                layer that had none.

        Raises:
            ModelError: an unknown layer, or a tensor of the wrong shape or dtype.
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

    def transformed(self, edit: Callable[[fx.GraphModule], None]) -> fx.GraphModule:
        """A deep copy of the graph module after ``edit`` changed it in place; linted, unused nodes removed, recompiled.

        In the copy each node keeps its name, so that ``Layer.node`` and ``Layer.input`` find it.
        """
        changed = copy.deepcopy(self.graph)
        edit(changed)
        changed.graph.eliminate_dead_code()
        changed.graph.lint()
        changed.recompile()
        return changed

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.input_shape:
            raise DataError(f"the network takes rows of shape {self.input_shape}, batch first, not a tensor of shape {tuple(x.shape)}")
        if x.dtype != torch.float32:
            raise DataError(f"the network takes float32 rows; given was {x.dtype}: call .float() on them")

    def _probe(self, names: tuple[str, ...]) -> fx.GraphModule:
        graph = copy.deepcopy(self.graph.graph)
        nodes = {node.name: node for node in graph.nodes}
        unknown = [name for name in names if name not in nodes]
        if unknown:
            raise ModelError(f"the network's graph has no node called {', '.join(unknown)}")
        graph.output_node().args = (tuple(nodes[name] for name in names),)
        graph.eliminate_dead_code()
        return fx.GraphModule(self.graph, graph)


def _check_parameter(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape or value.dtype != torch.float32:
        raise ModelError(f"{name} must be float32 of shape {shape}; given was {value.dtype} of shape {tuple(value.shape)}")


def _connect_bias(graph: fx.GraphModule, node: fx.Node, bias: str | None) -> None:
    """Feed ``node`` the bias attribute, or none; every layer operation takes it as its third argument."""
    argument = None
    if bias is not None:
        with graph.graph.inserting_before(node):
            argument = graph.graph.get_attr(bias)
    node.args = (*node.args[:2], argument, *node.args[3:])
    graph.graph.eliminate_dead_code()
