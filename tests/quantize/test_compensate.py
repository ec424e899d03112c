"""Error-compensated rounding against least squares, brute force, and plain rounding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from cfptq.network import capture
from cfptq.quantize import ActivationFormat, LayerProblem, RoundedWeight, factorize_hessian, fake_quantize, round_compensated, round_nearest
from cfptq.quantize.compensate import Moments, compute_moments
from cfptq.quantize.quantizer import build_layer_problem


def as_vectors(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.reshape(1, -1, inputs.shape[-1])


def problem(bits: int = 3, out: int = 6, k: int = 9, rows: int = 80, seed: int = 0) -> LayerProblem:
    """Correlated inputs, as hidden layers have; what the layer sees differs a little from what it was trained on."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=generator)
    inputs = torch.randn(rows, 3, generator=generator) @ mixing[:3] + 0.2 * torch.randn(rows, k, generator=generator)
    seen = inputs + 0.1 * torch.randn(rows, k, generator=generator)
    weight = torch.randn(out, k, generator=generator)
    form = ActivationFormat.from_range("x", float(seen.min()), float(seen.max()))
    weights = torch.rand(rows, generator=generator)
    return LayerProblem("l", weight, torch.randn(out, generator=generator), inputs, seen, form, bits, as_vectors, weights)


def error(task: LayerProblem, answer: RoundedWeight) -> torch.Tensor:
    """Weighted mean squared difference of each output from the full-precision one."""
    share = (task.row_weights / task.row_weights.sum())[:, None]
    bias = answer.bias if answer.bias is not None else torch.zeros(len(answer.scale))
    wanted = task.inputs @ task.weight.T + (0 if task.bias is None else task.bias)
    given = fake_quantize(task.seen, task.form) @ (answer.integers * answer.scale[:, None]).T + bias
    return (share * (given - wanted).square()).sum(dim=0)


def penalty(statistics: Moments) -> float:
    """What the damping adds to the Hessian's diagonal."""
    return float(statistics.damping[0] * statistics.hessian[0].diagonal().mean())


def test_moments_are_the_weighted_covariances() -> None:
    task = problem()
    share = (task.row_weights / task.row_weights.sum())[:, None]
    seen = fake_quantize(task.seen, task.form)
    gap = (seen - task.inputs) @ task.weight.T
    centred = seen - (share * seen).sum(0)
    found = compute_moments(task)
    assert torch.allclose(found.hessian[0], centred.T @ (share * centred), atol=1e-4)
    assert torch.allclose(found.cross[0], centred.T @ (share * (gap - (share * gap).sum(0))), atol=1e-4)
    assert torch.allclose(found.wanted_mean[0], (share * (task.inputs @ task.weight.T)).sum(0), atol=1e-4)


def test_the_real_weights_before_rounding_are_the_damped_least_squares_solution() -> None:
    task = problem()
    ready = factorize_hessian(task)
    statistics = compute_moments(task)
    damped = statistics.hessian[0] + penalty(statistics) * torch.eye(9)
    expected = task.weight - torch.linalg.solve(damped, statistics.cross[0]).T
    found = torch.empty_like(expected)
    found[:, ready.order[0]] = ready.wanted[0].T
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_compensated_rounding_reproduces_the_output_better_than_plain_rounding(bits: int, seed: int) -> None:
    task = problem(bits, seed=seed)
    assert error(task, round_compensated(task)).sum() < error(task, round_nearest(task)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_integers_are_nearly_the_best_of_all_on_their_scale(seed: int) -> None:
    task = problem(bits=2, out=3, k=5, seed=seed)
    answer = round_compensated(task)
    share = (task.row_weights / task.row_weights.sum())[:, None]
    seen = fake_quantize(task.seen, task.form)
    wanted = task.inputs @ task.weight.T
    damping = penalty(compute_moments(task))

    def objective(channel: int, integers: torch.Tensor) -> float:
        weight = integers * answer.scale[channel]
        left = seen @ weight - wanted[:, channel]
        left = left - (share[:, 0] * left).sum()  # the bias is free
        return float((share[:, 0] * left.square()).sum() + damping * (weight - task.weight[channel]).square().sum())

    every = [torch.tensor(integers, dtype=torch.float32) for integers in itertools.product((-1, 0, 1), repeat=5)]
    best = sum(min(objective(channel, integers) for integers in every) for channel in range(3))
    nothing = sum(objective(channel, torch.zeros(5)) for channel in range(3))
    # descent ends in a local optimum: within a few per cent of what there is to explain
    assert sum(objective(channel, answer.integers[channel].float()) for channel in range(3)) <= best + 0.05 * nothing


def test_the_damping_of_fewer_rows_than_inputs_is_ledoit_and_wolfs() -> None:
    from sklearn.covariance import ledoit_wolf

    task = problem(rows=8)
    task = replace(task, seen=task.inputs, form=ActivationFormat("x", 32), row_weights=torch.ones(8))
    _, mixed = ledoit_wolf(task.inputs.numpy())
    assert float(compute_moments(task).damping[0]) == pytest.approx(mixed / (1 - mixed), rel=1e-3)


def test_inputs_that_rows_tell_nothing_about_are_rounded_to_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 60, generator=generator)
    weight = torch.randn(4, 60, generator=generator)
    task = LayerProblem("l", weight, None, inputs, inputs, ActivationFormat("x", 32), 4, as_vectors, torch.ones(30))
    answer = round_compensated(task, search=False)
    assert torch.equal(answer.integers, (weight / answer.scale[:, None]).round().clamp(-7, 7).to(torch.int8))


def test_the_bias_leaves_no_mean_error() -> None:
    task = problem(bits=2)
    answer = round_compensated(task)
    share = (task.row_weights / task.row_weights.sum())[:, None]
    assert answer.bias is not None and task.bias is not None
    given = fake_quantize(task.seen, task.form) @ (answer.integers * answer.scale[:, None]).T + answer.bias
    assert torch.allclose((share * given).sum(0), (share * (task.inputs @ task.weight.T + task.bias)).sum(0), atol=1e-3)


def test_a_preparation_serves_every_width() -> None:
    task = problem(bits=4)
    ready = factorize_hessian(problem(bits=2))
    assert torch.equal(round_compensated(task, ready).integers, round_compensated(task).integers)


def test_searching_is_worth_it_and_integers_stay_in_range() -> None:
    task = problem(bits=2, out=20, k=15, rows=300)
    searched, quick = round_compensated(task), round_compensated(task, search=False)
    assert error(task, searched).sum() < error(task, quick).sum()
    for answer in (searched, quick):
        assert int(answer.integers.abs().max()) <= 1


def test_rows_that_do_not_count_change_nothing() -> None:
    task = problem()
    weights = task.row_weights.clone()
    weights[40:] = 0
    half = replace(task, inputs=task.inputs[:40], seen=task.seen[:40], row_weights=task.row_weights[:40])
    whole = round_compensated(replace(task, row_weights=weights))
    assert torch.equal(whole.integers, round_compensated(half).integers)


@pytest.mark.parametrize("convolution", [nn.Conv2d(3, 4, 3, padding=1), nn.Conv1d(4, 6, 3, groups=2)])
def test_convolutions_are_compensated_too(convolution: nn.Conv1d | nn.Conv2d) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    sizes = (8,) * (convolution.weight.dim() - 2)
    x = torch.randn(50, convolution.in_channels, *sizes, generator=generator)
    x = x.cumsum(-1) + x.mean(1, keepdim=True)  # neighbours resemble each other, as in images: that is what can be made up for
    network = capture(nn.Sequential(convolution), x[:2])
    (layer,) = network.layers
    task = build_layer_problem(network, layer, 2, x, x, ActivationFormat("x", 32), torch.ones(50))

    def off(answer: RoundedWeight) -> float:
        weight = answer.integers * answer.scale.reshape(-1, *[1] * (convolution.weight.dim() - 1))
        changed = network.with_parameters({layer.name: (weight, answer.bias)})
        return float((changed(x) - network(x)).square().mean())

    assert off(round_compensated(task)) < off(round_nearest(task))


def test_a_constant_or_dead_input_does_no_harm() -> None:
    task = problem()
    inputs = task.inputs.clone()
    inputs[:, 0], inputs[:, 1] = 0.0, 1.0
    answer = round_compensated(replace(task, inputs=inputs, seen=inputs, row_weights=torch.ones(80)))
    assert bool(torch.isfinite(answer.scale).all()) and answer.bias is not None and bool(torch.isfinite(answer.bias).all())
