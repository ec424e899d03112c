"""Rounding of one weight to nearest, without rows, for scores that compare layers and not rounding rules."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.quantize.formats import align_with_channels, integer_limit
from cfptq.quantize.reconstruct import WEIGHT_CLIPS, compute_channel_scale, round_to_integers


def round_weight_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Round a weight to nearest, each output channel at the clip with the least squared error.

    Args:
        weight: (out, ...).
        bits: width to round to.

    Returns:
        The weight on its grid, float32, of the same shape.
    """
    limit = integer_limit(bits)
    full = compute_channel_scale(weight, limit)
    best, error = weight, torch.full_like(full, torch.inf)
    for clip in WEIGHT_CLIPS[::2]:
        scale = full * clip
        candidate = round_to_integers(weight, scale, limit) * align_with_channels(scale, weight)
        reached = (candidate - weight).flatten(1).square().sum(dim=1)
        best = torch.where(align_with_channels(reached < error, weight), candidate, best)
        error = torch.minimum(reached, error)
    return best
