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
from cfptq.quantize.equalize import equalized
from cfptq.quantize.formats import ActivationFormat, fake_quantize
from cfptq.quantize.partial_run import LayerByLayer
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.reconstruct import LayerProblem, Rounding, activation_format, nearest, thinned
from cfptq.quantize.rows import affordable_rows

#: Weights fed by the input up to which leaving it in float costs next to nothing at any batch size.
NARROW_INPUT = 2**16

#: Multiply-adds that one pass of the network over the calibration rows may take, and rows that are taken whatever they cost.
ROUNDING_WORK, FEWEST_ROWS = 2**32, 512


@dataclass(frozen=True)
class Activations:
    """Formats of the tensors that feed quantized layers.

    Attributes:
        bits: hidden tensors, 8 or 16; 32 leaves them in float.
        input_bits: the model's input, likewise; None leaves it in float where the layers that it feeds have at most
            :data:`NARROW_INPUT` weights, and makes it 8 bits where they have more and integer kernels pay.
        clip: clip where that reconstructs the layer's output better (eq. 22); False spans all that calibration saw.
    """

    bits: int = 8
    input_bits: int | None = 8
    clip: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32) or self.input_bits not in (None, 8, 16, 32):
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
    equalize: bool = False,
    sequential: bool = False,
    portable: bool = False,
    progress: bool = True,
) -> QuantizationPlan:
    """Round every layer named in ``bits`` and choose the formats of the tensors that feed them (eq. 22).

    Args:
        network: the captured full-precision network.
        calibration: rows that scales and clipping are fitted on, and how much each counts.
        bits: width of each quantizable layer, all of them.
        method, seed, portable: recorded in the plan; ``portable`` keeps 8-bit weights within ±63.
        rounding: the rule that turns one layer's weight into integers.
        activations: bits of the hidden tensors and of the input; 8 each by default.
        equalize: first move each hidden channel's scale between the two layers around it.
        sequential: each layer sees what the quantized layers before it put out, and its target stays the full-precision output.

    Raises:
        BudgetError: ``bits`` leaves a layer out or names one that is not there.
    """
    settings = activations or Activations()
    names = [layer.name for layer in network.layers]
    if set(names) != set(bits):
        raise BudgetError(f"widths are needed for exactly {', '.join(names)}, not {', '.join(bits)}")
    kept, weights = affordable_rows(network, calibration.weights, ROUNDING_WORK, FEWEST_ROWS)
    rows = calibration.rows[kept]
    source = equalized(network, rows) if equalize else network
    wanted = source.observe(rows, {layer.input for layer in network.layers})
    prefix = LayerByLayer(source, rows) if sequential else None
    formats: dict[str, ActivationFormat] = {}
    layers: list[LayerPlan] = []
    for layer in track(network.layers, "rounding layers", enabled=progress):
        tensor = layer.input
        seen = prefix.reach(layer) if prefix else wanted[tensor]
        if tensor not in formats:
            formats[tensor] = _format(source, tensor, seen, settings)
        form, width = formats[tensor], bits[layer.name]
        rounded = rounding(layer_problem(source, layer, width, wanted[tensor], seen, form, weights, portable=portable))
        layers.append(LayerPlan(layer.name, layer.kind, width, rounded.integers, rounded.scale, rounded.bias, tensor))
        if prefix:
            prefix.put_out(fake_quantize(seen, form), layers[-1].weight(), layers[-1].deployed_bias(form))
    return QuantizationPlan(tuple(layers), tuple(formats.values()), network.digest(), method, seed, portable)


def layer_problem(
    network: Network,
    layer: Layer,
    bits: int,
    inputs: torch.Tensor,
    seen: torch.Tensor,
    form: ActivationFormat,
    row_weights: torch.Tensor,
    *,
    portable: bool = False,
) -> LayerProblem:
    """What a rounding rule is given about ``layer``; the arguments are LayerProblem's."""
    return LayerProblem(
        name=layer.name,
        weight=network.weight(layer.name),
        bias=network.bias(layer.name),
        inputs=inputs,
        seen=seen,
        form=form,
        bits=bits,
        portable=portable,
        patches=_patches(network, layer),
        row_weights=row_weights,
    )


def _format(network: Network, tensor: str, values: torch.Tensor, settings: Activations) -> ActivationFormat:
    """The format of one tensor, fitted on the outputs of all layers that it feeds."""
    fed = [layer for layer in network.layers if layer.input == tensor]
    bits = settings.bits
    if tensor == network.input_name:
        narrow = sum(layer.parameters for layer in fed) <= NARROW_INPUT
        bits = settings.input_bits or (32 if narrow else 8)
    if not settings.clip and bits != 32:
        return ActivationFormat.spanning(tensor, float(values.min()), float(values.max()), bits)
    weights = [network.weight(layer.name) for layer in fed]
    a_row = sum(weight.numel() * max(1, values[0].numel() // weight[0].numel()) for weight in weights)
    nodes = [_node(network, layer) for layer in fed]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        parts = [node.target(x, weight, None, *node.args[3:]).flatten() for node, weight in zip(nodes, weights, strict=True)]  # type: ignore[operator]
        return torch.cat(parts)

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
