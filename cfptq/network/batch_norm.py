"""Folding of BatchNorm into the layer before it.

Folding is exact in evaluation mode, where BatchNorm is an affine map per channel.
"""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor, fx

from cfptq.network.attributes import get_attribute, set_tensor
from cfptq.network.layers import get_layer_kind
from cfptq.network.normalize import aten


def fold_batch_norms(graph: fx.GraphModule) -> tuple[str, ...]:
    """Fold, in place, every BatchNorm that directly follows a linear or convolutional layer.

    ``γ (W a + b − μ) / √(v + ε) + β`` becomes ``W' a + b'`` with ``W' = W · γ / √(v + ε)`` per output channel and
    ``b' = (b − μ) · γ / √(v + ε) + β``, computed in float64.

    A BatchNorm is not folded in four cases. The layer's output is used elsewhere. The layer's weight is shared. The channels of the
    BatchNorm are not the layer's output channels (a 3-D linear output). No layer comes before it. In the last case, folding it
    into the *next* layer would undo the standardization that a per-tensor activation scale needs.

    Returns:
        The names of the layers' nodes.
    """
    folded = []
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
            layer = node.args[0]
            if isinstance(layer, fx.Node) and _is_foldable(graph, layer):
                _fold(graph, layer, node)
                folded.append(layer.name)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return tuple(folded)


def _is_foldable(graph: fx.GraphModule, layer: fx.Node) -> bool:
    kind = get_layer_kind(layer)
    if kind is None or len(layer.users) != 1 or (kind == "linear" and layer.meta["val"].ndim != 2):
        return False
    weight, bias = layer.args[1], layer.args[2]
    constant = all(isinstance(argument, fx.Node) and argument.op == "get_attr" for argument in (weight, bias) if argument is not None)
    return constant and weight is not None and len(cast(fx.Node, weight).users) == 1


def _fold(graph: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> None:
    def value(argument: object, default: Tensor) -> Tensor:
        return default if argument is None else cast(Tensor, get_attribute(graph, str(cast(fx.Node, argument).target))).double()

    weight = value(layer.args[1], torch.empty(0))
    zeros, ones = (fill(weight.shape[0], dtype=torch.float64) for fill in (torch.zeros, torch.ones))
    gamma, beta = value(norm.args[1], ones), value(norm.args[2], zeros)
    mean, variance = value(norm.args[3], zeros), value(norm.args[4], ones)
    native = norm.target is aten._native_batch_norm_legit_no_training.default
    epsilon = cast(float, norm.args[6] if native else norm.args[7])

    scale = gamma / torch.sqrt(variance + epsilon)
    set_tensor(graph, f"{layer.name}_folded.weight", (weight * scale.view(-1, *[1] * (weight.ndim - 1))).float())
    set_tensor(graph, f"{layer.name}_folded.bias", ((value(layer.args[2], zeros) - mean) * scale + beta).float())
    old_weight, old_bias = cast(fx.Node, layer.args[1]), layer.args[2]
    with graph.graph.inserting_before(layer):
        new_weight = graph.graph.get_attr(f"{layer.name}_folded.weight")
        new_bias = graph.graph.get_attr(f"{layer.name}_folded.bias")
    # The layer keeps the name of its own weight, not of the folded copy.
    new_weight.meta["origin"] = old_weight.meta.get("origin", old_weight.target)
    new_weight.meta["folded"] = old_weight.meta.get("folded", False)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
    _replace_output(graph.graph, norm, layer, native)
    for unused in (old_weight, old_bias):
        if isinstance(unused, fx.Node) and not unused.users:
            graph.graph.erase_node(unused)


def _replace_output(graph: fx.Graph, norm: fx.Node, layer: fx.Node, native: bool) -> None:
    """Let the layer take the place of the normalization, which is erased."""
    results = [user for user in norm.users if user.target is operator.getitem and user.args[1] == 0] if native else [norm]
    for result in results:
        result.replace_all_uses_with(layer, delete_user_cb=lambda user: user is not norm)
    # A normalization left in the graph would count as another user of the layer, and a second one behind it would not be folded.
    for unused in (*norm.users, norm):
        if not unused.users:
            graph.erase_node(unused)
