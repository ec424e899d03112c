"""Full-precision training for robust recourse, before anything is quantized (E.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cfptq.network import Head, Network
from cfptq.training.objective import Objective
from cfptq.training.schedule import Schedule
from cfptq.training.student import Start, Student
from cfptq.training.supervision import Supervision
from cfptq.training.trainer import Trainer

#: Rounds of R-Margin: the recourse points of each round are the current model's own.
ROUNDS = 2

#: Predictors of R-Consistency's ensemble, each trained on a bootstrap sample.
MEMBERS = 3

#: Weight and threshold of R-Margin's hinge. Much more of it, and the model accepts everybody.
MARGIN = Objective(eta=0.0, hinge=0.1, gamma=0.5)

#: R-Consistency: labels on the rows, the ensemble's logits at recourse points.
CONSISTENCY = Objective(validity="boundary")

#: Makes the recourse points of a module: its rows, labels and recourse as supervision.
Supervise = Callable[[nn.Module], Supervision]


class Ensemble(nn.Module):
    """The mean output of several models."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Mean output (N, ...) of rows."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


def pretrained(
    kind: str, network: Network, start: Start, supervise: Supervise, schedule: Schedule, head: Head, threshold: float | None, seed: int
) -> Network:
    """``network`` trained further in full precision: "margin" (R-Margin) or "consistency" (R-Consistency).

    Args:
        start: gives names, shapes and biases to the student; its integers are not used.
        supervise: makes rows and recourse points with a module as the teacher.
    """

    def fitted(supervision: Supervision, objective: Objective, number: int) -> Network:
        student = Student(start_of(network), quantized=False)
        Trainer(student, supervision, objective, schedule, student.bits, head, threshold, seed=seed * 101 + number).fit(progress=False)
        return student.trained(network)

    def start_of(current: Network) -> Start:
        return Start(current, start.plan, {})

    if kind == "margin":
        for number in range(ROUNDS):
            network = fitted(supervise(network.graph), MARGIN, number)
        return network
    whole = supervise(network.graph)
    members = []
    for number in range(MEMBERS):
        generator = torch.Generator().manual_seed(seed * 101 + number)
        drawn = torch.randint(0, len(whole.rows), (len(whole.rows),), generator=generator).sort().values
        members.append(fitted(whole.select(torch.unique(drawn)), Objective(eta=0.0), number).graph)
    return fitted(supervise(Ensemble(members)), CONSISTENCY, MEMBERS)
