"""Scale search against brute force, and its objective against a direct computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfptq.network import capture
from cfptq.quantize import ActivationFormat, LayerProblem, fake_quantize, round_nearest, round_nearest_full_range
from cfptq.quantize.quantizer import _build_patch_function
from cfptq.quantize.reconstruct import ACTIVATION_CLIPS, WEIGHT_CLIPS, compute_output_error, fit_activation_format


def as_vectors(inputs: torch.Tensor) -> torch.Tensor:
    return inputs[None]


def problem(bits: int, *, weight: torch.Tensor | None = None) -> LayerProblem:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 7, generator=generator) if weight is None else weight
    inputs = torch.randn(40, 7, generator=generator)
    form = ActivationFormat.from_range("x", float(inputs.min()), float(inputs.max()))
    return LayerProblem("l", weight, torch.zeros(5), inputs, inputs, form, bits, as_vectors, torch.ones(40))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_channel_gets_the_scale_that_reconstructs_its_output_best(bits: int) -> None:
    task = problem(bits)
    limit = 2 ** (bits - 1) - 1
    answer = round_nearest(task)
    seen = fake_quantize(task.inputs, task.form)
    for channel in range(5):
        row = task.weight[channel]
        errors = {}
        for clip in WEIGHT_CLIPS:
            scale = row.abs().max() * clip / limit
            integers = torch.round(row / scale).clamp(-limit, limit)
            errors[float(scale)] = float(((task.inputs @ row - seen @ (integers * scale)) ** 2).sum())
        chosen = float(answer.scale[channel])
        assert min(errors.values()) == pytest.approx(errors[min(errors, key=lambda scale: abs(scale - chosen))], rel=1e-4)
        assert torch.equal(answer.integers[channel].float(), torch.round(row / answer.scale[channel]).clamp(-limit, limit))


def test_reconstruction_is_never_worse_than_the_full_range() -> None:
    for bits in (2, 3, 4, 8):
        task = problem(bits)
        seen, wanted = fake_quantize(task.inputs, task.form), task.inputs @ task.weight.T

        def error(answer: object, seen: torch.Tensor = seen, wanted: torch.Tensor = wanted) -> float:
            grid = answer.integers.float() * answer.scale[:, None]  # type: ignore[attr-defined]
            return float(((seen @ grid.T - wanted) ** 2).sum())

        assert error(round_nearest(task)) <= error(round_nearest_full_range(task)) * (1 + 1e-6)


def test_row_weights_steer_the_scale() -> None:
    weight = torch.tensor([[1.0, 0.3]])
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    form = ActivationFormat("x", 32)

    def scale(row_weights: list[float]) -> torch.Tensor:
        task = LayerProblem("l", weight, None, inputs, inputs, form, 2, as_vectors, torch.tensor(row_weights))
        answer = round_nearest(task)
        return answer.integers.float() * answer.scale[:, None]

    first, second = scale([1.0, 1e-6]), scale([1e-6, 1.0])
    assert abs(first[0, 0] - 1.0) < 0.01
    assert abs(second[0, 1] - 0.3) < abs(first[0, 1] - 0.3) + 1e-6


def test_an_all_zero_channel_rounds_to_zero_with_a_positive_scale() -> None:
    weight = torch.zeros(5, 7)
    weight[1] = 1.0
    answer = round_nearest(problem(4, weight=weight))
    assert bool((answer.scale > 0).all())
    assert answer.integers[0].abs().sum() == 0


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), groups=2, bias=False),
        nn.Conv1d(3, 4, 5, padding=2, stride=3),
        nn.Conv1d(4, 4, 3, groups=4),
    ],
)
def test_patches_times_weights_is_the_convolution(convolution: nn.Conv1d | nn.Conv2d) -> None:
    sizes = (9, 8)[: convolution.weight.dim() - 2]
    x = torch.randn(5, convolution.in_channels, *sizes)
    network = capture(nn.Sequential(convolution), x[:2])
    (layer,) = network.layers
    patches = _build_patch_function(network, layer)(x)
    groups = convolution.groups
    weight = convolution.weight.reshape(groups, convolution.out_channels // groups, -1)
    expected = (convolution(x) - (0 if convolution.bias is None else convolution.bias.reshape(-1, *[1] * len(sizes)))).flatten(2)
    found = (patches @ weight.mT).reshape(groups, 5, -1, weight.shape[1]).permute(1, 0, 3, 2).reshape(expected.shape)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_output_error_is_the_squared_difference_of_outputs_up_to_a_constant() -> None:
    task = problem(4)
    seen = fake_quantize(task.inputs, task.form)
    error = compute_output_error(task)

    def direct(change: torch.Tensor) -> torch.Tensor:
        return (seen @ (task.weight + change).T - task.inputs @ task.weight.T).square().mean(dim=0)

    constant = direct(torch.zeros(5, 7))
    for _ in range(5):
        change = 0.1 * torch.randn(5, 7)
        assert torch.allclose(error(change[None])[0], direct(change) - constant, atol=1e-6)


def test_wide_layers_use_a_factor_and_mean_the_same() -> None:
    task = problem(4)
    change = 0.1 * torch.randn(1, 5, 7)
    few = LayerProblem("l", task.weight, None, task.inputs[:5], task.inputs[:5], task.form, 4, as_vectors, torch.ones(5))
    assert compute_output_error(few).factored
    seen = fake_quantize(few.inputs, few.form)
    direct = (seen @ (few.weight + change[0]).T - few.inputs @ few.weight.T).square().mean(dim=0)
    constant = (seen @ few.weight.T - few.inputs @ few.weight.T).square().mean(dim=0)
    assert torch.allclose(compute_output_error(few)(change)[0], direct - constant, atol=1e-6)


def test_activation_clipping_minimizes_the_error_of_what_the_layer_puts_out() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.cat([torch.rand(200, 3, generator=generator), torch.tensor([[60.0, 0.0, 0.0]])])
    weight = torch.tensor([[0.0, 1.0, 1.0]])  # the column with the heavy tail does not matter to this layer
    chosen = fit_activation_format("x", inputs, 8, lambda x: x @ weight.T)
    spans = [ActivationFormat.from_range("x", float(inputs.min()) * clip, float(inputs.max()) * clip) for clip in ACTIVATION_CLIPS]
    errors = [float((((fake_quantize(inputs, form) - inputs) @ weight.T) ** 2).mean()) for form in spans]
    assert chosen == spans[errors.index(min(errors))]
    assert chosen.scale < spans[0].scale
