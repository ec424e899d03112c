"""What a result says before anything is deployed: the curve, the gap, the estimate of Prop. 5.1, repair, groups; on generated people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cfptq
from cfptq import datasets
from cfptq.actions import ActionSet
from cfptq.allocation import LayerScores, allocate_greedily
from cfptq.errors import CfptqError, DataError, MissingDependencyError, ModelError
from cfptq.network import decide
from cfptq.pipeline.method import SCORES, Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.pareto import Pareto
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.quantize import average_bits, integer_limit
from cfptq.quantize import round_nearest as plain_rounding

Calibrated = Callable[..., cfptq.Result]


@pytest.fixture(scope="module")
def calibrated(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> Calibrated:
    def run(**keywords: Any) -> cfptq.Result:
        return cfptq.calibrate(model, [columns.train[:600]], action_set, progress=False, **{"budget": 3.0, **keywords})

    return run


@pytest.fixture(scope="module")
def result(calibrated: Calibrated) -> cfptq.Result:
    return calibrated()


@pytest.fixture(scope="module")
def curve(result: cfptq.Result) -> Pareto:
    return result.pareto(progress=False)


def drop(result: cfptq.Result) -> float:
    assert result.teacher is not None
    points, target = result.teacher.points[result.teacher.found], result.teacher.target[result.teacher.found]
    with torch.no_grad():
        return float((decide(result.module()(points)) != target).float().mean())


# -- the curve -----------------------------------------------------------------------------------------------------------------


def test_the_curve_runs_from_two_to_eight_bits_and_marks_the_result(result: cfptq.Result, curve: Pareto) -> None:
    bits = [point.average_bits for point in curve.points]
    assert bits == sorted(bits) and 1.9 <= bits[0] <= 2 and 7 <= bits[-1] <= 8
    assert curve.chosen.bits == result.bits and sum(point.chosen for point in curve.points) == 1
    assert curve.chosen.validity_drop == pytest.approx(drop(result))
    damage = [point.predicted_damage for point in curve.points]
    assert damage == sorted(damage, reverse=True) and damage[-1] == pytest.approx(0, abs=1e-3 * damage[0])
    assert curve.points[-1].validity_drop <= curve.points[0].validity_drop
    assert all(low <= point.validity_drop <= high for point in curve.points for low, high in [point.interval])
    assert curve.chosen.stored_bytes == result.plan.stored_bytes
    assert "seen by the rounding" in curve.measured_on


def test_boundary_disagreement_is_the_mean_of_both_sides(result: cfptq.Result, curve: Pareto) -> None:
    teacher = result.teacher
    assert teacher is not None and teacher.last_refused is not None
    with torch.no_grad():
        early = float((decide(result.module()(teacher.last_refused)) == teacher.target).float().mean())
    assert curve.chosen.boundary_disagreement == pytest.approx((drop(result) + early) / 2)
    for point in curve.points:
        low, high = point.boundary_disagreement_interval or (1.0, 0.0)
        assert point.boundary_disagreement is not None and 0 <= low <= point.boundary_disagreement <= high <= 1
    assert "boundary_disagreement" in str(curve).splitlines()[1]


def test_each_point_is_what_calibrating_at_its_budget_gives(curve: Pareto, calibrated: Calibrated) -> None:
    point = curve.points[len(curve.points) // 2]
    again = calibrated(budget=cfptq.Budget.average(point.average_bits + 1e-6))
    assert again.bits == point.bits
    assert drop(again) == pytest.approx(point.validity_drop)


def test_held_out_people_are_a_fourth_and_never_seen(result: cfptq.Result, curve: Pareto) -> None:
    held_out = result.pareto(held_out=True, progress=False)
    assert held_out.held_out and not curve.held_out
    assert 0.15 * curve.people < held_out.people < 0.35 * curve.people
    assert [point.bits for point in held_out.points] == [point.bits for point in curve.points]
    assert "held-out" in held_out.measured_on
    assert all(point.boundary_disagreement is not None for point in held_out.points)


def test_the_frame_has_a_row_for_each_point(curve: Pareto) -> None:
    frame = curve.to_frame()
    assert len(frame) == len(curve.points)
    assert frame.loc[frame["chosen"], "average_bits"].item() == curve.chosen.average_bits
    for name, width in curve.chosen.bits.items():
        assert frame.loc[frame["chosen"], f"bits: {name}"].item() == average_bits(width)


def test_print_shows_the_curve_as_a_table(curve: Pareto) -> None:
    heading, columns, *rows = str(curve).splitlines()
    assert curve.method in heading and curve.measured_on in heading
    assert "average_bits" in columns and len(rows) == len(curve.points)
    assert ["this result" in row for row in rows] == [point.chosen for point in curve.points]


def test_the_plot_is_one_file_the_same_each_time(curve: Pareto, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "c.png", "d.pdf"):
        curve.plot(tmp_path / name)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    assert "<svg" in svg and (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"\.svg"):
        curve.plot(tmp_path / "curve.doc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg", "c.png", "d.pdf"]


def test_a_plot_without_matplotlib_names_the_extra(curve: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"cfptq\[plot\]"):
        curve.plot(tmp_path / "a.svg")


def test_a_loaded_result_draws_the_same_curve_if_it_has_its_rows(result: cfptq.Result, curve: Pareto, tmp_path: Path) -> None:
    result.save(tmp_path / "whole")
    again = cfptq.load(tmp_path / "whole")
    assert again.method == result.method and again.budget == result.budget
    assert again.pareto(progress=False) == curve
    assert again.estimated_fraction == result.estimated_fraction
    result.save(tmp_path / "bare", rows=False)
    bare = cfptq.load(tmp_path / "bare")
    for ask in (bare.pareto, bare.estimate_margins, bare.prove_recourse, bare.bound_perturbation):
        with pytest.raises(DataError, match="saved without them"):
            ask()
    assert bare.allocation_gap == result.allocation_gap


def test_a_method_of_ones_own_has_a_curve_until_it_is_saved(calibrated: Calibrated, tmp_path: Path) -> None:
    own = calibrated(method=replace(METHODS["cf-ptq"], name="own", rounding=lambda problem: plain_rounding(problem)))
    assert own.pareto(progress=False).method == "own"
    own.save(tmp_path / "own")
    with pytest.raises(ModelError, match="own"):
        cfptq.load(tmp_path / "own").pareto()


def test_a_method_that_looks_at_no_recourse_says_so(calibrated: Calibrated) -> None:
    with pytest.raises(DataError, match="ptq"):
        calibrated(method="ptq").pareto()


# -- the gap and the estimate --------------------------------------------------------------------------------------------------


def test_the_gap_is_between_the_greedy_and_the_exact_spending_of_the_results_budget(result: cfptq.Result) -> None:
    gap = result.allocation_gap
    assert gap.exact.bits == result.allocation.bits
    assert gap.greedy == allocate_greedily(result.sensitivity, 3.0, result.plan.candidate_widths)
    assert gap.absolute >= 0


def test_a_pinned_layer_is_pinned_in_the_gap_and_on_the_curve(calibrated: Calibrated) -> None:
    name = "head"
    pinned = calibrated(layers={name: 3})
    assert pinned.allocation_gap.greedy[name] == pinned.allocation_gap.exact[name] == (3, 3)
    assert all(point.bits[name] == (3, 3) for point in pinned.pareto(progress=False).points)


def test_where_the_estimate_holds_recourse_survives(result: cfptq.Result) -> None:
    assert result.teacher is not None
    estimate = result.estimate_margins(progress=False)
    with torch.no_grad():
        kept = decide(result.module()(result.teacher.points)) == result.teacher.target
    assert len(estimate.holds) == len(result.teacher)
    assert bool(kept[estimate.holds].all())
    assert 0 < estimate.fraction <= float(kept.float().mean())
    assert result.estimated_fraction == estimate.fraction


def test_what_is_proven_lies_below_what_is_observed_and_bounds_above_what_is_measured(result: cfptq.Result) -> None:
    estimate, bound = result.estimate_margins(radius=0.05, progress=False), result.bound_perturbation(radius=0.05)
    at_point, around = result.prove_recourse(), result.prove_recourse(radius=0.05)
    assert not bool((at_point.holds & estimate.fails).any())
    assert 0 < around.fraction <= at_point.fraction <= 1 - estimate.failed
    assert bool((bound.epsilon + 1e-5 >= estimate.epsilon.double()).all())
    assert list(bound.shares) == list(result.bits)


def test_more_bits_raise_the_estimated_fraction(result: cfptq.Result, calibrated: Calibrated) -> None:
    assert calibrated(budget=8.0).estimated_fraction > result.estimated_fraction


# -- repair and groups ---------------------------------------------------------------------------------------------------------


def test_repair_mends_calibration_recourse_and_the_file_holds_the_mended_integers(calibrated: Calibrated, tmp_path: Path) -> None:
    plain, mended = calibrated(budget=2.0), calibrated(budget=2.0, repair=True)
    assert mended.repair is not None and plain.repair is None
    assert mended.repair.before.validity_drop == pytest.approx(drop(plain))
    assert mended.repair.after.validity_drop == pytest.approx(drop(mended))
    assert mended.repair.after.broken + mended.repair.after.flipped <= mended.repair.before.broken + mended.repair.before.flipped
    if mended.repair.applied:
        assert mended.repair.held_out_after.broken + mended.repair.held_out_after.flipped <= (
            mended.repair.held_out_before.broken + mended.repair.held_out_before.flipped
        )
    assert mended.bits == plain.bits
    for layer in mended.plan.layers:
        assert int(layer.integers.abs().max()) <= integer_limit(layer.held_bits)
    mended.to_onnx(tmp_path / "model.onnx", check=True)
    mended.save(tmp_path / "saved")
    again = cfptq.load(tmp_path / "saved")
    assert again.repair == mended.repair and again.plan.digest == mended.plan.digest


def test_repair_works_for_methods_that_look_at_no_recourse(calibrated: Calibrated) -> None:
    mended = calibrated(method="ptq", budget=2.0, repair=True)
    assert mended.repair is not None and mended.repair.before.points > 0
    assert mended.repair.after.broken <= mended.repair.before.broken


@pytest.mark.parametrize("groups", ["sex", lambda rows: (rows[:, 0] > 0).tolist()], ids=["feature", "function"])
def test_groups_are_reported_and_the_worst_never_fares_worse(
    groups: Any, calibrated: Calibrated, people: datasets.Dataset, tmp_path: Path
) -> None:
    steered = calibrated(budget=2.0, groups=groups)
    report = steered.worst_group
    assert report is not None and len(report.groups) == 2
    assert report.worst_after <= report.worst_before
    assert sum(group.broken_after for group in report.groups) / sum(group.points for group in report.groups) == pytest.approx(drop(steered))
    if groups == "sex":
        assert {group.name for group in report.groups} == set(people.train["sex"].unique())
    steered.save(tmp_path / "saved")
    assert cfptq.load(tmp_path / "saved").worst_group == report


def test_the_fewest_bits_can_be_repaired_ones(calibrated: Calibrated) -> None:
    found = calibrated(budget=None, max_validity_drop=0.1, repair=True)
    assert found.repair is not None
    assert found.plan.average_bits <= calibrated(budget=None, max_validity_drop=0.1).plan.average_bits + 1


def test_unknown_groups_are_refused(calibrated: Calibrated) -> None:
    with pytest.raises(DataError, match="shoe size"):
        calibrated(groups="shoe size")


# -- scores --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_every_named_score_allocates_within_the_budget(score: str, calibrated: Calibrated) -> None:
    scored = calibrated(method=Method("scored", score=score, allocator="exact"))
    assert scored.plan.average_bits <= 3.0
    assert scored.sensitivity.names == tuple(scored.bits)


def test_a_users_own_score_decides(calibrated: Calibrated) -> None:
    def last_only(network: Any, calibration: Any, *, decision: Any = None, progress: bool = True) -> LayerScores:
        layers = network.layers
        values = tuple(float(layer is layers[-1]) for layer in layers)
        return LayerScores(tuple(it.name for it in layers), tuple(it.parameters for it in layers), values, "last")

    scored = calibrated(method=Method("own", score=last_only))
    assert list(scored.bits.values())[-1] == 7
    assert scored.sensitivity.kind == "last"


def test_scores_of_one_rule_on_other_rows_are_not_mixed_up(model: nn.Module, columns: datasets.Columns, action_set: ActionSet) -> None:
    augmented, boundary = Method("augmented", score="margin"), Method("boundary", score="margin", rows="boundary")
    shared, fresh = (build_task(model, [columns.train[:300]], action_set, TaskSettings(progress=False)) for _ in range(2))
    assert shared.score_layers(augmented, progress=False) != shared.score_layers(boundary, progress=False)
    assert shared.score_layers(boundary, progress=False) == fresh.score_layers(boundary, progress=False)


def test_an_error_leaves_nothing_behind(calibrated: Calibrated, tmp_path: Path) -> None:
    with pytest.raises(CfptqError):
        calibrated(groups=lambda rows: ["one"])
    assert not list(tmp_path.iterdir())
