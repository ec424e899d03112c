"""Activation ranges against closed forms, all ends of a fine grid, and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from margin_cases import MODELS, network_and_rows
from torch import Tensor, nn

from cfptq.calibration import CalibrationSet
from cfptq.errors import ModelError
from cfptq.network import DecisionRule, Head, capture, target_margin
from cfptq.quantize import Activations, fake_quantize_network, quantize
from cfptq.quantize.activation_ranges import CLIPPING_FACTOR, MarginRanges, SlopedValues, measure_slopes


def alike(values: Tensor, square_margin: float = 1e9) -> SlopedValues:
    """Values (N, channels) that pull alike."""
    pull = torch.full_like(values, 1 / len(values))[:, :, None]
    return SlopedValues(values[:, :, None], pull, torch.full((len(values),), 1 / len(values)), square_margin)


def errors(values: Tensor, pull: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """The error that the module documents, at several ranges (R,), in float64."""
    x, weight, low, high = values.double()[None], pull.double()[None], low.double()[:, None], high.double()[:, None]
    is_rounded = (x != 0) & (x >= low) & (x <= high)
    clipped = (x - high).clamp_min(0) + (low - x).clamp_min(0)
    return (weight * (is_rounded * ((high - low) / steps).square() / 12 + CLIPPING_FACTOR * clipped.square())).sum(dim=1)


@pytest.mark.parametrize("steps", [1, 3, 15])
def test_the_range_of_uniform_values_is_the_one_in_closed_form(steps: int) -> None:
    # d/dt (t³ / (12 S²) + 16 (1 - t)³ / 3) = 0  at  t = 8 S / (8 S + 1)
    values = torch.linspace(0, 1, 4001)[1:, None]
    _, high = alike(values).choose_range(steps)
    assert high == pytest.approx(8 * steps / (8 * steps + 1), abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 15, 255]), st.booleans())
def test_no_end_of_a_fine_grid_is_much_better(seed: int, steps: int, is_positive: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(40, generator=generator) * torch.rand(40, generator=generator).square()
    values = values.clamp_min(0) if is_positive else values
    pull = torch.rand(40, generator=generator)
    tensor = SlopedValues(values[:, None, None], pull[:, None, None], torch.full((40,), 1 / 40), 1e9)
    low, high = tensor.choose_range(steps)
    assert float(values.min().clamp(max=0)) - 1e-6 <= low <= 0 <= high <= float(values.max().clamp(min=0)) + 1e-6
    ends = torch.linspace(0, 1, 40)[1:]
    lows = ends * float(values.min())
    found, best = (
        float(errors(values, pull, *range_of, steps).min())
        for range_of in ((torch.tensor([low]), torch.tensor([high])), torch.cartesian_prod(lows, ends * float(values.max())).unbind(1))
    )
    # Ends are tried a few per cent apart, and each for the best other end.
    assert found <= (1.1 if is_positive else 1.3) * best + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_ranges_scale_with_their_values(seed: int, factor: float) -> None:
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
    low, high = alike(values).choose_channel_ranges(255)
    scaled = alike(factor * values)
    for one, other in zip(scaled.choose_channel_ranges(255), (low, high), strict=True):
        torch.testing.assert_close(one, factor * other, rtol=0.05, atol=0.0)


def test_a_far_row_and_a_row_on_the_boundary_set_no_range() -> None:
    values = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    usual = alike(values).choose_range(255)[1]
    values[7] = 1000.0
    far = alike(values)
    far.pull[7] = 1e-30
    assert far.choose_range(255)[1] == pytest.approx(usual, rel=0.05)
    # Its margin would be off by up to 1000, and all margins are 1 on average.
    assert alike(values, 1.0).choose_range(255)[1] == pytest.approx(usual, rel=0.05)
    assert alike(values).choose_range(255)[1] > 500


def test_a_tensor_of_zeros_has_a_range() -> None:
    assert alike(torch.zeros(20, 2)).choose_range(255) == (0.0, 0.0)


@pytest.mark.parametrize("kind", MODELS)
def test_slopes_are_those_of_finite_differences(kind: str) -> None:
    network, rows, _ = network_and_rows(kind)
    decision = DecisionRule(MODELS[kind][2])
    layer = network.layers[-1]
    axes = {layer.input: -1 if layer.kind == "linear" else 1}
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
    measured = measure_slopes(network, rows.rows, weights, rows.target, decision, axes)[layer.input]
    weight, bias = network.weight(layer.name), network.bias(layer.name)
    seen = network.observe(rows.rows, axes)[layer.input]

    def margin(inputs: Tensor) -> Tensor:
        # Behind the last layer stands at most a sigmoid.
        raw = nn.functional.linear(inputs, weight, bias)
        return target_margin(decision.class_logits(raw.sigmoid() if decision.head is Head.PROBABILITY else raw), rows.target).double()

    push = torch.zeros(seen.shape[1])
    push[3] = 1e-2
    slope = (margin(seen + push) - margin(seen - push)) / 2e-2
    expected = (weights / weights.sum()).double() * slope.square()
    assert torch.allclose(measured.pull[:, 3, 0].double(), expected, rtol=0.05, atol=1e-6)
    assert torch.equal(measured.values[:, :, 0], seen)
    share = (weights / weights.sum()).double()
    assert measured.square_margin == pytest.approx(float(share @ margin(seen).square()), rel=1e-3)


def hidden_error(activations: Activations, outlier: float) -> float:
    """Error of the margins of ordinary rows near the boundary at 8 bits, with one row ``outlier`` times as large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    network = capture(model, x[:2])
    before = target_margin(network(x), torch.ones(400, dtype=torch.int64))
    rows = x.clone()
    rows[5] *= outlier
    margin = target_margin(network(rows), torch.ones(400, dtype=torch.int64)).abs()
    weights = torch.exp(-2 * margin / margin.median()).clamp_min(1e-38)
    zeros = torch.zeros(400, dtype=torch.int64)
    calibration = CalibrationSet(rows, zeros.to(torch.uint8), weights, torch.arange(400), zeros + 1)
    plan = quantize(
        network, calibration, {layer.name: 8 for layer in network.layers}, method="t", seed=0, activations=activations,
        equalize=True, sequential=True, decision=DecisionRule(Head.LOGITS), progress=False,
    )  # fmt: skip
    after = target_margin(fake_quantize_network(network, plan)(x), torch.ones(400, dtype=torch.int64))
    near = torch.exp(-2 * before.abs() / before.abs().median()) * (torch.arange(400) != 5)
    return float(((near * (after - before).square()).sum() / near.sum()).sqrt())


def test_one_outlier_costs_nothing_by_margins_and_much_by_the_values_seen() -> None:
    usual = hidden_error(Activations(clip=False, input_bits=32, margin_ranges=True), 1.0)
    assert hidden_error(Activations(clip=False, input_bits=32, margin_ranges=True), 1000.0) < 1.5 * usual
    assert hidden_error(Activations(clip=False, input_bits=32), 1000.0) > 10 * usual
    assert usual < 1.2 * hidden_error(Activations(clip=False, input_bits=32), 1.0)


@pytest.mark.parametrize("input_bits", [8, 16, "two-step", 32])
def test_every_format_of_the_input_has_a_range(input_bits: object) -> None:
    network, rows, _ = network_and_rows("mlp")
    plan = quantize(
        network, rows, {layer.name: 4 for layer in network.layers}, method="t", seed=0, decision=DecisionRule(Head.LOGITS), progress=False,
        activations=Activations(input_bits=input_bits, margin_ranges=True),  # type: ignore[arg-type]
    )  # fmt: skip
    assert plan.activations[0].is_float == (input_bits == 32)
    assert torch.isfinite(fake_quantize_network(network, plan)(rows.rows)).all()


def test_ranges_by_margins_need_a_decision() -> None:
    network, rows, _ = network_and_rows("mlp")
    with pytest.raises(ModelError, match="need the decision rule"):
        quantize(
            network, rows, {layer.name: 4 for layer in network.layers}, method="t", seed=0, activations=Activations(margin_ranges=True)
        )


def test_rows_are_sampled_where_tensors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows, _ = network_and_rows("cnn")
    monkeypatch.setattr("cfptq.quantize.activation_ranges.MAX_HELD_NUMBERS", 1)
    monkeypatch.setattr("cfptq.quantize.activation_ranges.MIN_ROWS", 50)
    ranges = MarginRanges(rows.rows, rows.weights, rows.target, DecisionRule(Head.LOGITS))
    name = network.layers[1].input
    low, high = ranges.choose(network, {name: 255})[name]
    whole = network.observe(rows.rows, [name])[name]
    assert low == 0 < 0.3 * float(whole.max()) < high <= float(whole.max())
