"""What an automatic tuner should ask of a quantized model: that it keeps people's recourse, and first of all its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cfptq.errors import DataError
from cfptq.metrics import accuracy, validity_drop
from cfptq.network import Head, as_predictor, decide
from cfptq.pipeline.task import Teacher
from cfptq.recourse import ProjectedGradient, RecourseBatch, solve, resolve_target


@dataclass(frozen=True)
class TuningScore:
    """The score of a candidate: 1 − Validity Drop where its accuracy holds, else how far accuracy falls short, below 0.

    The full-precision model scores 1, so that a tuner's tolerable loss of 0.02 is a Validity Drop of 0.02.

    Attributes:
        rows: (N, ...) people to judge accuracy by.
        labels: (N,) their classes; the full-precision model's own decisions where there are none.
        recourse: the full-precision model's recourse for those it rejects.
        least_accuracy: the floor.
        head, threshold: what models put out, and where they decide.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    recourse: RecourseBatch
    least_accuracy: float
    head: Head
    threshold: float | None

    def __post_init__(self) -> None:
        if not bool(self.recourse.found.any()):
            raise DataError("nobody who is rejected has recourse, so there is nothing to tune on; give more rows")

    def __call__(self, model: nn.Module) -> float:
        candidate = as_predictor(model, example=self.rows[:2], head=self.head, threshold=self.threshold)
        reached = float(accuracy(decide(candidate.logits(self.rows)), self.labels))
        if reached < self.least_accuracy:
            return reached - self.least_accuracy
        points = self.recourse.points
        return 1 - float(validity_drop(decide(candidate.logits(points)), self.recourse.target, self.recourse.found))


def score_by(teacher: Teacher, max_accuracy_drop: float, *, progress: bool = True) -> TuningScore:
    """The score by ``teacher``'s rows: its own recourse for those it rejects, and its own accuracy less ``max_accuracy_drop``.

    Raises:
        DataError: it rejects nobody, or nobody rejected has recourse.
    """
    logits = teacher.predictor.logits(teacher.rows)
    decided, wanted = decide(logits), resolve_target(teacher.target, teacher.rows, logits)
    labels = decided if teacher.labels is None else teacher.labels
    rejected = decided != wanted
    if not bool(rejected.any()):
        raise DataError("the model rejects none of these rows, so there is no recourse to tune on; give more rows")
    recourse = solve(
        teacher.predictor,
        teacher.rows[rejected],
        teacher.space,
        target=wanted[rejected],
        method=ProjectedGradient(),
        seed=teacher.seed,
        progress=progress,
    )
    floor = float(accuracy(decided, labels)) - max_accuracy_drop
    return TuningScore(teacher.rows, labels, recourse, floor, teacher.head, teacher.threshold)
