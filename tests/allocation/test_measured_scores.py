"""Measured scores against what they estimate, the full Hessian by autograd and outputs by hand."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cfptq.allocation import (
    Score,
    estimate_hessian_traces,
    score_by_counterfactual_gradient,
    score_by_exponential_surrogate,
    score_by_hessian_trace,
    score_by_output_distance,
)
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.calibration import CalibrationSet
from cfptq.errors import DataError
from cfptq.network import capture
from cfptq.network.serialize import digest
from cfptq.quantize import ALL_WIDTHS, WIDTHS


def small(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3))


def points(rows: int = 40, columns: int = 4, classes: int = 3, counterfactual: bool = True) -> CalibrationSet:
    generator = torch.Generator().manual_seed(1)
    origin = torch.zeros(rows, dtype=torch.uint8)
    if counterfactual:
        origin[rows // 2 :] = 1
    return CalibrationSet(
        rows=torch.randn(rows, columns, generator=generator),
        origin=origin,
        weights=torch.rand(rows, generator=generator) + 0.1,
        source=torch.arange(rows) % (rows // 2),
        target=torch.randint(0, classes, (rows,), generator=generator),
    )


def exact_traces(model: nn.Module, calibration: CalibrationSet) -> list[float]:
    """The trace of each layer's block of the full Hessian, entry by entry, by autograd."""
    chosen = calibration.origin == 1
    share = calibration.weights[chosen] / calibration.weights[chosen].sum()
    traces = []
    for name, parameter in model.named_parameters():
        if not name.endswith("weight"):
            continue

        def loss(weight: Tensor, name: str = name) -> Tensor:
            output = torch.func.functional_call(model, {name: weight}, (calibration.rows[chosen],))
            return (share * cross_entropy(output, calibration.target[chosen], reduction="none")).sum()

        size = parameter.numel()
        traces.append(float(torch.autograd.functional.hessian(loss, parameter.detach()).reshape(size, size).trace()))
    return traces


@pytest.mark.parametrize(("chunk_rows", "probes"), [(1024, 600), (11, 400)])
def test_traces_are_those_of_the_full_hessian(chunk_rows: int, probes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("cfptq.allocation.hessian_trace"), "CHUNK_ROWS", chunk_rows)
    model, calibration = small(smooth), points()
    network = capture(model, calibration.rows[:2])
    chosen = calibration.origin == 1
    share = calibration.weights[chosen] / calibration.weights[chosen].sum()
    estimate = estimate_hessian_traces(network, calibration.rows[chosen], calibration.target[chosen], share, probes=probes, progress=False)
    assert estimate.tolist() == pytest.approx(exact_traces(model, calibration), rel=0.12, abs=0.02)


def test_the_trace_of_a_linear_model_is_its_closed_form() -> None:
    # CE(Wx) has the Hessian (diag p - p pᵀ) ⊗ x xᵀ, whose trace is (1 - |p|²)|x|².
    model = small(lambda: nn.Sequential(nn.Linear(4, 3)))
    rows = points().rows
    with torch.no_grad():
        p = torch.softmax(model(rows), dim=1)
    share = torch.full((len(rows),), 1 / len(rows))
    closed = float((share * (1 - p.square().sum(1)) * rows.square().sum(1)).sum())
    found = estimate_hessian_traces(
        capture(model, rows[:2]), rows, torch.zeros(len(rows), dtype=torch.int64), share, probes=600, progress=False
    )
    assert float(found) == pytest.approx(closed, rel=0.03)


def test_the_hessian_score_is_mean_trace_times_rounding_error() -> None:
    model, calibration = small(smooth), points()
    scores = score_by_hessian_trace(capture(model, calibration.rows[:2]), calibration, progress=False)
    for row, layer in zip(scores.damage, (model[0], model[2], model[4]), strict=True):
        errors = [
            float((round_weight_to_nearest(layer.weight.detach(), bits) - layer.weight.detach()).square().sum()) for bits in ALL_WIDTHS
        ]
        per_error = [value / error for value, error in zip(row, errors, strict=True)]
        assert per_error == pytest.approx([per_error[0]] * len(ALL_WIDTHS), rel=1e-4)
        assert row[0] > row[1] > row[2] > row[3] >= 0


def test_the_output_distance_is_what_rounding_one_layer_moves() -> None:
    model, calibration = small(smooth), points()
    scores = score_by_output_distance(capture(model, calibration.rows[:2]), calibration, progress=False)
    weight, kept = model[2].weight, model[2].weight.detach().clone()
    with torch.no_grad():
        before = model(calibration.rows)
        weight.copy_(round_weight_to_nearest(kept, 3))
        moved = (model(calibration.rows) - before).square().sum(1)
    expected = float((calibration.weights * moved).sum() / calibration.weights.sum())
    assert scores.damage[1][ALL_WIDTHS.index(3)] == pytest.approx(expected, rel=1e-4)


def test_plain_rounding_is_the_best_of_its_clips_and_exact_on_the_grid() -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    wide = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)
    for bits in WIDTHS:
        limit = 2 ** (bits - 1) - 1
        full_range = (weight / (wide / limit)).round().clamp(-limit, limit) * (wide / limit)
        error = (round_weight_to_nearest(weight, bits) - weight).flatten(1).square().sum(1)
        assert bool((error <= (full_range - weight).flatten(1).square().sum(1) + 1e-6).all())
    grid = torch.tensor([[-7.0, 3.0, 0.0, 5.0]]) * 0.25
    assert torch.allclose(round_weight_to_nearest(grid, 4), grid)


@pytest.mark.parametrize("score", [score_by_hessian_trace, score_by_output_distance, score_by_exponential_surrogate])
def test_scores_are_deterministic_and_leave_the_network_alone(score: Score) -> None:
    model, calibration = small(smooth), points()
    network = capture(model, calibration.rows[:2])
    before = digest(network)
    torch.manual_seed(1)
    first = score(network, calibration, progress=False)
    torch.manual_seed(2)
    assert score(network, calibration, progress=False) == first
    assert digest(network) == before
    assert first.names == tuple(layer.name for layer in network.layers)


@pytest.mark.parametrize("score", [score_by_hessian_trace, score_by_exponential_surrogate])
def test_scores_about_recourse_want_recourse_points(score: Score) -> None:
    calibration = points(counterfactual=False)
    with pytest.raises(DataError, match="counterfactual"):
        score(capture(small(smooth), calibration.rows[:2]), calibration, progress=False)


def test_the_surrogate_halves_with_every_bit() -> None:
    calibration = points()
    network = capture(small(smooth), calibration.rows[:2])
    scores = score_by_exponential_surrogate(network, calibration, progress=False)
    gradient = score_by_counterfactual_gradient(network, calibration, progress=False)
    for row, s, name in zip(scores.damage, gradient.scores, gradient.names, strict=True):
        radius = float(network.weight(name).abs().amax(1).mean())
        assert row == pytest.approx([s * radius * 2.0**-bits for bits in ALL_WIDTHS])
