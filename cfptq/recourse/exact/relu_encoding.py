"""A ReLU network as affine maps and nonlinearities, from which bounds and mixed-integer programs are built.

All values are affine in one growing vector v. It holds the model's d columns, then the outputs of each nonlinearity in the order of
computation. The sum of a residual connection is one more affine map.
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

#: Operations that keep the values of a row and their order.
_IDENTITY_OPERATIONS = {
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
#: Monotone output activations, which change no decision and are left out, with the head of their input.
_OUTPUT_ACTIVATIONS = {
    aten.sigmoid.default: Head.LOGIT,
    aten.softmax.int: Head.LOGITS,
    aten._softmax.default: Head.LOGITS,
    aten.log_softmax.int: Head.LOGITS,
    aten._log_softmax.default: Head.LOGITS,
}


@dataclass(frozen=True)
class Affine:
    """An affine map ``matrix @ v + offset`` of the first w entries of v.

    Attributes:
        matrix: Coefficients, (n, w).
        offset: Constants, (n,).
    """

    matrix: Array
    offset: Array

    @property
    def size(self) -> int:
        """Number of outputs n."""
        return len(self.offset)

    def pad(self, width: int) -> Array:
        """Pad the matrix with zeros to ``width`` columns."""
        return np.pad(self.matrix, ((0, 0), (0, width - self.matrix.shape[1])))


@dataclass(frozen=True)
class Nonlinearity:
    """A layer of units that apply one nonlinear function to an affine map of earlier values.

    Attributes:
        kind: ``"relu"`` computes max(z, 0). ``"round"`` rounds z half to even. An activation quantizer is a rounding and two ReLUs for
            its clamp.
        preactivation: Inputs z of the units.
        start: Position of the first output in v.
    """

    kind: Literal["relu", "round"]
    preactivation: Affine
    start: int

    @property
    def size(self) -> int:
        """Number of units."""
        return self.preactivation.size


@dataclass(frozen=True)
class PiecewiseLinearNetwork:
    """A classifier as a sequence of nonlinearities and a last affine map to its class logits.

    Attributes:
        width: Number of columns d.
        nonlinearities: Nonlinearities in the order of computation.
        logits: Map from v to the C class logits.
    """

    width: int
    nonlinearities: tuple[Nonlinearity, ...]
    logits: Affine

    @property
    def is_linear(self) -> bool:
        """True if the network has no nonlinearity."""
        return not self.nonlinearities

    @property
    def has_rounding(self) -> bool:
        """True if the network has activation quantizers."""
        return any(layer.kind == "round" for layer in self.nonlinearities)

    @property
    def total_width(self) -> int:
        """Number of entries of v."""
        return self.width + sum(layer.size for layer in self.nonlinearities)

    def margins(self, target: int) -> Affine:
        """Return the logit of ``target`` minus that of each other class as C - 1 functions of v."""
        others = [c for c in range(self.logits.size) if c != target]
        return Affine(self.logits.matrix[target] - self.logits.matrix[others], self.logits.offset[target] - self.logits.offset[others])

    def __call__(self, x: Array) -> Array:
        """Compute class logits of rows (N, d) in float64."""
        values = np.asarray(x, dtype=np.float64)
        for layer in self.nonlinearities:
            z = values @ layer.preactivation.matrix.T + layer.preactivation.offset
            out = np.maximum(z, 0) if layer.kind == "relu" else np.rint(z)
            values = np.concatenate((values, out), axis=1)
        return np.asarray(values @ self.logits.matrix.T + self.logits.offset)


@dataclass(frozen=True)
class Purpose:
    """Purpose of reading a network, as errors name it.

    Attributes:
        name: Noun phrase at the beginning of a sentence.
        remedy: Sentence on what to do where a network cannot be read.
    """

    name: str
    remedy: str


EXACT_RECOURSE = Purpose("Exact recourse", 'Use method="minimal-cost" for this model.')


def read_piecewise_linear(network: Network, head: Head, log_odds: float = 0.0, purpose: Purpose = EXACT_RECOURSE) -> PiecewiseLinearNetwork:
    """Read a captured network as piecewise linear.

    Args:
        network: Captured network on rows (N, d).
        head: Meaning of the raw output. Probabilities must come from a last sigmoid or softmax.
        log_odds: Log odds of the decision threshold, subtracted from the logit of class 1, default 0.
        purpose: What errors name the reading by, exact recourse by default.

    Raises:
        ModelError: The network has an operation that is not piecewise linear or not supported.
    """
    return _Reader(network, purpose).read(head, log_odds)


@dataclass(frozen=True)
class Magnitudes:
    """Sums of magnitudes that bound the float error of each affine map of a ``PiecewiseLinearNetwork``.

    A value that is computed with at most k roundings differs from the exact one by at most about k roundoffs times its sum of magnitudes,
    in any order of the sums.

    Attributes:
        preactivations: Map from magnitudes of v to those of each nonlinearity's inputs.
        logits: Map from magnitudes of v to those of the class logits.
        roundings: Upper bound of the number of roundings k on any path.
    """

    preactivations: tuple[Affine, ...]
    logits: Affine
    roundings: int


def read_magnitudes(network: Network, head: Head, log_odds: float = 0.0, purpose: Purpose = EXACT_RECOURSE) -> Magnitudes:
    """Read the sums of magnitudes of a captured network. Arguments and errors are those of ``read_piecewise_linear``."""
    reader = _MagnitudeReader(network, purpose)
    read = reader.read(head, log_odds)
    return Magnitudes(tuple(layer.preactivation for layer in read.nonlinearities), read.logits, reader.roundings)


class _Reader:
    """Reader of a graph, which holds the value of each node visited."""

    def __init__(self, network: Network, purpose: Purpose) -> None:
        if len(network.input_shape) != 1:
            raise ModelError(f"{purpose.name} needs rows of columns (N, d), but this network takes rows of shape {network.input_shape}.")
        self.purpose = purpose
        self.root = network.graph
        self.width = self.total_width = network.input_shape[0]
        self.values: dict[str, Any] = {}
        self.nonlinearities: list[Nonlinearity] = []
        self.output_heads: dict[str, Head] = {}

    def read(self, head: Head, log_odds: float) -> PiecewiseLinearNetwork:
        """Read the whole graph."""
        for node in self.root.graph.nodes:
            if node.op == "placeholder":
                self.values[node.name] = Affine(np.eye(self.width), np.zeros(self.width))
            elif node.op == "get_attr":
                self.values[node.name] = get_attribute(self.root, str(node.target))
            elif node.op == "call_function":
                self.values[node.name] = self._read_node(node)
        last = cast(fx.Node, self.root.graph.output_node().args[0])
        output = self._get_affine(last)
        if last.name in self.output_heads:
            head = self.output_heads[last.name]
        elif head in (Head.PROBABILITY, Head.PROBABILITIES):
            raise ModelError(f"The last operation of a network with head {head.value} must be a sigmoid or softmax, got {last.target}.")
        matrix, offset = output.pad(self.total_width), output.offset
        if head is Head.LOGIT:
            matrix, offset = np.concatenate((np.zeros_like(matrix), matrix)), np.concatenate((np.zeros_like(offset), offset))
        offset = offset.copy()
        if log_odds:
            offset[1] += self._get_factor(-log_odds)
        return PiecewiseLinearNetwork(self.width, tuple(self.nonlinearities), Affine(matrix, offset))

    def _read_node(self, node: fx.Node) -> Any:
        """Read one call as an affine map, or as a constant if it does not depend on the rows."""
        target = node.target
        inputs = [argument for argument in node.all_input_nodes if isinstance(self.values.get(argument.name), Affine)]
        if not inputs:
            return self._evaluate_constant(node)
        if any(argument.name in self.output_heads for argument in inputs) and target not in _IDENTITY_OPERATIONS:
            raise self._build_error(node, "behind a sigmoid or softmax")
        first = node.args[0]
        if target in _IDENTITY_OPERATIONS:
            source = cast(fx.Node, first)
            if source.name in self.output_heads:
                self.output_heads[node.name] = self.output_heads[source.name]
            return self.values[source.name]
        if target in _OUTPUT_ACTIVATIONS:
            source_value = self._get_affine(cast(fx.Node, first))
            self.output_heads[node.name] = Head.LOGITS if source_value.size > 1 else _OUTPUT_ACTIVATIONS[target]
            if target is aten.sigmoid.default and source_value.size > 1:
                raise self._build_error(node, "with several outputs")
            return source_value
        if target is aten.linear.default:
            bias = node.args[2] if len(node.args) > 2 else None
            return self._apply_linear(
                self._get_affine(cast(fx.Node, first)), self._get_array(node.args[1]), None if bias is None else self._get_array(bias)
            )
        if target is aten.addmm.default:
            return self._apply_linear(
                self._get_affine(cast(fx.Node, node.args[1])), self._get_array(node.args[2]).T, self._get_array(first)
            )
        if target in (aten.mm.default, aten.matmul.default):
            return self._apply_linear(self._get_affine(cast(fx.Node, first)), self._get_array(node.args[1]).T, None)
        if target in (aten.relu.default, aten.relu_.default):
            return self._add_nonlinearity(Nonlinearity("relu", self._get_affine(cast(fx.Node, first)), self.total_width))
        if target is aten.leaky_relu.default:
            slope = float(cast(float, node.args[1])) if len(node.args) > 1 else 0.01
            before = self._get_affine(cast(fx.Node, first))
            return self._add(
                _scale(before, self._get_factor(slope)),
                _scale(self._add_nonlinearity(Nonlinearity("relu", before, self.total_width)), self._get_factor(1 - slope)),
            )
        if target in (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
            return self._apply_batch_norm(node)
        if target in (aten.add.Tensor, aten.sub.Tensor, aten.add_.Tensor):
            sign = -1.0 if target is aten.sub.Tensor else 1.0
            sign *= float(cast(float, node.kwargs.get("alpha", 1)))
            left, right = self._get_affine_or_constant(first), self._get_affine_or_constant(node.args[1])
            return self._add(*_broadcast(left, _scale(right, self._get_factor(sign))))
        if target in (aten.mul.Tensor, aten.div.Tensor):
            return self._multiply(node)
        if target is aten.neg.default:
            return _scale(self._get_affine(cast(fx.Node, first)), self._get_factor(-1.0))
        if target is aten.cat.default and node.args[1:] in ((1,), (-1,)):
            parts = [self._get_affine(part) for part in cast("list[fx.Node]", first)]
            return Affine(np.concatenate([part.pad(self.total_width) for part in parts]), np.concatenate([part.offset for part in parts]))
        if target in (aten.round.default, aten.round_.default):
            return self._add_nonlinearity(Nonlinearity("round", self._get_affine(cast(fx.Node, first)), self.total_width))
        if target in (aten.clamp.default, aten.clamp_.default, aten.hardtanh.default):
            return self._apply_clamp(node)
        raise self._build_error(node)

    def _evaluate_constant(self, node: fx.Node) -> Any:
        """Evaluate a node that depends on parameters alone."""

        def known(argument: fx.Node) -> Any:
            return self.values[argument.name]

        try:
            return cast(Any, node.target)(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))
        except Exception as error:
            raise self._build_error(node) from error

    def _build_error(self, node: fx.Node, where: str = "") -> ModelError:
        """Build the error for an operation that is not supported."""
        operation = str(node.target).removeprefix("aten.").split(".")[0]
        return ModelError(
            f"{self.purpose.name} cannot read the operation {operation!r}{' ' + where if where else ''} (node {node.name!r}). It reads "
            f"Linear, BatchNorm, ReLU, LeakyReLU, sums and a last sigmoid or softmax. {self.purpose.remedy}"
        )

    def _get_affine(self, node: fx.Node) -> Affine:
        """Return the affine map of a node that depends on the rows."""
        value = self.values[node.name]
        if not isinstance(value, Affine):
            raise ModelError(f"{self.purpose.name} cannot read node {node.name!r}, because it does not depend on the rows.")
        return value

    def _get_array(self, argument: Any) -> Array:
        """Return an argument that does not depend on the rows as an array."""
        value = self.values[argument.name] if isinstance(argument, fx.Node) else argument
        if isinstance(value, Affine):
            raise ModelError(f"{self.purpose.name} cannot read a product of two values that both depend on the rows.")
        return np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)

    def _get_affine_or_constant(self, argument: Any) -> Affine:
        """Return a value or a constant as an affine map."""
        if isinstance(argument, fx.Node) and isinstance(self.values[argument.name], Affine):
            return cast(Affine, self.values[argument.name])
        constant = np.atleast_1d(self._get_array(argument)).reshape(-1)
        return Affine(np.zeros((len(constant), self.total_width)), constant)

    def _get_factor(self, factor: Any) -> Any:
        """Return a constant as it enters an affine map."""
        return factor

    def _apply_linear(self, value: Affine, weight: Array, bias: Array | None) -> Affine:
        """Apply a linear layer to an affine map."""
        offset = weight @ value.offset
        return Affine(weight @ value.matrix, offset if bias is None else offset + bias)

    def _add_nonlinearity(self, layer: Nonlinearity) -> Affine:
        """Append a nonlinearity and return its outputs as an affine map of v."""
        self.nonlinearities.append(layer)
        self.total_width += layer.size
        matrix = np.zeros((layer.size, self.total_width))
        matrix[:, layer.start :] = np.eye(layer.size)
        return Affine(matrix, np.zeros(layer.size))

    def _add(self, left: Affine, right: Affine) -> Affine:
        """Add two affine maps of the same size."""
        return Affine(left.pad(self.total_width) + right.pad(self.total_width), left.offset + right.offset)

    def _multiply(self, node: fx.Node) -> Affine:
        """Read a product with, or a division by, a constant."""
        left, right = node.args[0], node.args[1]
        if not (isinstance(left, fx.Node) and isinstance(self.values[left.name], Affine)):
            left, right = right, left
            if node.target is aten.div.Tensor:
                raise self._build_error(node, "by a value that depends on the rows")
        factor = self._get_array(right).reshape(-1)
        return _scale(self._get_affine(cast(fx.Node, left)), 1 / factor if node.target is aten.div.Tensor else factor)

    def _apply_batch_norm(self, node: fx.Node) -> Affine:
        """Read a BatchNorm in eval mode."""
        with_mode = node.target is aten.batch_norm.default
        epsilon = float(cast(float, node.args[7 if with_mode else 6]))
        gamma, beta, mean, variance = (None if argument is None else self._get_array(argument) for argument in node.args[1:5])
        assert mean is not None and variance is not None
        scale = 1 / np.sqrt(variance + epsilon) * (1.0 if gamma is None else gamma)
        value = _scale(self._get_affine(cast(fx.Node, node.args[0])), scale)
        return Affine(value.matrix, value.offset + self._get_factor(-mean * scale) + (0.0 if beta is None else beta))

    def _apply_clamp(self, node: fx.Node) -> Affine:
        """Express a clamp as ``low + relu(z - low) - relu(z - high)``."""
        names = ("min", "max") if node.target is not aten.hardtanh.default else ("min_val", "max_val")
        given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        value = self._get_affine(cast(fx.Node, node.args[0]))
        missing = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
        low, high = (given.get(name, default) for name, default in zip(names, missing, strict=True))
        if low is not None:
            shift = self._get_factor(-float(cast(float, low)))
            lifted = self._add_nonlinearity(Nonlinearity("relu", _shift(value, shift), self.total_width))
            value = _shift(lifted, self._get_factor(float(cast(float, low))))
        if high is not None:
            shift = self._get_factor(-float(cast(float, high)))
            beyond = self._add_nonlinearity(Nonlinearity("relu", _shift(value, shift), self.total_width))
            value = self._add(value, _scale(beyond, self._get_factor(-1.0)))
        return value


class _MagnitudeReader(_Reader):
    """Reader that takes the magnitude of every constant, so that nothing cancels."""

    def __init__(self, network: Network, purpose: Purpose) -> None:
        super().__init__(network, purpose)
        self.roundings = 0

    def _read_node(self, node: fx.Node) -> Any:
        self.roundings += 4  # No operation beside a linear layer rounds a value more often.
        return super()._read_node(node)

    def _get_array(self, argument: Any) -> Array:
        return np.abs(super()._get_array(argument))

    def _get_factor(self, factor: Any) -> Any:
        return np.abs(factor)

    def _apply_linear(self, value: Affine, weight: Array, bias: Array | None) -> Affine:
        self.roundings += weight.shape[1] + 1
        return super()._apply_linear(value, weight, bias)


def _shift(value: Affine, constant: float) -> Affine:
    """Add a constant to an affine map."""
    return Affine(value.matrix, value.offset + constant)


def _scale(value: Affine, factor: float | Array) -> Affine:
    """Multiply an affine map by a factor for each output."""
    column = np.broadcast_to(np.asarray(factor, dtype=np.float64), (value.size,))
    return Affine(value.matrix * column[:, None], value.offset * column)


def _broadcast(left: Affine, right: Affine) -> tuple[Affine, Affine]:
    """Broadcast a single output to the size of the other map."""
    size = max(left.size, right.size)

    def spread(value: Affine) -> Affine:
        return value if value.size == size else Affine(np.repeat(value.matrix, size, 0), np.repeat(value.offset, size))

    return spread(left), spread(right)
