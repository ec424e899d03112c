"""What the student is trained for (Section 4.2, Algorithm 2, Appendices B and H)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, smooth_l1_loss

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import ConfigurationError
from cfptq.network.head import target_margin
from cfptq.quantize import MarginTarget
from cfptq.recourse import unroll_projected_gradient
from cfptq.training.supervision import Batch

#: Rows to the student's class logits (N, C), with gradient.
Logits = Callable[[Tensor], Tensor]

#: Weight of a row far from the boundary against one on it, in ``boundary`` terms.
FAR = 0.1

#: Error, as a share of the softness, from which a ``boundary`` term grows linearly: a few rows that cannot be met do not rule.
BEND = 0.1


@dataclass(frozen=True)
class Match:
    """L_match of eq. 18: the student's own action, unrolled with gradient, against the teacher's (detached).

    Attributes:
        direction: α₁, weight of ‖δ_q − δ_fp‖₁. cost: α₂, weight of |c(δ_q) − c(δ_fp)|.
        steps: K. step_size: α of both actions.
        normalize, accumulate: of the projected steps, as :class:`cfptq.recourse.ProjectedGradient` has them.
        rows: people a batch that it is computed for.
    """

    direction: float = 0.1
    cost: float = 0.1
    steps: int = 3
    step_size: float = 0.3
    normalize: bool = True
    accumulate: bool = True
    rows: int = 64


@dataclass(frozen=True)
class Objective:
    """The terms of the loss and their weights.

    Attributes:
        task: on factual rows: "labels", the cross-entropy (4.2); "distil", the divergence from the teacher's class probabilities;
            "boundary", the difference from the teacher's logits, counted by how near its decision is.
        validity: on teacher-recourse points: "target", the cross-entropy towards the target (eq. 26); "boundary" as above. On points
            just before the boundary only "boundary" makes sense: the teacher rejects there.
        eta: η, weight of the validity term; 0 leaves it out.
        worst_group: eq. 33's maximum over groups in place of the mean.
        hinge, gamma: β and γ of L_hinge; β = 0 leaves it out.
        match: L_match, or None.
        softness: what counts as near the boundary in "boundary" terms, as a share of the rows' median |target margin|.
        reserve: in "boundary" terms, the least margin that is taught, as a share of what counts as near: a teacher's margin m is taught as
            ±√(m² + reserve²). Decisions next to the boundary, on both of its sides, then hold against the error that widths leave.
    """

    task: Literal["labels", "distil", "boundary"] = "labels"
    validity: Literal["target", "boundary"] = "target"
    eta: float = 1.0
    worst_group: bool = False
    hinge: float = 0.0
    gamma: float = 0.5
    match: Match | None = None
    softness: float = 0.5
    reserve: float = 0.0

    def __post_init__(self) -> None:
        if not (isfinite(self.softness) and self.softness > 0):
            raise ConfigurationError(f"an objective's softness is a positive share, not {self.softness}")
        if self.task not in ("labels", "distil", "boundary") or self.validity not in ("target", "boundary"):
            raise ConfigurationError(f"an objective has no task {self.task!r} with validity {self.validity!r}")
        if any(not (isfinite(value) and value >= 0) for value in (self.eta, self.hinge, self.gamma, self.reserve)):
            raise ConfigurationError(
                f"η, β, γ and reserve must be at least 0, not {self.eta}, {self.hinge}, {self.gamma} and {self.reserve}"
            )

    def with_eta(self, eta: float) -> Objective:
        """The same objective with another η."""
        return replace(self, eta=eta)

    def without_match(self) -> Objective:
        """The same objective without L_match, which takes a gradient even to evaluate."""
        return replace(self, match=None)

    @property
    def follows_margins(self) -> bool:
        """Whether it is the teacher's margins that the student is trained for."""
        return self.task == "boundary" and (self.eta == 0 or self.validity == "boundary")

    @property
    def uses_points(self) -> bool:
        """Whether the teacher's recourse enters at all."""
        return self.eta > 0 or self.hinge > 0 or self.match is not None


def loss(objective: Objective, logits: Logits, batch: Batch, space: ActionSpace, softness: float) -> dict[str, Tensor]:
    """The loss's terms, weighted, by name; their sum is what is minimized.

    Args:
        logits: the student. batch: rows, points and the teacher's answers. softness: what counts as near, in logits.
    """
    points = batch.points if objective.eta > 0 or objective.hinge > 0 else batch.points[:0]
    # One pass for all rows: a small model's time goes into calls, not rows.
    answers = logits(torch.cat((batch.rows, points)))
    factual, beyond = answers[: len(batch.rows)], answers[len(batch.rows) :]
    terms = {"task": _task(objective, factual, batch, softness)}
    if objective.eta > 0 and len(points):
        terms["validity"] = objective.eta * _validity(objective, beyond, batch, softness)
    if objective.hinge > 0 and len(points):
        ends = len(batch.people)
        margin = target_margin(beyond[:ends], batch.wanted)
        terms["hinge"] = objective.hinge * (objective.gamma - margin).clamp_min(0).mean()
    if objective.match is not None and len(batch.people):
        terms["match"] = match(objective.match, logits, batch, space)
    return terms


def match(settings: Match, logits: Logits, batch: Batch, space: ActionSpace) -> Tensor:
    """ℓ_match of eq. 18, the mean over the batch's first people; its gradient reaches the student through the unrolled steps (eq. 19)."""
    x, wanted, teacher = batch.people[: settings.rows], batch.wanted[: settings.rows], batch.actions[: settings.rows]
    action = unroll_projected_gradient(
        logits, x, space, wanted, settings.steps, settings.step_size, normalize=settings.normalize, accumulate=settings.accumulate
    )
    apart = (action - teacher).flatten(1).abs().sum(dim=1)
    dearer = (space.cost(x, action) - space.cost(x, teacher)).abs()
    return (settings.direction * apart + settings.cost * dearer).mean()


def _task(objective: Objective, logits: Tensor, batch: Batch, softness: float) -> Tensor:
    if objective.task == "labels":
        return cross_entropy(logits, batch.labels)
    if objective.task == "distil":
        return kl_div(logits.log_softmax(dim=1), batch.logits.log_softmax(dim=1), reduction="batchmean", log_target=True)
    return boundary(logits, batch.logits, softness, objective.reserve).mean()


def _validity(objective: Objective, logits: Tensor, batch: Batch, softness: float) -> Tensor:
    if objective.validity == "boundary":
        each, people = boundary(logits, batch.point_logits, softness, objective.reserve), batch.groups
        copies = len(logits) // max(len(batch.people), 1)
        people = None if people is None else people.repeat(copies)
    else:
        ends = len(batch.people)
        each, people = cross_entropy(logits[:ends], batch.wanted, reduction="none"), batch.groups
    if not objective.worst_group or people is None:
        return each.mean()
    present = torch.unique(people)
    return torch.stack([each[people == group].mean() for group in present]).amax()


def boundary(logits: Tensor, teacher: Tensor, softness: float, reserve: float = 0.0) -> Tensor:
    """How far each row's logits are from the teacher's where that matters, (N,).

    Differences of logits are compared (a shift of all of them decides nothing) with a Huber loss, and weighted by
    exp(−|teacher's decision margin| / softness) + a small floor: rows next to the boundary, on both sides, count most. For two classes
    this is a regression on the margin. ``reserve``: as :class:`Objective` has it.
    """
    taught, near = _taught(teacher, softness, reserve)
    apart = logits - taught
    apart = 2 * (apart - apart.mean(dim=1, keepdim=True)) / softness
    return near * smooth_l1_loss(apart, torch.zeros_like(apart), reduction="none", beta=BEND).mean(dim=1)


def aim(objective: Objective, batch: Batch, softness: float) -> MarginTarget:
    """The margins to be taught on a batch's rows and points, weighted as the ``boundary`` terms of ``objective`` weigh them."""
    logits, target = torch.cat((batch.logits, batch.point_logits)), torch.cat((batch.target, batch.point_target))
    rows = torch.full((len(batch.rows),), 1 / len(batch.rows))
    points = torch.full((len(batch.points),), objective.eta / max(len(batch.points), 1))
    taught, near = _taught(logits, softness, objective.reserve)
    weights = torch.cat((rows, points)) * near
    return MarginTarget(torch.cat((batch.rows, batch.points)), target, target_margin(taught, target), weights, BEND * softness)


def _taught(teacher: Tensor, softness: float, reserve: float) -> tuple[Tensor, Tensor]:
    """What ``boundary`` terms teach: the logits, and how much each row counts, (N,).

    The lead m of each row's decision over the runner-up is widened to √(m² + (reserve · softness)²).
    """
    top = teacher.topk(2, dim=1)
    lead = top.values[:, 0] - top.values[:, 1]
    more = (torch.hypot(lead, torch.full_like(lead, reserve * softness)) - lead) / 2
    return teacher.scatter_add(1, top.indices, torch.stack((more, -more), dim=1)), torch.exp(-lead / softness) + FAR
