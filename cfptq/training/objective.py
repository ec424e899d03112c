"""The training objective and its loss terms (Section 4.2, Algorithm 2, Appendices B and H)."""

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

#: Function from rows to the student's class logits, (N, C), with gradient.
Logits = Callable[[Tensor], Tensor]

#: Weight that "boundary" terms add to every row, however far from the boundary. A row on the boundary weighs 1 more.
MIN_BOUNDARY_WEIGHT = 0.1

#: Huber delta of "boundary" terms, as a share of the softness. Beyond it the loss is linear, so that outliers do not dominate.
HUBER_DELTA_SHARE = 0.1


@dataclass(frozen=True)
class Match:
    """Settings of L_match (eq. 18), which compares the student's unrolled action with the teacher's detached one.

    The student's steps must be those of the teacher. The defaults are eq. 17 to the letter, as in the presets' teacher.

    Attributes:
        direction: α₁, weight of ‖δ_q − δ_fp‖₁.
        cost: α₂, weight of |c(δ_q) − c(δ_fp)|.
        steps: number of unrolled steps, K.
        step_size: step size α of the student's action.
        normalize: scale each gradient to unit max-norm (``cfptq.recourse.ProjectedGradient``).
        accumulate: keep an unprojected accumulator between steps (``cfptq.recourse.ProjectedGradient``).
        rows: people per batch that the term is computed for.
    """

    direction: float = 0.1
    cost: float = 0.1
    steps: int = 3
    step_size: float = 1.0
    normalize: bool = False
    accumulate: bool = False
    rows: int = 64


@dataclass(frozen=True)
class Objective:
    """Terms of the loss and their weights.

    Attributes:
        task: loss on factual rows. "labels" is the cross-entropy (Section 4.2). "distil" is the divergence from the teacher's class
            probabilities. "boundary" is the difference from the teacher's logits, which weighs rows near its boundary most.
        validity: loss on the teacher's recourse points. "target" is the cross-entropy towards the target (eq. 26). "boundary" is the same
            as for ``task``. Points before the boundary need "boundary", because the teacher rejects them.
        eta: η, weight of the validity term. 0 leaves it out.
        worst_group: True for the maximum over groups (eq. 33), False for the mean.
        hinge: β, weight of L_hinge. 0 leaves it out.
        gamma: γ, margin in logits below which L_hinge is positive.
        match: settings of L_match. None leaves it out.
        softness: margin that counts as near in "boundary" terms, as a share of the rows' median |target margin|.
        reserve: least margin that "boundary" terms teach, as a share of the margin that counts as near. A teacher's margin m is taught as
            ±√(m² + reserve²), so that decisions next to the boundary tolerate quantization error.
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
            raise ConfigurationError(f"Objective.softness must be a finite number above 0, got {self.softness}.")
        if self.task not in ("labels", "distil", "boundary"):
            raise ConfigurationError(f"Objective.task must be 'labels', 'distil' or 'boundary', got {self.task!r}.")
        if self.validity not in ("target", "boundary"):
            raise ConfigurationError(f"Objective.validity must be 'target' or 'boundary', got {self.validity!r}.")
        for name in ("eta", "hinge", "gamma", "reserve"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ConfigurationError(f"Objective.{name} must be a finite number of at least 0, got {value}.")

    def with_eta(self, eta: float) -> Objective:
        """Return the objective with another η."""
        return replace(self, eta=eta)

    def without_match(self) -> Objective:
        """Return the objective without L_match, which needs a gradient even to be evaluated."""
        return replace(self, match=None)

    @property
    def is_margin_based(self) -> bool:
        """True where every term teaches the teacher's margins."""
        return self.task == "boundary" and (self.eta == 0 or self.validity == "boundary")

    @property
    def needs_recourse(self) -> bool:
        """True where a term uses the teacher's recourse."""
        return self.eta > 0 or self.hinge > 0 or self.match is not None


def compute_loss_terms(objective: Objective, logits: Logits, batch: Batch, space: ActionSpace, softness: float) -> dict[str, Tensor]:
    """Compute the weighted loss terms by name.

    Args:
        objective: terms and their weights.
        logits: the student's class logits of rows.
        batch: rows, recourse points and the teacher's logits.
        space: the action space, for L_match.
        softness: margin that counts as near the boundary, in logits.
    """
    points = batch.points if objective.eta > 0 or objective.hinge > 0 else batch.points[:0]
    # One pass for all rows, because calls take most of a small model's time.
    output = logits(torch.cat((batch.rows, points)))
    factual, counterfactual = output[: len(batch.rows)], output[len(batch.rows) :]
    terms = {"task": _compute_task_loss(objective, factual, batch, softness)}
    if objective.eta > 0 and len(points):
        terms["validity"] = objective.eta * _compute_validity_loss(objective, counterfactual, batch, softness)
    if objective.hinge > 0 and len(points):
        ends = len(batch.people)
        margin = target_margin(counterfactual[:ends], batch.wanted)
        terms["hinge"] = objective.hinge * (objective.gamma - margin).clamp_min(0).mean()
    if objective.match is not None and len(batch.people):
        terms["match"] = compute_match_loss(objective.match, logits, batch, space)
    return terms


def compute_match_loss(settings: Match, logits: Logits, batch: Batch, space: ActionSpace) -> Tensor:
    """Compute ℓ_match of eq. 18, whose gradient reaches the student through the unrolled steps (eq. 19).

    Args:
        settings: weights, steps and the number of people.
        logits: the student's class logits of rows.
        batch: people and the teacher's actions. The first ``settings.rows`` people are used.
        space: the action space.
    """
    x, wanted, teacher = batch.people[: settings.rows], batch.wanted[: settings.rows], batch.actions[: settings.rows]
    action = unroll_projected_gradient(
        logits, x, space, wanted, settings.steps, settings.step_size, normalize=settings.normalize, accumulate=settings.accumulate
    )
    distance = (action - teacher).flatten(1).abs().sum(dim=1)
    cost_difference = (space.cost(x, action) - space.cost(x, teacher)).abs()
    return (settings.direction * distance + settings.cost * cost_difference).mean()


def _compute_task_loss(objective: Objective, logits: Tensor, batch: Batch, softness: float) -> Tensor:
    if objective.task == "labels":
        return cross_entropy(logits, batch.labels)
    if objective.task == "distil":
        return kl_div(logits.log_softmax(dim=1), batch.logits.log_softmax(dim=1), reduction="batchmean", log_target=True)
    return compute_boundary_loss(logits, batch.logits, softness, objective.reserve).mean()


def _compute_validity_loss(objective: Objective, logits: Tensor, batch: Batch, softness: float) -> Tensor:
    if objective.validity == "boundary":
        each, people = compute_boundary_loss(logits, batch.point_logits, softness, objective.reserve), batch.groups
        copies = len(logits) // max(len(batch.people), 1)
        people = None if people is None else people.repeat(copies)
    else:
        ends = len(batch.people)
        each, people = cross_entropy(logits[:ends], batch.wanted, reduction="none"), batch.groups
    if not objective.worst_group or people is None:
        return each.mean()
    present = torch.unique(people)
    return torch.stack([each[people == group].mean() for group in present]).amax()


def compute_boundary_loss(logits: Tensor, teacher: Tensor, softness: float, reserve: float = 0.0) -> Tensor:
    """Compute each row's Huber loss against the teacher's logits, weighted by nearness to the boundary, (N,).

    Each row's mean difference is subtracted, because a shift of all logits changes no decision. The weight is
    exp(−|teacher's decision margin| / softness) + ``MIN_BOUNDARY_WEIGHT``. For two classes this is a regression on the margin.

    Args:
        logits: the student's class logits, (N, C).
        teacher: the teacher's class logits, (N, C).
        softness: margin that counts as near, in logits.
        reserve: least margin that is taught, as a share of ``softness`` (``Objective``).
    """
    targets, weights = _build_margin_targets(teacher, softness, reserve)
    difference = logits - targets
    difference = 2 * (difference - difference.mean(dim=1, keepdim=True)) / softness
    return weights * smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=HUBER_DELTA_SHARE).mean(dim=1)


def build_margin_target(objective: Objective, batch: Batch, softness: float) -> MarginTarget:
    """Build the margins that a sweep aims at, with the weights of the objective's "boundary" terms.

    Args:
        objective: its η and reserve are used.
        batch: rows, recourse points and the teacher's logits.
        softness: margin that counts as near, in logits.
    """
    logits, target = torch.cat((batch.logits, batch.point_logits)), torch.cat((batch.target, batch.point_target))
    rows = torch.full((len(batch.rows),), 1 / len(batch.rows))
    points = torch.full((len(batch.points),), objective.eta / max(len(batch.points), 1))
    targets, near = _build_margin_targets(logits, softness, objective.reserve)
    weights = torch.cat((rows, points)) * near
    return MarginTarget(
        torch.cat((batch.rows, batch.points)), target, target_margin(targets, target), weights, HUBER_DELTA_SHARE * softness
    )


def _build_margin_targets(teacher: Tensor, softness: float, reserve: float) -> tuple[Tensor, Tensor]:
    """Return the logits that "boundary" terms teach, (N, C), and each row's weight, (N,).

    The margin m of each row's decision over the runner-up is widened to √(m² + (reserve · softness)²).
    """
    top = teacher.topk(2, dim=1)
    margin = top.values[:, 0] - top.values[:, 1]
    half = (torch.hypot(margin, torch.full_like(margin, reserve * softness)) - margin) / 2
    return teacher.scatter_add(1, top.indices, torch.stack((half, -half), dim=1)), torch.exp(-margin / softness) + MIN_BOUNDARY_WEIGHT
