"""Projected recourse steps that can be differentiated through a model's parameters (Appendix B, eqs. 16, 17 and 19)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin


def unrolled(
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
    """δ^(K) of eq. 17 from δ^(0) = 0, still attached to the parameters of ``model_fn``; (N, k), feasible.

    δ^(t+1) = Π(δ^(t) − α ∇_δ L(x, δ^(t))). Forward the projection is exact; backward it is the identity on coordinates that stay active
    and zero on those fixed by immutability, clamped at a bound, or reverted by sparsity. The gradient of the inner loss is part of the
    graph, so a loss on δ^(K) reaches the parameters through mixed derivatives (eq. 19). A ReLU network's second derivatives are those of
    its linear pieces.

    Args:
        model_fn: rows (N, ...) to class logits (N, C), differentiable; called ``steps`` times in whatever mode it is in.
        x: (N, ...) float32. target: wanted classes (N,) int64.
        steps: K. step_size: alpha, in columns.
        loss: cross-entropy with the target class, or minus its margin.
        normalize: scale each row's gradient to unit max-norm, as :class:`~cfptq.recourse.ProjectedGradient` does.
        accumulate: add the steps up unprojected and project their sum. ``False`` with ``normalize=False`` is eq. 17 to the letter.

    Raises:
        DataError: no step, a step size that is not positive, an unknown loss.
    """
    if steps < 1 or not step_size > 0:
        raise DataError(f"unrolled needs at least one step and a positive step_size, got {steps} and {step_size}")
    if loss not in ("cross-entropy", "margin"):
        raise DataError(f'unrolled: loss is {loss!r}; use "cross-entropy" or "margin"')
    with torch.enable_grad():
        delta = total = space.zero(x).detach().requires_grad_(True)
        for _ in range(steps):
            logits = model_fn(space.apply(x, delta))
            # A sum over rows: each row's gradient is its own, whatever the batch.
            wrong = cross_entropy(logits, target, reduction="sum") if loss == "cross-entropy" else -target_margin(logits, target).sum()
            (slope,) = torch.autograd.grad(wrong, delta, create_graph=True)
            if normalize:
                largest = slope.flatten(1).abs().amax(1).reshape(-1, *[1] * (slope.dim() - 1))
                slope = slope / torch.where(largest > 0, largest, 1.0)
            total = (total if accumulate else delta) - step_size * slope
            if not total.requires_grad:  # a model without parameters that train: the value is all there is
                total = total.requires_grad_(True)
            delta = space.project(x, total)
    return delta
