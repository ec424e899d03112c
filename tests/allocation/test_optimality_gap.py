"""Relaxed, exact and greedy allocations against each other, SciPy, enumeration and dynamic programming."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cfptq.allocation import (
    Budget,
    LayerScores,
    MeasuredScores,
    allocate_exactly,
    allocate_greedily,
    allocation_path,
    compare_allocations,
    predict_damage,
    solve_relaxed_allocation,
)
from cfptq.errors import BudgetError
from cfptq.quantize import WIDTHS

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


def test_the_path_climbs_from_the_lowest_width_to_the_highest_and_damage_falls() -> None:
    scores = surrogate([5.0, 1.0, 9.0], [100, 60, 30])
    steps = allocation_path(allocate_exactly, scores)
    assert steps[0].bits == (2, 2, 2) and steps[-1].bits == (8, 8, 8)
    assert [step.total_bits for step in steps] == sorted({step.total_bits for step in steps})
    damage = [predict_damage(scores, step) for step in steps]
    assert damage == sorted(damage, reverse=True) and damage[-1] == 0
    pinned = allocation_path(allocate_exactly, scores, {"l1": 8})
    assert all(step["l1"] == 8 for step in pinned)
