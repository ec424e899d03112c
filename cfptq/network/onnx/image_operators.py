"""ONNX operators of image networks beside convolution and pooling, which take ``(node, *inputs)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from cfptq.network.onnx.values import Node, Operator, as_ints, conversion_error


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n = weight.dim() - 2
    stride, dilation = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    extra, pads = node.get("output_padding") or [0] * n, node.get("pads") or [0] * (2 * n)
    mode, wanted = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if wanted or mode.startswith("SAME"):
        pads = _find_pads(x.shape[2:], weight.shape[2:], wanted, stride, dilation, extra, mode == "SAME_UPPER")
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    # The padding is cut off here, because that of torch is the same on both sides.
    whole = function(x, weight, bias, stride, 0, extra, node.get("group", 1), dilation)
    for axis in range(n):
        whole = whole.narrow(2 + axis, pads[axis], whole.shape[2 + axis] - pads[axis] - pads[n + axis])
    return whole  # type: ignore[no-any-return]


def _find_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    wanted: Sequence[int] | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    extra: Sequence[int],
    is_upper: bool,
) -> list[int]:
    """Return what a transposed convolution cuts off at the start and the end of each axis to reach the wanted size."""
    before, after = [], []
    for axis, step in enumerate(stride):
        whole = step * (size[axis] - 1) + extra[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        total = max(0, whole - (wanted[axis] if wanted else size[axis] * step))
        before.append(total // 2 if is_upper else total - total // 2)
        after.append(total - before[-1])
    return before + after


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    n, channels, height, width = x.shape
    inner = channels // block**2
    if node.get("mode", "DCR") == "CRD":
        split = x.reshape(n, inner, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        split = x.reshape(n, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, inner, height * block, width * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    n, channels, height, width = x.shape
    split = x.reshape(n, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, channels * block**2, height // block, width // block)


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if node.opset < 21:  # one scale and bias a group
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _local_response_norm(node: Node, x: Tensor) -> Tensor:
    return F.local_response_norm(x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))


def _resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    n, mode = x.dim() - 2, node.get("mode", "nearest")
    if node.get("axes") or node.get("antialias", 0) or mode not in ("nearest", "linear") or n not in (1, 2):
        raise conversion_error(node, f"its mode is {mode}, or it has axes or antialias")
    size = [int(extent) for extent in as_ints(sizes)][2:] if sizes is not None else None
    if size is None:
        factors = [float(factor) for factor in scales]
        size = [int(extent * factor) for extent, factor in zip(x.shape[2:], factors[2:], strict=True)]
    where = node.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="linear" if n == 1 else "bilinear", align_corners=where == "align_corners")


def _upsample(node: Node, x: Tensor, scales: Any = None) -> Tensor:
    return _resize(node, x, None, node.get("scales") if scales is None else scales)


def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    if x.dim() != 4:
        raise conversion_error(node, f"its input has {x.dim()} axes instead of 4")
    settings = {"padding_mode": node.get("padding_mode", "zeros"), "align_corners": bool(node.get("align_corners", 0))}
    return F.grid_sample(x, grid, mode=mode, **settings)


#: Operators of ONNX's own domain, by type.
IMAGE_OPERATORS: dict[str, Operator] = {
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
    "Upsample": _upsample,
}
