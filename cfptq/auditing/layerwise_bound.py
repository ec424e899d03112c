"""The layerwise Lipschitz bound of the logit perturbation ε, with a term for rounded activations (eqs. 52 to 60)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from cfptq.errors import DataError, ModelError
from cfptq.network import DecisionRule, Head, Network
from cfptq.quantize import QuantizationPlan
from cfptq.quantize.fake_quantized import check_matches
from cfptq.quantize.formats import FINE_STEPS, FINE_ZERO_POINT, ActivationFormat

Array: TypeAlias = npt.NDArray[np.float64]
aten = torch.ops.aten

_RELU = (aten.relu.default, aten.relu_.default)
_IDENTITY = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
)


@dataclass(frozen=True, eq=False)
class LayerwiseBound:
    """Upper bound of ε at N recourse points, by layer, in exact arithmetic.

    Attributes:
        weights: Part of each layer's changed weights and bias, layer name -> (N,), in logits.
        activations: Part of the rounding of each layer's input, layer name -> (N,), in logits.
        radius: Radius ρ of the balls, in columns.
    """

    weights: dict[str, Tensor]
    activations: dict[str, Tensor]
    radius: float

    @property
    def epsilon(self) -> Tensor:
        """Bound of ε, (N,), in logits."""
        return torch.stack([*self.weights.values(), *self.activations.values()]).sum(dim=0)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each layer in the mean bound, of its weights and of the rounding of its input together."""
        return {name: self._share(part + self.activations[name]) for name, part in self.weights.items()}

    @property
    def activation_share(self) -> float:
        """Share of the rounded activations in the mean bound."""
        return sum(map(self._share, self.activations.values()))

    def _share(self, part: Tensor) -> float:
        whole = float(self.epsilon.mean())
        return float(part.mean()) / whole if whole > 0 else 0.0

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return (
            f"Upper bound of ε within {self.radius:g} of {len(self.epsilon)} recourse points: median {float(self.epsilon.median()):.3g}. "
            f"Shares: {parts}. Rounded activations hold {self.activation_share:.0%} of it"
        )


@dataclass(frozen=True, eq=False)
class _ChainLayer:
    """A linear layer of the full-precision and of the quantized network.

    Attributes:
        name: Name of the layer.
        weight: Deployed weight, (out, in).
        bias: Deployed bias, (out,).
        float_weight: Full-precision weight, (out, in).
        float_bias: Full-precision bias, (out,).
        form: Format of the input.
        has_relu: True if a ReLU stands between the layer before and this one's input.
    """

    name: str
    weight: Array
    bias: Array
    float_weight: Array
    float_bias: Array
    form: ActivationFormat
    has_relu: bool


def bound_perturbation(
    network: Network, plan: QuantizationPlan, decision: DecisionRule, points: Tensor, *, radius: float = 0.0
) -> LayerwiseBound:
    """Bound the logit perturbation in the ball around each recourse point by layerwise Lipschitz constants.

    Weights are exchanged first, layer by layer from the input, and then the rounding of each layer's input is put in (eq. 53). A layer's
    change is taken at the point itself and behind its ReLU, and the radius enters by the Lipschitz constants. This is tighter than
    eq. 58. Float32 errors are not counted.

    Args:
        network: Captured full-precision network, a chain of Linear and ReLU on rows (N, d).
        plan: A plan for it.
        decision: Head and threshold of the model, which must put out logits.
        points: Recourse points u*, (N, d) float32.
        radius: Radius ρ of the ℓ2 balls, in columns.

    Raises:
        DataError: The radius is negative, or points do not fit.
        ModelError: The network is no such chain, its head is a probability, or the plan is for another network.
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise DataError(f"radius must be finite and not negative, got {radius}.")
    layers = _read_chain(network, plan, decision)
    if points.shape[1:] != network.input_shape:
        raise DataError(f"points must have shape (N, {network.input_shape[0]}), got {tuple(points.shape)}.")
    matched = _match_channels(layers)
    before = [float(np.linalg.norm(weight, 2)) for weight, _ in matched]
    after = [float(np.linalg.norm(layer.weight, 2)) for layer in layers]
    values = points.detach().double().numpy()
    reach = np.full(len(values), radius)  # How far the hybrid's values may lie from those of the quantized weights at the centre.
    spread = radius
    weights, activations = {}, {}
    for number, layer in enumerate(layers):
        if layer.has_relu:
            values = np.maximum(values, 0)
        is_followed_by_relu = number + 1 < len(layers) and layers[number + 1].has_relu
        own = _bound_change(layer, matched[number], values, spread, is_followed_by_relu)
        weights[layer.name] = torch.from_numpy(own * math.prod(before[number + 1 :]))
        error = _bound_rounding(layer, values, reach)
        activations[layer.name] = torch.from_numpy(error * math.prod(after[number:]))
        values, spread, reach = values @ layer.weight.T + layer.bias, spread * after[number], (reach + error) * after[number]
    return LayerwiseBound(weights, activations, radius)


def _bound_change(layer: _ChainLayer, matched: tuple[Array, Array], values: Array, spread: float, is_followed_by_relu: bool) -> Array:
    """Bound the ℓ2 change of a layer's outputs, (N,), for inputs within ``spread`` of ``values``, behind the ReLU if one follows.

    A channel that both ReLUs set to zero does not change, however far its bias moved.
    """
    weight, bias = matched
    change = layer.weight - weight
    after, before = values @ layer.weight.T + layer.bias, values @ weight.T + bias
    whole = np.linalg.norm(after - before, axis=1) + float(np.linalg.norm(change, 2)) * spread
    if not is_followed_by_relu:
        return np.asarray(whole)
    difference = np.abs(after - before) + np.linalg.norm(change, axis=1) * spread
    largest = np.maximum(after + np.linalg.norm(layer.weight, axis=1) * spread, before + np.linalg.norm(weight, axis=1) * spread)
    by_channel = np.linalg.norm(np.minimum(difference, np.maximum(largest, 0)), axis=1)
    return np.asarray(np.minimum(whole, by_channel))


def _bound_rounding(layer: _ChainLayer, values: Array, reach: Array) -> Array:
    """Bound the ℓ2 error that rounding a layer's input adds, (N,), for inputs within ``reach`` of ``values``."""
    if layer.form.is_float:
        return np.zeros(len(values))
    step, bottom, top = _get_range(layer.form)
    low, high = values - reach[:, None], values + reach[:, None]
    low = np.maximum(low, 0) if layer.has_relu else low
    error = step / 2 + np.maximum(np.maximum(high - top, bottom - low), 0)
    return np.asarray(np.linalg.norm(error, axis=1))


def _get_range(form: ActivationFormat) -> tuple[float, float, float]:
    """Return the finest step and the least and largest value that a format holds."""
    bottom, top = -form.scale * form.zero_point, form.scale * (form.highest - form.zero_point)
    if form.fine_scale is None:
        return form.scale, bottom, top
    return form.fine_scale, bottom - FINE_ZERO_POINT * form.fine_scale, top + (FINE_STEPS // 2) * form.fine_scale


def _read_chain(network: Network, plan: QuantizationPlan, decision: DecisionRule) -> list[_ChainLayer]:
    check_matches(network, plan)
    if len(network.input_shape) != 1:
        raise ModelError(f"The layerwise bound needs rows of columns (N, d), but this network takes rows of shape {network.input_shape}.")
    if decision.head not in (Head.LOGIT, Head.LOGITS):
        raise ModelError(
            f"The layerwise bound needs a model that puts out logits, got head {decision.head.value!r}. "
            "Leave out the last sigmoid or softmax."
        )
    planned = {layer.name: layer for layer in plan.layers}
    layers = []
    for name, has_relu in _walk_back(network)[::-1]:
        if name not in planned:
            raise ModelError(f"The layerwise bound needs every layer quantized, but the plan leaves {name!r} in float.")
        form = plan.input_format(planned[name])
        weight, bias, float_bias = planned[name].weight(), planned[name].deployed_bias(form), network.bias(name)
        layers.append(
            _ChainLayer(
                name,
                _as_array(weight),
                np.zeros(len(weight)) if bias is None else _as_array(bias),
                _as_array(network.weight(name)),
                np.zeros(len(weight)) if float_bias is None else _as_array(float_bias),
                form,
                has_relu,
            )
        )
    return layers


def _walk_back(network: Network) -> list[tuple[str, bool]]:
    """Return each layer's name, and whether a ReLU stands before it, from the output to the input."""
    by_node = {layer.node: layer.name for layer in network.layers if layer.kind == "linear"}
    node = cast(fx.Node, network.graph.graph.output_node().args[0])
    found: list[tuple[str, bool]] = []
    has_relu = False
    while node.op != "placeholder":
        if node.name in by_node:
            if found:
                found[-1] = (found[-1][0], has_relu)
            elif has_relu:
                raise ModelError("The layerwise bound needs the last layer to put out logits, but a ReLU follows it.")
            found.append((by_node[node.name], False))
            has_relu = False
        elif node.target in _RELU:
            has_relu = True
        elif node.target not in _IDENTITY:
            operation = str(node.target).removeprefix("aten.").split(".")[0]
            raise ModelError(
                f"The layerwise bound cannot read the operation {operation!r} (node {node.name!r}). It reads Linear and ReLU in a chain."
            )
        node = cast(fx.Node, node.args[0])
    if has_relu or not found:
        raise ModelError("The layerwise bound needs a linear layer before the first ReLU.")
    return found


def _match_channels(layers: list[_ChainLayer]) -> list[tuple[Array, Array]]:
    """Return full-precision weights and biases with hidden channels scaled like the quantized ones.

    Cross-layer equalization scales a channel before a ReLU and undoes it behind. Any positive scale leaves the model as it is, so that the
    bound holds for each. The scale taken brings the weights nearest.
    """
    matched = []
    scale = np.ones(layers[0].weight.shape[1])
    for number, layer in enumerate(layers):
        weight, out = layer.float_weight / scale, np.ones(len(layer.bias))
        if number + 1 < len(layers) and layers[number + 1].has_relu:
            size = (weight**2).sum(axis=1)
            out = (weight * layer.weight).sum(axis=1) / np.where(size > 0, size, 1.0)
            out = np.where(out > 0, out, 1.0)
        matched.append((weight * out[:, None], layer.float_bias * out))
        scale = out
    return matched


def _as_array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()
