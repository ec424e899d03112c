"""Structure of weights: zeros stay zero and signs are kept through every step that moves integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cfptq.errors import ConfigurationError, ModelError
from cfptq.network import DecisionRule, Head, Network, capture, class_logits, target_margin
from cfptq.quantize import (
    ActivationFormat,
    Activations,
    CalibrationSet,
    LayerPlan,
    LayerProblem,
    MarginTarget,
    QuantizationPlan,
    RoundedWeight,
    Rounding,
    Variability,
    check_keep,
    count_kept_structure,
    equalize_network,
    fake_quantize_network,
    quantize,
    round_by_margins,
    round_compensated,
    round_nearest,
    sweep_plan,
)
from cfptq.quantize.coordinate_descent import descend_channel, descend_channels
from cfptq.quantize.plan import MAX_WIDENED_BIAS, widen_steps_for_bias
from cfptq.quantize.repair import find_repair
from cfptq.quantize.variants import perturb_plan

BOTH = ("zeros", "signs")
RULE = DecisionRule(Head.LOGITS)


def pruned(seed: int = 0) -> tuple[Network, CalibrationSet]:
    """A network with many zeros, and rows near its boundary weighted up, with points in between."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
        with torch.no_grad():
            for layer in (model[0], model[2], model[4]):
                layer.weight.mul_(torch.rand_like(layer.weight) > 0.4)
        latent = torch.randn(640, 2)
        x = latent @ torch.randn(2, 6) + 0.5 * torch.randn(640, 6)
        with torch.no_grad():
            scores = model(x)
            model[4].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
        network = capture(model, x[:2])
    target = torch.ones(640, dtype=torch.int64)
    with torch.no_grad():
        margin = target_margin(class_logits(network(x), Head.LOGITS), target)
    origin = (torch.arange(640) >= 320).to(torch.uint8)
    return network, CalibrationSet(x, origin, torch.exp(-margin.abs() / margin.std()), torch.arange(640) % 320, target)


def plan_of(rounding: Rounding, keep: tuple[str, ...], bits: int = 2, seed: int = 0) -> tuple[Network, CalibrationSet, QuantizationPlan]:
    network, rows = pruned(seed)
    plan = quantize(
        network, rows, {layer.name: bits for layer in network.layers}, method="test", seed=0, rounding=rounding,
        activations=Activations(input_bits=None, clip=False), equalize=True, sequential=True, decision=RULE, keep=keep, progress=False,
    )  # fmt: skip
    return network, rows, plan


def broken(network: Network, plan: QuantizationPlan) -> tuple[int, int]:
    """Zeros that came back, and signs that turned."""
    kept = count_kept_structure(network, plan)
    return kept.zeros - kept.zeros_kept, kept.signed - kept.signs_kept


@pytest.mark.parametrize("rounding", [round_nearest, round_compensated, round_by_margins])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_rule_keeps_zeros_and_signs(rounding: Rounding, bits: int) -> None:
    network, _, plan = plan_of(rounding, BOTH, bits)
    assert broken(network, plan) == (0, 0) and plan.keep == BOTH
    assert any(bool((layer.integers != 0).any()) for layer in plan.layers)


def test_without_bounds_compensation_breaks_both() -> None:
    network, _, plan = plan_of(round_by_margins, ())
    assert min(broken(network, plan)) > 0


def test_each_part_is_kept_alone() -> None:
    network, _, zeros = plan_of(round_by_margins, ("zeros",))
    assert broken(network, zeros)[0] == 0 < broken(network, zeros)[1]
    network, _, signs = plan_of(round_by_margins, ("signs",))
    assert broken(network, signs)[1] == 0 < broken(network, signs)[0]


@pytest.mark.parametrize("rounding", [round_nearest, round_compensated])
def test_bounds_that_do_not_bind_change_nothing(rounding: Rounding) -> None:
    network, rows = pruned()
    dense = network.with_parameters({layer.name: (network.weight(layer.name) + 0.5, network.bias(layer.name)) for layer in network.layers})
    widths = {layer.name: 8 for layer in dense.layers}
    one, two = (quantize(dense, rows, widths, method="t", seed=0, rounding=rounding, keep=keep, progress=False) for keep in ((), BOTH))
    assert all(torch.equal(a.integers, b.integers) and torch.equal(a.scale, b.scale) for a, b in zip(one.layers, two.layers, strict=True))


def test_a_rule_of_the_users_own_is_kept_within_the_bounds() -> None:
    def ones(problem: LayerProblem) -> RoundedWeight:
        return RoundedWeight(torch.ones_like(problem.weight, dtype=torch.int8), torch.ones(len(problem.weight)), problem.bias)

    network, _, plan = plan_of(ones, BOTH)
    assert all(torch.equal(layer.integers, (network.weight(layer.name) > 0).to(torch.int8)) for layer in plan.layers)


def test_convolutions_keep_theirs_too() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
        with torch.no_grad():
            model[0].weight.mul_(torch.rand_like(model[0].weight) > 0.5)
            model[3].weight.abs_()
        x = torch.randn(80, 2, 6, 6)
    network = capture(model, x[:2])
    rows = CalibrationSet(x, torch.zeros(80, dtype=torch.uint8), torch.ones(80), torch.arange(80), torch.ones(80, dtype=torch.int64))
    widths = {layer.name: 3 for layer in network.layers}
    plan = quantize(network, rows, widths, method="t", seed=0, rounding=round_compensated, sequential=True, keep=BOTH, progress=False)
    assert broken(network, plan) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_repair_and_variants_keep_what_the_plan_keeps(seed: int) -> None:
    network, rows, plan = plan_of(round_nearest, BOTH, seed=seed)
    wanted = target_margin(class_logits(network(rows.rows), Head.LOGITS), rows.target).detach()
    swept = sweep_plan(network, plan, MarginTarget(rows.rows, rows.target, wanted, rows.weights), RULE)
    last = plan.layers[-1]
    assert last.bias is not None
    refusing = replace(plan, layers=(*plan.layers[:-1], replace(last, bias=last.bias + torch.tensor([0.2, 0.0]))))
    repaired, moves = find_repair(network, refusing, rows, decision=RULE)
    varied = perturb_plan(network, plan, Variability(rounding=1.0), torch.Generator().manual_seed(0))
    assert swept.digest != plan.digest and moves > 0 and varied.digest != plan.digest
    assert [broken(network, one) for one in (swept, repaired, varied)] == [(0, 0)] * 3


def test_equalization_changes_neither_zeros_nor_signs() -> None:
    network, rows = pruned()
    equalized = equalize_network(network, rows.rows, [layer.name for layer in network.layers])
    for layer in network.layers:
        assert torch.equal(equalized.weight(layer.name).sign(), network.weight(layer.name).sign())
    assert not torch.equal(equalized.weight("2"), network.weight("2"))


def test_descent_within_bounds_finds_the_best_integer_of_each_column() -> None:
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.rand(8, generator=generator) + 0.5
    wanted = 3 * torch.randn(8, 3, generator=generator)
    lowest, highest = -2 * (torch.rand(8, 3, generator=generator) > 0.4).float(), 2 * (torch.rand(8, 3, generator=generator) > 0.4).float()
    best = wanted.round().clamp(lowest, highest)
    integers = torch.zeros(8, 3)
    descend_channels(integers, wanted, torch.diag(diagonal), torch.ones(3), lowest, highest)
    assert torch.equal(integers, best)
    for channel in range(3):
        slope = (-wanted[:, channel] * diagonal).numpy()
        bounds = (part[:, channel].numpy() for part in (lowest, highest))
        assert np.array_equal(
            descend_channel(np.zeros(8, np.float32), slope, np.diag(diagonal.numpy()), 1.0, *bounds), best[:, channel].numpy()
        )


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_descent_moves_nothing_where_numbers_leave_float32(number: float) -> None:
    bound = np.ones(2, np.float32)
    moved = descend_channel(np.zeros(2, np.float32), np.array([number, 1.0], np.float32), np.eye(2, dtype=np.float32), 1.0, -bound, bound)
    assert not moved.any()


@pytest.mark.parametrize("keep", ["zeros", ("zero",), 3, None])
def test_keep_must_hold_known_names(keep: object) -> None:
    with pytest.raises(ConfigurationError, match="keep must hold 'zeros' and 'signs'"):
        check_keep(keep)  # type: ignore[arg-type]


def test_the_plan_records_what_it_keeps(tmp_path) -> None:  # type: ignore[no-untyped-def]
    _, _, plan = plan_of(round_nearest, ("signs", "zeros", "zeros"))
    plan.save(tmp_path / "plan")
    assert QuantizationPlan.load(tmp_path / "plan").keep == BOTH


def wide(weight: float, bias: float, bits: int = 8) -> tuple[LayerPlan, ActivationFormat]:
    layer = LayerPlan(
        "l", "linear", 8, torch.tensor([[100, -50], [3, 4]], dtype=torch.int8), torch.tensor([weight, 0.1]), torch.tensor([bias, 1.0]), "x"
    )
    return layer, ActivationFormat("x", bits, 0.01, 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("weight", "bias"), [(1e-12, 2.0), (1e-30, -2.0), (1e-3, 1e20)])
def test_a_bias_beyond_int32_widens_its_channels_step_alone(weight: float, bias: float, bits: int) -> None:
    layer, form = wide(weight, bias, bits)
    mended = widen_steps_for_bias(layer, form)
    assert abs(bias) / (form.scale * float(mended.scale[0])) == pytest.approx(MAX_WIDENED_BIAS, rel=1e-5)
    assert torch.equal(mended.integers[1], layer.integers[1]) and mended.scale[1] == layer.scale[1]
    deployed = mended.deployed_bias(form)
    assert deployed is not None and float(deployed[0]) == pytest.approx(bias, rel=1e-6)


def test_biases_that_fit_and_float_inputs_widen_nothing() -> None:
    layer, form = wide(1e-3, 2.0)
    assert widen_steps_for_bias(layer, form) is layer
    layer, _ = wide(1e-12, 2.0)
    assert widen_steps_for_bias(layer, ActivationFormat("x", 32)) is layer


def test_a_plan_holds_a_bias_beside_vanishing_weights() -> None:
    network, rows = pruned()
    weight, bias = network.weight("2").clone(), network.bias("2")
    assert bias is not None
    weight[0] *= 1e-9
    bias = bias.index_fill(0, torch.tensor([0]), 2.0)
    changed = network.with_parameters({"2": (weight, bias)})
    plan = quantize(changed, rows, {layer.name: 8 for layer in changed.layers}, method="t", seed=0, progress=False)
    hidden = plan.layers[1]
    deployed = hidden.deployed_bias(plan.input_format(hidden))
    assert deployed is not None and float(deployed[0]) == pytest.approx(2.0, rel=1e-3)
    wanted, given = changed(rows.rows), fake_quantize_network(changed, plan)(rows.rows)
    assert float((wanted - given).abs().max()) < 0.2


@pytest.mark.parametrize("factor", [1e-20, 1e-30, 1e-38, 1e-42, 0.0])
def test_vanishing_last_weights_give_a_plan(factor: float) -> None:
    network, rows = pruned()
    bias = network.bias("4")
    assert bias is not None
    tiny = network.with_parameters({"4": (network.weight("4") * factor, bias * 0)})
    plan = quantize(
        tiny, rows, {layer.name: 3 for layer in tiny.layers}, method="t", seed=0, rounding=round_by_margins, sequential=True, decision=RULE,
        equalize=True, keep=BOTH, progress=False,
    )  # fmt: skip
    assert all(bool(torch.isfinite(layer.weight()).all()) for layer in plan.layers)


def test_squares_beyond_float32_are_refused_with_the_layers_name() -> None:
    network, rows = pruned()
    huge = network.with_parameters({"2": (network.weight("2") * 1e25, network.bias("2"))})
    with pytest.raises(ModelError, match="layer '4' must stay within float32"):
        quantize(huge, rows, {layer.name: 4 for layer in huge.layers}, method="t", seed=0, rounding=round_compensated, progress=False)
