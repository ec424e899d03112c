"""A score for automatic tuners, boundary disagreement under an accuracy floor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cfptq.errors import DataError
from cfptq.metrics import accuracy, boundary_disagreement, premature_acceptances, target_failures
from cfptq.network import DecisionRule, as_predictor, decide
from cfptq.pipeline.task import QuantizationTask
from cfptq.recourse import ProjectedGradient, RecourseBatch, resolve_target, solve


@dataclass(frozen=True)
class TuningScore:
    """A function that scores a candidate model by boundary disagreement under an accuracy floor.

    The score is 1 − boundary disagreement where the candidate's accuracy reaches the floor, and accuracy − floor, below 0, elsewhere.
    The full-precision model scores 1. A tuner's tolerable loss of 0.02 is therefore a boundary disagreement of 0.02. Validity Drop
    alone would reward a candidate that accepts more people.

    Attributes:
        rows: (N, ...) people to judge accuracy by.
        labels: (N,) their classes, or the full-precision model's decisions where there are none.
        recourse: the full-precision model's recourse for the people it rejects.
        min_accuracy: the accuracy floor, a share from 0 to 1.
        decision: head of the network's raw output and decision threshold.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    recourse: RecourseBatch
    min_accuracy: float
    decision: DecisionRule

    def __post_init__(self) -> None:
        if not bool(self.recourse.found.any()):
            raise DataError("the rows must include rejected people who have recourse, and there are none. Give more rows.")

    def __call__(self, model: nn.Module) -> float:
        """Return the score of ``model``."""
        candidate = as_predictor(model, example=self.rows[:2], head=self.decision.head, threshold=self.decision.threshold)
        reached = float(accuracy(decide(candidate.logits(self.rows)), self.labels))
        if reached < self.min_accuracy:
            return reached - self.min_accuracy
        recourse = self.recourse
        assert recourse.last_refused is not None  # Projected gradient decides at every step.
        failures = target_failures(decide(candidate.logits(recourse.points)), recourse.target, recourse.found)
        premature = premature_acceptances(decide(candidate.logits(recourse.last_refused)), recourse.target, recourse.found)
        return 1 - float(boundary_disagreement(failures, premature))


def build_tuning_score(task: QuantizationTask, max_accuracy_drop: float, *, progress: bool = True) -> TuningScore:
    """Build the score from a task's rows and its model's recourse.

    Args:
        task: the full-precision model and the people to judge by.
        max_accuracy_drop: largest loss of accuracy that meets the floor, a share from 0 to 1.
        progress: whether a progress bar may be shown.

    Raises:
        DataError: the model rejects nobody, or nobody rejected has recourse.
    """
    logits = task.predictor.logits(task.rows)
    decided, wanted = decide(logits), resolve_target(task.target, task.rows, logits)
    labels = decided if task.labels is None else task.labels
    rejected = decided != wanted
    if not bool(rejected.any()):
        raise DataError("the rows must include people whom the model rejects, and there are none. Give more rows.")
    recourse = solve(
        task.predictor,
        task.rows[rejected],
        task.space,
        target=wanted[rejected],
        method=ProjectedGradient(),
        seed=task.seed,
        progress=progress,
    )
    floor = float(accuracy(decided, labels)) - max_accuracy_drop
    return TuningScore(task.rows, labels, recourse, floor, task.decision)
