"""Integer formats: which integers a width may hold, and how an activation tensor is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cfptq.errors import ModelError

#: Weight widths that layers are allocated (Section 4.3 of the paper).
WIDTHS: tuple[int, ...] = (2, 3, 4, 8)

#: The largest 8-bit weight magnitude for which a sum of two u8*s8 products fits 16 bits (processors without VNNI).
PORTABLE_LIMIT = 63


def integer_limit(bits: int, portable: bool = False) -> int:
    """The largest magnitude of a ``bits``-wide weight: 2^(b-1) - 1, the narrow symmetric range that every toolchain holds.

    ``portable`` caps 8-bit weights at ±63, so that processors without VNNI do not saturate.
    """
    if bits not in WIDTHS:
        raise ModelError(f"a weight cannot have {bits} bits; choose one of {WIDTHS}")
    limit = int(2 ** (bits - 1) - 1)
    return min(limit, PORTABLE_LIMIT) if portable else limit


def container_bits(bits: int) -> int:
    """Bits that one stored weight takes in a file: 3-bit integers live in a 4-bit container."""
    return 4 if bits == 3 else bits


@dataclass(frozen=True)
class ActivationFormat:
    """How the tensor produced by one node is quantized: affine, one scale per tensor (Section 4.4).

    Attributes:
        tensor: name of the node in the captured graph whose output this is.
        bits: 8 or 16; 32 leaves the tensor in float, and scale and zero point are then 1 and 0.
        scale: step size, exactly representable in float32.
        zero_point: the unsigned integer that stands for 0.
    """

    tensor: str
    bits: int
    scale: float = 1.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32):
            raise ModelError(f"activation {self.tensor!r} cannot have {self.bits} bits; choose 8, 16, or 32 for float")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ModelError(f"activation {self.tensor!r} has scale {self.scale}; a scale must be positive and finite")
        if not 0 <= self.zero_point <= self.highest:
            raise ModelError(f"activation {self.tensor!r} has zero point {self.zero_point}, outside 0..{self.highest}")

    @property
    def is_float(self) -> bool:
        return self.bits == 32

    @property
    def highest(self) -> int:
        """The largest unsigned integer of the format."""
        return 0 if self.is_float else int(2**self.bits - 1)

    @staticmethod
    def spanning(tensor: str, low: float, high: float, bits: int = 8) -> ActivationFormat:
        """The affine format whose integers span [min(low, 0), max(high, 0)], so that 0 is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        scale = float(torch.tensor((high - low) / steps, dtype=torch.float32))
        if scale <= torch.finfo(torch.float32).tiny:
            return ActivationFormat(tensor, bits)
        return ActivationFormat(tensor, bits, scale, min(max(round(-low / scale), 0), steps))


def fake_quantize(x: torch.Tensor, form: ActivationFormat) -> torch.Tensor:
    """Round ``x`` to the format and back, straight-through: the gradient is 1 inside the range and 0 where it clips.

    Divides and rounds half to even, as ONNX's QuantizeLinear does.
    """
    if form.is_float:
        return x
    rounded: torch.Tensor = _StraightThrough.apply(x, form.scale, form.zero_point, form.highest)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, scale: float, zero_point: int, highest: int) -> torch.Tensor:
        integers = torch.div(x, scale).round_().add_(zero_point)
        if x.requires_grad:
            ctx.save_for_backward((integers >= 0) & (integers <= highest))
        return integers.clamp_(0, highest).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * inside, None, None, None
