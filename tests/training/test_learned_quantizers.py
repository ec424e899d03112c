"""Learned quantizers: the forward against integers, the gradients against hand formulas and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfptq.quantize import ActivationFormat, fake_quantize
from cfptq.training.learned_quantizers import compute_affine_parameters, quantize_lsq, quantize_pact


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2)])
def test_lsq_gives_whole_numbers_of_steps_within_the_narrow_range(shape: tuple[int, ...]) -> None:
    weight, step = _random(*shape), torch.linspace(0.1, 0.3, shape[0])
    integers = quantize_lsq(weight, step, 3) / step.reshape(-1, *[1] * (len(shape) - 1))
    assert torch.allclose(integers, integers.round(), atol=1e-5)
    assert float(integers.abs().max()) == pytest.approx(3)
    inside = (weight / step.reshape(-1, *[1] * (len(shape) - 1))).abs() < 3
    assert bool(((quantize_lsq(weight, step, 3) - weight).abs()[inside] <= 0.15 + 1e-6).all())


@pytest.mark.parametrize("per_channel", [True, False])
def test_lsq_has_the_gradients_of_the_paper(per_channel: bool) -> None:
    weight = torch.tensor([[0.26, -0.9, 0.04], [0.5, 2.0, -0.11]], requires_grad=True)
    step = torch.tensor([0.1, 0.2] if per_channel else 0.1, requires_grad=True)
    given = torch.tensor([[1.0, 2.0, -1.0], [0.5, 3.0, 1.0]])
    (given * quantize_lsq(weight, step, 3)).sum().backward()
    ratio = weight.detach() / (step.detach()[:, None] if per_channel else step.detach())
    expected_weight = torch.zeros_like(given)
    expected_step = torch.zeros(2)
    for row in range(2):
        for column in range(3):
            r, g = float(ratio[row, column]), float(given[row, column])
            if abs(r) <= 3:
                expected_weight[row, column] = g
                expected_step[row] += g * (round(r) - r)
            else:
                expected_step[row] += g * (3 if r > 0 else -3)
    shared = 3 if per_channel else 6
    total = expected_step if per_channel else expected_step.sum()
    assert torch.equal(weight.grad, expected_weight)
    assert torch.allclose(step.grad, total / (shared * 3) ** 0.5, atol=1e-5)


def test_the_step_gradient_is_the_slope_where_no_weight_crosses_a_boundary_or_moves_with_the_step() -> None:
    # With w = r s, r fixed, ŵ = s ⌊r⌉: its slope in s is ⌊r⌉ = (⌊r⌉ − r) + r, LSQ's part and the weight's own.
    ratios, step = _random(50, seed=1) * 4, torch.tensor(0.2, requires_grad=True)
    (ratios * step).detach()
    weight = ratios * step
    (quantize_lsq(weight, step, 3) * torch.ones(50)).sum().backward()
    inside = ratios.abs() <= 3
    lsq_part = torch.where(inside, ratios.round() - ratios, 3 * ratios.sign()).sum() / (50 * 3) ** 0.5
    weight_part = ratios[inside].sum()
    assert float(step.grad) == pytest.approx(float(lsq_part + weight_part), rel=1e-4)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_pact_clips_rounds_and_keeps_zero(signed: bool, bits: int) -> None:
    x, clip = _random(1000, seed=2) * 2, torch.tensor(1.5)
    quantized = quantize_pact(x, clip, bits, signed=signed)
    step = (3.0 if signed else 1.5) / (2**bits - 1)
    low = -1.5 if signed else 0.0
    assert float(quantized.max()) <= 1.5 + step and float(quantized.min()) >= low - step
    inside = (x > low + step) & (x < 1.5 - step)
    assert bool(((quantized - x).abs()[inside] <= step / 2 + 1e-6).all())
    assert float(quantize_pact(torch.zeros(1), clip, bits, signed=signed)) == 0.0
    assert len(torch.unique(quantized)) <= 2**bits


@pytest.mark.parametrize("signed", [False, True])
def test_pact_passes_gradient_inside_and_gives_what_is_clipped_to_the_clip(signed: bool) -> None:
    x = torch.tensor([-3.0, -0.5, 0.2, 0.9, 1.0, 4.0], requires_grad=True)
    clip = torch.tensor(1.0, requires_grad=True)
    given = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    (given * quantize_pact(x, clip, 8, signed=signed)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0 if signed else 0.0, 4.0, 8.0, 0.0, 0.0]))
    assert float(clip.grad) == 16 + 32 - (1 if signed else 0)


@pytest.mark.parametrize("signed", [False, True])
def test_pact_at_8_bits_is_the_plans_activation_format(signed: bool) -> None:
    x, clip = _random(2000, seed=3) * 2, torch.tensor(1.7)
    form = ActivationFormat("hidden", 8, *compute_affine_parameters(clip, 8, signed))
    assert form == ActivationFormat.from_range("hidden", -float(clip) if signed else 0.0, float(clip), 8)
    assert torch.equal(quantize_pact(x, clip, 8, signed=signed), fake_quantize(x, form))
