"""Plain rounding of one weight: no rows, no compensation. Scores that compare layers by it see the layer, not the rounding rule."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.quantize.formats import integer_limit
from cfptq.quantize.reconstruct import WEIGHT_CLIPS, compute_channel_scale, round_to_integers


def round_weight_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """The nearest weight on a grid of ``bits``, each output channel at the clip with the least squared error; float32, same shape."""
    limit = integer_limit(bits)
    full = compute_channel_scale(weight, limit)
    along = (-1, *[1] * (weight.dim() - 1))
    best, error = weight, torch.full_like(full, torch.inf)
    for clip in WEIGHT_CLIPS[::2]:
        scale = full * clip
        candidate = round_to_integers(weight, scale, limit) * scale.reshape(along)
        reached = (candidate - weight).flatten(1).square().sum(dim=1)
        best = torch.where((reached < error).reshape(along), candidate, best)
        error = torch.minimum(reached, error)
    return best
