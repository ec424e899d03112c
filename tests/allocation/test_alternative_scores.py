"""The other scores against what they estimate: the full Hessian by autograd, outputs by hand, the optimum by SciPy and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cfptq.allocation import (
    Budget,
    LayerScores,
    MeasuredScores,
    Score,
    allocate_exactly,
    allocate_greedily,
    allocation_path,
    compare_allocations,
    estimate_hessian_traces,
    predict_damage,
    score_by_counterfactual_gradient,
    score_by_exponential_surrogate,
    score_by_hessian_trace,
    score_by_output_distance,
    solve_relaxed_allocation,
)
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.calibration import CalibrationSet
from cfptq.errors import BudgetError, DataError
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


# -- the exponential surrogate and its optimum ---------------------------------------------------------------------------------


def test_the_surrogate_halves_with_every_bit() -> None:
    calibration = points()
    network = capture(small(smooth), calibration.rows[:2])
    scores = score_by_exponential_surrogate(network, calibration, progress=False)
    gradient = score_by_counterfactual_gradient(network, calibration, progress=False)
    for row, s, name in zip(scores.damage, gradient.scores, gradient.names, strict=True):
        radius = float(network.weight(name).abs().amax(1).mean())
        assert row == pytest.approx([s * radius * 2.0**-bits for bits in ALL_WIDTHS])


LAYERS = st.lists(st.tuples(st.floats(0.001, 100), st.integers(1, 300)), min_size=1, max_size=4)


def surrogate(coefficients: list[float], parameters: list[int]) -> MeasuredScores:
    damage = tuple(tuple(c * 2.0**-bits for bits in WIDTHS) for c in coefficients)
    names = tuple(f"l{number}" for number in range(len(parameters)))
    return MeasuredScores(names, tuple(parameters), tuple(row[0] for row in damage), "surrogate", widths=WIDTHS, damage=damage)


@settings(max_examples=40, deadline=None)
@given(layers=LAYERS, average=st.floats(0.5, 10))
def test_the_closed_form_is_what_a_numerical_optimizer_finds(layers: list[tuple[float, int]], average: float) -> None:
    c, n = (np.array(column, dtype=float) for column in zip(*layers, strict=True))
    found = np.array(solve_relaxed_allocation(c, n, average))
    assert (found >= 0).all() and (n * found).sum() == pytest.approx(average * n.sum(), rel=1e-9)
    value = (c * 2.0**-found).sum()
    solved = minimize(
        lambda b: (c * 2.0**-b).sum() / value,
        np.full(len(n), average),
        jac=lambda b: -math.log(2) * c * 2.0**-b / value,
        bounds=[(0, None)] * len(n),
        constraints={"type": "ineq", "fun": lambda b: average - (n * b).sum() / n.sum(), "jac": lambda b: -n / n.sum()},
        method="SLSQP",
    )
    assert value <= (c * 2.0 ** -np.maximum(solved.x, 0)).sum() * (1 + 1e-4)


@settings(max_examples=40, deadline=None)
@given(layers=LAYERS, average=st.floats(2, 8))
def test_no_allocation_beats_the_relaxed_optimum_and_the_exact_one_is_the_best_of_all(
    layers: list[tuple[float, int]], average: float
) -> None:
    c, n = [layer[0] for layer in layers], [layer[1] for layer in layers]
    scores = surrogate(c, n)
    ceiling = Budget.average(average).ceiling(n)

    def value(bits: tuple[float, ...]) -> float:
        return sum(coefficient * 2.0**-b for coefficient, b in zip(c, bits, strict=True))

    every = itertools.product(WIDTHS, repeat=len(n))
    best = min(value(bits) for bits in every if sum(size * b for size, b in zip(n, bits, strict=True)) <= ceiling)
    bound = value(solve_relaxed_allocation(c, n, average, lowest=2, highest=8))
    found = value(allocate_exactly(scores, average).bits)
    assert bound <= best + 1e-9
    assert found == pytest.approx(best, rel=1e-4, abs=1e-4 * sum(c))
    assert value(allocate_greedily(scores, average).bits) >= best - 1e-9


def test_where_the_relaxed_optimum_is_a_width_the_exact_allocation_is_it() -> None:
    n = [10, 20, 30, 40]
    wanted = (2, 8, 3, 4)
    c = [size * 2.0**bits for size, bits in zip(n, wanted, strict=True)]
    average = sum(size * bits for size, bits in zip(n, wanted, strict=True)) / sum(n)
    assert solve_relaxed_allocation(c, n, average) == pytest.approx(wanted)
    assert allocate_exactly(surrogate(c, n), average).bits == wanted


def test_more_bits_go_to_larger_sensitivity_and_smaller_layers() -> None:
    sensitive, dull = solve_relaxed_allocation([8.0, 1.0], [10, 10], 4)
    assert (sensitive, dull) == pytest.approx((5.5, 2.5))
    small_layer, large_layer = solve_relaxed_allocation([1.0, 1.0], [10, 40], 4)
    assert small_layer == pytest.approx(large_layer + 2)


@pytest.mark.parametrize("arguments", [([1.0], [1], 1.0, 2.0), ([-1.0], [1], 4.0), ([math.nan], [1], 4.0), ([1.0, 1.0], [1], 4.0)])
def test_a_relaxed_budget_that_makes_no_sense_is_refused(arguments: tuple[list[float], list[int], float]) -> None:
    with pytest.raises(BudgetError):
        solve_relaxed_allocation(*arguments)


# -- exact and greedy ----------------------------------------------------------------------------------------------------------


def dynamic_programme(scores: LayerScores, ceiling: int) -> float:
    """The largest total benefit within ``ceiling`` bits, by a table over bits spent: another truth than HiGHS or enumeration."""
    best = np.full(ceiling + 1, -np.inf)
    best[0] = 0.0
    for size, worth in zip(scores.parameters, scores.benefits(WIDTHS), strict=True):
        extended = np.full(ceiling + 1, -np.inf)
        for bits, value in zip(WIDTHS, worth, strict=True):
            cost = size * bits
            if cost <= ceiling:
                extended[cost:] = np.maximum(extended[cost:], best[: ceiling + 1 - cost] + value)
        best = extended
    return float(best.max())


@settings(max_examples=25, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 60), st.lists(st.floats(0, 5), min_size=4, max_size=4)), min_size=5, max_size=9),
    average=st.floats(2, 8),
)
def test_exact_is_worth_what_dynamic_programming_finds_on_many_layers(layers: list[tuple[int, list[float]]], average: float) -> None:
    names = tuple(f"l{number}" for number in range(len(layers)))
    damage = tuple(tuple(sorted(values, reverse=True)) for _, values in layers)
    scores = MeasuredScores(names, tuple(n for n, _ in layers), tuple(row[0] for row in damage), "test", widths=WIDTHS, damage=damage)
    best = dynamic_programme(scores, Budget.average(average).ceiling(scores.parameters))
    gap = compare_allocations(scores, average)
    assert gap.exact_benefit == pytest.approx(best, abs=1e-4)
    assert gap.absolute >= -1e-4 and gap.relative <= 1 + 1e-4


def test_the_gap_is_what_the_greedy_rule_leaves() -> None:
    # The greedy rule looks at the first step only and widens "a" to 8 bits, where nothing more is to be had.
    scores = MeasuredScores(("a", "b"), (10, 10), (1.0, 0.9), "test", widths=WIDTHS, damage=((1.0, 0.0, 0.0, 0.0), (0.9, 0.6, 0.3, 0.0)))
    gap = compare_allocations(scores, 5.0)
    assert gap.greedy.bits == (8, 2)
    assert gap.exact_benefit == pytest.approx(-0.3)
    assert gap.absolute == pytest.approx(0.6)
    assert gap.relative == pytest.approx(0.6 / 1.6)
    assert "37.5%" in str(gap)


def test_equal_allocations_leave_no_gap() -> None:
    scores = LayerScores(("a", "b"), (10, 10), (1.0, 0.5), "test")
    gap = compare_allocations(scores, 2.0)
    assert (gap.absolute, gap.relative) == (0.0, 0.0)
    assert "as good" in str(gap)


def test_the_ladder_climbs_from_the_lowest_width_to_the_highest_and_damage_falls() -> None:
    scores = surrogate([5.0, 1.0, 9.0], [100, 60, 30])
    steps = allocation_path(allocate_exactly, scores)
    assert steps[0].bits == (2, 2, 2) and steps[-1].bits == (8, 8, 8)
    assert [step.total_bits for step in steps] == sorted({step.total_bits for step in steps})
    damage = [predict_damage(scores, step) for step in steps]
    assert damage == sorted(damage, reverse=True) and damage[-1] == 0
    pinned = allocation_path(allocate_exactly, scores, {"l1": 8})
    assert all(step["l1"] == 8 for step in pinned)
