"""Validation metrics of a student, which choose the epoch that is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.network import decide
from cfptq.training.objective import Logits, Objective, compute_loss_terms
from cfptq.training.supervision import Batch, Supervision

#: Rows that are decided in one pass. More are decided in several, to bound memory.
ROWS_PER_PASS = 8192


@dataclass(frozen=True)
class ValidationMetrics:
    """Metrics of a student against its teacher, shares of held-out rows unless stated otherwise.

    Attributes:
        loss: value of the objective without L_match.
        drift: student's favourable rate minus the teacher's, over all rows. It is a net count of few people, so the held-out rows alone
            would give it with an error near half a point unless there are many thousands.
        flips: share of rows that student and teacher decide differently.
        validity_drop: share of the teacher's valid recourse that is invalid with the student. None without any.
    """

    loss: float
    drift: float
    flips: float
    validity_drop: float | None


def validate_student(objective: Objective, logits: Logits, held_out: Batch, all_rows: Supervision, softness: float) -> ValidationMetrics:
    """Compute the validation metrics of a student.

    Args:
        objective: the training objective, evaluated without L_match.
        logits: the student's class logits of rows.
        held_out: the held-out rows and their recourse points.
        all_rows: training and held-out rows, for the drift.
        softness: margin that counts as near the boundary, in logits.
    """

    def compute_favourable_rate(decisions: Tensor) -> float:
        return float((decisions == all_rows.target).double().mean())

    with torch.no_grad():
        terms = compute_loss_terms(objective.without_match(), logits, held_out, all_rows.space, softness)
        student, teacher = decide(logits(held_out.rows)), decide(held_out.logits)
        student_on_all = torch.cat([decide(logits(part)) for part in torch.split(all_rows.rows, ROWS_PER_PASS)])
        ends = len(held_out.people)
        is_valid = decide(held_out.point_logits[:ends]) == held_out.wanted
        is_kept = decide(logits(held_out.points[:ends][is_valid])) == held_out.wanted[is_valid] if bool(is_valid.any()) else None
    return ValidationMetrics(
        loss=float(sum(terms.values())),
        drift=compute_favourable_rate(student_on_all) - compute_favourable_rate(decide(all_rows.logits)),
        flips=float((student != teacher).double().mean()),
        validity_drop=None if is_kept is None else 1 - float(is_kept.double().mean()),
    )
