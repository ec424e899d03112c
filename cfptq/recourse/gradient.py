"""Projected-gradient recourse (eq. 6): batched, on the rows that still need it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor


@dataclass(frozen=True)
class ProjectedGradient:
    """Settings of projected-gradient recourse; the defaults are the standard evaluation protocol's.

    Attributes:
        loss: ``"cross-entropy"`` with the target class, or ``"margin"``, the target's logit less the strongest other's.
        steps: K, the most gradient steps.
        step_size: alpha, in columns; with ``normalize`` the largest change of a column in one step.
        normalize: scale each row's gradient to unit max-norm.
        early_stop: freeze a row at the first step at which the artefact gives the target; else take all steps and keep the last.
        restarts: how many more starts, from random points around the row, for the rows that are not at the target at the end.
        accumulate: keep the unprojected sum of the steps and evaluate its projection. A projection to hard one-hots or integers
            makes single small steps vanish; their sum does not. ``False`` with ``normalize=False`` is eq. 6 to the letter.
    """

    loss: Literal["cross-entropy", "margin"] = "cross-entropy"
    steps: int = 50
    step_size: float = 0.3
    normalize: bool = True
    early_stop: bool = True
    restarts: int = 0
    accumulate: bool = True

    def __post_init__(self) -> None:
        if self.loss not in ("cross-entropy", "margin"):
            raise DataError(f'ProjectedGradient.loss is {self.loss!r}; use "cross-entropy" or "margin"')
        if self.steps < 1 or self.restarts < 0:
            raise DataError(f"ProjectedGradient needs at least one step and no negative restarts, got {self.steps} and {self.restarts}")
        if not (isfinite(self.step_size) and self.step_size > 0):
            raise DataError(f"ProjectedGradient.step_size is {self.step_size}; it must be a positive number")


def projected_gradient(
    predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: ProjectedGradient, seed: int = 0
) -> Tensor:
    """Actions of projected gradient descent from a zero action, (N, ...) in the space's own shape.

    Every row is worked on, also one that has the target already; ``early_stop`` leaves such a row as it is.

    Args:
        rows: (N, ...). target: (N,) int64. seed: of the restarts; the same noise for every row, so that a row's action does not
            depend on which rows it is solved with.
    """
    delta, reached = _descend(predictor, rows, space, target, space.zero(rows), settings)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.restarts):
        left = (~reached).nonzero()[:, 0]
        if len(left) == 0:
            break
        noise = torch.randn(delta.shape[1:], generator=generator, dtype=delta.dtype)
        start = (settings.step_size * settings.steps**0.5) * noise.to(delta.device).expand(len(left), *noise.shape)
        again, there = _descend(predictor, rows[left], space, target[left], start, settings)
        delta[left[there]] = again[there]
        reached[left[there]] = True
    return delta


def _descend(
    predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, start: Tensor, settings: ProjectedGradient
) -> tuple[Tensor, Tensor]:
    """One run from ``start``: the actions (N, ...) and which of them reach the target (N,)."""
    result = space.project(rows, start)
    reached = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    live = torch.arange(len(rows), device=rows.device)
    x, wanted, total, delta = rows, target, start, result
    for _ in range(settings.steps):
        if settings.early_stop:
            there = _at_target(predictor, x, space, delta, wanted)
            if bool(there.any()):
                result[live[there]] = delta[there]
                reached[live[there]] = True
                on = ~there
                live, x, wanted, total, delta = live[on], x[on], wanted[on], total[on], delta[on]
        if len(live) == 0:
            return result, reached
        step = settings.step_size * _downhill(predictor, x, space, delta, wanted, settings)
        total = (total if settings.accumulate else delta) + step
        delta = space.project(x, total)
    result[live] = delta
    reached[live] = _at_target(predictor, x, space, delta, wanted)
    return result, reached


def _at_target(predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor) -> Tensor:
    return target_margin(predictor.logits(space.apply(x, delta)), target) > 0


def _downhill(predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor, settings: ProjectedGradient) -> Tensor:
    """Minus the gradient of the counterfactual loss with respect to the action, one row each."""
    with torch.enable_grad():
        action = delta.detach().requires_grad_(True)
        logits = predictor.surrogate(space.apply(x, action))
        # A sum over rows: each row's gradient is its own, whatever the batch.
        entropic = settings.loss == "cross-entropy"
        loss = cross_entropy(logits, target, reduction="sum") if entropic else -target_margin(logits, target).sum()
        (gradient,) = torch.autograd.grad(loss, action)
    if settings.normalize:
        largest = gradient.flatten(1).abs().amax(1).reshape(-1, *[1] * (gradient.dim() - 1))
        gradient = gradient / torch.where(largest > 0, largest, 1.0)
    return -gradient
