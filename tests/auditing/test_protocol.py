"""Who is measured, and with what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from halfline import QUICK, Cut, Plane, crowd, people

from cfptq.auditing import Protocol, reference_recourse
from cfptq.errors import DataError
from cfptq.network.predictor import as_predictor
from cfptq.recourse import ProjectedGradient

ROWS = crowd(60)
F = as_predictor(Cut(0.0), example=ROWS)


def test_the_standard_protocol_is_the_designs() -> None:
    standard = Protocol()
    assert standard.max_people == 2000
    assert standard.projected_gradient == ProjectedGradient(loss="cross-entropy", steps=50, step_size=0.3, normalize=True, early_stop=True)
    assert standard.confidences == (0.50, 0.55, 0.60)
    assert (standard.epsilon, standard.support_tolerance, standard.level) == (1e-8, 1e-6, 0.95)


def test_the_measured_people_are_those_whom_the_teacher_rejects() -> None:
    teacher = reference_recourse(F, ROWS, Plane(), 1, QUICK)
    assert torch.equal(teacher.people, torch.nonzero(ROWS[:, 0] <= 0).flatten())
    assert torch.equal(teacher.projected.factual, ROWS[teacher.people])
    assert set(teacher.minimal) == {"0.50", "0.55", "0.60"}
    assert bool(teacher.projected.found.all())


def test_a_cap_draws_people_by_seed() -> None:
    def drawn(seed: int) -> set[int]:
        teacher = reference_recourse(F, ROWS, Plane(), 1, replace(QUICK, max_people=10), seed)
        assert len(teacher.people) == 10
        assert teacher.n_rejected > 10
        return set(teacher.people.tolist())

    everyone = set(reference_recourse(F, ROWS, Plane(), 1, QUICK).people.tolist())
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0) | drawn(1) <= everyone


def test_people_may_want_different_classes() -> None:
    target = torch.tensor([1, 0, 1, 0])
    teacher = reference_recourse(F, people(-1, -1, 1, 1), Plane(reach=100.0), target, QUICK)
    assert teacher.people.tolist() == [0, 3]


def test_minimal_cost_is_what_geometry_says() -> None:
    slope = 2.0
    f = as_predictor(Cut(0.0, slope), example=ROWS)
    rows = people(-1.0, -0.25, -3.0, 2.0)
    teacher = reference_recourse(f, rows, Plane(), 1, QUICK)
    for confidence, batch in teacher.minimal.items():
        needed = torch.logit(torch.tensor(float(confidence))).item() / slope
        torch.testing.assert_close(batch.cost, torch.tensor([1.0, 0.25, 3.0]) + needed, atol=1e-2, rtol=0)


def test_the_full_precision_entry() -> None:
    rows = people(-1.0, -2.0, 1.0, 3.0)
    entry = reference_recourse(as_predictor(Cut(0.0), example=rows), rows, Plane(), 1, QUICK).to_dict([0, 1, 1, 1])
    assert entry["accuracy"] == 0.75
    assert entry["favourable_rate"] == 0.5
    assert entry["feasible_recourse_rate"] == 1.0
    assert entry["mean_recourse_cost"] == pytest.approx(1.5, abs=0.01)
    assert entry["counts"] == {"rows": 4, "rejected": 2, "people": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_people": -1}, "max_people"),
        ({"confidences": (0.55,)}, r"hold 0\.5"),
        ({"confidences": (0.5, 0.5)}, "distinct"),
        ({"confidences": (0.5, 1.0)}, "within"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"resamples": 0}, "resamples"),
        ({"level": 95}, "between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Protocol(**settings)  # type: ignore[arg-type]


def test_a_target_that_is_no_class_is_refused() -> None:
    with pytest.raises(DataError, match="got 7"):
        reference_recourse(F, ROWS, Plane(), 7)
