"""The student's own recourse: where it would send people itself, for the teacher to judge.

The teacher's actions end where the teacher's boundary is. Where the student's boundary has slipped elsewhere, its cheapest recourse finds
the slip, as dataset aggregation (Ross, Gordon and Bagnell 2011) finds the states that a learner gets itself into.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.network import Predictor
from cfptq.recourse import MinimalCost, solve
from cfptq.training.supervision import Supervision


def own_recourse(student: Predictor, supervision: Supervision, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The student's cheapest recourse for at most ``most`` people whom the teacher rejects, drawn by ``generator``.

    Returns:
        Positions among the supervision's rows (M,), and actions (M, k). Whom the student accepts as they are is left out.
    """
    rejected = supervision.rejected
    drawn = rejected[torch.randperm(len(rejected), generator=generator)[:most].sort().values]
    if len(drawn) == 0:
        return drawn, supervision.actions[:0]
    rows, wanted = supervision.rows[drawn], supervision.target[drawn]
    found = solve(student, rows, supervision.space, target=wanted, method=MinimalCost(), threads=None, progress=False)
    moved = found.found & (found.delta != 0).any(dim=1)
    return drawn[moved], found.delta[moved]
