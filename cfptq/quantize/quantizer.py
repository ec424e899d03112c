"""From a captured network, calibration rows and a width for each layer to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from cfptq.calibration import CalibrationSet
from cfptq.errors import BudgetError, ModelError
from cfptq.network import Layer, Network
from cfptq.progress import track
from cfptq.quantize.formats import ActivationFormat
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.reconstruct import LayerProblem, Rounding, activation_format, nearest, thinned


@dataclass(frozen=True)
class Activations:
    """Formats of the tensors that feed quantized layers.

    Attributes:
        bits: hidden tensors, 8 or 16; 32 leaves them in float.
        input_bits: the model's input, likewise.
    """

    bits: int = 8
    input_bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32) or self.input_bits not in (8, 16, 32):
            raise ModelError(f"activations can have 8, 16 or 32 (float) bits, not {self.bits} and {self.input_bits}")


def quantize(
    network: Network,
    calibration: CalibrationSet,
    bits: Mapping[str, int],
    *,
    method: str,
    seed: int,
    rounding: Rounding = nearest,
    activations: Activations | None = None,
    portable: bool = False,
    progress: bool = True,
) -> QuantizationPlan:
    """Round every layer named in ``bits`` and choose the formats of the tensors that feed them (eq. 22).

    Args:
        network: the captured full-precision network.
        calibration: rows that scales and clipping are fitted on.
        bits: width of each quantizable layer, all of them.
        method, seed, portable: recorded in the plan; ``portable`` keeps 8-bit weights within ±63.
        rounding: the rule that turns one layer's weight into integers.
        activations: bits of the hidden tensors and of the input; 8 each by default.

    Raises:
        BudgetError: ``bits`` leaves a layer out or names one that is not there.
    """
    settings = activations or Activations()
    names = [layer.name for layer in network.layers]
    if set(names) != set(bits):
        raise BudgetError(f"widths are needed for exactly {', '.join(names)}, not {', '.join(bits)}")
    tensors = list(dict.fromkeys(layer.input for layer in network.layers))
    values = network.observe(calibration.rows, tensors)
    formats = {tensor: _format(network, tensor, values[tensor], settings) for tensor in tensors}
    layers = []
    for layer in track(network.layers, "rounding layers", enabled=progress):
        rounded = rounding(
            LayerProblem(
                name=layer.name,
                weight=network.weight(layer.name),
                bias=network.bias(layer.name),
                inputs=values[layer.input],
                form=formats[layer.input],
                bits=bits[layer.name],
                portable=portable,
                patches=_patches(network, layer),
                row_weights=calibration.weights,
            )
        )
        layers.append(LayerPlan(layer.name, layer.kind, bits[layer.name], rounded.integers, rounded.scale, rounded.bias, layer.input))
    return QuantizationPlan(tuple(layers), tuple(formats.values()), network.digest(), method, seed, portable)


def _format(network: Network, tensor: str, values: torch.Tensor, settings: Activations) -> ActivationFormat:
    """The format of one tensor, fitted on the outputs of all layers that it feeds."""
    fed = [layer for layer in network.layers if layer.input == tensor]
    weights = [network.weight(layer.name) for layer in fed]
    a_row = sum(weight.numel() * max(1, values[0].numel() // weight[0].numel()) for weight in weights)
    nodes = [_node(network, layer) for layer in fed]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        parts = [node.target(x, weight, None, *node.args[3:]).flatten() for node, weight in zip(nodes, weights, strict=True)]  # type: ignore[operator]
        return torch.cat(parts)

    bits = settings.input_bits if tensor == network.input_name else settings.bits
    return activation_format(tensor, values[thinned(len(values), a_row)], bits, outputs)


def _node(network: Network, layer: Layer) -> torch.fx.Node:
    found: torch.fx.Node = next(node for node in network.graph.graph.nodes if node.name == layer.node)
    return found


def _patches(network: Network, layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Inputs of ``layer`` as the vectors that its weight rows are multiplied with: (n, ...) -> (groups, m, k)."""
    if layer.kind == "linear":
        return lambda inputs: inputs.reshape(1, -1, inputs.shape[-1])
    stride, padding, dilation, groups = _convolution(network, layer)
    kernel = layer.weight_shape[2:]

    def unfolded(inputs: torch.Tensor) -> torch.Tensor:
        # A 1-d convolution is a 2-d one of height 1.
        images = inputs if len(kernel) == 2 else inputs[:, :, None]
        height = (1,) * (2 - len(kernel))
        rest = (0,) * (2 - len(kernel))
        columns = functional.unfold(images, (*height, *kernel), (*height, *dilation), (*rest, *padding), (*height, *stride))
        # (n, channels * kernel, positions) -> (groups, n * positions, channels / groups * kernel)
        apart = columns.reshape(columns.shape[0], groups, -1, columns.shape[-1])
        return apart.permute(1, 0, 3, 2).reshape(groups, -1, apart.shape[2])

    return unfolded


def _convolution(network: Network, layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    """Stride, padding, dilation and groups of a convolution's node, defaults filled in."""
    given: list[Any] = list(_node(network, layer).args[3:])
    size = len(layer.weight_shape) - 2
    defaults: list[Any] = [1, 0, 1, 1]
    stride, padding, dilation, groups = given + defaults[len(given) :]
    return _each(stride, size), _each(padding, size), _each(dilation, size), int(groups)


def _each(value: int | Sequence[int], size: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * size if len(values) == 1 else values
