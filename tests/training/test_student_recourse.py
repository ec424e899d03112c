"""The student's own recourse: it is what the student would tell people, and training on it takes back what it promises wrongly."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_lesson import Lesson, lesson
from test_trainer import FAITHFUL, trainer
from torch import Tensor, nn

from cfptq.network import Predictor, as_predictor, capture, target_margin
from cfptq.quantize import fake_quantize_network
from cfptq.recourse import MinimalCost, solve
from cfptq.training import Schedule
from cfptq.training.student_recourse import count_affordable_people, find_student_recourse


@pytest.fixture(scope="module")
def taught() -> Lesson:
    return lesson(rows=1500, bits=3)


def coarse(taught: Lesson) -> Predictor:
    return as_predictor(fake_quantize_network(taught.network, taught.plan), example=taught.rows)


def randomness() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_it_is_the_students_cheapest_way_for_people_whom_the_teacher_rejects(taught: Lesson) -> None:
    student, supervision = coarse(taught), taught.supervision()
    people, actions = find_student_recourse(student, supervision, 200, randomness())
    assert 100 < len(people) <= 200 and len(people.unique()) == len(people)
    rows = taught.rows[people]
    assert bool((taught.predictor.logits(rows).argmax(dim=1) == 0).all())
    points = rows + actions
    assert bool((student.logits(points).argmax(dim=1) == 1).all())
    # Nothing shorter along the same way reaches the target, and the teacher's own cheapest action seldom does for less.
    assert bool((student.logits(rows + 0.97 * actions).argmax(dim=1) == 0).double().mean() > 0.95)
    teachers = solve(taught.predictor, rows, taught.space, target=1, method=MinimalCost(), progress=False)
    reaches = (student.logits(teachers.points).argmax(dim=1) == 1) & teachers.found
    assert bool((taught.space.cost(rows, actions) <= 1.02 * teachers.cost)[reaches].double().mean() > 0.95)


def test_the_draw_is_the_generators_alone_and_nobody_is_asked_for_nobody(taught: Lesson) -> None:
    student, supervision = coarse(taught), taught.supervision()
    first, again = (find_student_recourse(student, supervision, 50, randomness()) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    accepted = supervision.select((taught.predictor.logits(taught.rows).argmax(dim=1) == 1).nonzero()[:, 0])
    people, actions = find_student_recourse(student, accepted, 50, randomness())
    assert len(people) == 0 and actions.shape == (0, 6)


def test_no_more_are_asked_than_a_search_can_pay_for(taught: Lesson) -> None:
    supervision = taught.supervision()
    rejected = len(supervision.rejected)
    assert count_affordable_people(taught.network, supervision, 0.1) == math.ceil(0.1 * rejected)
    wide = capture(nn.Sequential(nn.Linear(6, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2)), taught.rows[:2])
    assert count_affordable_people(wide, supervision, 1.0) == 2**35 // (512 * (6 * 2048 + 2048**2 + 2 * 2048)) < rejected
    pictures = replace(supervision, actions=supervision.actions.reshape(-1, 2, 3))
    assert count_affordable_people(taught.network, pictures, 0.1) == 0


@pytest.mark.parametrize(("epochs", "settle"), [(16, 0.3), (100, 0.3), (10, 0.1), (4, 0.5), (3, 0.0)])
def test_it_is_looked_for_evenly_while_integers_are_held(epochs: int, settle: float) -> None:
    schedule = Schedule(epochs=epochs, settle=settle)
    asking = list(schedule.student_recourse_epochs)
    assert len(asking) == min(5, epochs - schedule.first_settling_epoch)
    assert asking == sorted(asking) and asking[:1] == ([schedule.first_settling_epoch] if settle else [])
    assert len({later - earlier for earlier, later in pairwise(asking)}) <= 1


def broken_promises(taught: Lesson, student: Predictor) -> Tensor:
    """By how much the teacher refuses what the student itself tells people to do, in logits."""
    rows = torch.randn(1000, 6, generator=randomness())
    found = solve(student, rows, taught.space, target=1, method=MinimalCost(), progress=False)
    moved = found.found & (found.delta != 0).any(dim=1)
    points = found.points[moved]
    return (-target_margin(taught.predictor.logits(points), torch.ones(len(points), dtype=torch.int64))).clamp_min(0).mean()


def test_training_on_it_takes_back_what_the_teacher_would_refuse(taught: Lesson) -> None:
    schedule = Schedule(epochs=8, batch_size=64, learning_rate=1e-3, quantizer_rate=0.0, settle=0.5, sweeps=1, max_drift=None)
    broken = []
    for share in (0.0, 1.0):
        run = trainer(taught, replace(schedule, student_recourse=share), replace(FAITHFUL, reserve=0.1))
        history = run.fit(progress=False)
        assert history.best_epoch >= 4
        broken.append(
            broken_promises(taught, as_predictor(fake_quantize_network(taught.network, run.student.to_plan("cfq")), example=taught.rows))
        )
    assert float(broken[1]) < 0.9 * float(broken[0])
