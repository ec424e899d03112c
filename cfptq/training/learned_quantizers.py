"""Quantizers with learned parameters, LSQ for weights and PACT for activations (Section 4.4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cfptq.quantize.formats import align_with_channels, clamp_to_limits


def quantize_lsq(weight: Tensor, step: Tensor, limit: int | Tensor) -> Tensor:
    """Fake-quantize a weight to ŵ = s · clip(⌊w / s⌉, −Q, Q) with LSQ's gradients (Esser et al. 2020).

    ∂ŵ/∂w is 1 inside the range and 0 where it clips. ∂ŵ/∂s is ⌊w / s⌉ − w / s inside and ±Q where it clips. It is scaled by 1 / √(n Q),
    where n weights share the step. The range is the narrow symmetric one that every backend holds, so Q is 2^(b−1) − 1.

    Args:
        weight: (out, ...).
        step: quantization step s > 0, (out,) for one per channel or () for one per layer.
        limit: Q, the largest integer magnitude, one number or one for each output channel, (out,).
    """
    along = align_with_channels(step, weight) if step.dim() else step
    rounded: Tensor = _Lsq.apply(weight, along, limit if isinstance(limit, int) else align_with_channels(limit, weight))  # type: ignore[no-untyped-call]
    return rounded


class _Lsq(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, step: Tensor, limit: int | Tensor) -> Tensor:
        return clamp_to_limits((weight / step).round_(), limit).mul_(step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int | Tensor], output: Tensor) -> None:
        weight, step, ctx.limit = inputs
        ctx.save_for_backward(weight, step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, step = ctx.saved_tensors
        (given,) = gradients
        ratio = weight / step
        inside = ratio.abs() <= ctx.limit
        slope = torch.where(inside, ratio.round() - ratio, ratio.sign() * ctx.limit)
        shared = weight.numel() // step.numel()
        size = shared * ctx.limit
        moved = (given * slope).sum_to_size(step.shape) / (math.sqrt(size) if isinstance(size, int) else size.sqrt())
        return given * inside, moved, None


def quantize_pact(x: Tensor, clip: Tensor, bits: int, *, signed: bool = False) -> Tensor:
    """Fake-quantize an activation with a learned clip α and PACT's gradients (Choi et al. 2018).

    The range is [0, α], or [−α, α] where ``signed``. It has 2^bits − 1 steps, and 0 is exact. ∂x̂/∂x is 1 inside the range and 0 where it
    clips. ∂x̂/∂α is 1 above the range. It is −1 below a signed range.

    Args:
        x: activation of any shape.
        clip: α > 0, ().
        bits: width of the unsigned integers.
        signed: True for tensors with negative values.
    """
    rounded: Tensor = _Pact.apply(x, clip, *compute_affine_parameters(clip, bits, signed), 2**bits - 1, signed)  # type: ignore[no-untyped-call]
    return rounded


def compute_affine_parameters(clip: Tensor, bits: int, signed: bool) -> tuple[float, int]:
    """Compute scale and zero point of ``quantize_pact``.

    At 8 and 16 bits they equal those of ``ActivationFormat.from_range``.
    """
    alpha, steps = float(clip.detach()), 2**bits - 1
    low = -alpha if signed else 0.0
    scale = float(torch.tensor((alpha - low) / steps, dtype=torch.float32))
    return scale, min(max(round(-low / scale), 0), steps)


class _Pact(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, clip: Tensor, scale: float, zero_point: int, highest: int, signed: bool) -> Tensor:
        return torch.div(x, scale).round_().add_(zero_point).clamp_(0, highest).sub_(zero_point).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, int, int, bool], output: Tensor) -> None:
        x, clip, _, _, _, ctx.signed = inputs
        ctx.save_for_backward(x, clip)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, clip = ctx.saved_tensors
        (given,) = gradients
        above, below = x >= clip, x < (-clip if ctx.signed else 0)
        moved = (given * above).sum() - ((given * below).sum() if ctx.signed else 0)
        return given * ~(above | below), moved.reshape(clip.shape), None, None, None, None
