"""Quantization of a captured network, from calibration rows and a width for each layer to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as functional

from cfptq.errors import BudgetError, ModelError
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Layer, Network, target_margin
from cfptq.network.serialize import digest
from cfptq.quantize.activation_ranges import MarginRanges
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.channel_order import find_kept_inputs, find_sortable_layers
from cfptq.quantize.cross_layer_equalization import equalize_network
from cfptq.quantize.formats import FINE_STEPS, ActivationFormat, Bits, Granularity, fake_quantize, layer_widths, narrowest_bits
from cfptq.quantize.partial_run import LayerwiseRun
from cfptq.quantize.plan import LayerPlan, QuantizationPlan, widen_steps_for_bias
from cfptq.quantize.reconstruct import fit_activation_format, round_nearest
from cfptq.quantize.rounding_rule import LayerProblem, RoundedWeight, Rounding
from cfptq.quantize.row_sampling import every_nth, sample_affordable_rows
from cfptq.quantize.split_inputs import find_column_factors
from cfptq.quantize.structure import SignBounds, check_keep

#: Weights fed by the model's input up to which a float input costs next to nothing at any batch size. Beyond, integer kernels pay.
#: Measured with ONNX Runtime on one thread, at batches of 1, 256 and 4,096.
MAX_WEIGHTS_WITH_FLOAT_INPUT = 2**16

#: Inputs of a linear layer from which on two int8 products are faster than one in float. Measured likewise.
MIN_INPUTS_FOR_TWO_STEPS = 512

#: Multiply-adds that one pass of the network over the calibration rows may take. Beyond, rows are sampled.
MAX_ROUNDING_MACS = 2**32

#: Calibration rows that are used at least, whatever they cost.
MIN_ROUNDING_ROWS = 512

#: Bits of the model's input, its two-step format, or None for a choice by its width.
InputBits = int | Literal["two-step"] | None


@dataclass(frozen=True)
class Activations:
    """Settings of the tensors that feed quantized layers.

    Attributes:
        bits: bits of hidden tensors, 8 or 16. 32 leaves them in float.
        input_bits: bits of the model's input, 8, 16 or 32. "two-step" quantizes it to 8 bits twice, so that linear layers see about 16 bits
            of it in int8 kernels. None chooses the cheapest format with more than 8 bits. It is float where the layers that take the input
            have at most ``MAX_WEIGHTS_WITH_FLOAT_INPUT`` weights, or are linear with fewer than ``MIN_INPUTS_FOR_TWO_STEPS``
            inputs. It is two-step for other linear layers, and 8 bits if a convolution takes the input.
        clip: clip a range where that reconstructs the layers' outputs better (eq. 22). False spans all values seen in calibration.
        margin_ranges: choose ranges by the error of margins, in place of ``clip``; see ``cfptq.quantize.activation_ranges``. It needs the
            decision rule.

    Raises:
        ModelError: there is no such format.
    """

    bits: int = 8
    input_bits: InputBits = 8
    clip: bool = True
    margin_ranges: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32):
            raise ModelError(f"Hidden activations must have 8 or 16 bits, or 32 for float, got {self.bits!r}.")
        if self.input_bits not in (None, 8, 16, 32, "two-step"):
            raise ModelError(f"input_bits must be 8, 16, 32 for float, 'two-step', or None for a choice, got {self.input_bits!r}.")


def quantize(
    network: Network,
    calibration: CalibrationSet,
    bits: Mapping[str, Bits],
    *,
    method: str,
    seed: int,
    rounding: Rounding = round_nearest,
    activations: Activations | None = None,
    equalize: bool = False,
    equalized: Network | None = None,
    equalization_exponent: float = 0.5,
    sequential: bool = False,
    decision: DecisionRule | None = None,
    fine_inputs: Mapping[str, tuple[bool, ...]] | None = None,
    portable: bool = False,
    keep: Sequence[str] = (),
    progress: bool = True,
) -> QuantizationPlan:
    """Round every layer and choose the formats of the tensors that feed them (eq. 22).

    Args:
        network: the captured full-precision network.
        calibration: rows that scales and clipping are fitted on, and their weights.
        bits: width of each quantizable layer by name, all of them. A tuple holds a width for each output channel.
        method: name of the method, recorded in the plan.
        seed: seed of the calibration draw, recorded in the plan.
        rounding: rule that turns one layer's weight into integers. The default is ``cfptq.quantize.reconstruct.round_nearest``.
        activations: formats of the hidden tensors and of the input. None means 8 bits each.
        equalize: equalize the scales of hidden channels across layers first.
        equalized: the network that ``equalize_on_calibration`` returned for the same rows and narrower weights than activations, so that
            it is not computed again. It is not used where the weights of several layers are as fine as the activations.
        equalization_exponent: exponent of a channel's largest activation in its scale; see ``cfptq.quantize.equalize_network``.
        sequential: let each layer see the output of the quantized layers before it. Its target stays the full-precision output.
        decision: head of the network's raw output and decision threshold. With ``sequential``, ``rounding`` is then given the effect on
            margins. Activation ranges by margins need it too.
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less, by the name of
            the layer; see ``cfptq.quantize.split_inputs``. None splits no layer.
        portable: the plan refuses weights beyond ±63 behind integer inputs, for processors without VNNI.
        keep: parts of the weights' structure that the integers keep, "zeros" and "signs"; see ``cfptq.quantize.structure``.
        progress: show a bar when it takes long.

    Raises:
        BudgetError: ``bits`` misses a layer or names one that does not exist.
        ModelError: activation ranges by margins are asked for without ``decision``.
    """
    settings, kept_structure = activations or Activations(), check_keep(keep)
    names = [layer.name for layer in network.layers]
    if set(names) != set(bits):
        raise BudgetError(f"bits must name exactly the layers {', '.join(names)}, got {', '.join(bits)}.")
    kept, weights = sample_affordable_rows(network, calibration.weights, MAX_ROUNDING_MACS, MIN_ROUNDING_ROWS)
    rows = calibration.rows[kept]
    input_bits, reason = choose_input_bits(network, settings.input_bits)
    ranged = None
    if settings.margin_ranges:
        if decision is None:
            raise ModelError("Activation ranges by margins need the decision rule. Pass decision=, or set margin_ranges=False.")
        ranged = MarginRanges(rows, weights, calibration.target[kept], decision)
    fine_layers = _find_fine_layers(bits, settings)
    source = network
    if equalize:
        # Fine layers are equalized otherwise only between two of them.
        source = equalized if equalized and len(fine_layers) < 2 else _equalize(network, rows, fine_layers, equalization_exponent, ranged)
    has_channels = any(not isinstance(width, int) for width in bits.values())
    sortable = find_sortable_layers(network) if has_channels else ()
    kept_inputs = find_kept_inputs(network, bits) if has_channels else {}
    ranges = {} if ranged is None else ranged.choose(source, _count_steps(network, settings, input_bits))
    wanted = source.observe(rows, {layer.input for layer in network.layers})
    prefix = LayerwiseRun(source, rows) if sequential else None
    probe = None if prefix is None or decision is None else _MarginProbe(prefix, source, rows, calibration.target[kept], decision)
    formats: dict[str, ActivationFormat] = {}
    layers: list[LayerPlan] = []
    for layer in track(network.layers, "rounding layers", enabled=progress):
        tensor = layer.input
        seen = prefix.run_to(layer) if prefix else wanted[tensor]
        if tensor not in formats:
            values, format_bits = (calibration.rows, input_bits) if tensor == network.input_name else (seen, settings.bits)
            if tensor in ranges:
                formats[tensor] = _span_range(tensor, *ranges[tensor], format_bits)
            else:
                formats[tensor] = _fit_format(source, tensor, values, format_bits, settings.clip)
        form, width = formats[tensor], bits[layer.name]
        fine = (fine_inputs or {}).get(layer.name, ())
        problem = build_layer_problem(source, layer, width, wanted[tensor], seen, form, weights, fine)
        # The bounds are those of the weights as they were given. Equalization changes neither zeros nor signs.
        inputs = kept_inputs.get(layer.name, ())
        signs = SignBounds.of(network.weight(layer.name), kept_structure, inputs)
        problem = replace(problem, signs=signs, margins=None if probe is None else probe.margins(layer, problem))
        rounded = rounding(problem).join_columns(fine)
        # A user's own rule may not know of bounds.
        integers = rounded.integers if signs is None else signs.clamp(rounded.integers)
        is_sortable = layer.name in sortable
        planned = LayerPlan(layer.name, layer.kind, width, integers, rounded.scale, rounded.bias, tensor, is_sortable, inputs, fine)
        layers.append(widen_steps_for_bias(planned, form))
        if prefix:
            prefix.set_output(fake_quantize(seen, form), layers[-1].weight(), layers[-1].deployed_bias(form))
    return QuantizationPlan(tuple(layers), tuple(formats.values()), digest(network), method, seed, portable, reason, kept_structure)


def equalize_on_calibration(
    network: Network,
    calibration: CalibrationSet,
    bits: Mapping[str, Bits],
    activations: Activations,
    exponent: float = 0.5,
    decision: DecisionRule | None = None,
) -> Network:
    """Equalize a network as ``quantize`` does with ``equalize=True``.

    Args:
        network: the captured full-precision network.
        calibration: rows to equalize over.
        bits: width of each quantizable layer by name.
        activations: formats of the tensors that feed quantized layers.
        exponent: exponent of a channel's largest activation in its scale.
        decision: head of the network's raw output and decision threshold, for activation ranges by margins.
    """
    kept, weights = sample_affordable_rows(network, calibration.weights, MAX_ROUNDING_MACS, MIN_ROUNDING_ROWS)
    rows, ranged = calibration.rows[kept], None
    if activations.margin_ranges and decision is not None:
        ranged = MarginRanges(rows, weights, calibration.target[kept], decision)
    return _equalize(network, rows, _find_fine_layers(bits, activations), exponent, ranged)


def _equalize(network: Network, rows: torch.Tensor, fine: Sequence[str], exponent: float, ranged: MarginRanges | None) -> Network:
    """Equalize hidden channels by the ranges that suit the margins, or by the largest values."""
    return equalize_network(network, rows, fine, exponent, None if ranged is None else ranged.measure_heights(network))


def _find_fine_layers(bits: Mapping[str, Bits], activations: Activations) -> list[str]:
    """Find the layers whose weights, in every channel, are as fine as the activations that feed them."""
    return [name for name, width in bits.items() if narrowest_bits(width) + 1 >= activations.bits]


def find_candidate_widths(
    network: Network, activations: Activations, portable: bool, granularity: Granularity = "layer"
) -> dict[str, tuple[int, ...]]:
    """Return the candidate widths of each layer, or of its channels, by layer name, ascending.

    With ``portable``, layers with integer input have at most 7 bits. Layers with float input have no sums that saturate, and keep 8.

    Args:
        network: the captured network.
        activations: formats of the tensors that feed quantized layers.
        portable: results must be right on processors without VNNI too.
        granularity: what has a width of its own.
    """
    input_bits, _ = choose_input_bits(network, activations.input_bits)
    sortable, found = find_sortable_layers(network), {}
    for layer in network.layers:
        bits = input_bits if layer.input == network.input_name else activations.bits
        found[layer.name] = layer_widths(bits in (8, "two-step"), portable, granularity, layer.name in sortable)
    return found


class _MarginProbe:
    """Effect of rounding one layer more on the rows' target margins."""

    def __init__(self, prefix: LayerwiseRun, network: Network, rows: torch.Tensor, target: torch.Tensor, decision: DecisionRule) -> None:
        self.prefix, self.network, self.rows = prefix, network, rows
        self.target, self.decision = target, decision

    @cached_property
    def wanted(self) -> torch.Tensor:
        """The full-precision margins, (N,), computed on first use."""
        with torch.no_grad():
            return self._compute_margin(self.network(self.rows))

    def margins(self, layer: Layer, problem: LayerProblem) -> Callable[[RoundedWeight], tuple[torch.Tensor, torch.Tensor]]:
        """Return LayerProblem's ``margins`` for the layer that was just reached."""

        def measure(rounded: RoundedWeight) -> tuple[torch.Tensor, torch.Tensor]:
            inputs, joined = fake_quantize(problem.seen, problem.form), rounded.join_columns(problem.fine_inputs)
            # Callers may have gradients switched off.
            with torch.inference_mode(False), torch.enable_grad():
                output = self.prefix.compute_output(inputs, joined.weight(), joined.bias).requires_grad_()
                margin = self._compute_margin(self.prefix.finish_with(output))
                (slope,) = torch.autograd.grad(margin.sum(), output)
            return margin.detach() - self.wanted, flatten_positions(slope, layer)

        return measure

    def _compute_margin(self, output: torch.Tensor) -> torch.Tensor:
        return target_margin(self.decision.class_logits(output), self.target)


def flatten_positions(values: torch.Tensor, layer: Layer) -> torch.Tensor:
    """Reshape the output of a layer, or a gradient in it, to (N, channels, positions)."""
    channel = values.dim() - 1 if layer.kind == "linear" else 1
    return values.movedim(channel, 1).flatten(2) if values.dim() > 2 else values[:, :, None]


def build_layer_problem(
    network: Network,
    layer: Layer,
    bits: Bits,
    inputs: torch.Tensor,
    seen: torch.Tensor,
    form: ActivationFormat,
    row_weights: torch.Tensor,
    fine_inputs: tuple[bool, ...] = (),
) -> LayerProblem:
    """Build the input of a rounding rule for one layer, without ``margins``.

    Args:
        network: the captured full-precision network.
        layer: one of its layers.
        bits: width to round to, one for the layer, or one for each output channel.
        inputs: full-precision inputs of the layer, (N, ...).
        seen: inputs of the layer once the layers before it are quantized, (N, ...).
        form: format of the input tensor.
        row_weights: weight of each row, (N,).
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less, or empty.
    """
    weight, patches = network.weight(layer.name), _build_patch_function(network, layer)
    if fine_inputs:
        weight, patches = _scale_columns(weight, patches, find_column_factors(fine_inputs))
    return LayerProblem(
        name=layer.name,
        weight=weight,
        bias=network.bias(layer.name),
        inputs=inputs,
        seen=seen,
        form=form,
        bits=bits,
        patches=patches,
        row_weights=row_weights,
        fine_inputs=fine_inputs,
    )


def _scale_columns(
    weight: torch.Tensor, patches: Callable[[torch.Tensor], torch.Tensor], factors: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Multiply a weight's columns by factors and divide what meets them, so that one step suits all columns."""
    return weight * factors, lambda inputs: patches(inputs) / factors


def choose_input_bits(network: Network, asked: InputBits) -> tuple[int | Literal["two-step"], str]:
    """Choose the format of the model's input, and say why.

    Raises:
        ModelError: two steps were asked for, and a convolution takes the input.
    """
    fed = [layer for layer in network.layers if layer.input == network.input_name]
    weights, convolutions = sum(layer.parameters for layer in fed), [layer.name for layer in fed if layer.kind != "linear"]
    if asked == "two-step" and convolutions:
        raise ModelError(f"A two-step input needs linear layers, and {convolutions[0]!r} is a convolution. Set input_bits to 8, 16 or 32.")
    if asked is not None or not fed:
        return asked or 32, "asked for" if fed else ""
    if weights <= MAX_WEIGHTS_WITH_FLOAT_INPUT:
        return 32, f"float costs next to nothing where the layers fed have {weights} weights"
    if convolutions:
        return 8, f"integer kernels pay for {weights} weights, and {convolutions[0]!r} is a convolution, which takes one step"
    inputs = max(layer.weight_shape[1] for layer in fed)
    if inputs < MIN_INPUTS_FOR_TWO_STEPS:
        return 32, f"float is faster than two 8-bit steps for layers of {inputs} inputs"
    return "two-step", f"two 8-bit steps are faster than float for layers of {inputs} inputs and {weights} weights"


def _count_steps(network: Network, settings: Activations, input_bits: int | Literal["two-step"]) -> dict[str, int]:
    """Count the steps of each tensor that feeds a layer and is stored in integers, by the name of its node."""
    bits = {layer.input: input_bits if layer.input == network.input_name else settings.bits for layer in network.layers}
    steps = {8: 2**8 - 1, 16: 2**16 - 1, "two-step": FINE_STEPS * (2**8 - 1)}
    return {tensor: steps[width] for tensor, width in bits.items() if width != 32}


def _span_range(tensor: str, low: float, high: float, bits: int | Literal["two-step"]) -> ActivationFormat:
    """Return the format of one tensor that spans a range."""
    if bits == "two-step":
        return ActivationFormat.two_steps_from_range(tensor, low, high)
    return ActivationFormat.from_range(tensor, low, high, bits)


def _fit_format(network: Network, tensor: str, values: torch.Tensor, bits: int | Literal["two-step"], clip: bool) -> ActivationFormat:
    """Fit the format of one tensor on the outputs of all layers that it feeds."""
    if bits == "two-step" or (not clip and bits != 32):
        return _span_range(tensor, float(values.min()), float(values.max()), bits)
    fed = [layer for layer in network.layers if layer.input == tensor]
    weights = [network.weight(layer.name) for layer in fed]
    macs_per_row = sum(weight.numel() * max(1, values[0].numel() // weight[0].numel()) for weight in weights)
    nodes = [_find_node(network, layer) for layer in fed]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        parts = [node.target(x, weight, None, *node.args[3:]).flatten() for node, weight in zip(nodes, weights, strict=True)]  # type: ignore[operator]
        return torch.cat(parts)

    return fit_activation_format(tensor, values[every_nth(len(values), macs_per_row)], bits, outputs)


def _find_node(network: Network, layer: Layer) -> torch.fx.Node:
    found: torch.fx.Node = next(node for node in network.graph.graph.nodes if node.name == layer.node)
    return found


def _build_patch_function(network: Network, layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """Build the function from a layer's inputs (n, ...) to the vectors that its weight rows are multiplied with, (groups, m, k)."""
    if layer.kind == "linear":
        return lambda inputs: inputs.reshape(1, -1, inputs.shape[-1])
    stride, padding, dilation, groups = cast(tuple[Any, ...], _find_node(network, layer).args[3:])
    kernel = layer.weight_shape[2:]

    def unfold_patches(inputs: torch.Tensor) -> torch.Tensor:
        # A 1-d convolution is a 2-d one of height 1.
        images = inputs if len(kernel) == 2 else inputs[:, :, None]
        height = (1,) * (2 - len(kernel))
        no_padding = (0,) * (2 - len(kernel))
        columns = functional.unfold(images, (*height, *kernel), (*height, *dilation), (*no_padding, *padding), (*height, *stride))
        # (n, channels * kernel, positions) -> (groups, n * positions, channels / groups * kernel)
        by_group = columns.reshape(columns.shape[0], groups, -1, columns.shape[-1])
        return by_group.permute(1, 0, 3, 2).reshape(groups, -1, by_group.shape[2])

    return unfold_patches
