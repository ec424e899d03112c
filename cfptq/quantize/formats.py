"""Integer formats of weights and activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch

from cfptq.errors import ModelError
from cfptq.io.arguments import is_finite_number
from cfptq.quantize.split_inputs import count_split_bits

#: Candidate widths of a layer, in bits (Section 4.3 of the paper).
WIDTHS: tuple[int, ...] = (2, 3, 4, 8)

#: Candidate widths of a layer with integer input whose kernels must be right on every processor, in bits. Without VNNI, products of uint8
#: and int8 are added in pairs in 16 bits. 63, the limit of 7 bits, is the largest weight for which no such sum saturates.
PORTABLE_WIDTHS: tuple[int, ...] = (2, 3, 4, 7)

#: Every width that a weight can have, in bits.
ALL_WIDTHS: tuple[int, ...] = (2, 3, 4, 7, 8)

#: Candidate widths of an output channel, in bits. A file stores each exactly; see ``cfptq.quantize.storage``. A channel of 0 bits is
#: dropped together with the columns that it feeds.
CHANNEL_WIDTHS: tuple[int, ...] = (0, 2, 3, 4, 5, 6, 7, 8)

#: Width of a layer's weights in bits, one number, or one for each output channel.
Bits = int | tuple[int, ...]

#: What has a width of its own, a layer or an output channel.
Granularity = Literal["layer", "channel"]

#: Fine steps in a coarse step of a two-step activation. ±127 of them cover the rounding error of the coarse step.
FINE_STEPS = 254

#: Zero point of the fine step.
FINE_ZERO_POINT = 128


def integer_limit(bits: int) -> int:
    """Return the largest magnitude of a weight, 2^(bits-1) - 1.

    This is the narrow symmetric range, which every toolchain holds. At 0 bits it holds 0 alone.

    Raises:
        ModelError: no weight can have this width.
    """
    if bits not in CHANNEL_WIDTHS:
        raise ModelError(f"A weight must have {', '.join(map(str, CHANNEL_WIDTHS))} bits, got {bits}.")
    return int(2 ** (bits - 1) - 1) if bits else 0


def integer_limits(bits: Bits) -> int | torch.Tensor:
    """Return the largest magnitude of a layer's integers, one number, or one for each output channel, float32, (out,).

    Args:
        bits: the layer's width, or one for each output channel.

    Raises:
        ModelError: no weight can have this width.
    """
    return integer_limit(bits) if isinstance(bits, int) else torch.tensor([float(integer_limit(width)) for width in bits])


def align_limits(bits: Bits, weight: torch.Tensor) -> int | torch.Tensor:
    """Return ``integer_limits`` in a shape that broadcasts over ``weight``.

    Args:
        bits: the layer's width, or one for each output channel.
        weight: (out, ...).
    """
    limits = integer_limits(bits)
    return limits if isinstance(limits, int) else align_with_channels(limits, weight)


def clamp_to_limits(values: torch.Tensor, limits: int | torch.Tensor) -> torch.Tensor:
    """Clamp values in place to the symmetric range of their limits.

    Args:
        values: whole numbers as float32.
        limits: largest magnitude, one number or a tensor that broadcasts over ``values``.
    """
    return values.clamp_(-limits, limits)  # type: ignore[arg-type]


def read_bits(value: int | Sequence[int]) -> Bits:
    """Return a layer's width, or those of its channels, as a file holds them."""
    return int(value) if isinstance(value, int) else tuple(map(int, value))


def spread_bits(bits: Bits, channels: int) -> tuple[int, ...]:
    """Return the width of each of a layer's output channels.

    Args:
        bits: the layer's width, or one for each output channel.
        channels: number of output channels.
    """
    return (bits,) * channels if isinstance(bits, int) else bits


def widest_bits(bits: Bits) -> int:
    """Return the width of a layer's widest channel, in bits."""
    return bits if isinstance(bits, int) else max(bits)


def narrowest_bits(bits: Bits) -> int:
    """Return the width of a layer's narrowest channel that is not dropped, in bits."""
    return bits if isinstance(bits, int) else min((width for width in bits if width), default=0)


def count_bits(bits: Bits, parameters: int, kept_inputs: Sequence[bool] = (), fine_inputs: Sequence[bool] = ()) -> int:
    """Count the bits of all weights of a layer.

    Args:
        bits: the layer's width, or one for each output channel.
        parameters: number of weights. Each channel has the same number.
        kept_inputs: False for each input channel that is dropped, whose weights take no bits. Empty where none is.
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less. Empty where no
            column differs.
    """
    if fine_inputs:
        own = spread_bits(bits, 1)
        return count_split_bits(own, fine_inputs) * (parameters // len(own) // len(fine_inputs))
    parameters = count_kept_weights(parameters, kept_inputs)
    return parameters * bits if isinstance(bits, int) else parameters // len(bits) * sum(bits)


def count_kept_weights(parameters: int, kept_inputs: Sequence[bool]) -> int:
    """Count the weights of a layer that do not read a dropped input channel.

    Args:
        parameters: number of weights. Each input channel has the same number.
        kept_inputs: False for each input channel that is dropped. Empty where none is.
    """
    return parameters // len(kept_inputs) * sum(kept_inputs) if kept_inputs else parameters


def average_bits(bits: Bits) -> float:
    """Return the mean width of a layer's channels, which is a whole number for a layer of one width."""
    return bits if isinstance(bits, int) else sum(bits) / len(bits)


def describe_bits(bits: Bits) -> str:
    """Return the widths of a layer in words, one number or the mean and the number of channels of each width."""
    if isinstance(bits, int):
        return str(bits)
    counts = ", ".join(f"{width}: {count}" for width, count in count_channels(bits).items())
    return f"{sum(bits) / len(bits):.2f} ({counts})"


def summarize_bits(bits: Bits) -> int | dict[int, int]:
    """Return a layer's width, or the number of its channels of each width, for files and tables."""
    return bits if isinstance(bits, int) else count_channels(bits)


def count_channels(bits: Sequence[int]) -> dict[int, int]:
    """Count the channels of each width, narrowest first."""
    return {width: bits.count(width) for width in sorted(set(bits))}


def layer_widths(feeds_integers: bool, portable: bool, granularity: Granularity = "layer", is_droppable: bool = False) -> tuple[int, ...]:
    """Return the candidate widths of a layer or of its output channels, in bits and ascending.

    Args:
        feeds_integers: integer kernels run the layer.
        portable: the kernels must be right on processors without VNNI too.
        granularity: what has a width of its own.
        is_droppable: the layer's channels can be dropped, so that 0 bits are a candidate.
    """
    widths = PORTABLE_WIDTHS if feeds_integers and portable else WIDTHS
    return widths if granularity == "layer" else tuple(width for width in CHANNEL_WIDTHS[not is_droppable :] if width <= widths[-1])


def container_bits(bits: int) -> int:
    """Return the bits of the integer type that holds one weight of a width. 3 bits take 4, and 5, 6 and 7 bits take 8."""
    return next(wide for wide in (2, 4, 8) if bits <= wide)


def align_with_channels(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reshape ``values``, one for each output channel, so that they broadcast over ``weight``.

    Args:
        values: (out,).
        weight: (out, ...).
    """
    return values.reshape(-1, *[1] * (weight.dim() - 1))


@dataclass(frozen=True)
class ActivationFormat:
    """Quantization format of one activation tensor, with one scale per tensor (Section 4.4).

    A format with two steps stores x ≈ s₁(q₁ − z₁) + s₂(q₂ − 128). The second step holds the rounding error of the first. A layer multiplies
    both by the same int8 weights in integer kernels, and thus sees its input with about 16 bits.

    Attributes:
        tensor: name of the node in the captured graph whose output is quantized.
        bits: 8, 16 or 32. Two steps count as 16. 32 leaves the tensor in float, with scale 1 and zero point 0.
        scale: step size, exactly representable in float32. With two steps, s₁.
        zero_point: the unsigned integer that represents 0.
        fine_scale: s₂, or None with one step.

    Raises:
        ModelError: bits, scale or zero point are out of range.
    """

    tensor: str
    bits: int
    scale: float = 1.0
    zero_point: int = 0
    fine_scale: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 16, 32):
            raise ModelError(f"Activation {self.tensor!r} must have 8 or 16 bits, or 32 for float, got {self.bits}.")
        if not (is_finite_number(self.scale) and self.scale > 0):
            raise ModelError(f"The scale of activation {self.tensor!r} must be positive and finite, got {self.scale}.")
        if not (isinstance(self.zero_point, Integral) and 0 <= self.zero_point <= self.highest):
            raise ModelError(
                f"The zero point of activation {self.tensor!r} must be a whole number in 0..{self.highest}, got {self.zero_point}."
            )
        if self.fine_scale is not None and not (self.bits == 16 and 0 < self.fine_scale < self.scale):
            raise ModelError(
                f"The second step of activation {self.tensor!r} must be positive and below the first ({self.scale}), and bits must be 16. "
                f"Got {self.fine_scale} and {self.bits} bits."
            )

    @property
    def is_float(self) -> bool:
        """True if the tensor is left in float."""
        return self.bits == 32

    @property
    def is_affine(self) -> bool:
        """True if the format is one scale and one zero point, as every toolchain's quantizers have it."""
        return not self.is_float and self.fine_scale is None

    @property
    def feeds_integers(self) -> bool:
        """True if int8 kernels run the layers that take the tensor, and add their bias as int32."""
        return self.bits == 8 or self.fine_scale is not None

    @property
    def highest(self) -> int:
        """The largest unsigned integer of each step."""
        return 0 if self.is_float else int(2 ** (8 if self.feeds_integers else self.bits) - 1)

    def __str__(self) -> str:
        return "float" if self.is_float else "uint8 in two steps" if self.fine_scale is not None else f"uint{self.bits}"

    @staticmethod
    def from_range(tensor: str, low: float, high: float, bits: int = 8) -> ActivationFormat:
        """Return the affine format that spans a range widened to include 0, which is then exact.

        Args:
            tensor: name of the node.
            low: the least value.
            high: the largest value.
            bits: 8 or 16.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        scale = float(torch.tensor((high - low) / steps, dtype=torch.float32))
        if scale <= torch.finfo(torch.float32).tiny:
            return ActivationFormat(tensor, bits)
        return ActivationFormat(tensor, bits, scale, min(max(round(-low / scale), 0), steps))

    @staticmethod
    def two_steps_from_range(tensor: str, low: float, high: float) -> ActivationFormat:
        """Return the two-step format that spans a range widened to include 0.

        0 is exact. Where the fine step is below 1, 1 is exact too, so that one-hot columns are.

        Args:
            tensor: name of the node.
            low: the least value.
            high: the largest value.
        """
        coarse = ActivationFormat.from_range(tensor, low, high)
        fine = coarse.scale / FINE_STEPS
        if fine < 1:
            fine = 1 / math.floor(1 / fine)
        # The coarse step is computed as a multiple of the fine one, so that their sum lies on the fine grid.
        fine = float(torch.tensor(fine, dtype=torch.float32))
        scale = float(torch.tensor(FINE_STEPS * fine, dtype=torch.float32))
        return ActivationFormat(tensor, 16, scale, min(round(-min(low, 0.0) / scale), 255), fine)


def fake_quantize(x: torch.Tensor, form: ActivationFormat) -> torch.Tensor:
    """Round ``x`` to an activation format and back.

    Divides and rounds half to even, as ONNX's QuantizeLinear does. The gradient is straight-through, 1 inside the range and 0 where
    values are clipped.

    Args:
        x: float32 tensor of any shape.
        form: the format. A float format returns ``x`` itself.
    """
    if form.is_float:
        return x
    if form.fine_scale is not None:
        coarse = _round_to_step(x, form.scale, form.zero_point, 255)
        return coarse + _round_to_step(x - coarse.detach(), form.fine_scale, FINE_ZERO_POINT, 255).detach()
    return _round_to_step(x, form.scale, form.zero_point, form.highest)


def _round_to_step(x: torch.Tensor, scale: float, zero_point: int, highest: int) -> torch.Tensor:
    rounded: torch.Tensor = _StraightThrough.apply(x, scale, zero_point, highest)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    """Rounding to an affine grid, with a straight-through gradient."""

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
