"""One form for all products of a tensor and a weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from cfptq.network.attributes import set_tensor
from cfptq.network.normalize import aten, evaluate_constant, find_constant_nodes

#: Products of two tensors, the second of which may be a vector.
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.mv.default, aten.bmm.default)
#: Operations that repeat a tensor along axes of size 1 or along new axes.
EXPANSIONS = (aten.expand.default, aten.repeat.default)


def unify_linear_layers(graph: fx.GraphModule) -> None:
    """Rewrite, in place, each product of a tensor and a weight matrix or vector as ``aten.linear``.

    These are ``x @ W``, ``W @ x``, ``addmm``, ``inner``, ``tensordot``, ``bmm`` with a weight that is repeated for each row, and ``einsum``
    without a letter that tensor and weight share with the output. A vector that is added behind becomes the layer's bias. A weight that
    is used more than once stays as it is.
    """
    constant = find_constant_nodes(graph.graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node in constant:
            continue
        form = _read_product(node, constant)
        if form is not None and _count_uses(graph.graph, form.weight) == 1:
            form.rewrite(graph, constant)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


@dataclass
class _Product:
    """A product along axes of a tensor and axes of a weight.

    Attributes:
        node: node of the product.
        source: the tensor.
        weight: the constant.
        summed: axes of the tensor that are summed over.
        weight_summed: axes of the weight that they are summed with.
        order: permutation of the output, whose last axes are the weight's other axes. None keeps it.
        bias: constant that is added, or None.
        factors: factors of the product and of the bias.
        weight_rank: number of the weight's axes. Leading axes of size 1 beyond them are dropped. None keeps all.
        new_axes: number of axes of size 1 that the output has before those of the tensor.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    summed: list[int]
    weight_summed: list[int]
    order: list[int] | None = None
    bias: fx.Node | None = None
    factors: tuple[float, float] = (1.0, 1.0)
    weight_rank: int | None = None
    new_axes: int = 0

    def rewrite(self, graph: fx.GraphModule, constant: set[fx.Node]) -> None:
        """Put a linear layer in the place of the product."""
        rank = _get_rank(self.source)
        with torch.no_grad():
            tensor = evaluate_constant(graph, self.weight) * self.factors[0]
            tensor = tensor if self.weight_rank is None else tensor.reshape(tensor.shape[-self.weight_rank :])
            others = [axis for axis in range(tensor.dim()) if axis not in self.weight_summed]
            sizes = [tensor.shape[axis] for axis in others]
            matrix = tensor.permute([*others, *self.weight_summed]).reshape(math.prod(sizes), -1)
        out, replaced = matrix.shape[0], self.node
        if self.bias is None and self.order is None and len(sizes) == 1:
            self.bias, replaced = _find_added_vector(self.node, constant, out)
        with torch.no_grad():
            added = None if self.bias is None else _expand_bias(evaluate_constant(graph, self.bias) * self.factors[1], out)
        if self.bias is not None and added is None:
            return
        axes = [axis for axis in range(rank) if axis not in self.summed]
        with graph.graph.inserting_before(replaced):
            weight = _add_parameter(graph, self.weight, "weight", matrix)
            bias = None if added is None else _add_parameter(graph, cast(fx.Node, self.bias), "bias", added)
            source = self.source
            if self.summed != list(range(len(axes), rank)):
                source = graph.graph.call_function(aten.permute.default, (source, [*axes, *self.summed]))
            if len(self.summed) > 1:
                source = graph.graph.call_function(aten.flatten.using_ints, (source, len(axes), rank - 1))
            result = graph.graph.call_function(aten.linear.default, (source, weight, bias))
            result.meta["nn_module_stack"] = self.node.meta.get("nn_module_stack")
            if not sizes:
                result = graph.graph.call_function(aten.squeeze.dim, (result, -1))
            if len(sizes) > 1:
                result = graph.graph.call_function(aten.unflatten.int, (result, -1, sizes))
            for _ in range(self.new_axes):
                result = graph.graph.call_function(aten.unsqueeze.default, (result, 0))
            if self.order is not None:
                result = graph.graph.call_function(aten.permute.default, (result, self.order))
        if "val" in replaced.meta:
            result.meta["val"] = replaced.meta["val"]
        replaced.replace_all_uses_with(result)


def _read_product(node: fx.Node, constant: set[fx.Node]) -> _Product | None:
    """Return a product of an input-dependent tensor and a constant, or None for other nodes."""
    if node.target in PRODUCTS:
        return _read_matmul(node, *cast("tuple[fx.Node, fx.Node]", node.args[:2]), constant)
    if node.target is aten.addmm.default:
        bias, left, right = cast("tuple[fx.Node, fx.Node, fx.Node]", node.args)
        if bias not in constant or left in constant:
            return None
        factors = float(cast(Any, node.kwargs.get("alpha", 1))), float(cast(Any, node.kwargs.get("beta", 1)))
        return _Product(node, left, right, [1], [0], None, bias, factors) if right in constant else None
    if node.target is aten.inner.default:
        left, right = cast("tuple[fx.Node, fx.Node]", node.args)
        if right in constant and left not in constant and _get_rank(right) >= 1 and _get_rank(left) >= 2:
            return _Product(node, left, right, [_get_rank(left) - 1], [_get_rank(right) - 1])
    if node.target is aten.tensordot.default:
        left, right, axes, weight_axes = cast("tuple[fx.Node, fx.Node, list[int], list[int]]", node.args[:4])
        if right in constant and left not in constant and 1 <= len(axes) < _get_rank(left):
            summed, weight_summed = [axis % _get_rank(left) for axis in axes], [axis % _get_rank(right) for axis in weight_axes]
            return _Product(node, left, right, summed, weight_summed)
    if node.target is aten.einsum.default:
        return _read_einsum(node, constant)
    return None


def _read_matmul(node: fx.Node, left: fx.Node, right: fx.Node, constant: set[fx.Node]) -> _Product | None:
    for source, factor in ((left, right), (right, left)):
        weight, weight_rank = _find_weight(factor, constant)
        rank = _get_rank(source)
        if weight is None or source in constant or rank < 2:
            continue
        new_axes = max(0, _get_rank(factor) - rank)
        if factor is right:
            return _Product(node, source, weight, [rank - 1], [0], weight_rank=weight_rank, new_axes=new_axes)
        if new_axes:
            continue
        # The product of W (out, in) and x (..., in, rows) has the rows last.
        order = [*range(rank - 2), rank - 1, rank - 2] if weight_rank == 2 else None
        return _Product(node, source, weight, [rank - 2], [weight_rank - 1], order, weight_rank=weight_rank)
    return None


def _find_weight(node: fx.Node, constant: set[fx.Node]) -> tuple[fx.Node | None, int]:
    """Return the constant matrix or vector that a factor holds, perhaps once for each row, and its number of axes."""
    base = node if node in constant else node.args[0] if node.target in EXPANSIONS else None
    if not isinstance(base, fx.Node) or base not in constant:
        return None, 0
    shape = _get_shape(base)
    if base is not node and (len(shape) < 2 or tuple(shape[-2:]) != tuple(_get_shape(node)[-2:])):
        return None, 0
    rank = min(2, len(shape))
    return (base, rank) if rank > 0 and all(size == 1 for size in shape[:-rank]) else (None, 0)


def _read_einsum(node: fx.Node, constant: set[fx.Node]) -> _Product | None:
    equation, tensors = cast("tuple[str, list[fx.Node]]", node.args[:2])
    if len(tensors) != 2 or (tensors[0] in constant) == (tensors[1] in constant):
        return None
    terms, output = _spell_out(equation.replace(" ", ""), [_get_rank(tensor) for tensor in tensors])
    place = 1 if tensors[1] in constant else 0
    letters, weight_letters = terms[1 - place], terms[place]
    distinct = all(len(set(term)) == len(term) for term in (letters, weight_letters, output))
    shared = [letter for letter in letters if letter in weight_letters]
    kept = [letter for letter in letters if letter not in shared]
    others = [letter for letter in weight_letters if letter not in shared]
    # A letter that both share with the output is a product for each of its values, which is no layer.
    if not distinct or not shared or not kept or sorted(kept + others) != sorted(output):
        return None
    natural = kept + others
    order = None if natural == list(output) else [natural.index(letter) for letter in output]
    summed, weight_summed = [letters.index(letter) for letter in shared], [weight_letters.index(letter) for letter in shared]
    return _Product(node, tensors[1 - place], tensors[place], summed, weight_summed, order)


def _spell_out(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return the terms and the output of an einsum, with letters in place of the ellipsis and of an output that is left out."""
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "..." * ("..." in inputs) + "".join(sorted(letter for letter in set(inputs) - set(",.") if inputs.count(letter) == 1))
    unused = [chr(code) for code in range(ord("A"), ord("z") + 1) if chr(code).isalpha() and chr(code) not in equation]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((count for term, count in zip(terms, hidden, strict=True) if "..." in term), default=0)
    spelled = [term.replace("...", "".join(unused[most - count : most])) for term, count in zip(terms, hidden, strict=True)]
    return spelled, output.replace("...", "".join(unused[:most]))


def _find_added_vector(node: fx.Node, constant: set[fx.Node], out: int) -> tuple[fx.Node | None, fx.Node]:
    """Return the vector that is added to a product and the node of the sum, or None and the product itself."""
    user = next(iter(node.users)) if len(node.users) == 1 else node
    if user.target is aten.add.Tensor and not user.kwargs:
        other = user.args[1] if user.args[0] is node else user.args[0]
        if isinstance(other, fx.Node) and other in constant and tuple(_get_shape(other)) in ((out,), (1, out)):
            return other, user
    return None, node


def _expand_bias(bias: Tensor, out: int) -> Tensor | None:
    """Return a bias as (out,), or None where it differs between rows."""
    if bias.dim() > 2 or (bias.dim() == 2 and bias.shape[0] != 1):
        return None
    return bias.reshape(-1).expand(out).clone()


def _count_uses(graph: fx.Graph, weight: fx.Node) -> int:
    """Count the uses of a weight, and those of the parameter that it is a transpose or another view of."""
    uses = len(weight.users)
    while weight.op == "call_function" and len(weight.all_input_nodes) == 1:
        weight = weight.all_input_nodes[0]
        uses = max(uses, len(weight.users))
    if weight.op == "get_attr":
        uses = max(uses, sum(len(node.users) for node in graph.nodes if node.op == "get_attr" and node.target == weight.target))
    return uses


def _get_shape(node: fx.Node) -> torch.Size:
    return cast(torch.Size, node.meta["val"].shape)


def _get_rank(node: fx.Node) -> int:
    return len(_get_shape(node))


def _add_parameter(graph: fx.GraphModule, origin: fx.Node, kind: str, value: Tensor) -> fx.Node:
    """Add a parameter that is named after the one it is computed from."""
    name = f"{origin.name}_as_{kind}"
    set_tensor(graph, name, value.clone())
    parameter = graph.graph.get_attr(name)
    parameter.meta["val"] = value
    parameter.meta["origin"] = _find_origin(origin)
    return parameter


def _find_origin(node: fx.Node) -> str:
    """Return the name of the only parameter that a constant is computed from, or the name of its node."""
    if node.op == "get_attr":
        return str(node.target)
    sources = {_find_origin(argument) for argument in node.all_input_nodes}
    return sources.pop() if len(sources) == 1 else node.name
