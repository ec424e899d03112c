"""The exact knapsack against enumeration, and measured scores against what they claim to measure."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfptq.allocation import Budget, LayerScores, MeasuredScores, allocate_exactly, allocate_greedily, score_by_margin_change
from cfptq.calibration import CalibrationSet
from cfptq.errors import BudgetError, ModelError
from cfptq.network import capture
from cfptq.quantize import ALL_WIDTHS, WIDTHS


def scores_of(parameters: list[int], values: list[float]) -> LayerScores:
    return LayerScores(tuple(f"l{i}" for i in range(len(parameters))), tuple(parameters), tuple(values), "test")


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(st.tuples(st.integers(1, 300), st.floats(0, 10)), min_size=1, max_size=4),
    average=st.floats(2.0, 8.0),
)
def test_no_allocation_within_the_budget_is_worth_more(layers: list[tuple[int, float]], average: float) -> None:
    scores = scores_of([n for n, _ in layers], [s for _, s in layers])
    found = allocate_exactly(scores, average)
    ceiling = Budget.average(average).ceiling(scores.parameters)
    assert found.total_bits <= ceiling

    def worth(bits: tuple[int, ...]) -> float:
        return sum(s * b for s, b in zip(scores.scores, bits, strict=True))

    affordable = (
        bits
        for bits in itertools.product(WIDTHS, repeat=len(layers))
        if sum(n * b for n, b in zip(scores.parameters, bits, strict=True)) <= ceiling
    )
    best = max(worth(bits) for bits in affordable)
    assert worth(found.bits) >= best - 1e-5 * max(1.0, best)
    assert worth(found.bits) >= worth(allocate_greedily(scores, average).bits) - 1e-5 * max(1.0, best)


def test_exact_beats_greedy_where_the_greedy_rule_starts_badly() -> None:
    # per parameter the first layer is worth more, but its widening leaves nothing for the other two
    scores = scores_of([100, 60, 60], [1.01, 0.6, 0.6])
    budget = Budget.total(100 * 2 + 120 * 4)
    assert sum(s * b for s, b in zip(scores.scores, allocate_exactly(scores, budget).bits, strict=True)) >= sum(
        s * b for s, b in zip(scores.scores, allocate_greedily(scores, budget).bits, strict=True)
    )


def test_left_over_budget_is_spent_and_pins_are_kept() -> None:
    idle = scores_of([10, 10], [0.0, 0.0])
    assert allocate_exactly(idle, 8.0).bits == (8, 8)
    assert allocate_exactly(idle, 8.0, pinned={"l1": 3}).bits == (8, 3)


def test_a_budget_that_cannot_be_met_says_the_least_that_can() -> None:
    with pytest.raises(BudgetError, match="2"):
        allocate_exactly(scores_of([10], [1.0]), 1.9)


def measured(rows: int = 200) -> tuple[MeasuredScores, nn.Sequential, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(rows, 8, generator=generator)
    network = capture(model, x[:2])
    zeros = torch.zeros(rows, dtype=torch.int64)
    calibration = CalibrationSet(x, zeros.to(torch.uint8), torch.rand(rows, generator=generator), torch.arange(rows), zeros)
    return score_by_margin_change(network, calibration, progress=False), model, x


def test_wider_layers_are_measured_to_change_margins_less() -> None:
    scores, _, _ = measured()
    assert scores.widths == ALL_WIDTHS
    for row in scores.damage:
        assert row[0] > row[-1] >= 0
        assert row[0] > row[2] > row[3]
    assert scores.benefits((2, 8)) == tuple((-row[0], -row[-1]) for row in scores.damage)
    with pytest.raises(ModelError, match="5 bits"):
        scores.benefits((5,))


def test_the_allocator_spends_bits_where_they_were_measured_to_help() -> None:
    names, parameters = ("a", "b"), (100, 100)
    steep, flat = (1.0, 0.5, 0.2, 0.0), (0.1, 0.09, 0.08, 0.07)
    scores = MeasuredScores(names, parameters, (1.0, 0.1), "test", widths=WIDTHS, damage=(steep, flat))
    assert allocate_exactly(scores, 5.0).bits == (8, 2)
    assert allocate_exactly(MeasuredScores(names, parameters, (0.1, 1.0), "test", widths=WIDTHS, damage=(flat, steep)), 5.0).bits == (2, 8)
