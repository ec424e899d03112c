"""Projected-gradient recourse (eq. 6), batched over the rows that have not reached the target."""

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
    """Settings of projected-gradient recourse.

    The defaults are those of the standard evaluation protocol.

    Attributes:
        loss: ``"cross-entropy"`` with the target class (default), or ``"margin"``, the negative target margin.
        steps: Maximal number of gradient steps K, default 50.
        step_size: Step size α in column units, default 0.3. With ``normalize`` it is the largest change of a column in one step.
        normalize: Scale the gradient of each row to unit max-norm, default True.
        early_stop: Stop a row at the first step at which the artefact predicts the target, default True. Otherwise all steps are
            taken and the final iterate is returned.
        restarts: Number of random restarts for rows that do not reach the target, default 0.
        accumulate: Sum up unprojected steps and evaluate the projection of the sum, default True. Projecting every step onto hard
            one-hot columns or integers would undo small steps. ``False`` with ``normalize=False`` is eq. 6 to the letter.
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
            raise DataError(f'ProjectedGradient.loss must be "cross-entropy" or "margin", got {self.loss!r}.')
        if self.steps < 1 or self.restarts < 0:
            raise DataError(f"ProjectedGradient needs steps >= 1 and restarts >= 0, got {self.steps} and {self.restarts}.")
        if not (isfinite(self.step_size) and self.step_size > 0):
            raise DataError(f"ProjectedGradient.step_size must be a positive number, got {self.step_size}.")


def run_projected_gradient(
    predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: ProjectedGradient, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Run projected gradient descent from a zero action.

    A row that has the target already keeps a zero action only with ``early_stop``.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        settings: Settings of the descent.
        seed: Seed of the restarts, default 0. All rows share the noise, so an action does not depend on the other rows.

    Returns:
        The actions (N, ...), in the shape of the action space, and the actions one step before. With ``early_stop``, these are the last
        ones that miss the target, or the final ones of rows that never reach it.
    """
    delta, before, is_reached = _descend(predictor, rows, space, target, space.zero(rows), settings)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.restarts):
        left = (~is_reached).nonzero()[:, 0]
        if len(left) == 0:
            break
        noise = torch.randn(delta.shape[1:], generator=generator, dtype=delta.dtype)
        start = (settings.step_size * settings.steps**0.5) * noise.to(delta.device).expand(len(left), *noise.shape)
        again, before_again, has_arrived = _descend(predictor, rows[left], space, target[left], start, settings)
        delta[left[has_arrived]], before[left[has_arrived]] = again[has_arrived], before_again[has_arrived]
        is_reached[left[has_arrived]] = True
    return delta, before


def _descend(
    predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, start: Tensor, settings: ProjectedGradient
) -> tuple[Tensor, Tensor, Tensor]:
    """Descend from ``start`` and return the actions (N, ...), those a step before, and which actions reach the target (N,)."""
    result = space.project(rows, start)
    # A start that reaches the target has no step before it. Without noise its row does not reach the target either.
    before = space.zero(rows)
    is_reached = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    live = torch.arange(len(rows), device=rows.device)
    x, wanted, total, delta = rows, target, start, result
    for _ in range(settings.steps):
        if settings.early_stop:
            has_arrived = _is_at_target(predictor, x, space, delta, wanted)
            if bool(has_arrived.any()):
                result[live[has_arrived]] = delta[has_arrived]
                is_reached[live[has_arrived]] = True
                rest = ~has_arrived
                live, x, wanted, total, delta = live[rest], x[rest], wanted[rest], total[rest], delta[rest]
        if len(live) == 0:
            return result, before, is_reached
        before[live] = delta
        step = settings.step_size * _compute_direction(predictor, x, space, delta, wanted, settings)
        total = (total if settings.accumulate else delta) + step
        delta = space.project(x, total)
    result[live] = delta
    has_arrived = _is_at_target(predictor, x, space, delta, wanted)
    is_reached[live] = has_arrived
    before[live[~has_arrived]] = delta[~has_arrived]
    return result, before, is_reached


def count_flat_rows(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: ProjectedGradient) -> int:
    """Count the rows at which the gradient of the loss with respect to the action is exactly zero.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        settings: Settings of the descent, of which the loss is used.
    """
    direction = _compute_direction(predictor, rows, space, space.zero(rows), target, settings)
    return int((direction == 0).flatten(1).all(1).sum())


def _is_at_target(predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor) -> Tensor:
    """Return which points have their target in the artefact, (N,) bool."""
    return target_margin(predictor.logits(space.apply(x, delta)), target) > 0


def _compute_direction(
    predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor, settings: ProjectedGradient
) -> Tensor:
    """Return the negative gradient of the counterfactual loss with respect to each row's action."""
    with torch.enable_grad():
        action = delta.detach().requires_grad_(True)
        logits = predictor.surrogate(space.apply(x, action))
        # The loss is summed over rows, so that each row's gradient does not depend on the batch.
        uses_cross_entropy = settings.loss == "cross-entropy"
        loss = cross_entropy(logits, target, reduction="sum") if uses_cross_entropy else -target_margin(logits, target).sum()
        (gradient,) = torch.autograd.grad(loss, action)
    if settings.normalize:
        largest = gradient.flatten(1).abs().amax(1).reshape(-1, *[1] * (gradient.dim() - 1))
        gradient = gradient / torch.where(largest > 0, largest, 1.0)
    return -gradient
