"""Scales and clipping by layerwise output reconstruction (eq. 22)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cfptq.quantize.formats import ActivationFormat, align_with_channels, clamp_to_limits, fake_quantize
from cfptq.quantize.rounding_rule import LayerProblem, RoundedWeight
from cfptq.quantize.row_sampling import CHUNK_ROWS, every_nth

#: Shares of the largest magnitude at which a weight channel may be clipped. Narrow widths gain from clipping hard.
WEIGHT_CLIPS: tuple[float, ...] = tuple(1.0 - 0.025 * step for step in range(29))

#: Weights up to which a layer tries every clip. A larger layer tries every fourth one, a tenth of the range apart.
MAX_WEIGHTS_FOR_EVERY_CLIP = 2**18

#: Shares of the observed range at which an activation may be clipped.
ACTIVATION_CLIPS: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class OutputError:
    """Output error of one layer, E_u ‖W a(u) − Ŵ â(u)‖², as a function of e = Ŵ − W.

    With â the quantized input, W a − Ŵ â = −(e â + W (â − a)). The error is therefore eᵀ H e + 2 eᵀ g plus a constant, with H = E[â âᵀ] and
    g = E[â (â − a)ᵀ] wᵀ for each channel. This form is exact and free of cancellation. Its size does not depend on the number of rows.

    Attributes:
        hessian: H, (groups, k, k). Where k exceeds the number m of vectors, a factor R (groups, m, k) with RᵀR = H.
        factored: True if ``hessian`` is such a factor.
        slope: g, (groups, out / groups, k).
    """

    hessian: torch.Tensor
    factored: bool
    slope: torch.Tensor

    def __call__(self, change: torch.Tensor) -> torch.Tensor:
        """Return the error of each output channel up to its constant, (groups, out / groups).

        Args:
            change: e, (groups, out / groups, k).
        """
        product = change @ self.hessian.mT if self.factored else change @ self.hessian
        return (product * (product if self.factored else change)).sum(dim=2) + 2 * (change * self.slope).sum(dim=2)


def compute_output_error(problem: LayerProblem) -> OutputError:
    """Sum the moments of a layer's inputs over its rows, in chunks."""
    weight = problem.grouped(problem.weight)
    groups, _, k = weight.shape
    share = problem.row_weights / problem.row_weights.sum()
    vectors = problem.patches(problem.inputs[:1]).shape[1]
    kept = every_nth(len(problem.inputs), k * k * groups * vectors)
    inputs, given, share = problem.inputs[kept], problem.seen[kept], share[kept]
    factored = len(inputs) * vectors < k
    hessian = torch.zeros(groups, k, k) if not factored else torch.zeros(groups, 0, k)
    cross = torch.zeros(groups, k, weight.shape[1])
    for start in range(0, len(inputs), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        seen = problem.patches(fake_quantize(given[chunk], problem.form))
        vector_share = share[chunk].repeat_interleave(vectors)[:, None] / vectors
        shifted = (seen - problem.patches(inputs[chunk])) @ weight.mT
        cross += seen.mT @ (vector_share * shifted)
        if factored:
            hessian = torch.cat([hessian, vector_share.sqrt() * seen], dim=1)
        else:
            hessian += seen.mT @ (vector_share * seen)
    return OutputError(hessian, factored, cross.mT)


def compute_channel_scale(weight: torch.Tensor, limit: int | torch.Tensor) -> torch.Tensor:
    """Compute the step of each output channel that puts its largest magnitude on ``limit``.

    Args:
        weight: (out, ...).
        limit: the largest integer, or one for each output channel, (out,).

    Returns:
        float32, (out,). An all-zero channel has step 1. One of limit 0 has the step of limit 1.
    """
    scale = weight.reshape(weight.shape[0], -1).abs().amax(dim=1) / (max(limit, 1) if isinstance(limit, int) else limit.clamp_min(1))
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def round_to_integers(weight: torch.Tensor, scale: torch.Tensor, limit: int | torch.Tensor) -> torch.Tensor:
    """Round a weight to the nearest integers on each channel's scale, half to even.

    Args:
        weight: (out, ...).
        scale: step of each output channel, (out,).
        limit: magnitude that integers are clipped to, one number or a tensor that broadcasts over the weight.

    Returns:
        int8, of the weight's shape.
    """
    return clamp_to_limits(torch.round(weight / align_with_channels(scale, weight)), limit).to(torch.int8)


def round_nearest(problem: LayerProblem) -> RoundedWeight:
    """Round to nearest on the scales that reconstruct the layer's output best (eq. 22).

    The scale of output channel c minimizes E_u (w_c·a(u) − ŵ_c·â(u))² over the clips in ``WEIGHT_CLIPS``, with â the quantized input.
    The bias stays.
    """
    error = compute_output_error(problem)
    best = torch.full(problem.weight.shape[:1], torch.inf)
    full = compute_channel_scale(problem.weight, problem.limit)
    scale, limit = full, problem.aligned_limit
    for clip in WEIGHT_CLIPS if problem.weight.numel() <= MAX_WEIGHTS_FOR_EVERY_CLIP else WEIGHT_CLIPS[::4]:
        candidate = full * clip
        steps = align_with_channels(candidate, problem.weight)
        change = clamp_to_limits(torch.round(problem.weight / steps), limit).mul_(steps).sub_(problem.weight)
        reached = error(problem.grouped(change)).flatten()
        better = reached < best
        best = torch.where(better, reached, best)
        scale = torch.where(better, candidate, scale)
    return RoundedWeight(round_to_integers(problem.weight, scale, problem.aligned_limit), scale, problem.bias)


def round_nearest_full_range(problem: LayerProblem) -> RoundedWeight:
    """Round to nearest with each channel's largest weight on the largest integer, as toolchains do by default."""
    scale = compute_channel_scale(problem.weight, problem.limit)
    return RoundedWeight(round_to_integers(problem.weight, scale, problem.aligned_limit), scale, problem.bias)


def fit_activation_format(
    tensor: str, inputs: torch.Tensor, bits: int, outputs: Callable[[torch.Tensor], torch.Tensor]
) -> ActivationFormat:
    """Choose the clipping of one tensor that reconstructs best the outputs of the layers that take it (eq. 22).

    Args:
        tensor: name of the node.
        inputs: the tensor's full-precision values over the calibration rows, (N, ...).
        bits: 8 or 16. 32 leaves the tensor in float.
        outputs: function that applies the full-precision weights to inputs. It must be linear.
    """
    if bits == 32:
        return ActivationFormat(tensor, 32)
    low, high = float(inputs.min()), float(inputs.max())
    best, chosen = float("inf"), ActivationFormat.from_range(tensor, low, high, bits)
    for clip in ACTIVATION_CLIPS:
        form = ActivationFormat.from_range(tensor, low * clip, high * clip, bits)
        error = float(outputs(fake_quantize(inputs, form).sub_(inputs)).square_().mean())
        if error < best:
            best, chosen = error, form
    return chosen
