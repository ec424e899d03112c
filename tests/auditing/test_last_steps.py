"""The last step of recourse, and what two-sided measures say of models that differ by a constant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from halfline import QUICK, Cut, Plane, crowd, people

from cfptq.auditing import evaluate, reference_recourse
from cfptq.network.predictor import as_predictor
from cfptq.recourse import ProjectedGradient, RecourseBatch, solve


def reference(rows: torch.Tensor, **settings: object):  # type: ignore[no-untyped-def]
    f = as_predictor(Cut(0.0), example=rows)
    return f, reference_recourse(f, rows, Plane(), 1, replace(QUICK, **settings))  # type: ignore[arg-type]


def test_the_last_refused_point_lies_one_step_before_the_recourse() -> None:
    batch = solve(Cut(0.0), people(-0.1, -0.5, 0.4), Plane(), target=1, method="projected-gradient", progress=False)
    assert batch.last_refused is not None
    # One step of 0.3 suffices for the first person, whose own row is the last that is refused. The third is accepted as they are.
    assert batch.last_refused[:, 0].tolist() == pytest.approx([-0.1, -0.2, 0.4])
    assert batch.points[:, 0].tolist() == pytest.approx([0.2, 0.1, 0.4])


def test_the_last_refused_point_of_a_restart_is_on_its_own_path() -> None:
    method = ProjectedGradient(steps=2, restarts=4)
    batch = solve(Cut(0.0), people(-5.0, -0.1), Plane(), target=1, method=method, progress=False)
    assert batch.last_refused is not None
    refused = batch.last_refused[:, 0] <= 0
    assert bool(refused.all())


def test_a_solver_without_a_path_has_no_last_refused_point(tmp_path) -> None:  # type: ignore[no-untyped-def]
    batch = solve(Cut(0.0), people(-0.1), Plane(), target=1, progress=False)
    assert batch.last_refused is None
    walked = solve(Cut(0.0), people(-0.1), Plane(), target=1, method="projected-gradient", progress=False)
    walked.save(tmp_path / "advice.safetensors")
    again = RecourseBatch.load(tmp_path / "advice.safetensors")
    assert again.last_refused is not None and torch.equal(again.last_refused, walked.last_refused)


def test_a_protocol_without_early_stop_says_what_it_leaves_undefined() -> None:
    rows = people(-0.1, -0.5, 0.4)
    f, teacher = reference(rows, projected_gradient=ProjectedGradient(early_stop=False))
    found = evaluate(f, as_predictor(Cut(0.1), example=rows), teacher, rows, None, Plane())
    assert np.isnan(found.boundary_disagreement) and np.isnan(found.crossing_shift["mean"])
    assert any("early_stop" in note for note in found.notes)


def test_a_lower_cut_is_premature_and_not_better() -> None:
    rows = people(-0.1, -0.5, -0.2, -1.0, -0.02, 0.1, 5.0, 6.0)
    f, teacher = reference(rows)
    lower = evaluate(f, as_predictor(Cut(-0.15), example=rows), teacher, rows, None, Plane())
    # The last refused points are -0.1, -0.2, -0.2, -0.1 and -0.02. Three of them lie above -0.15.
    assert lower.validity_drop == 0
    assert lower.premature_validity == pytest.approx(3 / 5)
    assert lower.boundary_disagreement == pytest.approx(3 / 10)
    assert lower.crossing_shift["mean"] == pytest.approx(-0.5, abs=1e-3)
    assert lower.crossing_shift["mean_abs"] == pytest.approx(0.5, abs=1e-3)


def test_a_constant_on_the_logit_is_no_disagreement_once_it_is_taken_off() -> None:
    rows = crowd(400)
    f, teacher = reference(rows)
    shifted = evaluate(f, as_predictor(Cut(0.02), example=rows), teacher, rows, None, Plane())
    assert shifted.boundary_disagreement > 0
    assert shifted.validity_drop_at_equal_rate == pytest.approx(0.0, abs=0.02)


def test_lines_that_are_not_crossed_count_as_four_steps_and_are_reported() -> None:
    rows = people(-0.1, -0.5, 0.4)
    f, teacher = reference(rows)
    never = evaluate(f, as_predictor(Cut(50.0), example=rows), teacher, rows, None, Plane())
    assert never.crossing_shift == {"mean_abs": 4.0, "mean": 4.0, "p95": 4.0}
    assert never.counts["without_crossing"] == 2
    always = evaluate(f, as_predictor(Cut(-50.0), example=rows), teacher, rows, None, Plane())
    assert always.crossing_shift["mean"] == -4.0


def test_many_classes_are_measured_by_the_margin_of_the_target() -> None:
    class Three(Cut):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logit = self.line(x)
            return torch.cat([-logit, torch.zeros_like(logit) - 3, logit], dim=1)

    rows = people(-0.1, -0.5, 0.4)
    f = as_predictor(Three(0.0), example=rows)
    teacher = reference_recourse(f, rows, Plane(), 2, QUICK)
    found = evaluate(f, as_predictor(Three(0.15), example=rows), teacher, rows, None, Plane())
    assert found.crossing_shift["mean"] == pytest.approx(0.5, abs=1e-3)
    assert found.validity_drop == pytest.approx(1 / 2)  # recourse at 0.2 and 0.1
