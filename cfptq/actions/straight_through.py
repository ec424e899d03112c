"""Exact values forward, the gradient of what they replaced backward (Appendix B)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(wish: Tensor, exact: Tensor, passing: Tensor | None = None) -> Tensor:
    """``exact``, with the gradient of ``wish``; all three ``(N, d)``. Where ``passing`` is 0 no gradient passes."""
    result: Tensor = _StraightThrough.apply(wish, exact, passing)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """See :func:`straight_through`. The backward pass is made of differentiable operations, so unrolled steps can be differentiated."""

    @staticmethod
    def forward(ctx: Any, wish: Tensor, exact: Tensor, passing: Tensor | None) -> Tensor:
        ctx.save_for_backward(passing)
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passing,) = ctx.saved_tensors
        return gradients[0] if passing is None else gradients[0] * passing, None, None
