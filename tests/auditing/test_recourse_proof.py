"""Proofs must never be contradicted by a sampled point or by the deployed file, and linear models have closed forms."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfptq.auditing import RecourseProver
from cfptq.backends.onnxruntime import to_onnx_model
from cfptq.errors import DataError, ModelError
from cfptq.network import Head, Network, Predictor, as_predictor, capture, target_margin
from cfptq.quantize import Activations, CalibrationSet, QuantizationPlan, fake_quantize_network, quantize

Form = Literal[8, 16, 32] | None


def draw(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@cache
def build(seed: int, form: Form = 8, outputs: int = 3) -> tuple[Network, QuantizationPlan]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, outputs)).eval()
    network = capture(model, torch.zeros(2, 4))
    rows, zeros = draw(200, 4, seed + 1), torch.zeros(200, dtype=torch.int64)
    calibration = CalibrationSet(rows, zeros.to(torch.uint8), torch.ones(200), torch.arange(200), zeros)
    widths = {layer.name: 4 for layer in network.layers}
    return network, quantize(network, calibration, widths, method="test", seed=0, activations=Activations(input_bits=form), progress=False)


@cache
def twin(seed: int, form: Form = 8) -> tuple[Predictor, RecourseProver]:
    network, plan = build(seed, form)
    predictor = as_predictor(fake_quantize_network(network, plan), example=draw(50, 4, 0), head=Head.LOGITS)
    return predictor, RecourseProver(predictor, draw(50, 4, 0))


def near(points: Tensor, radius: float, seed: int) -> Tensor:
    """Points on the spheres, where linear functions are extreme."""
    direction = draw(len(points), points.shape[1], seed)
    return points + 0.999 * radius * direction / direction.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("form", [8, 16, None])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.sampled_from([0.0, 0.01, 0.1, 1.0]))
def test_no_sampled_point_lies_below_the_proven_margin(form: Form, seed: int, radius: float) -> None:
    predictor, prover = twin(1, form)
    points = 2 * draw(30, 4, seed)
    target = predictor.logits(points).argmax(1)
    proof = prover.prove(points, target, radius=radius)
    for number in range(15 if radius else 1):
        logits = predictor.logits(near(points, radius, seed + number) if radius else points)
        assert bool((target_margin(logits, target).double() >= proof.margin_low).all())
        assert bool((logits.argmax(1) == target)[proof.holds].all())


def test_a_dense_grid_in_a_small_ball_never_fails_where_recourse_is_proven() -> None:
    predictor, prover = twin(1)
    points = draw(40, 4, 6)
    target = predictor.logits(points).argmax(1)
    proof = prover.prove(points, target, radius=0.2)
    assert 0.2 < proof.fraction < 1
    offsets = draw(3000, 4, 7)
    offsets = 0.2 * offsets / offsets.norm(dim=1, keepdim=True) * torch.linspace(0, 1, 3000)[:, None]
    for point, wanted, low in zip(points, target, proof.margin_low, strict=True):
        margin = target_margin(predictor.logits(point + offsets), wanted.expand(3000))
        assert float(margin.min()) >= float(low) - 1e-7


def test_almost_every_kept_point_is_proven_where_nothing_deviates() -> None:
    predictor, prover = twin(1)
    points = draw(250, 4, 9)
    target = build(1)[0](points).argmax(1)
    kept = predictor.logits(points).argmax(1) == target
    holds = prover.prove(points, target).holds
    assert not bool((holds & ~kept).any())
    assert float(holds.double().sum() / kept.double().sum()) > 0.98


def test_the_deployed_file_keeps_what_is_proven_about_it(tmp_path: Path) -> None:
    network, plan = build(1)
    model = to_onnx_model(network, plan)
    predictor = as_predictor(model, example=draw(50, 4, 0), head=Head.LOGITS)
    points = draw(200, 4, 5)
    target = network(points).argmax(1)
    proof = RecourseProver(predictor, points).prove(points, target, radius=0.05)
    assert 0.3 < proof.fraction <= 1
    for number in range(20):
        logits = predictor.logits(near(points, 0.05, number))
        assert bool((target_margin(logits, target).double() >= proof.margin_low - 1e-6).all())


def test_a_larger_ball_proves_no_more() -> None:
    predictor, prover = twin(1)
    points = draw(60, 4, 2)
    target = predictor.logits(points).argmax(1)
    small, large = (prover.prove(points, target, radius=radius) for radius in (0.02, 0.2))
    assert bool((large.margin_low <= small.margin_low + 1e-9).all())
    assert large.fraction < small.fraction


def test_a_linear_model_has_the_closed_form() -> None:
    model = nn.Linear(4, 2)
    points, target = draw(50, 4, 3), torch.ones(50, dtype=torch.int64)
    slope = (model.weight[1] - model.weight[0]).double().detach()
    expected = points.double() @ slope + float((model.bias[1] - model.bias[0]).detach()) - 0.3 * slope.norm()
    proof = RecourseProver(as_predictor(model, example=points), points).prove(points, target, radius=0.3)
    assert torch.allclose(proof.margin_low, expected, atol=1e-5)
    assert bool((proof.margin_low <= expected).all())


def test_a_threshold_moves_the_proven_margin_by_its_log_odds() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))
    points, target = draw(40, 4, 3), torch.ones(40, dtype=torch.int64)
    half, high = (
        RecourseProver(as_predictor(model, example=points, head=Head.LOGIT, threshold=threshold), points).prove(points, target).margin_low
        for threshold in (0.5, 0.8)
    )
    assert torch.allclose(half - high, torch.full((40,), 1.386294).double(), atol=1e-4)


def test_a_sigmoid_output_is_proven_below_its_float_error() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid())
    predictor = as_predictor(model, example=draw(40, 4, 0))
    points = draw(100, 4, 3)
    target = (model(points)[:, 0] > 0.5).long()
    proof = RecourseProver(predictor, points).prove(points, target, radius=0.01)
    assert 0.5 < proof.fraction <= 1
    for number in range(10):
        assert bool((predictor.logits(near(points, 0.01, number)).argmax(1) == target)[proof.holds].all())


def test_models_and_points_that_cannot_be_read_are_refused() -> None:
    _, prover = twin(1)
    points, target = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ModelError, match="A proof of recourse cannot read the operation 'tanh'"):
        RecourseProver(as_predictor(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), example=points), points)
    with pytest.raises(ModelError, match="needs the weights"):
        RecourseProver(as_predictor(lambda rows: rows[:, :2], example=points), points)
    with pytest.raises(DataError, match="radius"):
        prover.prove(points, target, radius=-1)
    with pytest.raises(DataError, match="target"):
        prover.prove(points, target[:1])
    assert len(prover.prove(points[:0], target[:0]).holds) == 0
