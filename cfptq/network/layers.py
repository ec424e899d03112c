"""Which nodes of a graph are quantizable layers, and why the others are not."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network.attributes import get_attribute, set_tensor
from cfptq.network.graph import Layer
from cfptq.network.normalize import aten, constant_nodes, stack_name

#: Operation -> kind. All take (input, weight, bias, ...); ``convolution`` is any dimension and possibly transposed.
LAYER_OPERATIONS = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.convolution.default: "convolution",
}
#: Operations that may take a parameter of two or more dimensions (a class token, a scale) without being a layer.
ARRANGING = ("batch_norm", "cat", "gather", "group_norm", "index", "instance_norm", "layer_norm", "repeat", "stack", "where")


def kind_of(node: fx.Node) -> str | None:
    """``"linear"``, ``"conv1d"`` or ``"conv2d"`` where ``node`` has the operation of a quantizable layer, else None."""
    kind = LAYER_OPERATIONS.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    if kind != "convolution":
        return cast("str | None", kind)
    if node.args[6]:
        return None
    return {1: "conv1d", 2: "conv2d"}.get(len(cast("list[int]", node.args[3])))


def weight_and_bias(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that give a layer's weight and bias; empty for anything that is no layer."""
    if kind_of(node) is None:
        return ()
    _as_positional(node)
    return tuple(argument for argument in node.args[1:3] if isinstance(argument, fx.Node))


def _as_positional(node: fx.Node) -> None:
    """Write weight and bias as positional arguments, so that everyone finds them at the same place."""
    names = [argument.name for argument in cast(torch._ops.OpOverload, node.target)._schema.arguments]
    arguments = list(node.args)
    keywords = dict(node.kwargs)
    while len(arguments) < 3 or keywords:
        name = names[len(arguments)]
        if name not in keywords and len(arguments) >= 3:
            break
        arguments.append(keywords.pop(name, None))
    node.args, node.kwargs = tuple(arguments), keywords


def find_layers(graph: fx.GraphModule) -> tuple[tuple[Layer, ...], tuple[tuple[str, str], ...]]:
    """The layers of ``graph`` in execution order, and ``(name, reason)`` of each weight that stays in float.

    Moves each layer's parameters to the attributes ``<name>.weight`` and ``<name>.bias``.

    Raises:
        ModelError: there is no quantizable layer; the message names what there is.
    """
    found: list[fx.Node] = []
    skipped: dict[str, str] = {}
    constant = constant_nodes(graph.graph)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in constant:
            continue  # what is computed from a parameter alone is judged where it meets the input
        reason = _why_not(graph, node, constant)
        if reason is None:
            found.append(node)
        elif reason:
            for name in _parameter_names(graph, node, constant) or [stack_name(node) or node.name]:
                skipped.setdefault(name, reason)
    if not found:
        there = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "no layer with a weight matrix at all"
        raise ModelError(f"the model has no Linear, Conv1d or Conv2d layer that can be quantized (found {there})")
    names = _unique([_layer_name(node) for node in found])
    _make_room(graph, dict(zip(names, found, strict=True)))
    layers = []
    for name, node in zip(names, found, strict=True):
        weight, bias = cast(str, _move(graph, node, 1, f"{name}.weight")), _move(graph, node, 2, f"{name}.bias")
        value = cast(Tensor, get_attribute(graph, weight))
        source = cast(fx.Node, node.args[0]).name
        layers.append(Layer(name, cast(str, kind_of(node)), node.name, source, weight, bias, tuple(value.shape), value.numel()))
    return tuple(layers), tuple(skipped.items())


def _why_not(graph: fx.GraphModule, node: fx.Node, constant: set[fx.Node]) -> str | None:
    """None: a layer. Empty: nothing with a weight. Otherwise the reason why its weights stay in float."""
    operation = str(node.target).removeprefix("aten.").split(".")[0]
    if kind_of(node) is None:
        if _only_arranges(node) or not _parameter_names(graph, node, constant):
            return ""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return f"inside a branch of torch.{operation}"
        return f"{operation} is not one of the operations that are quantized (Linear, Conv1d, Conv2d)"
    weight, bias = node.args[1], node.args[2]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return "its weight is computed from the input"
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return "its bias is computed from the input"
    value = cast(Tensor, get_attribute(graph, str(weight.target)))
    if value.dtype != torch.float32:
        return f"its weight is {value.dtype}, not float32"
    if value.ndim < 2:
        return "its weight is no matrix"
    uses = [user for other in graph.graph.nodes if other.op == "get_attr" and other.target == weight.target for user in other.users]
    if len(uses) > 1:
        return f"its weight is used {len(uses)} times in the model"
    return None


def _only_arranges(node: fx.Node) -> bool:
    """Whether a parameter that ``node`` takes is no layer's weight: elementwise operations, views, joins, normalizations."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.pointwise in node.target.tags or any(result.alias_info for result in node.target._schema.returns):
        return True
    return node.target._schema.name.removeprefix("aten::") in ARRANGING


def _parameter_names(graph: fx.GraphModule, node: fx.Node, constant: set[fx.Node]) -> list[str]:
    """Names of the float matrices among the parameters that ``node`` takes, without their ``.weight``."""
    names = []
    for argument in node.all_input_nodes:
        if argument.op == "call_function" and argument in constant:
            names += _parameter_names(graph, argument, constant)
        value = get_attribute(graph, str(argument.target)) if argument.op == "get_attr" else None
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            names.append(_without_suffix(str(argument.target)) or argument.name)
    return names


def _without_suffix(target: str) -> str:
    return "" if target == "weight" else target.removesuffix(".weight")


def _layer_name(node: fx.Node) -> str:
    weight = cast(fx.Node, node.args[1])
    if weight.meta.get("folded"):
        return stack_name(node) or node.name
    return _without_suffix(str(weight.meta.get("origin", weight.target))) or node.name


def _unique(names: list[str]) -> list[str]:
    """``names`` with a number after those that stand there a second time."""
    taken, result = set(names), []
    for position, name in enumerate(names):
        candidate, count = name, 1
        while candidate in taken and (name in names[:position] or count > 1):
            candidate, count = f"{name}_{count}", count + 1
        taken.add(candidate)
        result.append(candidate)
    return result


def _make_room(graph: fx.GraphModule, layers: dict[str, fx.Node]) -> None:
    """Rename what stands at ``<name>.weight`` or ``<name>.bias`` and is not that layer's alone; it would be overwritten."""
    owners = {f"{name}.{kind}": (node, position) for name, node in layers.items() for position, kind in ((1, "weight"), (2, "bias"))}
    for node in graph.graph.nodes:
        if node.op != "get_attr" or node.target not in owners:
            continue
        owner, position = owners[node.target]
        if list(node.users) != [owner] or owner.args[position] is not node:
            elsewhere = f"{node.target}_shared"
            set_tensor(graph, elsewhere, cast(Tensor, get_attribute(graph, node.target)))
            node.target = elsewhere


def _move(graph: fx.GraphModule, node: fx.Node, position: int, name: str) -> str | None:
    """Give the layer ``node`` its own attribute called ``name`` for its weight (1) or bias (2)."""
    argument = node.args[position]
    if argument is None:
        return None
    old = cast(fx.Node, argument)
    if old.target == name and len(old.users) == 1:
        return name
    value = cast(Tensor, get_attribute(graph, str(old.target))).clone()
    set_tensor(graph, name, value)
    with graph.graph.inserting_before(node):
        node.update_arg(position, graph.graph.get_attr(name))
    if not old.users:
        graph.graph.erase_node(old)
    return name
