"""Normalization of an exported graph to the form that a ``cfptq.network.Network`` holds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from cfptq.errors import ModelError
from cfptq.network.attributes import get_attribute, set_tensor

aten = torch.ops.aten

#: Operations that return their first argument unchanged if their last argument is False.
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default)
#: Operations that return their first argument unchanged.
IDENTITIES = (aten.lift_fresh_copy.default, aten.detach_.default, aten.alias.default)
#: Prefixes of the checks that ``torch.export`` inserts. They compute nothing.
CHECKS = ("_assert", "sym_constrain", "_check", "_guards_fn")
#: Higher-order operations that only set a mode of autograd. Their body replaces them.
INLINED = ("wrap_with_set_grad_enabled",)


def has_mutation(graph: fx.GraphModule) -> bool:
    """Check for operations that write into their arguments, other than those that normalization removes."""
    for module in graph.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.target not in IDENTITIES:
                return True
    return False


def normalize_graph(exported: fx.GraphModule) -> fx.GraphModule:
    """Copy an exported module to a graph with one placeholder called ``x``, one output tensor and its own frozen parameters.

    The parameters are on the CPU. Dropout, shape checks and wrappers of ``torch.no_grad`` are removed. A tensor under two names gets
    one name. The node metadata ``val`` and ``nn_module_stack`` is kept for the passes that follow.

    Raises:
        ModelError: the graph draws random numbers, normalizes by the statistics of the batch, or does not return one tensor.
    """
    root = torch.nn.Module()
    graph = _copy_graph(exported, root, {})
    output = graph.output_node()
    if len(output.args[0]) != 1 or not isinstance(output.args[0][0], fx.Node):  # type: ignore[arg-type, index]
        raise ModelError("The model must return one tensor. Wrap it in a module whose forward returns only the logits.")
    output.args = (output.args[0][0],)  # type: ignore[index]
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(root, graph, class_name="Network")


def _copy_graph(source: fx.GraphModule, root: torch.nn.Module, names: dict[Any, str]) -> fx.Graph:
    """Copy the graph of ``source`` and set its attributes on ``root``.

    ``names`` maps the identity of each tensor to its name there.
    """
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    nodes = list(source.graph.nodes)
    for position, node in enumerate(node for node in nodes if node.op == "placeholder"):
        name = node.name if values or len([n for n in nodes if n.op == "placeholder"]) > 1 else "x"
        values[node] = graph.create_node("placeholder", name, name=name)
        values[node].meta = dict(node.meta, position=position)
    for node in nodes:
        if node.op != "placeholder":
            _copy_node(node, source, graph, root, values, names)
    return graph


def _copy_node(
    node: fx.Node, source: fx.GraphModule, graph: fx.Graph, root: torch.nn.Module, values: dict[fx.Node, Any], names: dict[Any, str]
) -> None:
    if _is_check(node) or (node.op == "get_attr" and not node.users):
        return
    if node.op == "get_attr":
        value = get_attribute(source, str(node.target))
        if isinstance(value, fx.GraphModule):
            values[node] = value  # Set on root only where it is used, because an inlined body is not.
            return
        values[node] = graph.create_node("get_attr", _copy_parameter(root, str(node.target), cast(Tensor, value), names), name=node.name)
    elif node.op == "call_function" and getattr(node.target, "__name__", "") in INLINED:
        values[node] = _inline(node, graph, root, values, names)
        return
    elif node.target is operator.getitem and isinstance(values.get(cast(fx.Node, node.args[0])), tuple):
        values[node] = values[cast(fx.Node, node.args[0])][node.args[1]]
        return
    elif node.target in IDENTITIES or (node.target in DROPOUTS and node.args[-1] is False):
        values[node] = values[cast(fx.Node, node.args[0])]
        return
    else:
        _check(node)
        _normalize_bodies(node, graph, root, values)
        copied = graph.node_copy(node, lambda argument: cast(fx.Node, values[argument]))
        copied.args = cast(Any, map_aggregate(copied.args, _move_device_to_cpu))
        copied.kwargs = cast(Any, map_aggregate(copied.kwargs, _move_device_to_cpu))
        values[node] = copied
        return
    values[node].meta = dict(node.meta)


def _is_check(node: fx.Node) -> bool:
    name = str(node.target).removeprefix("aten.").removeprefix("torch.")
    return node.op in ("call_function", "call_module") and not node.users and name.startswith(CHECKS)


def _copy_parameter(root: torch.nn.Module, target: str, value: Tensor, names: dict[Any, str]) -> str:
    """Set a copy of ``value`` on ``root`` unless it has one already, and return its name."""
    identity = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype) if value.numel() else target
    if identity not in names:
        names[identity] = target
        set_tensor(root, target, value.detach().to("cpu", copy=True))
    return names[identity]


def _inline(node: fx.Node, graph: fx.Graph, root: torch.nn.Module, values: dict[fx.Node, Any], names: dict[Any, str]) -> tuple[Any, ...]:
    arguments = [values[argument] for argument in node.args if isinstance(argument, fx.Node)]
    body = next(argument for argument in arguments if isinstance(argument, fx.GraphModule))
    given = [argument for argument in arguments if argument is not body]
    inner: dict[fx.Node, Any] = dict(zip((inside for inside in body.graph.nodes if inside.op == "placeholder"), given, strict=True))
    for inside in body.graph.nodes:
        if inside.op == "output":
            return tuple(inner[result] for result in inside.args[0])
        if inside.op != "placeholder":
            _copy_node(inside, body, graph, root, inner, names)
    raise ModelError(f"The exported graph has a body without an output at {node.name!r}.")


def _normalize_bodies(node: fx.Node, graph: fx.Graph, root: torch.nn.Module, values: dict[fx.Node, Any]) -> None:
    """Normalize the bodies of a higher-order operation such as ``torch.cond`` and set them on ``root``."""
    for argument in node.all_input_nodes:
        body = values[argument]
        if isinstance(body, fx.GraphModule):
            plain_root = torch.nn.Module()
            plain = fx.GraphModule(plain_root, _copy_graph(body, plain_root, {}), class_name="Branch")
            plain.graph.eliminate_dead_code()
            plain.recompile()
            name = argument.name
            root.add_module(name, plain)
            values[argument] = graph.create_node("get_attr", name, name=name)


def _check(node: fx.Node) -> None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if torch.Tag.nondeterministic_seeded in node.target.tags and _draws_random_numbers(node):
        raise ModelError(
            f"The model draws random numbers in evaluation mode ({node.target} at {_describe_position(node)}). "
            "Make its forward deterministic."
        )
    if node.target is aten.batch_norm.default and node.args[5] is not False:
        raise ModelError(
            f"BatchNorm {_describe_position(node)} must have running statistics, or one row's output depends on the other rows. "
            "Use track_running_stats=True or another normalization."
        )


def _draws_random_numbers(node: fx.Node) -> bool:
    """Check whether an operation that can draw random numbers does.

    Attention and recurrent layers draw them only with dropout.
    """
    schema = cast(torch._ops.OpOverload, node.target)._schema
    given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    off = [given.get(name) in (False, 0.0) for name in ("train", "training", "dropout", "dropout_p", "p") if name in given]
    return not any(off)


def _describe_position(node: fx.Node) -> str:
    return repr(get_module_name(node) or node.name)


def get_module_name(node: fx.Node) -> str:
    """Return the dotted name of the module that ``node`` comes from, or "" for the model itself or an unknown module."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _move_device_to_cpu(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


def rename_nodes(graph: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph with node names that depend on the graph alone.

    ``torch.export`` numbers some nodes across exports.
    """
    plain = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        base = {"placeholder": "x", "output": "output", "get_attr": str(node.target).replace(".", "_")}.get(node.op)
        name = base or str(getattr(node.target, "__name__", node.target)).split(".")[0]
        args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: values[a] if isinstance(a, fx.Node) else a)
        target = "x" if node.op == "placeholder" else node.target
        values[node] = plain.create_node(node.op, target, args, kwargs, name=name)
        values[node].meta = dict(node.meta)
    return fx.GraphModule(graph, plain, class_name="Network")


def fold_constants(graph: fx.GraphModule, wanted: Callable[[fx.Node], tuple[fx.Node, ...]]) -> None:
    """Replace arguments that depend on parameters alone by parameters with their values.

    This turns the weight of a parametrized layer (weight norm, pruning masks) into a plain parameter.

    Args:
        graph: changed in place.
        wanted: returns the arguments of a node to replace.
    """
    constant = find_constant_nodes(graph.graph)
    for node in list(graph.graph.nodes):
        for argument in wanted(node):
            if argument.op == "call_function" and argument in constant:
                value = evaluate_constant(graph, argument)
                name = f"{argument.name}_folded"
                set_tensor(graph, name, value.clone())
                with graph.graph.inserting_before(node):
                    folded = graph.graph.get_attr(name)
                folded.meta["folded"] = True
                argument.replace_all_uses_with(folded)
    graph.graph.eliminate_dead_code()


def evaluate_constant(graph: fx.GraphModule, node: fx.Node) -> Any:
    """Compute the value of a node that depends on parameters and constants alone."""
    if node.op == "get_attr":
        return get_attribute(graph, str(node.target))
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda a: evaluate_constant(graph, a) if isinstance(a, fx.Node) else a)
    with torch.no_grad():
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def find_constant_nodes(graph: fx.Graph, operations: Container[Any] = ()) -> set[fx.Node]:
    """Find the nodes that depend on parameters and constants alone.

    Args:
        graph: a graph.
        operations: operations that count as constants whatever they take.
    """
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and (node.target in operations or constant.issuperset(node.all_input_nodes))
        ):
            constant.add(node)
    return constant
