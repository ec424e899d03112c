"""Uncertainty set U(f_q) of a plan, the deployments that it could have led to (Appendix E.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite

import torch
from torch import Tensor, fx

from cfptq.errors import ModelError
from cfptq.network import Network
from cfptq.quantize.cross_layer_equalization import find_channel_pairs
from cfptq.quantize.fake_quantized import check_matches, fake_quantize_network
from cfptq.quantize.formats import ActivationFormat, align_with_channels, clamp_to_limits
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.split_inputs import find_integer_factors
from cfptq.quantize.structure import SignBounds


@dataclass(frozen=True)
class Variability:
    """Size of the differences between a deployment and its plan.

    Attributes:
        rounding: 0 rounds every weight as planned, and 1 is stochastic rounding. Between them, only weights near a tie may go the other
            way. A weight that is a share r of a step from its integer does so with probability 1/2 + (r − 1/2) / rounding, at least 0.
        steps: standard deviation of each channel's step, as a share of it.
        clipping: largest change of an activation's range, as a share of it. The change is uniform.

    Raises:
        ModelError: a value is not between 0 and 1.
    """

    rounding: float = 0.25
    steps: float = 0.005
    clipping: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isfinite(value) and 0 <= value <= 1):
                raise ModelError(f"Variability.{field.name} must be between 0 and 1, got {value}.")


def sample_variants(
    network: Network,
    plan: QuantizationPlan | Sequence[QuantizationPlan],
    count: int,
    seed: int,
    variability: Variability | None = None,
) -> list[fx.GraphModule]:
    """Sample fake-quantized modules around a plan, with other rounding, steps and clipping at the same widths.

    Args:
        network: the captured full-precision network.
        plan: one plan, or several calibrated on different draws. Variants are then taken around each in turn.
        count: number of variants.
        seed: seed of all randomness. A longer list begins with the variants of a shorter one.
        variability: size of the differences. None takes the defaults of ``Variability``.

    Raises:
        ModelError: a plan was made for another network, there is no plan, or ``count`` is negative.
    """
    plans = [plan] if isinstance(plan, QuantizationPlan) else list(plan)
    if not plans:
        raise ModelError("sample_variants needs at least one plan, got none.")
    if count < 0:
        raise ModelError(f"count must be 0 or more, got {count}.")
    for one in plans:
        check_matches(network, one)
    settings = variability or Variability()
    generator = torch.Generator().manual_seed(seed)
    return [
        fake_quantize_network(network, perturb_plan(network, plans[number % len(plans)], settings, generator)) for number in range(count)
    ]


def perturb_plan(network: Network, plan: QuantizationPlan, settings: Variability, generator: torch.Generator) -> QuantizationPlan:
    """Draw one plan of the uncertainty set.

    Args:
        network: the captured full-precision network.
        plan: the plan at its centre.
        settings: size of the differences.
        generator: source of randomness. Its state advances.
    """
    rounded = estimate_rounded_weights(network, plan)
    layers = []
    for layer in plan.layers:
        signs = SignBounds.of(network.weight(layer.name), plan.keep, layer.kept_inputs)
        layers.append(_perturb_layer(layer, rounded[layer.name], signs, settings, generator))
    activations = tuple(_perturb_format(form, settings, generator) for form in plan.activations)
    return replace(plan, layers=tuple(layers), activations=activations, method=f"{plan.method}, varied")


def estimate_rounded_weights(network: Network, plan: QuantizationPlan) -> dict[str, Tensor]:
    """Estimate the real weights that a plan's integers were rounded from, by layer name.

    A plan does not say how the scales of hidden channels were equalized before rounding. The scale of each channel is estimated by least
    squares from the weights that produce it. It is used where more integers are then the nearest to their weights.

    Args:
        network: the captured full-precision network.
        plan: a plan for it.
    """
    weights = {layer.name: network.weight(layer.name) for layer in plan.layers}
    planned = {layer.name: layer for layer in plan.layers}
    for producer, consumer in find_channel_pairs(network):
        if not {producer.name, consumer.name} <= set(planned):
            continue
        own, deployed = weights[producer.name].flatten(1), planned[producer.name].weight().flatten(1)
        product = (own * deployed).sum(dim=1)
        scale = torch.where(product > 0, own.square().sum(dim=1) / product.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
        equalized = {
            producer.name: weights[producer.name] / align_with_channels(scale, weights[producer.name]),
            consumer.name: weights[consumer.name] * scale.reshape(1, -1, *[1] * (weights[consumer.name].dim() - 2)),
        }
        if sum(_count_nearest(planned[name], weight) for name, weight in equalized.items()) > sum(
            _count_nearest(planned[name], weights[name]) for name in equalized
        ):
            weights |= equalized
    return weights


def _column_steps(layer: LayerPlan) -> Tensor:
    """Return the difference between two neighbouring integers of each column, in a shape that broadcasts over the integers."""
    return find_integer_factors(layer.fine_inputs).to(torch.float32) if layer.fine_inputs else torch.ones(())


def _measure_distance(layer: LayerPlan, weight: Tensor) -> Tensor:
    """Return the distance of a layer's real weights from its integers, in steps of their column."""
    return (weight / align_with_channels(layer.scale, weight) - layer.integers) / _column_steps(layer)


def _count_nearest(layer: LayerPlan, weight: Tensor) -> int:
    """Count the integers that are the nearest to their real weights."""
    return int((_measure_distance(layer, weight).abs() <= 0.5).sum())


def _perturb_layer(
    layer: LayerPlan, weight: Tensor, signs: SignBounds | None, settings: Variability, generator: torch.Generator
) -> LayerPlan:
    distance = _measure_distance(layer, weight)
    uniform = torch.rand(distance.shape, generator=generator)
    integers = layer.integers
    if settings.rounding > 0:
        # A weight that a rounding rule placed farther than half a step moves no more often than one at a tie.
        probability = (0.5 + (distance.abs().clamp(max=0.5) - 0.5) / settings.rounding).clamp_min(0)
        moved = torch.where(uniform < probability, integers + distance.sign() * _column_steps(layer), integers.to(torch.float32))
        integers = clamp_to_limits(moved, layer.limits).to(torch.int8)
        integers = integers if signs is None else signs.clamp(integers)
    jitter = 1 + settings.steps * torch.randn(layer.scale.shape, generator=generator).clamp(-3, 3)
    return replace(layer, integers=integers, scale=layer.scale * jitter)


def _perturb_format(form: ActivationFormat, settings: Variability, generator: torch.Generator) -> ActivationFormat:
    factor = 1 + settings.clipping * (2 * float(torch.rand((), generator=generator)) - 1)
    if form.is_float:
        return form
    low, high = -form.zero_point * form.scale, (form.highest - form.zero_point) * form.scale
    if form.fine_scale is not None:
        return ActivationFormat.two_steps_from_range(form.tensor, factor * low, factor * high)
    return ActivationFormat.from_range(form.tensor, factor * low, factor * high, form.bits)
