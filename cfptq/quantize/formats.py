"""Integer formats: which integers a width may hold, and how an activation tensor is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cfptq.errors import ModelError

#: Candidate widths of a layer (Section 4.3 of the paper).
WIDTHS: tuple[int, ...] = (2, 3, 4, 8)

#: Candidate widths of a layer with integer kernels that must be right on every processor. Without VNNI, products of u8 and s8 are added in
#: pairs in 16 bits, and the largest weight for which no such sum saturates is 63: the limit of 7 bits.
PORTABLE_WIDTHS: tuple[int, ...] = (2, 3, 4, 7)

#: Every width that a weight can have.
ALL_WIDTHS: tuple[int, ...] = (2, 3, 4, 7, 8)

#: Fine steps in a coarse one: ±127 of them cover what rounding to the coarse step leaves.
FINE_STEPS, FINE_ZERO_POINT = 254, 128


def integer_limit(bits: int) -> int:
    """Return the largest magnitude of a ``bits``-wide weight, 2^(b-1) - 1: the narrow symmetric range that every toolchain holds."""
    if bits not in ALL_WIDTHS:
        raise ModelError(f"a weight cannot have {bits} bits; choose one of {ALL_WIDTHS}")
    return int(2 ** (bits - 1) - 1)


def layer_widths(feeds_integers: bool, portable: bool) -> tuple[int, ...]:
    """Return the candidate widths of a layer, which depend on whether integer kernels run it and on which processors they must be right."""
    return PORTABLE_WIDTHS if feeds_integers and portable else WIDTHS


def container_bits(bits: int) -> int:
    """Return the bits that one stored weight takes in a file: 3-bit integers live in a 4-bit container, 7-bit ones in 8 bits."""
    return {3: 4, 7: 8}.get(bits, bits)


@dataclass(frozen=True)
class ActivationFormat:
    """How the tensor produced by one node is quantized: affine, one scale per tensor (Section 4.4); or in two such steps of 8 bits.

    In two steps, x ≈ s₁(q₁ − z₁) + s₂(q₂ − 128): what the first step leaves is quantized again. A layer then runs the same int8 weights
    on both, in integer kernels, and sees its input with about 16 bits.

    Attributes:
        tensor: name of the node in the captured graph whose output this is.
        bits: 8 or 16; 32 leaves the tensor in float, and scale and zero point are then 1 and 0. Two steps count as 16.
        scale: step size, exactly representable in float32; s₁ of two.
        zero_point: the unsigned integer that stands for 0.
        fine_scale: s₂; None where there is one step.
    """

    tensor: str
    bits: int
    scale: float = 1.0
    zero_point: int = 0
    fine_scale: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32):
            raise ModelError(f"activation {self.tensor!r} cannot have {self.bits} bits; choose 8, 16, or 32 for float")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ModelError(f"activation {self.tensor!r} has scale {self.scale}; a scale must be positive and finite")
        if not 0 <= self.zero_point <= self.highest:
            raise ModelError(f"activation {self.tensor!r} has zero point {self.zero_point}, outside 0..{self.highest}")
        if self.fine_scale is not None and not (self.bits == 16 and 0 < self.fine_scale < self.scale):
            raise ModelError(f"activation {self.tensor!r}: a second step needs 16 bits and a scale below the first, not {self.fine_scale}")

    @property
    def is_float(self) -> bool:
        return self.bits == 32

    @property
    def is_affine(self) -> bool:
        """Whether one scale and one zero point say it all, as every toolchain's quantizers have it; float and two steps are not."""
        return not self.is_float and self.fine_scale is None

    @property
    def feeds_integers(self) -> bool:
        """Whether layers run on it in int8 kernels, and add their bias as int32."""
        return self.bits == 8 or self.fine_scale is not None

    @property
    def highest(self) -> int:
        """The largest unsigned integer of the format; of either step."""
        return 0 if self.is_float else int(2 ** (8 if self.feeds_integers else self.bits) - 1)

    def __str__(self) -> str:
        return "float" if self.is_float else "uint8 in two steps" if self.fine_scale is not None else f"uint{self.bits}"

    @staticmethod
    def spanning(tensor: str, low: float, high: float, bits: int = 8) -> ActivationFormat:
        """The affine format whose integers span [min(low, 0), max(high, 0)], so that 0 is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        scale = float(torch.tensor((high - low) / steps, dtype=torch.float32))
        if scale <= torch.finfo(torch.float32).tiny:
            return ActivationFormat(tensor, bits)
        return ActivationFormat(tensor, bits, scale, min(max(round(-low / scale), 0), steps))

    @staticmethod
    def in_two_steps(tensor: str, low: float, high: float) -> ActivationFormat:
        """The two-step format that spans [min(low, 0), max(high, 0)]; 0 and, where steps are below 1, 1 are exact: one-hot columns are."""
        coarse = ActivationFormat.from_range(tensor, low, high)
        fine = coarse.scale / FINE_STEPS
        if fine < 1:
            fine = 1 / math.floor(1 / fine)
        # The fine step comes first and the coarse one is a multiple of it, so that their sum lies on the fine grid.
        fine = float(torch.tensor(fine, dtype=torch.float32))
        scale = float(torch.tensor(FINE_STEPS * fine, dtype=torch.float32))
        return ActivationFormat(tensor, 16, scale, min(round(-min(low, 0.0) / scale), 255), fine)


def fake_quantize(x: torch.Tensor, form: ActivationFormat) -> torch.Tensor:
    """Round ``x`` to the format and back, straight-through: the gradient is 1 inside the range and 0 where it clips.

    Divides and rounds half to even, as ONNX's QuantizeLinear does.
    """
    if form.is_float:
        return x
    if form.fine_scale is not None:
        coarse = _rounded(x, form.scale, form.zero_point, 255)
        return coarse + _rounded(x - coarse.detach(), form.fine_scale, FINE_ZERO_POINT, 255).detach()
    return _rounded(x, form.scale, form.zero_point, form.highest)


def _rounded(x: torch.Tensor, scale: float, zero_point: int, highest: int) -> torch.Tensor:
    rounded: torch.Tensor = _StraightThrough.apply(x, scale, zero_point, highest)  # type: ignore[no-untyped-call]
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
