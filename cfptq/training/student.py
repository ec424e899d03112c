"""The student: the captured network with trainable weights, learned quantizers and a choice of widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from cfptq.errors import ModelError
from cfptq.network import Head, Network
from cfptq.network.serialize import digest
from cfptq.quantize import ActivationFormat, LayerPlan, MarginTarget, QuantizationPlan, fake_quantize, integer_limit, sweep_plan
from cfptq.training.learned_quantizers import affine, lsq, pact

#: How far from its rounding boundary, in steps, a warm-started weight may lie at first: just inside the cell of its planned integer.
INSIDE = 0.49


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        network: real weights whose function is the full-precision model's (channels may be equalized).
        plan: the plan whose integers the student computes with at first.
        uniform: for each candidate width a plan with every layer at that width: the first steps of quantizers not yet chosen.
    """

    network: Network
    plan: QuantizationPlan
    uniform: Mapping[int, QuantizationPlan]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.network.layers]
        for plan in (self.plan, *self.uniform.values()):
            if [layer.name for layer in plan.layers] != names:
                raise ModelError(f"a starting plan is for layers {[layer.name for layer in plan.layers]}, the network has {names}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Candidate widths, ascending."""
        return tuple(sorted({*self.uniform, *self.plan.bits.values()}))


class LearnedWeight(nn.Module):
    """One layer's real weight and bias, with an LSQ quantizer for every candidate width.

    Args:
        weight: real weight, (out, ...).
        plans: width -> the layer's plan at that width, whose scales are the first steps.
        start: the plan whose integers the weight keeps at first.
        per_channel: one step for each output channel; False for one a layer.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, plans: Mapping[int, LayerPlan], start: LayerPlan, per_channel: bool) -> None:
        super().__init__()
        self.widths = tuple(sorted(plans))
        self.limits = [integer_limit(bits) for bits in self.widths]
        steps = torch.stack([plans[bits].scale for bits in self.widths])
        self.steps = nn.Parameter(steps if per_channel else steps.mean(dim=1, keepdim=True))
        step = self.steps.detach()[self.widths.index(start.bits)].reshape(-1, *[1] * (weight.dim() - 1))
        held = start.integers.to(torch.float32)
        # As near to the real weight as the planned integer allows: training starts at the plan and knows which way each weight leant.
        kept = torch.minimum(torch.maximum(weight / step, held - INSIDE), held + INSIDE) * step
        self.weight = nn.Parameter(kept if per_channel else weight.clone())
        self.bias = nn.Parameter((torch.zeros(len(weight)) if start.bias is None else start.bias).clone())
        self.register_buffer("mask", torch.ones_like(weight))
        #: Candidate number -> integers that are kept whatever the weights do; at most one.
        self.held: dict[int, Tensor] = {}

    def at(self, place: int) -> Tensor:
        """Ŵ at candidate number ``place``."""
        step = self.steps[place].abs()
        if place in self.held:
            return self.held[place] * step.reshape(-1, *[1] * (self.weight.dim() - 1))
        return lsq(self.weight * self.mask, step if step.numel() > 1 else step.reshape(()), self.limits[place])

    def forward(self, choice: Tensor | int) -> Tensor:
        """Ŵ at one candidate, or Σ_r z_r Ŵ_r for a one-hot choice z (widths,) with gradient."""
        if isinstance(choice, int):
            return self.at(choice)
        return torch.stack([part * self.at(place) for place, part in enumerate(choice)]).sum(dim=0)

    def deployed_bias(self, place: int, form: ActivationFormat) -> Tensor:
        """The bias as an integer kernel adds it behind an 8-bit input, with a straight-through gradient; as it is otherwise."""
        if form.bits != 8:
            return self.bias
        with torch.no_grad():
            # As LayerPlan.deployed_bias has it, so that what is trained is what is deployed.
            step = (torch.tensor(form.scale, dtype=torch.float32) * self.steps[place].abs()).double()
            moved = (torch.round(self.bias.double() / step) * step).to(torch.float32) - self.bias
        return self.bias + moved

    def integers(self, place: int) -> Tensor:
        """Whole numbers ⌊w / s⌉ within the range of candidate ``place``, float32."""
        if place in self.held:
            return self.held[place]
        step, limit = self.steps.detach()[place].abs().reshape(-1, *[1] * (self.weight.dim() - 1)), self.limits[place]
        return ((self.weight * self.mask).detach() / step).round_().clamp_(-limit, limit)

    def hold(self, place: int) -> None:
        """From now on keep the integers of candidate ``place`` and train only what they are scaled by."""
        self.held = {place: self.integers(place)}

    def take(self, plan: LayerPlan) -> None:
        """Hold the integers of ``plan``, and take over its bias."""
        self.held = {self.widths.index(plan.bits): plan.integers.to(torch.float32)}
        if plan.bias is not None:
            with torch.no_grad():
                self.bias.copy_(plan.bias)

    def plan(self, name: str, kind: str, source: str, bits: int) -> LayerPlan:
        """Integers, steps and bias at ``bits``, as they are computed with."""
        place = self.widths.index(bits)
        step = self.steps.detach()[place].abs().expand(len(self.weight)).clone()
        return LayerPlan(name, kind, bits, self.integers(place).to(torch.int8), step, self.bias.detach().clone(), source)


class LearnedClip(nn.Module):
    """The quantizer of one activation tensor: PACT with a clip for every candidate weight width of the layer it feeds, or a fixed format.

    Args:
        form: the starting format; a float one stays so.
        count: candidate widths.
        learned: learn the clip; False keeps ``form``.
        bits: of the activation; by default the format's.
    """

    def __init__(self, form: ActivationFormat, count: int, learned: bool, bits: int | None = None) -> None:
        super().__init__()
        self.form = form
        self.bits = bits or form.bits
        low, high = -form.zero_point * form.scale, (form.highest - form.zero_point) * form.scale
        self.signed = low < 0
        self.place = 0
        self.clips = nn.Parameter(torch.full((count,), max(-low, high))) if learned and form.is_affine else None

    def forward(self, x: Tensor) -> Tensor:
        if self.clips is None:
            return fake_quantize(x, self.form)
        return pact(x, self.clips[self.place].abs().clamp_min(1e-6), self.bits, signed=self.signed)

    def format(self) -> ActivationFormat:
        """What the quantizer computes with now."""
        if self.clips is None:
            return self.form
        clip = self.clips.detach()[self.place].abs().clamp_min(1e-6)
        return ActivationFormat(self.form.tensor, self.bits, *affine(clip, self.bits, self.signed))


class Student(nn.Module):
    """f_q in training: raw model output (N, ...) of rows, differentiable in weights, biases, steps, clips and the choice of widths.

    Args:
        start: where training starts.
        learned_clips: PACT for activations; False keeps the starting formats.
        per_channel: one weight step for each output channel.
        quantized: False computes with the real weights and no quantizer: the same training for a full-precision model.

    Attributes:
        network: the network that training starts from, with its real weights.
    """

    def __init__(self, start: Start, *, learned_clips: bool = False, per_channel: bool = True, quantized: bool = True) -> None:
        super().__init__()
        network, plan = start.network, start.plan
        self.quantized = quantized
        self.widths = start.widths
        self._layers = nn.ModuleList()
        planned = {layer.name: layer for layer in plan.layers}
        for number, layer in enumerate(network.layers):
            own = planned[layer.name]
            plans = {**{bits: uniform.layers[number] for bits, uniform in start.uniform.items()}, own.bits: own}
            for bits in set(self.widths) - set(plans):
                plans[bits] = own
            module = LearnedWeight(network.weight(layer.name), plans, own, per_channel)
            bias = network.bias(layer.name)
            if not quantized:
                with torch.no_grad():
                    module.weight.copy_(network.weight(layer.name))
                    module.bias.copy_(torch.zeros_like(module.bias) if bias is None else bias)
            self._layers.append(module)
        self._clips = nn.ModuleList(LearnedClip(form, len(self.widths), learned_clips) for form in plan.activations)
        self._names = tuple((layer.name, layer.kind, layer.input) for layer in network.layers)
        self._first = [next(n for n, layer in enumerate(network.layers) if layer.input == form.tensor) for form in plan.activations]
        self.network, self._plan = network, plan
        # In a tuple, so that the frozen parameters are no part of this module's state.
        self._graph = (self._inserted(network, plan),)
        self._choice: tuple[int, ...] | Tensor = ()
        self.choose(list(plan.bits.values()))

    @property
    def layers(self) -> tuple[LearnedWeight, ...]:
        """The quantizable layers, in execution order."""
        return tuple(cast(Iterable[LearnedWeight], self._layers))

    @property
    def clips(self) -> tuple[LearnedClip, ...]:
        """The quantizers of the tensors that feed them."""
        return tuple(cast(Iterable[LearnedClip], self._clips))

    def _inserted(self, network: Network, plan: QuantizationPlan) -> fx.GraphModule:
        """The graph with a place for every bias and a quantizer on every tensor that feeds a layer."""
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

        return with_biases.edit_copy(insert if self.quantized else lambda graph: None)

    @property
    def bits(self) -> tuple[int, ...]:
        """The widths that are computed with now, one a layer."""
        choice = self._choice
        places = choice.detach().argmax(dim=1).tolist() if isinstance(choice, Tensor) else choice
        return tuple(self.widths[place] for place in places)

    def prune(self, sparsity: float) -> None:
        """Set the smallest ``sparsity`` of each layer's weights to 0, and keep them there."""
        for module in self.layers:
            size = module.weight.detach().abs()
            dropped = round(sparsity * size.numel())
            smallest = size.flatten().argsort(stable=True)[:dropped]
            module.mask.view(-1)[smallest] = 0.0

    def hold(self) -> None:
        """From now on keep the integers of the chosen widths; steps, clips and biases go on being trained."""
        for module, bits in zip(self.layers, self.bits, strict=True):
            module.hold(self.widths.index(bits))

    def sweep(self, aim: MarginTarget, head: Head, threshold: float | None) -> None:
        """Move the integers and biases of the chosen widths to where margins err least, and hold them there."""
        plan = replace(self.plan("sweep"), network=digest(self.network))
        for module, layer in zip(self.layers, sweep_plan(self.network, plan, aim, head, threshold).layers, strict=True):
            module.take(layer)

    def held_integers(self) -> dict[str, Tensor]:
        """What :meth:`hold` keeps, by layer and candidate number; empty before."""
        return {f"{n}.{place}": kept.to(torch.int8) for n, module in enumerate(self.layers) for place, kept in module.held.items()}

    def restore_held(self, integers: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`held_integers` gave; what is not there follows the weights again."""
        for module in self.layers:
            module.held = {}
        for key, kept in integers.items():
            number, place = key.split(".")
            self.layers[int(number)].held = {int(place): kept.to(torch.float32)}

    def choose(self, bits: Sequence[int] | Tensor) -> None:
        """Compute with these widths: one a layer, or a one-hot choice (L, widths) that carries gradient."""
        if isinstance(bits, Tensor):
            self._choice = bits
            places = bits.detach().argmax(dim=1).tolist()
        else:
            places = [self.widths.index(width) for width in bits]
            self._choice = tuple(places)
        for clip, first in zip(self.clips, self._first, strict=True):
            clip.place = places[first]

    def forward(self, x: Tensor) -> Tensor:
        """The model's raw output for rows (N, ...)."""
        values: dict[str, Tensor] = {}
        formats = {clip.form.tensor: clip.format() for clip in self.clips}
        for number, (module, (name, _, tensor)) in enumerate(zip(self.layers, self._names, strict=True)):
            if self.quantized:
                place = self.widths.index(self.bits[number])
                values[f"{name}.weight"] = module(self._choice[number])
                values[f"{name}.bias"] = module.deployed_bias(place, formats[tensor])
            else:
                values[f"{name}.weight"], values[f"{name}.bias"] = module.weight * module.mask, module.bias
        output: Tensor = functional_call(self._graph[0], values, (x,))
        return output

    def plan(self, method: str) -> QuantizationPlan:
        """The student as a plan for the captured network, under the widths last chosen."""
        layers = tuple(
            module.plan(name, kind, source, bits)
            for module, (name, kind, source), bits in zip(self.layers, self._names, self.bits, strict=True)
        )
        formats = tuple(clip.format() for clip in self.clips)
        start = self._plan
        return QuantizationPlan(layers, formats, start.network, method, start.seed, start.portable, start.input_choice)

    def trained(self, network: Network) -> Network:
        """``network`` with the student's real weights and biases."""
        return network.with_parameters(
            {
                name: ((module.weight * module.mask).detach(), module.bias.detach())
                for module, (name, _, _) in zip(self.layers, self._names, strict=True)
            }
        )
