"""Widths of channels: the table and the hulls against enumeration and a mixed-integer program, scores against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from cfptq.allocation import (
    BitAllocation,
    Budget,
    ChannelScores,
    allocate_exactly,
    allocate_greedily,
    allocate_uniformly,
    allocation_path,
    compare_allocations,
    predict_damage,
    score_by_counterfactual_gradient,
    score_by_exponential_surrogate,
    score_by_factual_gradient,
    score_by_hessian_trace,
    score_by_margin_change,
    score_by_output_distance,
)
from cfptq.allocation import channel_allocation as module
from cfptq.allocation.channel_allocation import build_channel_problem, count_file_bytes
from cfptq.calibration import CalibrationSet
from cfptq.errors import BudgetError, ModelError
from cfptq.network import DecisionRule, Head, capture
from cfptq.quantize import CHANNEL_WIDTHS, ActivationFormat, build_layer_problem, round_at_widths

WIDTHS = (2, 3, 4, 5, 6, 7)


def scores_of(layers: list[tuple[int, list[list[float]]]], widths: tuple[int, ...] = WIDTHS) -> ChannelScores:
    """Scores of layers given as the weights of one channel and each channel's damage."""
    return ChannelScores(
        names=tuple(f"l{number}" for number in range(len(layers))),
        parameters=tuple(size * len(damage) for size, damage in layers),
        scores=tuple(sum(row[0] for row in damage) for _, damage in layers),
        kind="test",
        channels=tuple(tuple(row[0] for row in damage) for _, damage in layers),
        consumers=(*range(1, len(layers)), None),
        widths=widths,
        damage=tuple(tuple(map(tuple, damage)) for _, damage in layers),
    )


def random_scores(rng: np.random.Generator, channels: tuple[int, ...] = (5, 4), sizes: tuple[int, ...] = (12, 5)) -> ChannelScores:
    return scores_of(
        [
            (size, (rng.uniform(0.1, 10, (count, 1)) * 4.0 ** -np.arange(6) * rng.uniform(0.5, 1.5, (count, 6))).tolist())
            for count, size in zip(channels, sizes, strict=True)
        ]
    )


def total_damage(scores: ChannelScores, allocation: BitAllocation) -> float:
    return sum(
        row[WIDTHS.index(bits)]
        for own, damage in zip(allocation.bits, scores.damage, strict=True)
        for bits, row in zip(own, damage, strict=True)  # type: ignore[arg-type]
    )


@settings(max_examples=30, deadline=None)
@given(
    layers=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=2)),
        min_size=1,
        max_size=2,
    ),
    average=st.floats(2.0, 6.0),
)
def test_no_choice_of_widths_within_the_budget_does_less_damage(layers: list[tuple[int, list[list[float]]]], average: float) -> None:
    widths = (2, 3, 6)
    scores = scores_of(layers, widths)
    found = allocate_exactly(scores, average, widths)
    sizes = [size for size, damage in layers for _ in damage]
    rows = [row for _, damage in layers for row in damage]
    ceiling = Budget.average(average).ceiling(scores.parameters)
    assert found.total_bits <= ceiling
    # A wider channel never counts as worse, because it can hold the narrower one's integers.
    best = min(
        sum(min(row[: place + 1]) for row, place in zip(rows, places, strict=True))
        for places in itertools.product(range(3), repeat=len(rows))
        if sum(size * widths[place] for size, place in zip(sizes, places, strict=True)) <= ceiling
    )
    bits = [width for own in found.bits for width in own]  # type: ignore[union-attr]
    assert sum(min(row[: widths.index(width) + 1]) for row, width in zip(rows, bits, strict=True)) <= best + 1e-9


def test_the_table_finds_what_a_mixed_integer_program_finds_and_the_hulls_come_near(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(np.random.default_rng(0), (30, 20, 2), (24, 30, 20))
    problem = build_channel_problem(scores, 3.5, WIDTHS)
    ceiling, units = Budget.average(3.5).ceiling(scores.parameters), len(problem.costs)
    cost = problem.costs
    solved = milp(
        -problem.benefit.ravel(),
        integrality=np.ones(problem.benefit.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(np.kron(np.eye(units), np.ones(6)), 1, 1), LinearConstraint(cost.reshape(1, -1), -np.inf, ceiling)],
        options={"mip_rel_gap": 0.0},
    )
    exact = allocate_exactly(scores, 3.5, WIDTHS)
    assert -total_damage(scores, exact) == pytest.approx(-solved.fun, rel=1e-6)
    bound = problem.bound_benefit(ceiling)
    assert -total_damage(scores, exact) <= bound + 1e-9
    monkeypatch.setattr(module, "MAX_TABLE_ENTRIES", 0)
    relaxed = allocate_exactly(scores, 3.5, WIDTHS)
    assert relaxed.total_bits <= ceiling and problem.costs.max() > ceiling - relaxed.total_bits
    gap = compare_allocations(scores, 3.5, WIDTHS)
    assert 0 <= gap.distance_to_bound < 0.01 and gap.bound == pytest.approx(bound)


@pytest.mark.parametrize("allocate", [allocate_exactly, allocate_greedily, allocate_uniformly])
def test_every_allocator_keeps_budget_and_pins_and_spends_what_is_left(allocate: object) -> None:
    scores = random_scores(np.random.default_rng(1))
    found = allocate(scores, 4.0, WIDTHS, {"l1": 5})  # type: ignore[operator]
    assert found.bits[1] == (5,) * 4 and found.total_bits <= 4 * sum(scores.parameters)
    assert all(isinstance(own, tuple) for own in found.bits)
    if allocate is not allocate_uniformly:
        assert 4 * sum(scores.parameters) - found.total_bits < 12
    with pytest.raises(BudgetError, match="Cannot pin layer"):
        allocate(scores, 4.0, WIDTHS, {"l1": 8})  # type: ignore[operator]
    with pytest.raises(BudgetError, match="cannot be met"):
        allocate(scores, 1.9, WIDTHS)  # type: ignore[operator]


def test_a_budget_in_bytes_counts_what_the_file_stores() -> None:
    scores = random_scores(np.random.default_rng(2), (64, 64), (104, 64))
    for limit in (4000, 5500, 7000):
        found = allocate_exactly(scores, Budget.bytes(limit), WIDTHS)
        # One bit more of the smallest channel takes 8 bytes in a stream.
        assert limit - 10 <= count_file_bytes(scores, found) <= limit


def test_the_path_of_budgets_ends_at_the_widest_widths_without_damage() -> None:
    scores = random_scores(np.random.default_rng(3))
    path = allocation_path(allocate_exactly, scores, None, WIDTHS)
    damages = [predict_damage(scores, allocation, WIDTHS) for allocation in path]
    assert damages[-1] == pytest.approx(0) and all(a >= b - 1e-9 for a, b in itertools.pairwise(damages))


def small() -> tuple[object, CalibrationSet]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    rows = torch.randn(300, 6)
    network = capture(model, rows[:2])
    count = len(rows)
    calibration = CalibrationSet(
        rows, (torch.arange(count) % 2).to(torch.uint8), torch.rand(count) + 0.5, torch.arange(count), torch.ones(count, dtype=torch.int64)
    )
    return network, calibration


def test_a_channels_damage_is_the_change_of_margin_that_its_rounding_makes() -> None:
    network, calibration = small()
    scores = score_by_margin_change(network, calibration, granularity="channel", progress=False)  # type: ignore[arg-type]
    assert isinstance(scores, ChannelScores) and scores.widths == CHANNEL_WIDTHS
    layer = network.layers[1]  # type: ignore[attr-defined]
    inputs = network.observe(calibration.rows, [layer.input])[layer.input]  # type: ignore[attr-defined]
    problem = build_layer_problem(network, layer, 2, inputs, inputs, ActivationFormat(layer.input, 32), calibration.weights)  # type: ignore[arg-type]
    rule, share = DecisionRule(Head.LOGITS), (calibration.weights / calibration.weights.sum()).double()

    def margin(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        z = rule.class_logits(inputs @ weight.T + bias)
        return (z[:, 1] - z[:, 0]).double()

    weight, bias = network.weight(layer.name), network.bias(layer.name)  # type: ignore[attr-defined]
    for place, rounded in enumerate(round_at_widths(problem, CHANNEL_WIDTHS)):
        assert rounded.bias is not None
        for channel in range(2):
            changed, shifted = weight.clone(), bias.clone()
            changed[channel], shifted[channel] = rounded.weight()[channel], rounded.bias[channel]
            expected = float(share @ (margin(changed, shifted) - margin(weight, bias)).square())
            assert scores.damage[1][channel][place] == pytest.approx(expected, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("score", [score_by_counterfactual_gradient, score_by_factual_gradient])
def test_gradient_norms_of_channels_add_up_to_the_layers(score: object) -> None:
    network, calibration = small()
    layers = score(network, calibration, progress=False)  # type: ignore[operator]
    channels = score(network, calibration, granularity="channel", progress=False)  # type: ignore[operator]
    assert channels.scores == pytest.approx(layers.scores, rel=1e-5)
    assert channels.benefits((2, 4))[0] == pytest.approx([2 * layers.scores[0], 4 * layers.scores[0]], rel=1e-5)


@pytest.mark.parametrize("score", [score_by_hessian_trace, score_by_output_distance, score_by_exponential_surrogate])
def test_every_measured_score_has_a_damage_for_each_channel_and_width(score: object) -> None:
    network, calibration = small()
    found = score(network, calibration, granularity="channel", progress=False)  # type: ignore[operator]
    assert [np.asarray(own).shape for own in found.damage] == [(8, 8), (2, 8)]
    damage = np.concatenate([np.asarray(own) for own in found.damage])
    assert (damage >= 0).all() and damage[:, -1].sum() < damage[:, 0].sum()


def test_scores_of_channels_must_fit_their_layers() -> None:
    good = random_scores(np.random.default_rng(0))
    with pytest.raises(ModelError, match="one for each output channel"):
        ChannelScores(good.names, good.parameters, good.scores, "test", channels=((1.0,) * 7, (1.0,) * 4), consumers=(None, None))
    with pytest.raises(ModelError, match="not at 8 bits"):
        good.channel_benefits((8,))
    with pytest.raises(BudgetError, match="equally large channels"):
        BitAllocation(("a",), (10,), ((2, 3, 9, 4, 4),))


def test_the_bits_of_columns_that_dropped_channels_feed_are_spent_on_others() -> None:
    widths = (0, 2, 4, 8)
    rng = np.random.default_rng(4)
    important = (rng.uniform(1, 10, (6, 1)) * np.array([1, 4.0**-1, 4.0**-3, 4.0**-6])).tolist()
    scores = scores_of([(10, [[1e-9, 1e-10, 1e-11, 0.0]] * 2 + important), (8, important)], widths)
    found = allocate_exactly(scores, 4.0, widths)
    assert found.bits[0][:2] == (0, 0) and 0 not in found.bits[0][2:] and found.kept_inputs == ((), (False, False) + (True,) * 6)  # type: ignore[index]
    by_hand = 10 * sum(found.bits[0]) + 6 * sum(found.bits[1])  # type: ignore[arg-type]
    assert found.total_bits == by_hand <= 4 * sum(scores.parameters)
    # Nobody else could have done better once these two are gone.
    best = min(
        sum(row[widths.index(b)] for row, b in zip([*important, *important], bits, strict=True))
        for bits in (
            (*a, *b) for a in itertools.product((2, 4, 8), repeat=6) for b in itertools.combinations_with_replacement((2, 4, 8), 6)
        )
        if 10 * sum(bits[:6]) + 6 * sum(bits[6:]) <= 4 * sum(scores.parameters)
    )
    damage = sum(row[widths.index(b)] for row, b in zip([*important, *important], [*found.bits[0][2:], *found.bits[1]], strict=True))  # type: ignore[index, misc]
    assert damage <= best + 1e-9


def test_a_layer_keeps_the_channel_that_matters_most_and_no_last_channel_is_dropped() -> None:
    widths = (0, 2, 4)
    scores = scores_of([(4, [[0.0, 0.0, 0.0], [1e-12, 0.0, 0.0]]), (2, [[0.0, 0.0, 0.0]] * 3)], widths)
    found = allocate_exactly(scores, 2.5, widths)
    assert found.bits[0][0] == 0 and found.bits[0][1] > 0 and 0 not in found.bits[1]  # type: ignore[index, operator]
    with pytest.raises(BudgetError, match="cannot be met"):
        allocate_exactly(scores, 1.9, widths)
