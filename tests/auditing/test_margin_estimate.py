"""Prop. 5.1 with measured ε: what it vouches for must hold, and ε must be what two linear models differ by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfptq.auditing import estimate_margins
from cfptq.errors import DataError
from cfptq.network import as_predictor


def net(seed: int, noise: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += noise * torch.randn(parameter.shape)
    return model


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.0, 0.5))
def test_wherever_it_holds_the_quantized_model_decides_the_target(seed: int, noise: float) -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(seed))
    f, f_q = (as_predictor(net(seed, n), example=points) for n in (0.0, noise))
    target = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(seed + 1))
    estimate = estimate_margins(f, f_q, points, target, radius=0.2, samples=4)
    assert bool((f_q.logits(points).argmax(1) == target)[estimate.holds].all())
    # and anywhere in the ball that was looked at with no larger ε: the centre is one such place, and it alone decides with ρ = 0
    alone = estimate_margins(f, f_q, points, target, radius=0.0)
    assert bool((alone.epsilon <= estimate.epsilon).all())
    assert bool((f_q.logits(points).argmax(1) == target)[alone.holds].all())
    assert alone.fraction >= estimate.fraction


def test_epsilon_of_two_linear_models_is_their_difference() -> None:
    f, f_q = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        f_q.weight.copy_(f.weight)
        f_q.bias.copy_(f.bias + torch.tensor([0.25, -0.5]))
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    estimate = estimate_margins(
        as_predictor(f, example=points), as_predictor(f_q, example=points), points, torch.zeros(50, dtype=torch.int64), radius=1.0
    )
    assert torch.allclose(estimate.epsilon, torch.full((50,), 0.5), atol=1e-5)
    assert torch.equal(estimate.holds, estimate.margin > 2 * estimate.epsilon)
    assert estimate.epsilon_quantile() == pytest.approx(0.5, abs=1e-5)


def test_the_first_order_estimate_of_two_linear_models_is_exact() -> None:
    f, f_q = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        f_q.weight.copy_(f.weight + torch.tensor([[0.3, 0.0, 0.4], [0.0, 0.0, 0.0]]))
        f_q.bias.copy_(f.bias)
    points = torch.tensor([[1.0, 5.0, 1.0], [-2.0, 0.0, 0.0]])
    predictors = (as_predictor(f, example=points), as_predictor(f_q, example=points))
    estimate = estimate_margins(*predictors, points, torch.zeros(2, dtype=torch.int64), radius=0.2)
    assert torch.allclose(estimate.first_order, torch.tensor([0.7 + 0.1, 0.6 + 0.1]), atol=1e-5)
    assert bool((estimate.first_order + 1e-5 >= estimate.epsilon).all())


def test_points_that_fail_are_at_risk_and_a_model_without_gradient_has_no_first_order_estimate() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    f, f_q = as_predictor(net(1), example=points), as_predictor(net(1, 0.3), example=points)
    target = f.logits(points).argmax(1)
    estimate = estimate_margins(f, f_q, points, target)
    assert 0 < estimate.failed <= estimate.risk == 1 - estimate.fraction
    assert not bool((estimate.fails & estimate.holds).any())
    assert estimate.failed <= estimate.first_order_risk <= 1
    function = as_predictor(lambda rows: rows[:, :3], example=points)
    blind = estimate_margins(f, function, points, target)
    assert bool(blind.first_order.isnan().all()) and math.isnan(blind.first_order_risk)


def test_epsilon_stays_below_the_supremum_and_approaches_it() -> None:
    # f_q − f = 0.3 x₀ in logit 0, whose supremum over a ball of radius ρ around u is 0.3 (|u₀| + ρ).
    f, f_q = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        f_q.bias.copy_(f.bias)
        f_q.weight.copy_(f.weight + torch.tensor([[0.3, 0.0], [0.0, 0.0]]))
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(20, dtype=torch.int64)
    predictors = as_predictor(f, example=points), as_predictor(f_q, example=points)
    supremum = 0.3 * (points[:, 0].abs() + 0.5)
    few = estimate_margins(*predictors, points, target, radius=0.5, samples=4)
    many = estimate_margins(*predictors, points, target, radius=0.5, samples=500)
    assert bool((few.epsilon <= supremum + 1e-5).all()) and bool((many.epsilon <= supremum + 1e-5).all())
    assert float((supremum - many.epsilon).max()) < 0.03 < float((supremum - few.epsilon).max())


def test_it_is_deterministic_and_says_that_it_is_an_estimate() -> None:
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    f, f_q = (as_predictor(net(0, n), example=points) for n in (0.0, 0.1))
    target = f.logits(points).argmax(1)
    first, again = (estimate_margins(f, f_q, points, target, seed=5) for _ in range(2))
    assert torch.equal(first.epsilon, again.epsilon)
    assert "estimated" in str(first) and "lower bound" in str(first)
    assert not torch.equal(first.epsilon, estimate_margins(f, f_q, points, target, seed=6).epsilon)


def test_nobody_to_ask_about_has_no_fraction() -> None:
    f = as_predictor(net(0), example=torch.zeros(2, 4))
    assert math.isnan(estimate_margins(f, f, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).fraction)


@pytest.mark.parametrize("change", [{"radius": -1.0}, {"radius": math.nan}, {"samples": -1}, {"target": torch.zeros(3, dtype=torch.int64)}])
def test_what_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    f = as_predictor(net(0), example=torch.zeros(2, 4))
    arguments = {"target": torch.zeros(2, dtype=torch.int64), **change}
    with pytest.raises(DataError):
        estimate_margins(f, f, torch.zeros(2, 4), **arguments)  # type: ignore[arg-type]
