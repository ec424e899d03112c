"""U_cal is the factual rows and the teacher's counterfactual points of everyone it rejects (eqs. 20 and 21)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Continuous
from cfptq.calibration import CalibrationSet, build_augmented_set, build_factual_set
from cfptq.errors import DataError, FileError
from cfptq.network.predictor import Predictor, as_predictor
from cfptq.recourse import ProjectedGradient, opposite_class


@pytest.fixture
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    job = torch.nn.functional.one_hot(torch.randint(0, 3, (80,), generator=generator), 3).float()
    return torch.cat((torch.randn(80, 3, generator=generator), job), 1)


@pytest.fixture
def action_set(rows: Tensor) -> ActionSet:
    jobs = Categorical("job", columns=(3, 4, 5), levels=("a", "b", "c"))
    return ActionSet.from_columns(rows, [*(Continuous(f"c{j}", column=j) for j in range(3)), jobs], max_changes=2)


@pytest.fixture
def predictor(rows: Tensor) -> Predictor:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return as_predictor(model, example=rows)


def test_everyone_rejected_gets_one_counterfactual_row_after_the_factual_ones(
    rows: Tensor, action_set: ActionSet, predictor: Predictor
) -> None:
    labels = torch.arange(80) % 2
    points, teacher = build_augmented_set(rows, labels, predictor, action_set, target=1)
    rejected = (predictor.logits(rows).argmax(1) == 0).nonzero()[:, 0]
    assert 10 < len(rejected) < 70
    assert torch.equal(points.factual, rows) and torch.equal(points.counterfactual, teacher.points)
    assert torch.equal(points.source[80:], rejected) and torch.equal(teacher.factual, rows[rejected])
    assert torch.equal(points.labels[:80], labels) and bool((points.labels[80:] == -1).all())
    assert not points.labels_are_teacher and bool((points.weights == 1).all()) and bool((points.target == 1).all())


def test_by_default_it_is_three_accumulated_steps_of_the_teacher_without_early_stop(
    rows: Tensor, action_set: ActionSet, predictor: Predictor
) -> None:
    _, teacher = build_augmented_set(rows, None, predictor, action_set, target=1)
    total = torch.zeros_like(teacher.factual)
    delta = action_set.project(teacher.factual, total)
    for _ in range(3):
        action = delta.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(predictor.surrogate(action_set.apply(teacher.factual, action)), teacher.target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, action)
        total = total - 0.3 * gradient / gradient.abs().amax(1, keepdim=True)
        delta = action_set.project(teacher.factual, total)
    assert torch.allclose(teacher.delta, delta, atol=1e-5)


def test_without_labels_the_teacher_decides_and_the_set_says_so(rows: Tensor, action_set: ActionSet, predictor: Predictor) -> None:
    points, _ = build_augmented_set(rows, None, predictor, action_set, target=opposite_class)
    assert points.labels_are_teacher and torch.equal(points.labels[:80], predictor.logits(rows).argmax(1))
    assert len(points.counterfactual) == 80  # the opposite class: everyone is rejected


def test_nobody_rejected_gives_the_factual_rows_alone(rows: Tensor, action_set: ActionSet, predictor: Predictor) -> None:
    decided = predictor.logits(rows).argmax(1)
    points, teacher = build_augmented_set(rows, None, predictor, action_set, target=decided)
    assert torch.equal(points.rows, rows) and len(teacher) == 0 and len(points.counterfactual) == 0


def test_factual_only_is_the_same_set_without_counterfactual_rows(rows: Tensor, action_set: ActionSet, predictor: Predictor) -> None:
    plain = build_factual_set(rows, None, predictor, target=1)
    points, _ = build_augmented_set(rows, None, predictor, action_set, target=1)
    assert torch.equal(plain.rows, points.factual) and torch.equal(plain.labels, points.labels[: len(plain)])


def test_the_same_call_gives_the_same_set_and_better_settings_reach_more(rows: Tensor, action_set: ActionSet, predictor: Predictor) -> None:
    first, short = build_augmented_set(rows, None, predictor, action_set, target=1, seed=2)
    again, _ = build_augmented_set(rows, None, predictor, action_set, target=1, seed=2)
    _, long = build_augmented_set(rows, None, predictor, action_set, target=1, settings=ProjectedGradient())
    assert torch.equal(first.rows, again.rows) and long.found.sum() >= short.found.sum()


def test_a_set_is_saved_and_loaded(rows: Tensor, action_set: ActionSet, predictor: Predictor, tmp_path: Path) -> None:
    points, _ = build_augmented_set(rows, None, predictor, action_set, target=1)
    points.save(tmp_path / "set.safetensors")
    back = CalibrationSet.load(tmp_path / "set.safetensors")
    assert torch.equal(back.rows, points.rows) and torch.equal(back.labels, points.labels) and back.labels_are_teacher
    (tmp_path / "cut").write_bytes((tmp_path / "set.safetensors").read_bytes()[:100])
    for path in ("cut", "missing"):
        with pytest.raises(FileError):
            CalibrationSet.load(tmp_path / path)


def test_labels_that_do_not_fit_are_refused(rows: Tensor, action_set: ActionSet, predictor: Predictor) -> None:
    for labels, says in (
        (torch.zeros(3, dtype=torch.int64), r"\(80,\) int64"),
        (torch.full((80,), 2), "from 0 to 1"),
        (torch.zeros(80), "float32"),
    ):
        with pytest.raises(DataError, match=says):
            build_augmented_set(rows, labels, predictor, action_set, target=1)
    with pytest.raises(DataError, match="classes"):
        build_augmented_set(rows, None, predictor, action_set, target=3)


def test_a_set_is_checked_when_built(rows: Tensor) -> None:
    good = {
        "rows": rows,
        "origin": torch.zeros(80, dtype=torch.uint8),
        "weights": torch.ones(80),
        "source": torch.arange(80),
        "target": torch.zeros(80, dtype=torch.int64),
    }
    CalibrationSet(**good)
    no_factual = {"origin": torch.ones(80, dtype=torch.uint8)}
    for change in ({"weights": -torch.ones(80)}, {"source": torch.arange(79)}, no_factual, {"target": torch.zeros(80)}):
        with pytest.raises(DataError):
            CalibrationSet(**(good | change))
