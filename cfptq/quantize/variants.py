"""Deployments that might have been: a plan's uncertainty set U(f_q) (Appendix E.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network import Network
from cfptq.quantize.fake_quantized import check_matches, fake_quantize_network
from cfptq.quantize.formats import ActivationFormat, integer_limit
from cfptq.quantize.plan import LayerPlan, QuantizationPlan


@dataclass(frozen=True)
class Variability:
    """How far a deployment may stray from its plan.

    Attributes:
        rounding: 0 rounds every weight as planned, 1 is stochastic rounding; between them only weights near a tie may go the other way:
            one that lies a share r of a step from its integer moves over with probability 1/2 + (r − 1/2) / rounding, at least 0.
        steps: standard deviation of each channel's step, as a share of it.
        clipping: largest change of an activation's range, as a share of it; uniform.
    """

    rounding: float = 0.25
    steps: float = 0.005
    clipping: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rounding", "steps", "clipping"):
            value = getattr(self, name)
            if not (isfinite(value) and 0 <= value <= 1):
                raise ModelError(f"Variability.{name} is {value}; it must lie between 0 and 1")


def sample_variants(
    network: Network,
    plan: QuantizationPlan | Sequence[QuantizationPlan],
    count: int,
    seed: int,
    variability: Variability | None = None,
) -> list[fx.GraphModule]:
    """Twins of ``count`` deployments of ``network`` around ``plan``: other rounding, steps and clipping, same widths.

    Args:
        plan: one plan, or several that were calibrated on other draws; variants are then taken around each in turn.
        seed: of all randomness; the first variants of a longer list are those of a shorter one.

    Raises:
        ModelError: a plan for another network, no plan, or a negative count.
    """
    plans = [plan] if isinstance(plan, QuantizationPlan) else list(plan)
    if not plans or count < 0:
        raise ModelError(f"sample_variants needs at least one plan and no negative count, got {len(plans)} plans and {count}")
    for one in plans:
        check_matches(network, one)
    rules = variability or Variability()
    generator = torch.Generator().manual_seed(seed)
    return [fake_quantize_network(network, perturb_plan(network, plans[place % len(plans)], rules, generator)) for place in range(count)]


def perturb_plan(network: Network, plan: QuantizationPlan, rules: Variability, generator: torch.Generator) -> QuantizationPlan:
    """One plan of the uncertainty set; ``generator`` moves on."""
    layers = tuple(_varied_layer(layer, network.weight(layer.name), rules, generator) for layer in plan.layers)
    activations = tuple(_varied_format(form, rules, generator) for form in plan.activations)
    return replace(plan, layers=layers, activations=activations, method=f"{plan.method}, varied")


def _varied_layer(layer: LayerPlan, weight: Tensor, rules: Variability, generator: torch.Generator) -> LayerPlan:
    along = (-1, *[1] * (weight.dim() - 1))
    integers = layer.integers.to(torch.float32)
    apart = weight / layer.scale.reshape(along) - integers
    chance = torch.rand(apart.shape, generator=generator)
    if rules.rounding > 0:
        # A rule that did not round to nearest had its reasons: its weights move over no more often than a tie does.
        likely = (0.5 + (apart.abs().clamp(max=0.5) - 0.5) / rules.rounding).clamp_min(0)
        limit = integer_limit(layer.bits)
        integers = torch.where(chance < likely, integers + apart.sign(), integers).clamp(-limit, limit)
    jitter = 1 + rules.steps * torch.randn(layer.scale.shape, generator=generator).clamp(-3, 3)
    return replace(layer, integers=integers.to(torch.int8), scale=layer.scale * jitter)


def _varied_format(form: ActivationFormat, rules: Variability, generator: torch.Generator) -> ActivationFormat:
    factor = 1 + rules.clipping * (2 * float(torch.rand((), generator=generator)) - 1)
    if form.is_float:
        return form
    low, high = -form.zero_point * form.scale, (form.highest - form.zero_point) * form.scale
    if form.fine_scale is not None:
        return ActivationFormat.two_steps_from_range(form.tensor, factor * low, factor * high)
    return ActivationFormat.from_range(form.tensor, factor * low, factor * high, form.bits)
