"""What a student does to people: the figures that choose the epoch that is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.network import decisions
from cfptq.training.objective import Logits, Objective, loss
from cfptq.training.supervision import Batch, Supervision

#: Rows that are decided at a time.
CHUNK = 8192


@dataclass(frozen=True)
class ValidationMetrics:
    """A student against its teacher on rows set aside; drift on all rows. All but the loss are shares.

    Attributes:
        loss: the objective, without L_match.
        drift: how much larger the share of rows is that get their target: the change of the favourable rate. It is a net count of few
            people, which a tenth of the rows tells to half a point only where there are many thousands.
        flips: rows decided otherwise.
        validity_drop: teacher recourse that reaches its target with the teacher and not with the student; None without any.
    """

    loss: float
    drift: float
    flips: float
    validity_drop: float | None


def judge(objective: Objective, logits: Logits, batch: Batch, everyone: Supervision, softness: float) -> ValidationMetrics:
    """The judgement of a student, ``logits``, on a batch of rows set aside from ``everyone``."""

    def favoured(decided: Tensor) -> float:
        return float((decided == everyone.target).double().mean())

    with torch.no_grad():
        terms = loss(objective.without_match(), logits, batch, everyone.space, softness)
        own, given = decisions(logits(batch.rows)), decisions(batch.logits)
        all_own = torch.cat([decisions(logits(part)) for part in torch.split(everyone.rows, CHUNK)])
        ends = len(batch.people)
        held = decisions(batch.point_logits[:ends]) == batch.wanted
        kept = decisions(logits(batch.points[:ends][held])) == batch.wanted[held] if bool(held.any()) else None
    return ValidationMetrics(
        loss=float(sum(terms.values())),
        drift=favoured(all_own) - favoured(decisions(everyone.logits)),
        flips=float((own != given).double().mean()),
        validity_drop=None if kept is None else 1 - float(kept.double().mean()),
    )
