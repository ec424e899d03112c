"""The student's own recourse: where it would send people itself, for the teacher to judge.

The teacher's actions end where the teacher's boundary is. Where the student's boundary has slipped elsewhere, its cheapest recourse finds
the slip, as dataset aggregation (Ross, Gordon and Bagnell 2011) finds the states that a learner gets itself into.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfptq.network import Network, Predictor, count_multiply_adds
from cfptq.recourse import MinimalCost, solve
from cfptq.recourse.minimal_cost import EVALUATIONS_PER_ROW
from cfptq.training.supervision import Supervision

#: Multiply-adds that a search may take, about.
WORK = 2**35


def affordable_people(network: Network, supervision: Supervision, share: float) -> int:
    """``share`` of the supervision's rejected rows, or as many as are affordable; none where no minimal-cost recourse is to be had."""
    if supervision.actions.dim() != 2:
        return 0
    return min(math.ceil(share * len(supervision.rejected)), WORK // (EVALUATIONS_PER_ROW * count_multiply_adds(network)))


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
