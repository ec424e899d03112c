"""Integer formats of ONNX, with a straight-through gradient for QuantizeLinear, and dequantization of weights."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from cfptq.network.onnx.values import Node, broadcast_along, conversion_error

#: Lowest and highest integer of each type that QuantizeLinear may write.
RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
}
for _name, _range in (("UINT2", (0, 3)), ("INT2", (-2, 1))):
    if hasattr(TensorProto, _name):  # since ONNX 1.20
        RANGES[getattr(TensorProto, _name)] = _range

#: Integer, half- and double-precision types of initializers, and the numpy type that holds their values for torch.
HOLDING_TYPES = {
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
    "int4": np.int8,
    "int2": np.int8,
    "uint4": np.uint8,
    "uint2": np.uint8,
    "float16": np.float32,
    "bfloat16": np.float32,
    "float64": np.float32,
}


class Quantize(torch.autograd.Function):
    """``clamp(round(x / s), low, high)`` with the straight-through gradient of ``clamp(x / s)``, which is zero where clamped.

    It rounds halves to even after a true division, as ONNX Runtime does. ``multiply`` computes ``x * s`` instead.
    """

    # Without setup_context, because autograd then inspects the signature at every call, which costs more than the rounding.
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float | Tensor, low: float, high: float, multiply: bool) -> Tensor:
        rounded = (x * scale if multiply else x / scale).round_()
        ctx.save_for_backward(rounded)
        ctx.settings = scale, low, high, multiply
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (rounded,) = ctx.saved_tensors
        scale, low, high, multiply = ctx.settings
        # hardtanh_backward computes the mask and the product in one pass.
        passed = torch.ops.aten.hardtanh_backward(grads[0], rounded, low - 0.5, high + 0.5)
        return passed.mul_(scale) if multiply else passed.div_(scale), None, None, None, None


def quantize(x: Tensor, scale: float | Tensor, low: float, high: float, multiply: bool) -> Tensor:
    """Quantize to integers minus the zero point, held as floats, with the gradient of ``Quantize``."""
    return cast(Tensor, Quantize.apply(x, scale, low, high, multiply))  # type: ignore[no-untyped-call]


def quantize_along(x: Tensor, scale: Tensor, low: Any, high: Any, axis: int, multiply: bool) -> Tensor:
    """Quantize as ``quantize`` does, with one scale for each index along ``axis``, and one range where zero points differ."""
    scale = broadcast_along(scale, axis, x.dim())
    if not isinstance(low, Tensor):
        return quantize(x, scale, low, high, multiply)
    scaled = x * scale if multiply else x / scale
    clamped = torch.minimum(torch.maximum(scaled, broadcast_along(low, axis, x.dim())), broadcast_along(high, axis, x.dim()))
    return clamped + (clamped.round() - clamped).detach()


def to_number_or_vector(value: Tensor) -> float | Tensor:
    """Convert a scale or zero point to one number, or to a float32 vector where it is per axis."""
    return float(value) if value.numel() == 1 else value.to(torch.float32)


def dequantize_blocks(stored: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int) -> Tensor:
    """Dequantize integers that have one scale for each block of ``block`` elements along ``axis``."""
    size = stored.shape[axis]
    spread = scale.to(torch.float32).repeat_interleave(block, axis).narrow(axis, 0, size)
    centred = stored.to(torch.float32)
    if zero is not None:
        centred = centred - zero.to(torch.float32).repeat_interleave(block, axis).narrow(axis, 0, size)
    return centred * spread


def unpack_matmul_n_bits(node: Node, packed: Tensor, scales: Tensor, zero: Tensor | None) -> Tensor:
    """Unpack the weight of ONNX Runtime's ``MatMulNBits``, which stores the lowest bits first.

    Args:
        node: the MatMulNBits node.
        packed: its packed integers, uint8.
        scales: one scale a block.
        zero: packed or float zero points, one a block; None is half the range.

    Returns:
        The float32 weight, ``(N, K)``.

    Raises:
        ModelError: the node's integers have other than 2, 4 or 8 bits.
    """
    bits, columns, rows, block = (int(node.get(key)) for key in ("bits", "K", "N", "block_size"))
    if bits not in (2, 4, 8):
        raise conversion_error(node, f"bits must be 2, 4 or 8, got {bits}")
    blocks = -(-columns // block)

    def unpack(data: Tensor, count: int) -> Tensor:
        shifts = torch.arange(0, 8, bits, dtype=torch.int32)
        unpacked: Tensor = (
            ((data.to(torch.int32).reshape(rows, -1, 1) >> shifts) & (2**bits - 1)).reshape(rows, -1)[:, :count].to(torch.float32)
        )
        return unpacked

    centre: Any = 2.0 ** (bits - 1)
    if zero is not None and zero.is_floating_point():
        centre = zero.reshape(rows, blocks).repeat_interleave(block, 1)
    elif zero is not None:
        centre = unpack(zero, blocks).repeat_interleave(block, 1)
    weight = (unpack(packed, blocks * block) - centre) * scales.to(torch.float32).reshape(rows, blocks).repeat_interleave(block, 1)
    dense: Tensor = weight[:, :columns].contiguous()
    return dense


def subtract_zero_point(stored: Tensor, zero: float | Tensor, axis: int) -> Tensor:
    """Return stored integers minus their zero point as float32."""
    return stored.to(torch.float32) - (broadcast_along(zero, axis, stored.dim()) if isinstance(zero, Tensor) else zero)
