"""A ReLU network as affine maps and kinks: what bounds and mixed-integer programs are built from.

All values are affine in one growing vector v: first the model's d columns, then the outputs of each kink in the order in which they are
computed. A residual connection needs no special case: its sum is one more affine map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network import Head, Network
from cfptq.network.attributes import get_attribute

Array: TypeAlias = npt.NDArray[np.float64]
aten = torch.ops.aten

#: Operations that leave a row's values and their order as they are.
_SAME = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.unsqueeze.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
}
#: Monotone ends of a network: leaving them out changes no decision. Head before -> head after.
_ENDS = {
    aten.sigmoid.default: Head.LOGIT,
    aten.softmax.int: Head.LOGITS,
    aten._softmax.default: Head.LOGITS,
    aten.log_softmax.int: Head.LOGITS,
    aten._log_softmax.default: Head.LOGITS,
}


@dataclass(frozen=True)
class Affine:
    """``matrix @ v + offset``: (n, w) and (n,), where w is how much of v exists at that point."""

    matrix: Array
    offset: Array

    @property
    def size(self) -> int:
        return len(self.offset)

    def widened(self, width: int) -> Array:
        """The matrix over a longer v."""
        return np.pad(self.matrix, ((0, 0), (0, width - self.matrix.shape[1])))


@dataclass(frozen=True)
class Kink:
    """A part of v that is computed, unit by unit, from an affine map of what stands before it.

    Attributes:
        kind: ``"relu"``: max(z, 0); ``"round"``: z rounded half to even (with its clamp, which is two more ReLUs, an activation
            quantizer).
        before: z.
        start: where its outputs stand in v.
    """

    kind: Literal["relu", "round"]
    before: Affine
    start: int

    @property
    def size(self) -> int:
        return self.before.size


@dataclass(frozen=True)
class PiecewiseLinear:
    """A classifier as kinks and a last affine map to its class logits.

    Attributes:
        width: d.
        kinks: in order.
        logits: (C, width of v).
    """

    width: int
    kinks: tuple[Kink, ...]
    logits: Affine

    @property
    def linear(self) -> bool:
        return not self.kinks

    @property
    def rounds(self) -> bool:
        """Whether it holds activation quantizers."""
        return any(kink.kind == "round" for kink in self.kinks)

    @property
    def total(self) -> int:
        """Length of v."""
        return self.width + sum(kink.size for kink in self.kinks)

    def margins(self, target: int) -> Affine:
        """Logit of ``target`` minus that of each other class, (C - 1) functions of v."""
        others = [c for c in range(self.logits.size) if c != target]
        return Affine(self.logits.matrix[target] - self.logits.matrix[others], self.logits.offset[target] - self.logits.offset[others])

    def __call__(self, x: Array) -> Array:
        """Class logits of rows (N, d), in float64."""
        values = np.asarray(x, dtype=np.float64)
        for kink in self.kinks:
            z = values @ kink.before.matrix.T + kink.before.offset
            out = np.maximum(z, 0) if kink.kind == "relu" else np.rint(z)
            values = np.concatenate((values, out), axis=1)
        return np.asarray(values @ self.logits.matrix.T + self.logits.offset)


def piecewise_linear(network: Network, head: Head, log_odds: float = 0.0) -> PiecewiseLinear:
    """Read a captured network.

    Args:
        head: what its raw output is; probabilities must be made by a last sigmoid or softmax.
        log_odds: of the decision threshold; taken off class 1.

    Raises:
        ModelError: an operation that is not piecewise linear or not read; it is named.
    """
    return _Reader(network).read(head, log_odds)


class _Reader:
    """Walks the graph once; holds the value of each node."""

    def __init__(self, network: Network) -> None:
        if len(network.input_shape) != 1:
            raise ModelError(f"exact recourse needs rows of columns (N, d); this network takes rows of shape {network.input_shape}")
        self.root = network.graph
        self.width = self.total = network.input_shape[0]
        self.values: dict[str, Any] = {}
        self.kinks: list[Kink] = []
        self.ends: dict[str, Head] = {}

    def read(self, head: Head, log_odds: float) -> PiecewiseLinear:
        for node in self.root.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = Affine(np.eye(self.width), np.zeros(self.width))
            elif node.op == "get_attr":
                self.values[node.name] = get_attribute(self.root, str(node.target))
            elif node.op == "call_function":
                self.values[node.name] = self._value(node)
        last = cast(fx.Node, self.root.graph.output_node().args[0])
        output = self._affine(last)
        if last.name in self.ends:
            head = self.ends[last.name]
        elif head in (Head.PROBABILITY, Head.PROBABILITIES):
            raise ModelError(f"the network's output is a {head.value}, but its last operation {last.target} is no sigmoid or softmax")
        matrix, offset = output.widened(self.total), output.offset
        if head is Head.LOGIT:
            matrix, offset = np.concatenate((np.zeros_like(matrix), matrix)), np.concatenate((np.zeros_like(offset), offset))
        offset = offset.copy()
        if log_odds:
            offset[1] -= log_odds
        return PiecewiseLinear(self.width, tuple(self.kinks), Affine(matrix, offset))

    def _value(self, node: fx.Node) -> Any:
        target = node.target
        inputs = [argument for argument in node.all_input_nodes if isinstance(self.values.get(argument.name), Affine)]
        if not inputs:
            return self._constant(node)
        if any(argument.name in self.ends for argument in inputs) and target not in _SAME:
            raise self._unread(node, "behind a sigmoid or softmax")
        first = node.args[0]
        if target in _SAME:
            source = cast(fx.Node, first)
            if source.name in self.ends:
                self.ends[node.name] = self.ends[source.name]
            return self.values[source.name]
        if target in _ENDS:
            source_value = self._affine(cast(fx.Node, first))
            self.ends[node.name] = Head.LOGITS if source_value.size > 1 else _ENDS[target]
            if target is aten.sigmoid.default and source_value.size > 1:
                raise self._unread(node, "with several outputs")
            return source_value
        if target is aten.linear.default:
            bias = node.args[2] if len(node.args) > 2 else None
            return self._mapped(self._affine(cast(fx.Node, first)), self._array(node.args[1]), None if bias is None else self._array(bias))
        if target is aten.addmm.default:
            return self._mapped(self._affine(cast(fx.Node, node.args[1])), self._array(node.args[2]).T, self._array(first))
        if target in (aten.mm.default, aten.matmul.default):
            return self._mapped(self._affine(cast(fx.Node, first)), self._array(node.args[1]).T, None)
        if target in (aten.relu.default, aten.relu_.default):
            return self._kinked(Kink("relu", self._affine(cast(fx.Node, first)), self.total))
        if target is aten.leaky_relu.default:
            slope = float(cast(float, node.args[1])) if len(node.args) > 1 else 0.01
            before = self._affine(cast(fx.Node, first))
            return self._sum(_scaled(before, slope), _scaled(self._kinked(Kink("relu", before, self.total)), 1 - slope))
        if target in (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
            return self._normalized(node)
        if target in (aten.add.Tensor, aten.sub.Tensor, aten.add_.Tensor):
            sign = -1.0 if target is aten.sub.Tensor else 1.0
            sign *= float(cast(float, node.kwargs.get("alpha", 1)))
            left, right = self._either(first), self._either(node.args[1])
            return self._sum(*_same_size(left, _scaled(right, sign)))
        if target in (aten.mul.Tensor, aten.div.Tensor):
            return self._product(node)
        if target is aten.neg.default:
            return _scaled(self._affine(cast(fx.Node, first)), -1.0)
        if target is aten.cat.default and node.args[1:] in ((1,), (-1,)):
            parts = [self._affine(part) for part in cast("list[fx.Node]", first)]
            return Affine(np.concatenate([part.widened(self.total) for part in parts]), np.concatenate([part.offset for part in parts]))
        if target in (aten.round.default, aten.round_.default):
            return self._kinked(Kink("round", self._affine(cast(fx.Node, first)), self.total))
        if target in (aten.clamp.default, aten.clamp_.default, aten.hardtanh.default):
            return self._clamped(node)
        raise self._unread(node)

    def _constant(self, node: fx.Node) -> Any:
        """What is computed from parameters alone."""

        def known(argument: fx.Node) -> Any:
            return self.values[argument.name]

        try:
            return cast(Any, node.target)(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))
        except Exception as error:
            raise self._unread(node) from error

    def _unread(self, node: fx.Node, where: str = "") -> ModelError:
        operation = str(node.target).removeprefix("aten.").split(".")[0]
        return ModelError(
            f"exact recourse cannot read the operation {operation!r}{' ' + where if where else ''} (node {node.name!r}); it reads Linear, "
            'BatchNorm, ReLU, LeakyReLU, sums and a last sigmoid or softmax: use method="minimal-cost" for this model'
        )

    def _affine(self, node: fx.Node) -> Affine:
        value = self.values[node.name]
        if not isinstance(value, Affine):
            raise ModelError(f"exact recourse: node {node.name!r} does not depend on the rows")
        return value

    def _array(self, argument: Any) -> Array:
        value = self.values[argument.name] if isinstance(argument, fx.Node) else argument
        if isinstance(value, Affine):
            raise ModelError("exact recourse cannot read a product of two values that both depend on the rows")
        return np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)

    def _either(self, argument: Any) -> Affine:
        """A value or a constant as an affine map."""
        if isinstance(argument, fx.Node) and isinstance(self.values[argument.name], Affine):
            return cast(Affine, self.values[argument.name])
        constant = np.atleast_1d(self._array(argument)).reshape(-1)
        return Affine(np.zeros((len(constant), self.total)), constant)

    def _mapped(self, value: Affine, weight: Array, bias: Array | None) -> Affine:
        offset = weight @ value.offset
        return Affine(weight @ value.matrix, offset if bias is None else offset + bias)

    def _kinked(self, kink: Kink) -> Affine:
        self.kinks.append(kink)
        self.total += kink.size
        matrix = np.zeros((kink.size, self.total))
        matrix[:, kink.start :] = np.eye(kink.size)
        return Affine(matrix, np.zeros(kink.size))

    def _sum(self, left: Affine, right: Affine) -> Affine:
        return Affine(left.widened(self.total) + right.widened(self.total), left.offset + right.offset)

    def _product(self, node: fx.Node) -> Affine:
        left, right = node.args[0], node.args[1]
        if not (isinstance(left, fx.Node) and isinstance(self.values[left.name], Affine)):
            left, right = right, left
            if node.target is aten.div.Tensor:
                raise self._unread(node, "by a value that depends on the rows")
        factor = self._array(right).reshape(-1)
        return _scaled(self._affine(cast(fx.Node, left)), 1 / factor if node.target is aten.div.Tensor else factor)

    def _normalized(self, node: fx.Node) -> Affine:
        with_mode = node.target is aten.batch_norm.default
        epsilon = float(cast(float, node.args[7 if with_mode else 6]))
        gamma, beta, mean, variance = (None if argument is None else self._array(argument) for argument in node.args[1:5])
        assert mean is not None and variance is not None
        scale = 1 / np.sqrt(variance + epsilon) * (1.0 if gamma is None else gamma)
        value = _scaled(self._affine(cast(fx.Node, node.args[0])), scale)
        return Affine(value.matrix, value.offset - mean * scale + (0.0 if beta is None else beta))

    def _clamped(self, node: fx.Node) -> Affine:
        """``low + relu(z - low) - relu(z - high)``."""
        names = ("min", "max") if node.target is not aten.hardtanh.default else ("min_val", "max_val")
        given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        value = self._affine(cast(fx.Node, node.args[0]))
        missing = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
        low, high = (given.get(name, default) for name, default in zip(names, missing, strict=True))
        if low is not None:
            lifted = self._kinked(Kink("relu", _shifted(value, -float(cast(float, low))), self.total))
            value = _shifted(lifted, float(cast(float, low)))
        if high is not None:
            beyond = self._kinked(Kink("relu", _shifted(value, -float(cast(float, high))), self.total))
            value = self._sum(value, _scaled(beyond, -1.0))
        return value


def _shifted(value: Affine, constant: float) -> Affine:
    return Affine(value.matrix, value.offset + constant)


def _scaled(value: Affine, factor: float | Array) -> Affine:
    column = np.broadcast_to(np.asarray(factor, dtype=np.float64), (value.size,))
    return Affine(value.matrix * column[:, None], value.offset * column)


def _same_size(left: Affine, right: Affine) -> tuple[Affine, Affine]:
    """Broadcast a single value over the other's."""
    size = max(left.size, right.size)

    def spread(value: Affine) -> Affine:
        return value if value.size == size else Affine(np.repeat(value.matrix, size, 0), np.repeat(value.offset, size))

    return spread(left), spread(right)
