"""Sampled deployments: on the plan's grid, near its function, other for each draw, the same for one seed."""

from __future__ import annotations

import pytest
import torch

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.calibration import CalibrationSet, build_factual_set
from cfptq.errors import ModelError
from cfptq.models import MLP
from cfptq.network import Network, as_predictor, capture
from cfptq.quantize import QuantizationPlan, Variability, equalize_network, fake_quantize_network, quantize, sample_variants
from cfptq.quantize.variants import estimate_rounded_weights, perturb_plan


def _calibration(network: Network, rows: torch.Tensor) -> CalibrationSet:
    return build_factual_set(rows, None, as_predictor(network.graph, example=rows), target=1)


def _deployed(seed: int = 0) -> tuple[Network, QuantizationPlan, torch.Tensor]:
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(seed))
    network = capture(MLP(6, hidden=(8, 8), seed=0), rows)
    calibration = _calibration(network, rows)
    bits = {layer.name: 4 for layer in network.layers}
    return network, quantize(network, calibration, bits, method="ptq", seed=0, progress=False), rows


def test_without_variability_every_variant_is_the_plan_itself() -> None:
    network, plan, rows = _deployed()
    nothing = Variability(rounding=0, steps=0, clipping=0)
    for variant in sample_variants(network, plan, 2, 0, nothing):
        assert torch.allclose(variant(rows), fake_quantize_network(network, plan)(rows), atol=1e-6)


def test_variants_differ_from_each_other_and_stay_near_the_plan() -> None:
    network, plan, rows = _deployed()
    nominal = fake_quantize_network(network, plan)(rows)
    answers = [variant(rows) for variant in sample_variants(network, plan, 4, 0)]
    assert all(not torch.equal(answers[0], answer) for answer in answers[1:])
    spread = float((nominal - nominal.mean(0)).std())
    assert all(0 < float((answer - nominal).abs().mean()) < 0.5 * spread for answer in answers)


def test_one_seed_gives_one_list_and_a_shorter_list_is_its_beginning() -> None:
    network, plan, rows = _deployed()
    long, short = sample_variants(network, plan, 3, 5), sample_variants(network, plan, 2, 5)
    for one, other in zip(long, short, strict=False):
        assert torch.equal(one(rows), other(rows))
    assert not torch.equal(sample_variants(network, plan, 1, 6)[0](rows), long[0](rows))


def test_stochastic_rounding_is_right_on_average_and_moves_by_one_step_at_most() -> None:
    network, plan, _ = _deployed()
    generator = torch.Generator().manual_seed(0)
    rules = Variability(rounding=1, steps=0, clipping=0)
    layer = plan.layers[0]
    draws = [perturb_plan(network, plan, rules, generator).layers[0].integers.to(torch.float32) for _ in range(400)]
    assert max(float((draw - layer.integers).abs().max()) for draw in draws) <= 1
    exact = network.weight(layer.name) / layer.scale[:, None]
    inside = exact.abs() <= 7
    assert torch.allclose(torch.stack(draws).mean(0)[inside], exact[inside], atol=0.12)


def test_only_weights_near_a_tie_go_the_other_way_when_rounding_varies_little() -> None:
    network, plan, _ = _deployed()
    other = perturb_plan(network, plan, Variability(rounding=0.2, steps=0, clipping=0), torch.Generator().manual_seed(0))
    for before, after in zip(plan.layers, other.layers, strict=True):
        apart = (network.weight(before.name) / before.scale[:, None] - before.integers).abs()
        moved = before.integers != after.integers
        assert bool((apart[moved] >= 0.4).all())


def _faithful() -> tuple[Network, QuantizationPlan]:
    """Return a plan of the default method with split columns, and with a channel that may be dropped because its weights are next to 0."""
    rows = torch.randn(600, 12, generator=torch.Generator().manual_seed(1))
    model = MLP(12, hidden=(16, 16), seed=0)
    with torch.no_grad():
        model.hidden[0].weight[3] *= 1e-4
        model.hidden[0].weight[:8] *= torch.linspace(0.2, 8, 8)[:, None]
    space = ActionSet.from_columns(rows, [Continuous(f"x{column}", column=column) for column in range(12)], favourable=1)
    result = cfptq.calibrate(model, [rows], space, budget=3.5, progress=False)
    return result.network, result.plan


def test_variants_of_a_plan_with_equalized_channels_split_columns_and_dropped_channels_move_weights_near_a_tie() -> None:
    network, plan = _faithful()
    assert plan.layers[0].fine_inputs
    coarse = ~torch.tensor(plan.layers[0].fine_inputs)
    generator, rules = torch.Generator().manual_seed(0), Variability(rounding=0.25, steps=0, clipping=0)
    shares = []
    for _ in range(20):
        varied = perturb_plan(network, plan, rules, generator)
        for before, after in zip(plan.layers, varied.layers, strict=True):
            step = torch.ones(before.integers.shape[1])
            if before.fine_inputs:
                step[coarse] = 4
            change = (after.integers.float() - before.integers) / step
            assert set(change.unique().tolist()) <= {-1.0, 0.0, 1.0}
            assert not bool(change[torch.tensor(before.channel_bits) == 0].any())
            shares.append(float((change != 0).float().mean()))
    # Evenly spread weights would move in 1/16 of all cases. Half of the weights would, if equalization were not accounted for.
    assert 0.01 < sum(shares) / len(shares) < 0.2


def test_equalization_that_a_plan_does_not_tell_is_estimated() -> None:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    network = capture(MLP(6, hidden=(8, 8), seed=0), rows)
    bits = {layer.name: 4 for layer in network.layers}
    settings = {"method": "ptq", "seed": 0, "progress": False}
    plain = quantize(network, _calibration(network, rows), bits, **settings)
    for name, weight in estimate_rounded_weights(network, plain).items():
        assert torch.equal(weight, network.weight(name))
    source = equalize_network(network, rows)
    equal = quantize(network, _calibration(network, rows), bits, equalize=True, **settings)
    for name, weight in estimate_rounded_weights(network, equal).items():
        step = next(layer.scale for layer in equal.layers if layer.name == name)[:, None]
        assert float(((weight - source.weight(name)) / step).abs().mean()) < 0.1
        assert float(((network.weight(name) - source.weight(name)) / step).abs().mean()) > 0.2


def test_several_plans_are_varied_in_turn() -> None:
    network, plan, rows = _deployed()
    other = quantize(network, _calibration(network, rows[:60] * 0.5), plan.bits, method="ptq", seed=1, progress=False)
    nothing = Variability(rounding=0, steps=0, clipping=0)
    first, second = sample_variants(network, [plan, other], 2, 0, nothing)
    assert torch.allclose(first(rows), fake_quantize_network(network, plan)(rows), atol=1e-6)
    assert torch.allclose(second(rows), fake_quantize_network(network, other)(rows), atol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    network, plan, rows = _deployed()
    with pytest.raises(ModelError, match="clipping"):
        Variability(clipping=2)
    with pytest.raises(ModelError, match="at least one plan"):
        sample_variants(network, [], 2, 0)
    stranger = capture(MLP(6, hidden=(8, 8), seed=1), rows)
    with pytest.raises(ModelError):
        sample_variants(stranger, plan, 1, 0)
