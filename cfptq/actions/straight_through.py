"""The straight-through estimator of Appendix B."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(source: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``value`` with the gradient of ``source``.

    Args:
        source: tensor that receives the gradient, ``(N, d)``.
        value: tensor that is returned, ``(N, d)``.
        mask: 1 where the gradient passes and 0 where it stops, ``(N, d)``. Default: it passes everywhere.
    """
    result: Tensor = _StraightThrough.apply(source, value, mask)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    """Autograd function of ``straight_through``.

    The backward pass consists of differentiable operations, so that unrolled steps can be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(mask)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] if mask is None else gradients[0] * mask, None, None
