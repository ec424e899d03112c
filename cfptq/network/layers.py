"""Search for the quantizable layers of a graph."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network.attributes import get_attribute, set_tensor
from cfptq.network.graph import Layer
from cfptq.network.normalize import aten, find_constant_nodes, get_module_name

#: Kind of each operation. All take (input, weight, bias, ...). A ``convolution`` has any dimension and may be transposed.
LAYER_OPERATIONS = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv1d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv2d.padding: "conv2d",
    aten.convolution.default: "convolution",
}
#: Operations that sum over axes.
SUMS = (aten.sum.dim_IntList, aten.mean.dim, aten.sum.default)
#: Operations that return the size of a tensor. A weight that is expanded to the number of rows holds the weight's numbers alone.
SIZES = (aten.sym_size.int, aten.sym_numel.default)
#: Operations that may take a parameter matrix, such as a class token or a scale, without being a layer.
NON_LAYER_OPERATIONS = ("batch_norm", "cat", "gather", "group_norm", "index", "instance_norm", "layer_norm", "repeat", "stack", "where")


def get_layer_kind(node: fx.Node) -> str | None:
    """Return ``"linear"``, ``"conv1d"`` or ``"conv2d"`` for the operation of a quantizable layer, else None."""
    kind = LAYER_OPERATIONS.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    if kind != "convolution":
        return cast("str | None", kind)
    if node.args[6]:
        return None
    return {1: "conv1d", 2: "conv2d"}.get(len(cast("list[int]", node.args[3])))


def get_parameter_nodes(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes of a layer's weight and bias, or an empty tuple for other nodes."""
    if get_layer_kind(node) is None:
        return ()
    _make_positional(node)
    return tuple(argument for argument in node.args[1:3] if isinstance(argument, fx.Node))


def _make_positional(node: fx.Node) -> None:
    """Turn the keyword arguments of a layer's node into positional arguments."""
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
    """Find the quantizable layers and move their parameters to the attributes ``<name>.weight`` and ``<name>.bias``.

    Returns:
        The layers in execution order, and ``(name, reason)`` of each weight that stays in float.

    Raises:
        ModelError: there is no quantizable layer. The message names the weights found.
    """
    found: list[fx.Node] = []
    skipped: dict[str, str] = {}
    constant = find_constant_nodes(graph.graph, SIZES)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in constant:
            continue  # A node computed from parameters and sizes alone is reported at the node that takes it and the input.
        reason = _find_obstacle(graph, node, constant)
        if reason is None:
            found.append(node)
        elif reason:
            for name in _list_parameter_names(graph, node, constant) or [get_module_name(node) or node.name]:
                skipped.setdefault(name, reason)
    if not found:
        found_instead = ", ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "no layer with a weight matrix at all"
        raise ModelError(f"The model must have a Linear, Conv1d or Conv2d layer that can be quantized, got {found_instead}.")
    names = _make_unique([_get_layer_name(node) for node in found])
    _move_shared_attributes(graph, dict(zip(names, found, strict=True)))
    layers = []
    for name, node in zip(names, found, strict=True):
        weight, bias = cast(str, _move_parameter(graph, node, 1, f"{name}.weight")), _move_parameter(graph, node, 2, f"{name}.bias")
        value = cast(Tensor, get_attribute(graph, weight))
        source = cast(fx.Node, node.args[0]).name
        layers.append(Layer(name, cast(str, get_layer_kind(node)), node.name, source, weight, bias, tuple(value.shape), value.numel()))
    return tuple(layers), tuple(skipped.items())


def _find_obstacle(graph: fx.GraphModule, node: fx.Node, constant: set[fx.Node]) -> str | None:
    """Return the reason why a node's weights stay in float.

    The reason is None for a quantizable layer and empty for a node without weights.
    """
    operation = str(node.target).removeprefix("aten.").split(".")[0]
    if _is_summed_product(graph, node):
        return "a sum of products is not quantized. Write it as a matrix product"
    if get_layer_kind(node) is None:
        if _has_no_weight(node) or not _list_parameter_names(graph, node, constant):
            return ""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return f"inside a branch of torch.{operation}"
        return f"{operation} is not one of the operations that are quantized (Linear, Conv1d, Conv2d)"
    if "obstacle" in node.meta:
        return str(node.meta["obstacle"])
    weight, bias = node.args[1], node.args[2]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return "its weight is computed from the input"
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return "its bias is computed from the input"
    value = cast(Tensor, get_attribute(graph, str(weight.target)))
    if value.dtype != torch.float32:
        return f"its weight is {value.dtype}, not float32"
    if value.ndim < 2:
        return "its weight is not a matrix"
    uses = [user for other in graph.graph.nodes if other.op == "get_attr" and other.target == weight.target for user in other.users]
    if len(uses) > 1:
        return f"its weight is used {len(uses)} times in the model"
    return None


def _is_summed_product(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Check that ``node`` multiplies a tensor and a matrix, number by number, and that the products are summed."""
    if node.target is not aten.mul.Tensor or not any(user.target in SUMS for user in node.users):
        return False
    sources = [get_attribute(graph, str(one.target)) for one in node.all_input_nodes if one.op == "get_attr"]
    return any(isinstance(value, Tensor) and sum(size > 1 for size in value.shape) > 1 for value in sources)


def _has_no_weight(node: fx.Node) -> bool:
    """Check that ``node`` is an elementwise operation, view, join or normalization, whose parameters are no layer's weight."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.pointwise in node.target.tags or any(result.alias_info for result in node.target._schema.returns):
        return True
    return node.target._schema.name.removeprefix("aten::") in NON_LAYER_OPERATIONS


def _list_parameter_names(graph: fx.GraphModule, node: fx.Node, constant: set[fx.Node]) -> list[str]:
    """Return the names of the float matrices that ``node`` takes, without ``.weight``."""
    names = []
    for argument in node.all_input_nodes:
        if argument.op == "call_function" and argument in constant:
            names += _list_parameter_names(graph, argument, constant)
        value = get_attribute(graph, str(argument.target)) if argument.op == "get_attr" else None
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1:
            names.append(_strip_suffix(str(argument.target)) or argument.name)
    return names


def _strip_suffix(target: str) -> str:
    return "" if target == "weight" else target.removeprefix("constants.").removesuffix(".weight")


def _get_layer_name(node: fx.Node) -> str:
    weight = cast(fx.Node, node.args[1])
    if weight.meta.get("folded"):
        return get_module_name(node) or node.name
    return _strip_suffix(str(weight.meta.get("origin", weight.target))) or node.name


def _make_unique(names: list[str]) -> list[str]:
    """Append a number to each repeated name."""
    taken, result = set(names), []
    for position, name in enumerate(names):
        candidate, count = name, 1
        while candidate in taken and (name in names[:position] or count > 1):
            candidate, count = f"{name}_{count}", count + 1
        taken.add(candidate)
        result.append(candidate)
    return result


def _move_shared_attributes(graph: fx.GraphModule, layers: dict[str, fx.Node]) -> None:
    """Rename each attribute called like a layer, or its weight or bias, that other nodes use too, so that it is not overwritten."""
    owners = {f"{name}.{kind}": (node, position) for name, node in layers.items() for position, kind in ((1, "weight"), (2, "bias"))}
    owners.update((name, (node, 1)) for name, node in layers.items() if name not in owners)
    for node in graph.graph.nodes:
        if node.op != "get_attr" or node.target not in owners:
            continue
        owner, position = owners[node.target]
        if list(node.users) != [owner] or owner.args[position] is not node:
            new_name = f"{node.target}_shared"
            set_tensor(graph, new_name, cast(Tensor, get_attribute(graph, node.target)))
            node.target = new_name


def _move_parameter(graph: fx.GraphModule, node: fx.Node, position: int, name: str) -> str | None:
    """Move a layer's weight (argument 1) or bias (argument 2) to an attribute of its own called ``name``."""
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
