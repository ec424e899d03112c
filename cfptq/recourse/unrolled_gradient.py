"""Projected recourse steps that are differentiable with respect to model parameters (Appendix B, eqs. 16, 17 and 19)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin


def unroll_projected_gradient(
    model_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    space: ActionSpace,
    target: Tensor,
    steps: int,
    step_size: float,
    *,
    loss: Literal["cross-entropy", "margin"] = "cross-entropy",
    normalize: bool = False,
    accumulate: bool = False,
) -> Tensor:
    """Return the action δ^(K) of eq. 17 from δ^(0) = 0, feasible and attached to the parameters of ``model_fn``, (N, k).

    Each step is δ^(t+1) = Π(δ^(t) − α ∇_δ L(x, δ^(t))). In the forward pass the projection is exact. In the backward pass it is the
    identity on active coordinates. It is zero on coordinates that are immutable, clamped at a bound, or reverted by sparsity. The
    gradient of the inner loss is part of the graph, so a loss on δ^(K) reaches the parameters through mixed derivatives (eq. 19). The
    second derivatives of a ReLU network are those of its linear pieces.

    Args:
        model_fn: Differentiable function from rows (N, ...) to class logits (N, C). It is called ``steps`` times in its current mode.
        x: Factual rows, (N, ...) float32.
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        steps: Number of steps K.
        step_size: Step size α in column units.
        loss: ``"cross-entropy"`` with the target class (default), or ``"margin"``, the negative target margin.
        normalize: Scale the gradient of each row to unit max-norm, default False.
        accumulate: Sum up unprojected steps and project the sum, default False. ``False`` with ``normalize=False`` is eq. 17 to the
            letter.

    Raises:
        DataError: ``steps`` is below 1, ``step_size`` is not positive, or the loss is unknown.
    """
    if steps < 1 or not step_size > 0:
        raise DataError(f"unroll_projected_gradient needs steps >= 1 and step_size > 0, got {steps} and {step_size}.")
    if loss not in ("cross-entropy", "margin"):
        raise DataError(f'loss must be "cross-entropy" or "margin", got {loss!r}.')
    with torch.enable_grad():
        delta = total = space.zero(x).detach().requires_grad_(True)
        for _ in range(steps):
            logits = model_fn(space.apply(x, delta))
            # The loss is summed over rows, so that each row's gradient does not depend on the batch.
            total_loss = cross_entropy(logits, target, reduction="sum") if loss == "cross-entropy" else -target_margin(logits, target).sum()
            (gradient,) = torch.autograd.grad(total_loss, delta, create_graph=True)
            if normalize:
                largest = gradient.flatten(1).abs().amax(1).reshape(-1, *[1] * (gradient.dim() - 1))
                gradient = gradient / torch.where(largest > 0, largest, 1.0)
            total = (total if accumulate else delta) - step_size * gradient
            if not total.requires_grad:  # The model has no trainable parameters.
                total = total.requires_grad_(True)
            delta = space.project(x, total)
    return delta
