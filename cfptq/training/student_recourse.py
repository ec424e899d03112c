"""The student's cheapest recourse, as additional points at which the teacher's logits are taught.

The teacher's actions end at the teacher's boundary. The student's cheapest actions end at the student's, and reach the regions where the
two differ. Dataset aggregation (Ross, Gordon and Bagnell 2011) visits a learner's own states for the same reason.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cfptq.network import Network, Predictor, count_multiply_adds
from cfptq.recourse import MinimalCost, solve
from cfptq.recourse.minimal_cost import EVALUATIONS_PER_ROW
from cfptq.training.supervision import Supervision

#: Multiply-adds of one search, approximately. Beyond, fewer people are searched for.
MAX_SEARCH_MACS = 2**35


def count_affordable_people(network: Network, supervision: Supervision, share: float) -> int:
    """Return the number of rejected people whose minimal-cost recourse is searched in one epoch.

    It is 0 where rows are not vectors, because minimal-cost recourse needs single columns.

    Args:
        network: its multiply-adds decide how many searches are affordable.
        supervision: the training rows.
        share: share of the rejected rows in [0, 1].
    """
    if supervision.actions.dim() != 2:
        return 0
    return min(math.ceil(share * len(supervision.rejected)), MAX_SEARCH_MACS // (EVALUATIONS_PER_ROW * count_multiply_adds(network)))


def find_student_recourse(
    student: Predictor, supervision: Supervision, max_people: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Find the student's cheapest recourse for a random sample of the people whom the teacher rejects.

    Args:
        student: the student in its present state.
        supervision: the training rows.
        max_people: size of the sample. Fewer are drawn where fewer are rejected.
        generator: source of randomness. Its state advances.

    Returns:
        Positions among the supervision's rows, (M,), and actions, (M, k). People whom the student accepts unchanged are left out.
    """
    rejected = supervision.rejected
    drawn = rejected[torch.randperm(len(rejected), generator=generator)[:max_people].sort().values]
    if len(drawn) == 0:
        return drawn, supervision.actions[:0]
    rows, wanted = supervision.rows[drawn], supervision.target[drawn]
    found = solve(student, rows, supervision.space, target=wanted, method=MinimalCost(), threads=None, progress=False)
    has_action = found.found & (found.delta != 0).any(dim=1)
    return drawn[has_action], found.delta[has_action]
