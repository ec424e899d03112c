"""From a captured network, calibration rows and a width for each layer to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional

from cfptq.errors import BudgetError, ModelError
from cfptq.io.progress import track
from cfptq.network import Head, Layer, Network, class_logits, target_margin
from cfptq.network.serialize import digest
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.cross_layer_equalization import equalize_network
from cfptq.quantize.formats import ActivationFormat, fake_quantize, layer_widths
from cfptq.quantize.partial_run import LayerwiseRun, compute_node_output
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.reconstruct import LayerProblem, RoundedWeight, Rounding, fit_activation_format, round_nearest
from cfptq.quantize.row_sampling import every_nth, sample_affordable_rows

#: Weights fed by the input up to which leaving it in float costs next to nothing at any batch size, and inputs of a linear layer from
#: which two int8 products are faster than one in float (ONNX Runtime, one thread, batches of 1, 256 and 4,096).
NARROW_INPUT, LONG_ROW = 2**16, 512

#: Multiply-adds that one pass of the network over the calibration rows may take, and rows that are taken whatever they cost.
ROUNDING_WORK, FEWEST_ROWS = 2**32, 512

#: Bits of the model's input, or its two-step format, or the choice by its width.
InputBits = int | Literal["two-step"] | None


@dataclass(frozen=True)
class Activations:
    """Formats of the tensors that feed quantized layers.

    Attributes:
        bits: hidden tensors, 8 or 16; 32 leaves them in float.
        input_bits: the model's input, likewise, or "two-step": quantized to 8 bits twice, the second time what the first left, so that
            linear layers see about 16 bits of it in int8 kernels. None chooses what costs least of those that see more than 8 bits:
            float where the layers that it feeds have at most :data:`NARROW_INPUT` weights, or are linear with fewer than
            :data:`LONG_ROW` inputs; else two-step, or 8 bits if one of them is a convolution.
        clip: clip where that reconstructs the layer's output better (eq. 22); False spans all that calibration saw.
    """

    bits: int = 8
    input_bits: InputBits = 8
    clip: bool = True

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32) or self.input_bits not in (None, 8, 16, 32, "two-step"):
            raise ModelError(
                f"activations can have 8, 16 or 32 (float) bits, the input also 'two-step', not {self.bits!r} and {self.input_bits!r}"
            )


def quantize(
    network: Network,
    calibration: CalibrationSet,
    bits: Mapping[str, int],
    *,
    method: str,
    seed: int,
    rounding: Rounding = round_nearest,
    activations: Activations | None = None,
    equalize: bool = False,
    sequential: bool = False,
    head: Head | None = None,
    threshold: float | None = None,
    portable: bool = False,
    progress: bool = True,
) -> QuantizationPlan:
    """Round every layer named in ``bits`` and choose the formats of the tensors that feed them (eq. 22).

    Args:
        network: the captured full-precision network.
        calibration: rows that scales and clipping are fitted on, and how much each counts.
        bits: width of each quantizable layer, all of them.
        method, seed, portable: recorded in the plan, which refuses weights beyond ±63 behind integer inputs where ``portable`` says so.
        rounding: the rule that turns one layer's weight into integers.
        activations: bits of the hidden tensors and of the input; 8 each by default.
        equalize: first move each hidden channel's scale between the two layers around it.
        sequential: each layer sees what the quantized layers before it put out, and its target stays the full-precision output.
        head, threshold: what the network puts out and where it decides, so that a sequential ``rounding`` can be told what it does to
            margins; without ``head`` it is not.

    Raises:
        BudgetError: ``bits`` leaves a layer out or names one that is not there.
    """
    settings = activations or Activations()
    names = [layer.name for layer in network.layers]
    if set(names) != set(bits):
        raise BudgetError(f"widths are needed for exactly {', '.join(names)}, not {', '.join(bits)}")
    kept, weights = sample_affordable_rows(network, calibration.weights, ROUNDING_WORK, FEWEST_ROWS)
    rows = calibration.rows[kept]
    source = equalize_network(network, rows, _fine(bits, settings)) if equalize else network
    wanted = source.observe(rows, {layer.input for layer in network.layers})
    prefix = LayerwiseRun(source, rows) if sequential else None
    ends = None if prefix is None or head is None else _Ends(prefix, source, rows, calibration.target[kept], head, threshold)
    input_bits, why = _input_bits(network, settings.input_bits)
    formats: dict[str, ActivationFormat] = {}
    layers: list[LayerPlan] = []
    for layer in track(network.layers, "rounding layers", enabled=progress):
        tensor = layer.input
        seen = prefix.reach(layer) if prefix else wanted[tensor]
        if tensor not in formats:
            values, wide = (calibration.rows, input_bits) if tensor == network.input_name else (seen, settings.bits)
            formats[tensor] = _format(source, tensor, values, wide, settings.clip)
        form, width = formats[tensor], bits[layer.name]
        problem = build_layer_problem(source, layer, width, wanted[tensor], seen, form, weights)
        rounded = rounding(problem if ends is None else replace(problem, margins=ends.margins(layer, problem)))
        layers.append(LayerPlan(layer.name, layer.kind, width, rounded.integers, rounded.scale, rounded.bias, tensor))
        if prefix:
            prefix.set_output(fake_quantize(seen, form), layers[-1].weight(), layers[-1].deployed_bias(form))
    return QuantizationPlan(tuple(layers), tuple(formats.values()), digest(network), method, seed, portable, why)


def equalize_on_calibration(network: Network, calibration: CalibrationSet, bits: Mapping[str, int], activations: Activations) -> Network:
    """The network that :func:`quantize` rounds where it is told to equalize first."""
    kept, _ = sample_affordable_rows(network, calibration.weights, ROUNDING_WORK, FEWEST_ROWS)
    return equalize_network(network, calibration.rows[kept], _fine(bits, activations))


def _fine(bits: Mapping[str, int], activations: Activations) -> list[str]:
    """Layers whose weights are as fine as the activations that feed them."""
    return [name for name, width in bits.items() if width + 1 >= activations.bits]


def find_candidate_widths(network: Network, activations: Activations, portable: bool) -> dict[str, tuple[int, ...]]:
    """Return the widths that each layer may have, by name.

    Where ``portable``, layers that integer kernels run have at most 7 bits; a layer with float input has no sums that saturate.
    """
    input_bits, _ = _input_bits(network, activations.input_bits)
    found = {}
    for layer in network.layers:
        bits = input_bits if layer.input == network.input_name else activations.bits
        found[layer.name] = layer_widths(bits in (8, "two-step"), portable)
    return found


class _Ends:
    """Where the rows' target margins end when one layer more is rounded."""

    def __init__(
        self, prefix: LayerwiseRun, network: Network, rows: torch.Tensor, target: torch.Tensor, head: Head, threshold: float | None
    ) -> None:
        self.prefix, self.network, self.rows = prefix, network, rows
        self.target, self.head, self.threshold = target, head, threshold

    @cached_property
    def wanted(self) -> torch.Tensor:
        """The full-precision margins, (N,); computed for the first rounding that asks."""
        with torch.no_grad():
            return self._margin(self.network(self.rows))

    def margins(self, layer: Layer, problem: LayerProblem) -> Callable[[RoundedWeight], tuple[torch.Tensor, torch.Tensor]]:
        """LayerProblem's ``margins`` for the layer that was just reached."""

        def judge(rounded: RoundedWeight) -> tuple[torch.Tensor, torch.Tensor]:
            weight = rounded.integers * rounded.scale.reshape(-1, *[1] * (rounded.integers.dim() - 1))
            inputs = fake_quantize(problem.seen, problem.form)
            # Callers may have gradients switched off.
            with torch.inference_mode(False), torch.enable_grad():
                output = compute_node_output(self.prefix.reached, inputs, weight, rounded.bias).requires_grad_()
                margin = self._margin(self.prefix.finish_with(output))
                (slope,) = torch.autograd.grad(margin.sum(), output)
            return margin.detach() - self.wanted, flatten_positions(slope, layer)

        return judge

    def _margin(self, output: torch.Tensor) -> torch.Tensor:
        return target_margin(class_logits(output, self.head, self.threshold), self.target)


def flatten_positions(values: torch.Tensor, layer: Layer) -> torch.Tensor:
    """What ``layer`` puts out, or a slope in it, as (N, channels, positions)."""
    channel = values.dim() - 1 if layer.kind == "linear" else 1
    return values.movedim(channel, 1).flatten(2) if values.dim() > 2 else values[:, :, None]


def build_layer_problem(
    network: Network,
    layer: Layer,
    bits: int,
    inputs: torch.Tensor,
    seen: torch.Tensor,
    form: ActivationFormat,
    row_weights: torch.Tensor,
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
        patches=_patches(network, layer),
        row_weights=row_weights,
    )


def _input_bits(network: Network, asked: InputBits) -> tuple[int | Literal["two-step"], str]:
    """The format of the model's input, and why.

    Raises:
        ModelError: two steps were asked for, and a convolution takes the input.
    """
    fed = [layer for layer in network.layers if layer.input == network.input_name]
    weights, convolutions = sum(layer.parameters for layer in fed), [layer.name for layer in fed if layer.kind != "linear"]
    if asked == "two-step" and convolutions:
        raise ModelError(f"the two-step input is for linear layers, and {convolutions[0]!r} is a convolution; ask for 8, 16 or 32 bits")
    if asked is not None or not fed:
        return asked or 32, "asked for" if fed else ""
    if weights <= NARROW_INPUT:
        return 32, f"float costs next to nothing where the layers fed have {weights} weights"
    if convolutions:
        return 8, f"integer kernels pay for {weights} weights, and {convolutions[0]!r} is a convolution, which takes one step"
    inputs = max(layer.weight_shape[1] for layer in fed)
    if inputs < LONG_ROW:
        return 32, f"float is faster than two 8-bit steps for layers of {inputs} inputs"
    return "two-step", f"two 8-bit steps are faster than float for layers of {inputs} inputs and {weights} weights"


def _format(network: Network, tensor: str, values: torch.Tensor, bits: int | Literal["two-step"], clip: bool) -> ActivationFormat:
    """The format of one tensor, fitted on the outputs of all layers that it feeds."""
    if bits == "two-step":
        return ActivationFormat.two_steps_from_range(tensor, float(values.min()), float(values.max()))
    if not clip and bits != 32:
        return ActivationFormat.from_range(tensor, float(values.min()), float(values.max()), bits)
    fed = [layer for layer in network.layers if layer.input == tensor]
    weights = [network.weight(layer.name) for layer in fed]
    a_row = sum(weight.numel() * max(1, values[0].numel() // weight[0].numel()) for weight in weights)
    nodes = [_node(network, layer) for layer in fed]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        parts = [node.target(x, weight, None, *node.args[3:]).flatten() for node, weight in zip(nodes, weights, strict=True)]  # type: ignore[operator]
        return torch.cat(parts)

    return fit_activation_format(tensor, values[every_nth(len(values), a_row)], bits, outputs)


def _node(network: Network, layer: Layer) -> torch.fx.Node:
    found: torch.fx.Node = next(node for node in network.graph.graph.nodes if node.name == layer.node)
    return found


def _patches(network: Network, layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Inputs of ``layer`` as the vectors that its weight rows are multiplied with: (n, ...) -> (groups, m, k)."""
    if layer.kind == "linear":
        return lambda inputs: inputs.reshape(1, -1, inputs.shape[-1])
    stride, padding, dilation, groups = cast(tuple[Any, ...], _node(network, layer).args[3:])
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
