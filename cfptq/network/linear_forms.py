"""One form for all products of a tensor and a weight matrix."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from cfptq.network.attributes import set_tensor
from cfptq.network.normalize import aten, evaluate_constant, find_constant_nodes

#: Products of two tensors, the second of which may be a vector.
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.mv.default)


def unify_linear_layers(graph: fx.GraphModule) -> None:
    """Rewrite, in place, each product of a tensor and a weight matrix or vector as ``aten.linear``.

    These are ``x @ W``, ``W @ x``, ``addmm``, ``inner``, ``tensordot`` over one axis, and ``einsum`` with one summed letter. A vector
    that is added behind becomes the layer's bias. A weight that is used more than once stays as it is.
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


class _Product:
    """A product along one axis of a tensor and one axis of a weight.

    Args:
        node: node of the product.
        source: the tensor.
        weight: the constant matrix or vector.
        axis: axis of the tensor that is summed over.
        weight_axis: axis of the weight that is summed over.
        order: permutation of the output, whose last axis is the weight's other axis. None keeps it.
        bias: constant that is added, or None.
        factors: factors of the product and of the bias.
    """

    def __init__(
        self,
        node: fx.Node,
        source: fx.Node,
        weight: fx.Node,
        axis: int,
        weight_axis: int,
        order: list[int] | None = None,
        bias: fx.Node | None = None,
        factors: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.node, self.source, self.weight, self.axis, self.weight_axis = node, source, weight, axis, weight_axis
        self.order, self.bias, self.factors = order, bias, factors

    def rewrite(self, graph: fx.GraphModule, constant: set[fx.Node]) -> None:
        """Put a linear layer in the place of the product."""
        with torch.no_grad():
            matrix = evaluate_constant(graph, self.weight) * self.factors[0]
            is_vector = matrix.dim() == 1
            matrix = matrix[None] if is_vector else matrix.movedim(self.weight_axis, 1)
        rank, out = _get_rank(self.source), matrix.shape[0]
        replaced = self.node
        if self.bias is None and self.order is None and not is_vector:
            self.bias, replaced = _find_added_vector(self.node, constant, out)
        with torch.no_grad():
            added = None if self.bias is None else _expand_bias(evaluate_constant(graph, self.bias) * self.factors[1], out)
        if self.bias is not None and added is None:
            return
        with graph.graph.inserting_before(replaced):
            weight = _add_parameter(graph, self.weight, "weight", matrix)
            bias = None if added is None else _add_parameter(graph, cast(fx.Node, self.bias), "bias", added)
            source = self.source
            if self.axis != rank - 1:
                axes = [axis for axis in range(rank) if axis != self.axis]
                source = graph.graph.call_function(aten.permute.default, (source, [*axes, self.axis]))
            result = graph.graph.call_function(aten.linear.default, (source, weight, bias))
            result.meta["nn_module_stack"] = self.node.meta.get("nn_module_stack")
            if is_vector:
                result = graph.graph.call_function(aten.squeeze.dim, (result, -1))
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
        return _Product(node, left, right, 1, 0, None, bias, factors) if right in constant else None
    if node.target is aten.inner.default:
        left, right = cast("tuple[fx.Node, fx.Node]", node.args)
        if right in constant and left not in constant and 1 <= _get_rank(right) <= 2 and _get_rank(left) >= 2:
            return _Product(node, left, right, _get_rank(left) - 1, _get_rank(right) - 1)
    if node.target is aten.tensordot.default:
        left, right, axes, weight_axes = cast("tuple[fx.Node, fx.Node, list[int], list[int]]", node.args[:4])
        if right in constant and left not in constant and len(axes) == 1 and 1 <= _get_rank(right) <= 2 and _get_rank(left) >= 2:
            return _Product(node, left, right, axes[0] % _get_rank(left), weight_axes[0] % _get_rank(right))
    if node.target is aten.einsum.default:
        return _read_einsum(node, constant)
    return None


def _read_matmul(node: fx.Node, left: fx.Node, right: fx.Node, constant: set[fx.Node]) -> _Product | None:
    if right in constant and left not in constant and _get_rank(right) in (1, 2) and _get_rank(left) >= 2:
        return _Product(node, left, right, _get_rank(left) - 1, 0)
    if left in constant and right not in constant and _get_rank(left) in (1, 2) and _get_rank(right) >= 2:
        rank = _get_rank(right)
        # The product of W (out, in) and x (..., in, rows) has the rows last.
        order = [*range(rank - 2), rank - 1, rank - 2] if _get_rank(left) == 2 else None
        return _Product(node, right, left, rank - 2, _get_rank(left) - 1, order)
    return None


def _read_einsum(node: fx.Node, constant: set[fx.Node]) -> _Product | None:
    equation, tensors = cast("tuple[str, list[fx.Node]]", node.args[:2])
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or len(tensors) != 2 or (tensors[0] in constant) == (tensors[1] in constant):
        return None
    weight_place = 1 if tensors[1] in constant else 0
    letters, weight_letters = terms[1 - weight_place], terms[weight_place]
    summed = [letter for letter in letters if letter in weight_letters]
    others = [letter for letter in weight_letters if letter not in letters]
    distinct = all(len(set(term)) == len(term) for term in (letters, weight_letters, output))
    if not distinct or len(summed) != 1 or summed[0] in output or len(others) != len(weight_letters) - 1 or len(weight_letters) > 2:
        return None
    natural = [letter for letter in letters if letter != summed[0]] + others
    if sorted(natural) != sorted(output) or len(letters) < 2:
        return None
    order = None if natural == list(output) else [natural.index(letter) for letter in output]
    source, weight = tensors[1 - weight_place], tensors[weight_place]
    return _Product(node, source, weight, letters.index(summed[0]), weight_letters.index(summed[0]), order)


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
