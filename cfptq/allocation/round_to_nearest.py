"""Rounding of one weight to nearest, without rows, for scores that compare layers and not rounding rules."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.quantize.formats import align_with_channels, integer_limit
from cfptq.quantize.reconstruct import WEIGHT_CLIPS, compute_channel_scale, round_to_integers
from cfptq.quantize.rounding_rule import RoundedWeight


def round_weight_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Round a weight to nearest, each output channel at the clip with the least squared error.

    Args:
        weight: (out, ...).
        bits: width to round to.

    Returns:
        The weight on its grid, float32, of the same shape.
    """
    return round_to_nearest(weight, None, bits).weight()


def round_to_nearest(weight: Tensor, bias: Tensor | None, bits: int) -> RoundedWeight:
    """Round a weight to nearest, each output channel at the clip with the least squared error. The bias stays.

    Args:
        weight: (out, ...).
        bias: (out,), or None.
        bits: width to round to.
    """
    limit = integer_limit(bits)
    full = compute_channel_scale(weight, limit)
    best, error = full, torch.full_like(full, torch.inf)
    for clip in WEIGHT_CLIPS[::2]:
        scale = full * clip
        candidate = round_to_integers(weight, scale, limit) * align_with_channels(scale, weight)
        reached = (candidate - weight).flatten(1).square().sum(dim=1)
        best = torch.where(reached < error, scale, best)
        error = torch.minimum(reached, error)
    return RoundedWeight(round_to_integers(weight, best, limit), best, bias)
