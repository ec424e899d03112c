"""The terms of the loss against their formulas, and the supervision that they are computed on."""

from __future__ import annotations

import pytest
import torch
from small_lesson import Lesson, lesson
from torch.nn.functional import cross_entropy

from cfptq.errors import ConfigurationError, DataError
from cfptq.network import target_margin
from cfptq.recourse import ProjectedGradient
from cfptq.training import Batch, Match, Objective, Student, TeacherSettings
from cfptq.training.objective import build_margin_target, compute_boundary_loss, compute_loss_terms, compute_match_loss
from cfptq.training.presets import LOW_STEP


@pytest.fixture(scope="module")
def taught() -> Lesson:
    return lesson()


def _batch(taught: Lesson, settings: TeacherSettings | None = None, **more: object) -> Batch:
    return taught.supervision(settings, **more).to_batch(torch.Generator().manual_seed(0))


def test_the_papers_objective_is_task_plus_eta_times_validity(taught: Lesson) -> None:
    batch = _batch(taught, TeacherSettings())
    student = Student(taught.start).requires_grad_(False)
    terms = compute_loss_terms(Objective(eta=0.5), student, batch, taught.space, 1.0)
    assert float(terms["task"]) == pytest.approx(float(cross_entropy(student(batch.rows), batch.labels)), rel=1e-5)
    assert float(terms["validity"]) == pytest.approx(0.5 * float(cross_entropy(student(batch.points), batch.wanted)), rel=1e-5)
    assert set(compute_loss_terms(Objective(eta=0.0), student, batch, taught.space, 1.0)) == {"task"}


def test_the_hinge_is_that_of_section_4_2(taught: Lesson) -> None:
    batch = _batch(taught, TeacherSettings())
    student = Student(taught.start)
    with torch.no_grad():
        margins = target_margin(student(batch.points), batch.wanted)
        term = compute_loss_terms(Objective(eta=0.0, hinge=2.0, gamma=0.4), student, batch, taught.space, 1.0)["hinge"]
    assert float(term) == pytest.approx(2 * float(torch.clamp(0.4 - margins, min=0).mean()), rel=1e-5)


def test_the_worst_group_counts_alone(taught: Lesson) -> None:
    groups = torch.arange(len(taught.rows)) % 3
    batch = _batch(taught, TeacherSettings(), groups=groups)
    student = Student(taught.start).requires_grad_(False)
    term = compute_loss_terms(Objective(worst_group=True), student, batch, taught.space, 1.0)["validity"]
    each = cross_entropy(student(batch.points), batch.wanted, reduction="none")
    assert float(term) == pytest.approx(max(float(each[batch.groups == g].mean()) for g in range(3)), rel=1e-5)


def test_the_boundary_term_is_zero_at_the_teacher_and_ignores_a_shift_of_all_logits() -> None:
    teacher = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert float(compute_boundary_loss(teacher + 7.0, teacher, 1.0).abs().max()) < 1e-6
    apart = teacher + torch.tensor([0.01, 0.0, 0.0])
    top = teacher.topk(2, dim=1).values
    near = torch.exp(-(top[:, 0] - top[:, 1])) + 0.1
    # Quadratic below the bend: half the square over the bend, mean over classes of 2 (d - mean d).
    d = 2 * torch.tensor([0.01 * 2 / 3, -0.01 / 3, -0.01 / 3])
    assert torch.allclose(compute_boundary_loss(apart, teacher, 1.0), near * (d.square() / 2 / 0.1).mean(), rtol=1e-3)


def test_matching_actions_moves_the_students_parameters(taught: Lesson) -> None:
    batch = _batch(taught, LOW_STEP)
    student = Student(taught.start)
    term = compute_match_loss(Match(), student, batch, taught.space)
    term.backward()
    assert not batch.actions.requires_grad
    slopes = [layer.weight.grad for layer in student.layers]
    assert all(slope is not None and float(slope.abs().max()) > 1e-6 for slope in slopes)


def test_the_full_precision_model_matches_its_own_actions_and_a_coarse_one_does_not(taught: Lesson) -> None:
    batch = _batch(taught, LOW_STEP)
    whole = Match(rows=10_000)
    own, coarse = (
        float(compute_match_loss(whole, f, batch, taught.space).detach()) for f in (taught.predictor.surrogate, Student(taught.start))
    )
    # Not 0 to the last bit: where two features are as good, rounding decides which of them a person moves.
    assert own < 0.05 * coarse


def test_a_reserve_widens_leads_on_both_sides_and_leaves_decisions_alone() -> None:
    teacher = torch.tensor([[0.3, -0.1, -2.0], [-1.0, 1.0, 0.999], [5.0, -5.0, 0.0]])
    top, second = torch.tensor([0, 1, 0]), torch.tensor([1, 2, 2])
    row = torch.arange(3)
    lead = teacher[row, top] - teacher[row, second]
    taught = teacher.clone()
    taught[row, top] += (torch.sqrt(lead**2 + 0.5**2) - lead) / 2
    taught[row, second] -= (torch.sqrt(lead**2 + 0.5**2) - lead) / 2
    assert float(compute_boundary_loss(taught, teacher, 2.0, 0.25).abs().max()) < 1e-6
    assert float(compute_boundary_loss(teacher, teacher, 2.0, 0.25).min()) > 0
    assert torch.equal(taught.argmax(dim=1), teacher.argmax(dim=1))


def test_sweeps_aim_at_the_margins_that_the_boundary_terms_teach(taught: Lesson) -> None:
    batch = _batch(taught)
    objective = Objective(task="boundary", validity="boundary", eta=3.0, reserve=0.2)
    goal = build_margin_target(objective, batch, 0.7)
    margins = torch.cat((target_margin(batch.logits, batch.target), target_margin(batch.point_logits, batch.point_target)))
    assert torch.allclose(goal.margins.abs(), torch.sqrt(margins**2 + 0.14**2), atol=1e-5)
    assert torch.equal(goal.margins.sign()[margins != 0], margins.sign()[margins != 0])
    rows = len(batch.rows)
    near = torch.exp(-margins.abs() / 0.7) + 0.1
    assert torch.allclose(goal.weights, torch.cat((near[:rows] / rows, 3 * near[rows:] / len(batch.points))), rtol=1e-4)
    # Their error is the loss itself, up to its constant factor, wherever the student is.
    logits = torch.cat((batch.logits, batch.point_logits)) + 0.05 * torch.randn(len(margins), 2, generator=torch.Generator().manual_seed(0))
    terms = compute_loss_terms(objective, lambda _: logits, batch, taught.space, 0.7)
    given = target_margin(logits, torch.cat((batch.target, batch.point_target)))
    own = goal.error(given) * float(goal.weights.sum())
    assert float(sum(terms.values())) == pytest.approx(own / (2 * 0.1 * 0.7**2), rel=1e-4)


def test_points_are_recourse_and_lie_on_both_sides_of_the_boundary(taught: Lesson) -> None:
    batch = _batch(taught)
    ends = len(batch.people)
    logits = taught.predictor.logits(batch.points)
    # Computed a different number of rows at a time, sums may be added in another order.
    assert torch.allclose(batch.point_logits, logits, atol=1e-5)
    start, behind, before = (
        target_margin(part, batch.wanted) for part in (taught.predictor.logits(batch.people), logits[:ends], logits[ends:])
    )
    # The lesson's boundary runs through the person in the middle, whose side is a matter of the last bit.
    assert bool((start < 1e-5).all()) and bool((behind > -1e-5).all())
    assert int((behind > 1e-5).sum()) >= ends - 1
    assert bool((before < 0).any()) and bool((before > 0).any())
    assert float((before <= 0).double().mean()) > 0.8
    # As far before the boundary as behind it, on average, where people stand farther off than that.
    far = start < -2 * behind
    assert int(far.sum()) > 20
    assert abs(float(behind[far].mean() + before[far].mean())) < 0.3 * float(behind[far].mean())


def test_every_row_and_every_action_is_seen_once_an_epoch(taught: Lesson) -> None:
    supervision = taught.supervision(TeacherSettings())
    batches = list(supervision.draw_batches(64, torch.Generator().manual_seed(3)))
    seen = torch.cat([batch.rows for batch in batches])
    assert torch.equal(seen.sort(dim=0).values, taught.rows.sort(dim=0).values)
    assert sum(len(batch.people) for batch in batches) == len(supervision.person)
    thirds = taught.supervision(TeacherSettings(share=1 / 3))
    used = sum(len(batch.people) for batch in thirds.draw_batches(64, torch.Generator().manual_seed(3)))
    assert used == round(len(thirds.person) / 3)


def test_a_teacher_that_is_not_cached_gives_the_same_actions(taught: Lesson) -> None:
    solver = (ProjectedGradient(steps=3, early_stop=False),)
    cached = _batch(taught, TeacherSettings(solvers=solver, reached_only=False))
    anew = _batch(taught, TeacherSettings(solvers=solver, reached_only=False, cached=False))
    # A different number of people at a time may add in another order, and move single people along another feature that is as good.
    same = torch.isclose(cached.actions, anew.actions, atol=1e-5).all(dim=1)
    assert float(same.float().mean()) > 0.98


def test_a_noisy_teachers_actions_are_feasible_and_differ(taught: Lesson) -> None:
    clean, noisy = _batch(taught, TeacherSettings()), _batch(taught, TeacherSettings(noise=0.1))
    assert not torch.equal(clean.actions, noisy.actions)
    assert torch.allclose(taught.space.project(noisy.people, noisy.actions), noisy.actions, atol=1e-6)


def test_a_selection_keeps_each_person_with_her_action(taught: Lesson) -> None:
    whole = taught.supervision(TeacherSettings())
    chosen = torch.arange(0, len(taught.rows), 3)
    part = whole.select(chosen)
    before = {tuple(whole.rows[p].tolist()): action for p, action in zip(whole.person.tolist(), whole.actions, strict=True)}
    assert len(part.person) > 0
    for person, action in zip(part.person.tolist(), part.actions, strict=True):
        assert torch.equal(before[tuple(part.rows[person].tolist())], action)


@pytest.mark.parametrize("wrong", [{"sides": (1.2, 0.8)}, {"share": 0.0}, {"noise": -1.0}, {"solvers": ()}])
def test_a_teacher_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="TeacherSettings"):
        TeacherSettings(**wrong)  # type: ignore[arg-type]


def test_an_objective_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Objective(task="guess")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least 0"):
        Objective(eta=-1.0)
