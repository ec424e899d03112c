"""Scales and clipping by layerwise output reconstruction (eq. 22), over whatever rows the calibration set holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cfptq.quantize.formats import ActivationFormat, fake_quantize, integer_limit
from cfptq.quantize.row_sampling import every_nth

#: Shares of the largest magnitude at which a weight channel may be clipped. Narrow widths gain from clipping hard.
WEIGHT_CLIPS: tuple[float, ...] = tuple(1.0 - 0.025 * step for step in range(29))

#: Weights above which a layer tries only every fourth clip: the step between candidates is then a tenth of the range.
WIDE = 2**18

#: Shares of the observed range at which an activation may be clipped.
ACTIVATION_CLIPS: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)

#: Rows whose patches are held at a time while the moments of a convolution are summed.
CHUNK_ROWS = 256


@dataclass(frozen=True)
class LayerProblem:
    """What a rounding rule is given about one layer.

    Attributes:
        name: the layer's name.
        weight: full-precision weight, (out, ...).
        bias: full-precision bias, (out,), or None.
        inputs: full-precision inputs of the layer over the calibration rows, (N, ...).
        seen: what feeds the layer once the layers before it are quantized, (N, ...), not yet rounded to ``form``; the same as
            ``inputs`` where layers are rounded independently of each other.
        form: format of that input tensor.
        bits: width to round to.
        patches: inputs (n, ...) -> (groups, m, k), the vectors that each group's weight rows are multiplied with; the layer's
            weight reshaped to (groups, out / groups, k) meets them in the last axis.
        row_weights: (N,) weight of each row.
        margins: what a rounding of this layer does to the decision, where the layers before it are quantized and those behind it are
            not: each row's target margin less the full-precision model's, (N,), and its slope in the layer's output,
            (N, out, positions), positions as ``patches`` has them. None where layers are rounded independently of each other, or
            nobody said what the model's output means.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    inputs: torch.Tensor
    seen: torch.Tensor
    form: ActivationFormat
    bits: int
    patches: Callable[[torch.Tensor], torch.Tensor]
    row_weights: torch.Tensor
    margins: Callable[[RoundedWeight], tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def limit(self) -> int:
        """The largest integer magnitude that the weight may take."""
        return integer_limit(self.bits)

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` as (groups, out / groups, k), to meet the patches."""
        groups = self.patches(self.inputs[:1]).shape[0]
        return weight.reshape(groups, weight.shape[0] // groups, -1)


@dataclass(frozen=True)
class RoundedWeight:
    """A rounding rule's answer: int8 ``integers`` of the weight's shape, float32 ``scale`` (out,), and the bias to go with them."""

    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


#: A rounding rule. Presets name theirs; a user may pass her own.
Rounding = Callable[[LayerProblem], RoundedWeight]


@dataclass(frozen=True)
class OutputError:
    """E_u ‖W a(u) − Ŵ â(u)‖² of one layer as a function of e = Ŵ − W, channel by channel, up to a constant.

    With â the quantized input, W a − Ŵ â = −(e â + W (â − a)), so the error is eᵀ H e + 2 eᵀ g plus what no choice of Ŵ
    changes, where H = E[â âᵀ] and g = E[â (â − a)ᵀ] wᵀ. Exact, free of cancellation, and its size does not depend on the
    number of rows.

    Attributes:
        hessian: H, (groups, k, k); or, where k exceeds the number of thinned vectors m, a factor R (groups, m, k) with RᵀR = H.
        factored: whether ``hessian`` is such a factor.
        slope: g, (groups, out / groups, k).
    """

    hessian: torch.Tensor
    factored: bool
    slope: torch.Tensor

    def __call__(self, change: torch.Tensor) -> torch.Tensor:
        """The error of each output channel, (groups, out / groups), for e of shape (groups, out / groups, k)."""
        bent = change @ self.hessian.mT if self.factored else change @ self.hessian
        return (bent * (bent if self.factored else change)).sum(dim=2) + 2 * (change * self.slope).sum(dim=2)


def compute_output_error(problem: LayerProblem) -> OutputError:
    """Sum the moments of ``problem`` over its rows, in chunks, so that memory does not grow with the rows."""
    weight = problem.grouped(problem.weight)
    groups, _, k = weight.shape
    share = problem.row_weights / problem.row_weights.sum()
    one = problem.patches(problem.inputs[:1]).shape[1]
    kept = every_nth(len(problem.inputs), k * k * groups * one)
    inputs, given, share = problem.inputs[kept], problem.seen[kept], share[kept]
    factored = len(inputs) * one < k
    hessian = torch.zeros(groups, k, k) if not factored else torch.zeros(groups, 0, k)
    cross = torch.zeros(groups, k, weight.shape[1])
    for start in range(0, len(inputs), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        seen = problem.patches(fake_quantize(given[chunk], problem.form))
        spread = share[chunk].repeat_interleave(one)[:, None] / one
        shifted = (seen - problem.patches(inputs[chunk])) @ weight.mT
        cross += seen.mT @ (spread * shifted)
        if factored:
            hessian = torch.cat([hessian, spread.sqrt() * seen], dim=1)
        else:
            hessian += seen.mT @ (spread * seen)
    return OutputError(hessian, factored, cross.mT)


def compute_channel_scale(weight: torch.Tensor, limit: int) -> torch.Tensor:
    """Step of each output channel that puts its largest magnitude on ``limit``; 1 for an all-zero channel."""
    scale = weight.reshape(weight.shape[0], -1).abs().amax(dim=1) / limit
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def round_to_integers(weight: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """Nearest integers (half to even) of ``weight`` on each channel's ``scale``, clipped to ±``limit``; int8."""
    return torch.round(weight / _along_channels(scale, weight)).clamp(-limit, limit).to(torch.int8)


def round_nearest(problem: LayerProblem) -> RoundedWeight:
    """Round to nearest on scales that reconstruct the layer's output best (eq. 22).

    For each output channel c, over the clips in :data:`WEIGHT_CLIPS`, the scale that minimizes
    E_u (w_c·a(u) − ŵ_c·â(u))², where â is the quantized input. The bias is left as it is.
    """
    error = compute_output_error(problem)
    best = torch.full(problem.weight.shape[:1], torch.inf)
    full = compute_channel_scale(problem.weight, problem.limit)
    scale = full
    for clip in WEIGHT_CLIPS if problem.weight.numel() <= WIDE else WEIGHT_CLIPS[::4]:
        candidate = full * clip
        steps = _along_channels(candidate, problem.weight)
        change = torch.round(problem.weight / steps).clamp_(-problem.limit, problem.limit).mul_(steps).sub_(problem.weight)
        reached = error(problem.grouped(change)).flatten()
        better = reached < best
        best = torch.where(better, reached, best)
        scale = torch.where(better, candidate, scale)
    return RoundedWeight(round_to_integers(problem.weight, scale, problem.limit), scale, problem.bias)


def round_nearest_full_range(problem: LayerProblem) -> RoundedWeight:
    """Round to nearest with each channel's largest weight on the largest integer: what toolchains do by default."""
    scale = compute_channel_scale(problem.weight, problem.limit)
    return RoundedWeight(round_to_integers(problem.weight, scale, problem.limit), scale, problem.bias)


def fit_activation_format(
    tensor: str, inputs: torch.Tensor, bits: int, outputs: Callable[[torch.Tensor], torch.Tensor]
) -> ActivationFormat:
    """The affine format of one tensor whose clipping reconstructs best what the layers fed by it put out (eq. 22).

    Args:
        tensor: node name.
        inputs: its full-precision values over the calibration rows, (N, ...).
        bits: 8 or 16; 32 leaves it in float.
        outputs: full-precision weights applied to (possibly quantized) inputs; linear.
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


def _along_channels(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``scale`` (out,) shaped so that it broadcasts over ``weight`` (out, ...)."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
