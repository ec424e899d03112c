"""Error-compensated rounding: what rounding one weight spoils, the weights not yet rounded make up for.

The family of GPTQ (Frantar et al. 2023) on the layer's own second moments, with three differences: the moments are those of the
inputs that the *quantized* layers before it produce while the target is the full-precision output, so that a layer also mends
what came before it; they are centred, because the bias is free; and integer coordinate descent follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cfptq.quantize.formats import fake_quantize
from cfptq.quantize.reconstruct import CHUNK_ROWS, WEIGHT_CLIPS, LayerProblem, RoundedWeight, channel_scale

#: Share of the mean diagonal added to the Hessian's diagonal: keeps it invertible and pulls towards the trained weight.
DAMPING = 0.01

#: Columns that are rounded before the columns behind them are corrected in one product.
BLOCK = 32

#: Weights of a layer (of one group) up to which every clip is tried in full and integers are descended on.
SEARCHED = 2**16

#: Sweeps of coordinate descent at most; it ends earlier when no integer moves.
SWEEPS = 3


@dataclass(frozen=True)
class Moments:
    """Centred second moments of one layer over its rows, each group of a convolution apart.

    With â the inputs that the quantized layer sees and a the full-precision ones, both weighted by the rows' weights:

    Attributes:
        hessian: Cov(â), (groups, k, k).
        cross: Cov(â, W(â − a)), (groups, out / groups, k): the error that the layers before leave, seen from each input.
        seen_mean: E[â], (groups, k).
        wanted_mean: W E[a], (groups, out / groups).
    """

    hessian: torch.Tensor
    cross: torch.Tensor
    seen_mean: torch.Tensor
    wanted_mean: torch.Tensor


def moments(problem: LayerProblem) -> Moments:
    """Sum the moments in chunks of rows; memory does not grow with their number."""
    weight = problem.grouped(problem.weight)
    groups, out, k = weight.shape
    share = problem.row_weights / problem.row_weights.sum()
    second, cross = torch.zeros(groups, k, k), torch.zeros(groups, k, out)
    seen_mean, wanted_mean = torch.zeros(groups, k), torch.zeros(groups, out)
    for start in range(0, len(share), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        seen = problem.patches(fake_quantize(problem.seen[chunk], problem.form))
        wanted = problem.patches(problem.inputs[chunk]) @ weight.mT
        each = seen.shape[1] // len(share[chunk])
        spread = share[chunk].repeat_interleave(each)[:, None] / each
        second += seen.mT @ (spread * seen)
        cross += seen.mT @ (spread * (seen @ weight.mT - wanted))
        seen_mean += (spread * seen).sum(dim=1)
        wanted_mean += (spread * wanted).sum(dim=1)
    left_over = (weight @ seen_mean[:, :, None])[:, :, 0] - wanted_mean
    return Moments(
        hessian=second - seen_mean[:, :, None] * seen_mean[:, None, :],
        cross=(cross - seen_mean[:, :, None] * left_over[:, None, :]).mT,
        seen_mean=seen_mean,
        wanted_mean=wanted_mean,
    )


@dataclass(frozen=True)
class Preparation:
    """What rounding one layer needs whatever the width, each group of a convolution apart; columns in the order they are rounded in.

    Attributes:
        moments: of the layer.
        order: columns in falling order of their variance, (groups, k).
        hessian: the damped Hessian in that order, (groups, k, k).
        upper: Cholesky factor of its inverse, upper triangular, (groups, k, k).
        wanted: the real weights that reproduce the full-precision output best (least squares), in that order, (groups, k, out / groups):
            transposed, because rounding goes column by column.
    """

    moments: Moments
    order: torch.Tensor
    hessian: torch.Tensor
    upper: torch.Tensor
    wanted: torch.Tensor


def prepare(problem: LayerProblem) -> Preparation:
    """The part of :func:`compensated` that does not depend on the width."""
    statistics = moments(problem)
    weight = problem.grouped(problem.weight)
    diagonal = statistics.hessian.diagonal(dim1=1, dim2=2)
    damping = (DAMPING * diagonal.mean(dim=1, keepdim=True) + 1e-8).expand_as(diagonal)
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    damped = statistics.hessian + torch.diag_embed(damping)
    hessian = torch.stack([part[columns][:, columns] for part, columns in zip(damped, order, strict=True)])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    cross = torch.stack([part[:, columns] for part, columns in zip(statistics.cross, order, strict=True)])
    kept = torch.stack([part[:, columns] for part, columns in zip(weight, order, strict=True)])
    return Preparation(
        moments=statistics,
        order=order,
        hessian=hessian,
        upper=torch.linalg.cholesky(inverse, upper=True),
        wanted=kept.mT - inverse @ cross.mT,
    )


def compensated(problem: LayerProblem, preparation: Preparation | None = None, search: bool = True) -> RoundedWeight:
    """Round one layer so that its quantized output is nearest to its full-precision output over the weighted rows.

    First the real weights that would do so (least squares, which also mends the layers before), then integers near them: columns in
    falling order of their variance, each one's error passed on to the columns behind it. Narrow layers try every clip of the scale
    in full and end with coordinate descent on the integers; wide ones choose the clip by plain rounding. The bias takes up the mean
    error.

    Args:
        problem: the layer.
        preparation: :func:`prepare`'s answer for the same layer, inputs and format, where the caller has it.
        search: False leaves clips and descent out: quick, for measuring.
    """
    ready = preparation or prepare(problem)
    groups, k, out = ready.wanted.shape
    full = channel_scale(problem.weight, problem.limit).reshape(groups, out)
    integers, scale = torch.empty(groups, out, k), torch.empty(groups, out)
    search = search and problem.weight.numel() // groups <= SEARCHED
    for group in range(groups):
        found, scale[group] = _rounded(ready.wanted[group], ready.hessian[group], ready.upper[group], full[group], problem.limit, search)
        integers[group][:, ready.order[group]] = found.mT
    rounded = integers * scale[:, :, None]
    bias = ready.moments.wanted_mean - (rounded @ ready.moments.seen_mean[:, :, None])[:, :, 0]
    if problem.bias is not None:
        bias = bias + problem.bias.reshape(groups, out)
    return RoundedWeight(integers.reshape(problem.weight.shape).to(torch.int8), scale.flatten(), bias.flatten())


def _rounded(
    wanted: torch.Tensor, hessian: torch.Tensor, upper: torch.Tensor, full: torch.Tensor, limit: int, search: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (k, out) and scales (out,) near the real weights ``wanted`` (k, out), measured by ``hessian`` (k, k)."""
    if not search:
        scale = full * _plain_clip(wanted, hessian.diagonal(), full, limit)
        return _passed_on(wanted, upper, scale, limit), scale
    # All clips at once: the same column of every candidate is rounded in one step.
    candidates = full * torch.tensor(WEIGHT_CLIPS[::2])[:, None]
    found = _passed_on(wanted.repeat(1, len(candidates)), upper, candidates.flatten(), limit).reshape(len(wanted), *candidates.shape)
    change = (found * candidates - wanted[:, None]).flatten(1)
    best = ((hessian @ change) * change).sum(dim=0).reshape(candidates.shape).argmin(dim=0)
    channels = torch.arange(len(full))
    integers, scale = found[:, best, channels].contiguous(), candidates[best, channels]
    _descend(integers, wanted, hessian, scale, limit)
    return integers, scale


def _plain_clip(wanted: torch.Tensor, variance: torch.Tensor, full: torch.Tensor, limit: int) -> torch.Tensor:
    """For each channel the clip at which plain rounding errs least, weighing columns by their variance."""
    best, chosen = torch.full_like(full, torch.inf), torch.ones_like(full)
    for clip in WEIGHT_CLIPS[::4]:
        steps = full * clip
        error = variance @ torch.round(wanted / steps).clamp_(-limit, limit).mul_(steps).sub_(wanted).square_()
        chosen = torch.where(error < best, torch.full_like(chosen, clip), chosen)
        best = torch.minimum(error, best)
    return chosen


def _passed_on(wanted: torch.Tensor, upper: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """GPTQ: round column by column, pass each column's error on through the inverse Hessian's Cholesky factor ``upper``."""
    rest = wanted.clone()
    integers = torch.empty_like(wanted)
    for start in range(0, len(wanted), BLOCK):
        end = min(start + BLOCK, len(wanted))
        errors = torch.empty(end - start, wanted.shape[1])
        for column in range(start, end):
            integers[column] = torch.round(rest[column] / scale).clamp_(-limit, limit)
            errors[column - start] = (rest[column] - integers[column] * scale) / upper[column, column]
            rest[column + 1 : end].addr_(upper[column, column + 1 : end], errors[column - start], alpha=-1)
        rest[end:].addmm_(upper[start:end, end:].mT, errors, alpha=-1)
    return integers


def _descend(integers: torch.Tensor, wanted: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, limit: int) -> None:
    """Move integers one column at a time to where the error is least with all others held, in place; the error never grows."""
    slope = hessian @ (integers * scale - wanted)
    for _ in range(SWEEPS):
        moved = False
        for column in range(len(integers)):
            bend = hessian[column, column]
            target = (integers[column] - slope[column] / bend / scale).round_().clamp_(-limit, limit)
            change = (target - integers[column]) * scale
            gains = change * (2 * slope[column] + bend * change) < 0
            if bool(gains.any()):
                change = change * gains
                integers[column] = torch.where(gains, target, integers[column])
                slope.addr_(hessian[column], change)
                moved = True
        if not moved:
            return
