"""The layerwise bound must lie above every measured change, and a linear layer has a closed form."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfptq.auditing import bound_perturbation
from cfptq.errors import DataError, ModelError
from cfptq.network import DecisionRule, Head, Network, capture
from cfptq.quantize import Activations, CalibrationSet, QuantizationPlan, fake_quantize_network, quantize

LOGITS = DecisionRule(Head.LOGITS, None)


def draw(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@cache
def build(seed: int, form: Literal[8, 32] = 8, *, hidden: bool = True, equalize: bool = False) -> tuple[Network, QuantizationPlan]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)] if hidden else [nn.Linear(4, 3)]
        network = capture(nn.Sequential(*layers).eval(), torch.zeros(2, 4))
    rows, zeros = draw(200, 4, seed + 1), torch.zeros(200, dtype=torch.int64)
    calibration = CalibrationSet(rows, zeros.to(torch.uint8), torch.ones(200), torch.arange(200), zeros)
    widths = {layer.name: 4 for layer in network.layers}
    activations = Activations(input_bits=form)
    return network, quantize(
        network, calibration, widths, method="test", seed=0, activations=activations, equalize=equalize, progress=False
    )


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.0, 0.1, 1.0]),
    form=st.sampled_from([8, 32]),
    equalize=st.booleans(),
    scale=st.sampled_from([1.0, 4.0]),
)
def test_no_measured_change_exceeds_the_bound(seed: int, radius: float, form: Literal[8, 32], equalize: bool, scale: float) -> None:
    network, plan = build(0, form, equalize=equalize)
    twin, points = fake_quantize_network(network, plan), scale * draw(60, 4, seed)
    bound = bound_perturbation(network, plan, LOGITS, points, radius=radius)
    for number in range(10):
        direction = draw(60, 4, seed + number)
        at = points + radius * direction / direction.norm(dim=1, keepdim=True)
        assert bool(((twin(at) - network(at)).abs().amax(1).double() <= bound.epsilon + 1e-5).all())
    assert sum(bound.shares.values()) == pytest.approx(1)


def test_one_linear_layer_has_the_closed_form() -> None:
    network, plan = build(0, 32, hidden=False)
    points = draw(30, 4, 2)
    layer = plan.layers[0]
    bias = layer.deployed_bias(plan.input_format(layer))
    assert bias is not None
    change = (layer.weight() - network.weight(layer.name)).double()
    expected = (points.double() @ change.T + (bias - network.bias(layer.name)).double()).norm(dim=1)  # type: ignore[operator]
    expected = expected + 0.2 * torch.linalg.matrix_norm(change, 2)
    bound = bound_perturbation(network, plan, LOGITS, points, radius=0.2)
    assert torch.allclose(bound.epsilon, expected, atol=1e-6)
    assert bound.shares == {layer.name: pytest.approx(1)}
    assert bound.activation_share == 0


def test_rounded_activations_add_a_term_of_their_own() -> None:
    network, plan = build(0)
    bound = bound_perturbation(network, plan, LOGITS, draw(30, 4, 2))
    assert 0 < bound.activation_share < 1
    assert all(bool((part > 0).all()) for part in bound.activations.values())
    assert "Rounded activations hold" in str(bound)


def test_networks_and_points_that_do_not_fit_are_refused() -> None:
    network, plan = build(0)
    with pytest.raises(ModelError, match="puts out logits"):
        bound_perturbation(network, plan, DecisionRule(Head.PROBABILITIES, None), torch.zeros(1, 4))
    with pytest.raises(DataError, match="radius"):
        bound_perturbation(network, plan, LOGITS, torch.zeros(1, 4), radius=-1)
    with pytest.raises(DataError, match="points"):
        bound_perturbation(network, plan, LOGITS, torch.zeros(1, 5))
