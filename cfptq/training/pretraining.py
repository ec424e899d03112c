"""Full-precision training for robust recourse before quantization (E.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cfptq.network import DecisionRule, Network
from cfptq.training.objective import Objective
from cfptq.training.schedule import Schedule
from cfptq.training.student import Start, Student
from cfptq.training.supervision import Supervision
from cfptq.training.trainer import Trainer

#: Rounds of R-Margin. Each round computes recourse on the current model.
R_MARGIN_ROUNDS = 2

#: Members of R-Consistency's ensemble, each trained on a bootstrap sample.
ENSEMBLE_MEMBERS = 3

#: Objective of R-Margin. With a much larger hinge weight the model accepts everybody.
R_MARGIN = Objective(eta=0.0, hinge=0.1, gamma=0.5)

#: Objective of R-Consistency, with labels on the rows and the ensemble's logits at recourse points.
R_CONSISTENCY = Objective(validity="boundary")

#: Function from a module to supervision with that module as the teacher.
BuildSupervision = Callable[[nn.Module], Supervision]


class Ensemble(nn.Module):
    """Ensemble whose output is the mean of its members' outputs."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the mean output, (N, ...), of rows."""
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


def pretrain_for_robust_recourse(
    kind: str,
    network: Network,
    start: Start,
    supervise: BuildSupervision,
    schedule: Schedule,
    decision: DecisionRule,
    seed: int,
    keep: Sequence[str] = (),
) -> Network:
    """Return the network after further training in full precision.

    Args:
        kind: "margin" for R-Margin, "consistency" for R-Consistency.
        network: the full-precision network.
        start: names, shapes and biases of the student's layers. Its integers are not used.
        supervise: builds supervision with a module as the teacher.
        schedule: schedule of each training.
        decision: head of the network's raw output and decision threshold.
        seed: of all sampling.
        keep: structure of the weights to keep, "zeros" and "signs".
    """

    def train(supervision: Supervision, objective: Objective, number: int) -> Network:
        student = Student(Start(network, start.plan, {}), is_quantized=False, keep=keep)
        Trainer(student, supervision, objective, schedule, student.bits, decision, seed=seed * 101 + number).fit(progress=False)
        return student.transfer_parameters(network)

    if kind == "margin":
        for number in range(R_MARGIN_ROUNDS):
            network = train(supervise(network.graph), R_MARGIN, number)
        return network
    whole = supervise(network.graph)
    members = []
    for number in range(ENSEMBLE_MEMBERS):
        generator = torch.Generator().manual_seed(seed * 101 + number)
        drawn = torch.randint(0, len(whole.rows), (len(whole.rows),), generator=generator).sort().values
        members.append(train(whole.select(torch.unique(drawn)), Objective(eta=0.0), number).graph)
    return train(supervise(Ensemble(members)), R_CONSISTENCY, ENSEMBLE_MEMBERS)
