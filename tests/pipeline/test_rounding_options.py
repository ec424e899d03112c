"""Options of a method that bring rounding nearer to the boundary, each of which can be switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import ConfigurationError
from cfptq.network import DecisionRule, Head, capture, decide, target_margin
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import FAITHFUL, METHODS
from cfptq.quantize import Activations, CalibrationSet, MarginTarget, fake_quantize_network, sweep_plan
from cfptq.quantize.calibration_set import GENERATED
from cfptq.quantize.sweep import OTHER_DECISION_WEIGHT

#: Option -> the method without it, or with another exponent.
WITHOUT: dict[str, Method] = {
    "rows on both sides": replace(FAITHFUL, both_sides=False),
    "ranges by margins": replace(FAITHFUL, activations=Activations(input_bits=None, clip=False)),
    "sweep": replace(FAITHFUL, sweeps=0),
    "dropped channels": replace(FAITHFUL, drops_channels=False),
    "split inputs": replace(FAITHFUL, split_inputs=False),
    "another exponent": replace(FAITHFUL, equalization_exponent=0.5),
    "minimal-cost points left out": replace(FAITHFUL, minimal_cost_points=True),
    "widths of channels": replace(FAITHFUL, granularity="layer", drops_channels=False, split_inputs=False),
}
X = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))


def calibrated(method: Method, rows: torch.Tensor = X, **keywords: Any) -> cfptq.Result:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    space = ActionSet.from_columns(X, [Continuous(f"x{column}", column=column) for column in range(10)], favourable=1)
    return cfptq.calibrate(model, [rows], space, method=method, budget=3.0, progress=False, **keywords)


def test_presets_of_the_paper_have_none_of_them() -> None:
    for method in METHODS.values():
        if method is not FAITHFUL:
            assert not method.both_sides and method.sweeps == 0 and not method.split_inputs and method.granularity == "layer"
            assert method.equalization_exponent == 0.5 and not method.activations.margin_ranges


def test_columns_are_split_for_measured_channels_alone() -> None:
    with pytest.raises(ConfigurationError, match="split_inputs of method 'faithful' requires granularity='channel'"):
        replace(FAITHFUL, granularity="layer", drops_channels=False)
    with pytest.raises(ConfigurationError, match="drops_channels of method 'faithful' requires granularity='channel'"):
        replace(FAITHFUL, granularity="layer")
    with pytest.raises(ConfigurationError, match="split_inputs=False"):
        replace(FAITHFUL, score="counterfactual")


def test_each_can_be_switched_off_and_matters() -> None:
    digests = {name: calibrated(method).plan.digest for name, method in WITHOUT.items()}
    digests["all"] = calibrated(FAITHFUL).plan.digest
    assert len(set(digests.values())) == len(digests)


def test_all_together_err_far_less_than_nearest_rounding_on_rows_that_were_not_seen(tmp_path: Any) -> None:
    result, before = calibrated(FAITHFUL), calibrated(METHODS["ptq"])
    fresh = torch.randn(2000, 10, generator=torch.Generator().manual_seed(1))
    target = torch.ones(2000, dtype=torch.int64)
    wanted = target_margin(result.network(fresh), target)
    near = torch.exp(-wanted.abs() / (wanted.abs().median() / 2))

    def error(one: cfptq.Result) -> float:
        return float((near * (target_margin(one.module()(fresh), target) - wanted).square()).sum())

    assert error(result) < 0.5 * error(before)
    result.save(tmp_path / "plan")
    assert cfptq.load(tmp_path / "plan").method == FAITHFUL
    assert result.calibration is not None and bool((result.calibration.origin == GENERATED).any())


def test_one_outlier_among_the_rows_changes_no_decision() -> None:
    method = replace(FAITHFUL, drops_extreme_rows=False)
    rows = X.clone()
    rows[17, 2] *= 1000
    with pytest.warns(cfptq.errors.DataWarning):
        result = calibrated(method, rows)
    flips = {
        name: float((decide(one.module()(X)) != decide(one.network(X))).float().mean())
        for name, one in {"outlier": result, "usual": calibrated(method)}.items()
    }
    assert flips["outlier"] <= flips["usual"] + 0.01


def test_a_further_sweep_weighs_rows_that_are_decided_otherwise() -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    goal = MarginTarget(torch.zeros(4, 1), zeros, torch.tensor([1.0, 1.0, -1.0, -0.1]), torch.tensor([1.0, 2.0, 1.0, 3.0]))
    emphasized = goal.emphasize_other_decisions(torch.tensor([0.1, -0.1, -2.0, 0.2]))
    assert emphasized.weights.tolist() == [1, 2 * OTHER_DECISION_WEIGHT, 1, 3 * OTHER_DECISION_WEIGHT]
    once, twice = calibrated(replace(FAITHFUL, sweeps=1)), calibrated(FAITHFUL)
    assert once.plan.digest != twice.plan.digest


def test_a_sweep_of_the_method_is_a_sweep_of_its_plan() -> None:
    swept, before = calibrated(replace(FAITHFUL, sweeps=1)), calibrated(replace(FAITHFUL, sweeps=0))
    assert before.calibration is not None
    goal, rule = MarginTarget.of(before.network, before.calibration, DecisionRule(Head.LOGITS)), DecisionRule(Head.LOGITS)
    by_hand = sweep_plan(before.network, before.plan, goal, rule)
    assert [layer.integers.tolist() for layer in by_hand.layers] == [layer.integers.tolist() for layer in swept.plan.layers]

    def error(result: cfptq.Result) -> float:
        return goal.error(target_margin(fake_quantize_network(result.network, result.plan)(goal.rows), goal.target))

    assert error(swept) <= error(before)


def test_margins_to_reach_are_those_of_the_rows_that_count() -> None:
    network = capture(nn.Linear(10, 2).eval(), X[:2])
    weights = (torch.arange(300) % 3 > 0).float()
    zeros = torch.zeros(300, dtype=torch.int64)
    goal = MarginTarget.of(network, CalibrationSet(X, zeros.to(torch.uint8), weights, torch.arange(300), zeros), DecisionRule(Head.LOGITS))
    assert torch.equal(goal.rows, X[weights > 0]) and bool((goal.weights == 1).all())
    logits = network(X[weights > 0])
    torch.testing.assert_close(goal.margins, (logits[:, 0] - logits[:, 1]).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"equalization_exponent": 1.5}, "must be from 0 to 1"), ({"sweeps": -1}, "whole number from 0"), ({"sweeps": 0.5}, "whole number")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Method("own", **options)


def test_a_reserve_accepts_more_people_near_the_boundary_and_tells_its_price() -> None:
    fresh = torch.randn(4000, 10, generator=torch.Generator().manual_seed(2))
    results = {reserve: calibrated(FAITHFUL, reserve=reserve) for reserve in (0.0, 0.1, 0.5)}
    network = results[0.0].network
    near = target_margin(network(fresh), torch.ones(4000, dtype=torch.int64)).abs() < 0.02
    granted = {reserve: float((decide(result.module()(fresh[near])) == 1).float().mean()) for reserve, result in results.items()}
    assert granted[0.0] < granted[0.1] < granted[0.5]
    assert not any("Reserve" in note for note in results[0.0].notes)
    (note,) = [note for note in results[0.5].notes if "Reserve 0.5" in note]
    shares = [float((decide(model(X)) == 1).float().mean()) for model in (results[0.5].module(), network)]
    assert f"{shares[0]:.2%}" in note and f"{shares[1]:.2%}" in note and f"{100 * (shares[0] - shares[1]):+.2f} points" in note
    assert results[0.0].plan.digest == calibrated(FAITHFUL).plan.digest


def test_a_reserve_lifts_the_margins_of_accepted_rows_alone() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    goal = MarginTarget(torch.zeros(3, 1), zeros, torch.tensor([1.0, 0.0, -1.0]), torch.ones(3))
    assert goal.lift_accepted(0.25).margins.tolist() == [1.25, 0.0, -1.0]


@pytest.mark.parametrize("reserve", [-0.1, float("nan"), 11.0, "much", True])
def test_a_reserve_that_makes_no_sense_is_refused(reserve: Any) -> None:
    with pytest.raises(ConfigurationError, match="reserve"):
        calibrated(FAITHFUL, reserve=reserve)
    with pytest.raises(ConfigurationError, match="reserve"):
        replace(FAITHFUL, reserve=reserve)


def test_a_reserve_needs_sweeps() -> None:
    with pytest.raises(ConfigurationError, match="requires sweeps"):
        calibrated(METHODS["ptq"], reserve=0.1)
