"""The network in quantization-aware training, with trainable weights, learned quantizers and a choice of widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from cfptq.errors import ModelError
from cfptq.network import DecisionRule, Network
from cfptq.network.serialize import digest
from cfptq.quantize import (
    ActivationFormat,
    Bits,
    LayerPlan,
    MarginTarget,
    QuantizationPlan,
    SignBounds,
    check_keep,
    fake_quantize,
    integer_limit,
    sweep_plan,
)
from cfptq.quantize.formats import align_with_channels, clamp_to_limits
from cfptq.quantize.plan import widen_steps_for_bias
from cfptq.training.learned_quantizers import compute_affine_parameters, quantize_lsq, quantize_pact

#: Largest initial distance of a weight from its planned integer, in steps. At 0.5 it would round to the next integer.
MAX_START_OFFSET_STEPS = 0.49


@dataclass(frozen=True)
class Start:
    """Starting point of training.

    Attributes:
        network: network with real weights and the full-precision model's function. Its channels may be equalized.
        plan: plan whose integers the student computes with at first.
        uniform: candidate width in bits to a plan with every layer at that width. Its scales are the quantizers' initial steps.
    """

    network: Network
    plan: QuantizationPlan
    uniform: Mapping[int, QuantizationPlan]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.network.layers]
        for plan in (self.plan, *self.uniform.values()):
            if [layer.name for layer in plan.layers] != names:
                raise ModelError(
                    f"A starting plan must be for the network's layers {names}, got {[layer.name for layer in plan.layers]}. "
                    "Quantize the same network."
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Candidate widths in bits, ascending."""
        return tuple(sorted({*self.uniform, *(bits for layer in self.plan.layers for bits in layer.channel_bits)}))


#: Number of a layer's candidate width, or one for each of its output channels.
Candidate = int | tuple[int, ...]


class LearnedWeight(nn.Module):
    """Real weight and bias of one layer, with an LSQ quantizer for every candidate width.

    The layer computes at one candidate width, or at one for each output channel.

    Args:
        weight: real weight, (out, ...).
        plans: width in bits to the layer's plan at that width. Its scales are the initial steps.
        start: the plan whose integers the weight has at first.
        per_channel: True for one step per output channel, False for one per layer.
        signs: signs that each weight and integer may have. None allows all.
    """

    mask: Tensor

    def __init__(
        self, weight: Tensor, plans: Mapping[int, LayerPlan], start: LayerPlan, per_channel: bool, signs: SignBounds | None = None
    ) -> None:
        super().__init__()
        self.signs = signs
        self.widths = tuple(sorted(plans))
        self.limits = [integer_limit(bits) for bits in self.widths]
        own = torch.tensor(start.channel_bits)
        steps = torch.stack([torch.where(own == bits, start.scale, plans[bits].scale) for bits in self.widths])
        self.steps = nn.Parameter(steps if per_channel else steps.mean(dim=1, keepdim=True))
        step = align_with_channels(self._get_steps(self.find_candidate(start.bits)).detach(), weight)
        planned = start.integers.to(torch.float32)
        # The value nearest to the real weight that still rounds to the planned integer.
        lowest, highest = planned - MAX_START_OFFSET_STEPS, planned + MAX_START_OFFSET_STEPS
        initial = torch.minimum(torch.maximum(weight / step, lowest), highest) * step
        self.weight = nn.Parameter(initial if per_channel else weight.clone())
        self.bias = nn.Parameter((torch.zeros(len(weight)) if start.bias is None else start.bias).clone())
        self.register_buffer("mask", torch.ones_like(weight))
        #: Candidate to frozen integers, at most one entry.
        self.frozen: dict[Candidate, Tensor] = {}

    def find_candidate(self, bits: Bits) -> Candidate:
        """Return the candidate of a width, or of one for each output channel."""
        return self.widths.index(bits) if isinstance(bits, int) else tuple(map(self.widths.index, bits))

    def _get_steps(self, candidate: Candidate) -> Tensor:
        """Return the steps at a candidate, (out,) or (1,), which may be negative."""
        if isinstance(candidate, int):
            return self.steps[candidate]
        channels = torch.arange(len(candidate)) % self.steps.shape[1]
        return self.steps[torch.tensor(candidate), channels]

    def _get_limit(self, candidate: Candidate) -> int | Tensor:
        """Return the largest integer at a candidate, one number or one for each output channel, (out,)."""
        if isinstance(candidate, int):
            return self.limits[candidate]
        return torch.tensor([float(self.limits[number]) for number in candidate])

    def real_weight(self) -> Tensor:
        """Return the real weight that is computed with, pruned and within the signs that are kept.

        The gradient passes unchanged, so that a weight that was set to 0 can return.
        """
        weight = self.weight * self.mask
        return weight if self.signs is None else weight + (self.signs.clamp(weight) - weight).detach()

    def quantize_at(self, candidate: Candidate) -> Tensor:
        """Compute the fake-quantized weight Ŵ at a candidate, (out, ...)."""
        step = self._get_steps(candidate).abs()
        if candidate in self.frozen:
            return self.frozen[candidate] * align_with_channels(step, self.weight)
        return quantize_lsq(self.real_weight(), step if step.numel() > 1 else step.reshape(()), self._get_limit(candidate))

    def forward(self, choice: Tensor | Candidate) -> Tensor:
        """Compute Ŵ at a candidate, or Σ_r z_r Ŵ_r with gradient for a one-hot choice z, (widths,) or (out, widths)."""
        if not isinstance(choice, Tensor):
            return self.quantize_at(choice)
        parts = choice if choice.dim() == 1 else [align_with_channels(part, self.weight) for part in choice.T]
        return torch.stack([part * self.quantize_at(candidate) for candidate, part in enumerate(parts)]).sum(dim=0)

    def round_bias(self, candidate: Candidate, form: ActivationFormat) -> Tensor:
        """Round the bias as an integer kernel does behind an 8-bit input, with a straight-through gradient.

        Behind other inputs the bias stays as it is.
        """
        if form.bits != 8:
            return self.bias
        with torch.no_grad():
            # The same rounding as LayerPlan.deployed_bias, so that training and deployment agree.
            step = (torch.tensor(form.scale, dtype=torch.float32) * self._get_steps(candidate).abs()).double()
            change = (torch.round(self.bias.double() / step) * step).to(torch.float32) - self.bias
        return self.bias + change

    def compute_integers(self, candidate: Candidate) -> Tensor:
        """Compute the integers ⌊w / s⌉ within the range of a candidate, (out, ...) float32."""
        if candidate in self.frozen:
            return self.frozen[candidate]
        step, limit = align_with_channels(self._get_steps(candidate).detach().abs(), self.weight), self._get_limit(candidate)
        aligned = limit if isinstance(limit, int) else align_with_channels(limit, self.weight)
        return clamp_to_limits((self.real_weight().detach() / step).round_(), aligned)

    def freeze_integers(self, candidate: Candidate) -> None:
        """Freeze the integers at a candidate, and train only steps and bias from now on."""
        self.frozen = {candidate: self.compute_integers(candidate)}

    def freeze_plan(self, plan: LayerPlan) -> None:
        """Freeze the integers of ``plan``, and copy its bias."""
        self.frozen = {self.find_candidate(plan.bits): plan.integers.to(torch.float32)}
        if plan.bias is not None:
            with torch.no_grad():
                self.bias.copy_(plan.bias)

    def to_layer_plan(self, start: LayerPlan, bits: Bits) -> LayerPlan:
        """Return the layer's plan at ``bits``, with the present integers, steps and bias, and all else as in ``start``."""
        candidate = self.find_candidate(bits)
        step = self._get_steps(candidate).detach().abs().expand(len(self.weight)).clone()
        return replace(
            start, bits=bits, integers=self.compute_integers(candidate).to(torch.int8), scale=step, bias=self.bias.detach().clone()
        )


class LearnedClip(nn.Module):
    """Quantizer of one activation tensor, either PACT or a fixed format.

    PACT has one clip for every candidate weight width of the layer that the tensor feeds.

    Args:
        form: the starting format. A float format is never learned.
        count: number of candidate weight widths.
        is_learned: True learns the clip, False keeps ``form``.
        bits: bits of the activation. None takes the format's.
    """

    def __init__(self, form: ActivationFormat, count: int, is_learned: bool, bits: int | None = None) -> None:
        super().__init__()
        self.form = form
        self.bits = bits or form.bits
        low, high = -form.zero_point * form.scale, (form.highest - form.zero_point) * form.scale
        self.is_signed = low < 0
        #: Number of the candidate width whose clip is used.
        self.candidate = 0
        self.clips = nn.Parameter(torch.full((count,), max(-low, high))) if is_learned and form.is_affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.clips is None:
            return fake_quantize(x, self.form)
        return quantize_pact(x, self.clips[self.candidate].abs().clamp_min(1e-6), self.bits, signed=self.is_signed)

    def to_format(self) -> ActivationFormat:
        """Return the activation format that the quantizer computes with now."""
        if self.clips is None:
            return self.form
        clip = self.clips.detach()[self.candidate].abs().clamp_min(1e-6)
        return ActivationFormat(self.form.tensor, self.bits, *compute_affine_parameters(clip, self.bits, self.is_signed))


class Student(nn.Module):
    """The quantized model f_q in training, differentiable in weights, biases, steps, clips and the choice of widths.

    Args:
        start: starting network and plans.
        learned_clips: True for PACT activations, False for the starting formats.
        per_channel: True for one weight step per output channel, False for one per layer.
        is_quantized: False computes with the real weights and no quantizer, to train a full-precision model.
        keep: structure of the starting network's weights to keep, "zeros" and "signs".

    Attributes:
        network: the starting network with its real weights.
    """

    def __init__(
        self,
        start: Start,
        *,
        learned_clips: bool = False,
        per_channel: bool = True,
        is_quantized: bool = True,
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__()
        network, plan = start.network, start.plan
        self.is_quantized, self.keep = is_quantized, check_keep(keep)
        self.widths = start.widths
        self._layers = nn.ModuleList()
        planned = {layer.name: layer for layer in plan.layers}
        for number, layer in enumerate(network.layers):
            own = planned[layer.name]
            plans = {bits: start.uniform[bits].layers[number] if bits in start.uniform else own for bits in self.widths}
            weight = network.weight(layer.name)
            module = LearnedWeight(weight, plans, own, per_channel, SignBounds.of(weight, self.keep))
            bias = network.bias(layer.name)
            if not is_quantized:
                with torch.no_grad():
                    module.weight.copy_(network.weight(layer.name))
                    module.bias.copy_(torch.zeros_like(module.bias) if bias is None else bias)
            self._layers.append(module)
        self._clips = nn.ModuleList(LearnedClip(form, len(self.widths), learned_clips) for form in plan.activations)
        self._planned = tuple(planned[layer.name] for layer in network.layers)
        self._first = [next(n for n, layer in enumerate(network.layers) if layer.input == form.tensor) for form in plan.activations]
        self.network, self._plan = network, plan
        # In a tuple, so that the graph's own parameters are no part of this module's state.
        self._graph = (self._insert_quantizers(network, plan),)
        self._choices: tuple[Candidate | Tensor, ...] = ()
        self.set_bits([layer.bits for layer in self._planned])

    @property
    def layers(self) -> tuple[LearnedWeight, ...]:
        """The quantizable layers, in execution order."""
        return tuple(cast(Iterable[LearnedWeight], self._layers))

    @property
    def clips(self) -> tuple[LearnedClip, ...]:
        """The quantizers of the layers' input tensors."""
        return tuple(cast(Iterable[LearnedClip], self._clips))

    def _insert_quantizers(self, network: Network, plan: QuantizationPlan) -> fx.GraphModule:
        """Return the graph with a bias at every layer and a quantizer on every tensor that feeds a layer."""
        with_biases = network.with_parameters(
            {layer.name: (network.weight(layer.name), torch.zeros(layer.weight_shape[0])) for layer in network.layers}
        )
        feeds = {layer.node: layer.input for layer in with_biases.layers}

        def insert(graph: fx.GraphModule) -> None:
            by_name = {node.name: node for node in graph.graph.nodes}
            for number, form in enumerate(plan.activations):
                source = by_name[form.tensor]
                graph.add_submodule(f"activation_{number}", self.clips[number])
                with graph.graph.inserting_after(source):
                    rounded = graph.graph.call_module(f"activation_{number}", (source,))
                for node, tensor in feeds.items():
                    if tensor == form.tensor:
                        by_name[node].replace_input_with(source, rounded)

        return with_biases.edit_copy(insert if self.is_quantized else lambda graph: None)

    @property
    def bits(self) -> tuple[Bits, ...]:
        """Present widths in bits, one per layer, or a tuple with one for each of its output channels."""
        found = map(_read_choice, self._choices)
        return tuple(self.widths[it] if isinstance(it, int) else tuple(self.widths[number] for number in it) for it in found)

    def prune(self, sparsity: float) -> None:
        """Set the smallest weights of each layer to 0 permanently.

        Args:
            sparsity: share of each layer's weights in [0, 1).
        """
        for module in self.layers:
            size = module.weight.detach().abs()
            dropped = round(sparsity * size.numel())
            smallest = size.flatten().argsort(stable=True)[:dropped]
            module.mask.view(-1)[smallest] = 0.0

    def freeze_integers(self) -> None:
        """Freeze the integers of the present widths, and train only steps, clips and biases from now on."""
        for module, bits in zip(self.layers, self.bits, strict=True):
            module.freeze_integers(module.find_candidate(bits))

    def sweep(self, target: MarginTarget, decision: DecisionRule) -> None:
        """Lower the error of margins by moving integers and biases of the present widths, and freeze the integers.

        Args:
            target: rows and the margins that they should have.
            decision: head of the network's raw output and decision threshold.
        """
        plan = replace(self.to_plan("sweep"), network=digest(self.network))
        for module, layer in zip(self.layers, sweep_plan(self.network, plan, target, decision).layers, strict=True):
            module.freeze_plan(layer)

    def get_frozen_integers(self) -> dict[str, Tensor]:
        """Return the frozen integers by layer and candidate, empty where none are frozen."""
        return {
            f"{number}.{candidate if isinstance(candidate, int) else '-'.join(map(str, candidate))}": integers.to(torch.int8)
            for number, module in enumerate(self.layers)
            for candidate, integers in module.frozen.items()
        }

    def restore_frozen_integers(self, integers: Mapping[str, Tensor]) -> None:
        """Restore what ``get_frozen_integers`` returned, and unfreeze all other layers."""
        for module in self.layers:
            module.frozen = {}
        for key, frozen in integers.items():
            number, candidate = key.split(".")
            place: Candidate = int(candidate) if candidate.isdigit() else tuple(map(int, candidate.split("-")))
            self.layers[int(number)].frozen = {place: frozen.to(torch.float32)}

    def set_bits(self, bits: Sequence[Bits] | Tensor) -> None:
        """Set the widths that the student computes with.

        Args:
            bits: one width in bits per layer, a tuple with one for each of its output channels, or a one-hot choice that carries gradient.
                The choice has the shape (L, widths), or a row for each output channel of every layer.
        """
        if not isinstance(bits, Tensor):
            self._choices = tuple(module.find_candidate(width) for module, width in zip(self.layers, bits, strict=True))
        elif self._plan.granularity == "layer":
            self._choices = tuple(bits)
        else:
            self._choices = torch.split(bits, [len(module.weight) for module in self.layers])
        for clip, first in zip(self.clips, self._first, strict=True):
            candidate = _read_choice(self._choices[first])
            # Channels of several widths share the first clip.
            clip.candidate = candidate if isinstance(candidate, int) else 0

    def forward(self, x: Tensor) -> Tensor:
        """Compute the model's raw output, (N, ...), of rows."""
        values: dict[str, Tensor] = {}
        formats = {clip.form.tensor: clip.to_format() for clip in self.clips}
        for module, planned, choice in zip(self.layers, self._planned, self._choices, strict=True):
            name = planned.name
            if self.is_quantized:
                values[f"{name}.weight"] = module(choice)
                values[f"{name}.bias"] = module.round_bias(_read_choice(choice), formats[planned.input])
            else:
                values[f"{name}.weight"], values[f"{name}.bias"] = module.real_weight(), module.bias
        output: Tensor = functional_call(self._graph[0], values, (x,))
        return output

    def to_plan(self, method: str) -> QuantizationPlan:
        """Return the student as a plan for the captured network at the present widths.

        Args:
            method: the method's name, which the plan records.
        """
        layers = tuple(
            module.to_layer_plan(planned, bits) for module, planned, bits in zip(self.layers, self._planned, self.bits, strict=True)
        )
        formats = tuple(clip.to_format() for clip in self.clips)
        by_tensor = {form.tensor: form for form in formats}
        layers = tuple(widen_steps_for_bias(layer, by_tensor[layer.input]) for layer in layers)
        start = self._plan
        return QuantizationPlan(layers, formats, start.network, method, start.seed, start.portable, start.input_choice, self.keep)

    def transfer_parameters(self, network: Network) -> Network:
        """Return ``network`` with the student's real weights and biases."""
        return network.with_parameters(
            {
                planned.name: (module.real_weight().detach(), module.bias.detach())
                for module, planned in zip(self.layers, self._planned, strict=True)
            }
        )


def _read_choice(choice: Candidate | Tensor) -> Candidate:
    """Return the candidate of a layer's choice, which may be one-hot, (widths,) or (out, widths)."""
    if not isinstance(choice, Tensor):
        return choice
    numbers = choice.detach().argmax(dim=-1).tolist()
    return tuple(numbers) if isinstance(numbers, list) else int(numbers)
