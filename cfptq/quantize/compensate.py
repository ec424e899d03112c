"""Error-compensated rounding: what rounding one weight spoils, the weights not yet rounded make up for.

The family of GPTQ (Frantar et al. 2023) on the layer's own second moments, with three differences: the moments are those of the
inputs that the *quantized* layers before it produce while the target is the full-precision output, so that a layer also mends
what came before it; they are centred, because the bias is free; and integer coordinate descent follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from cfptq.quantize.formats import fake_quantize
from cfptq.quantize.reconstruct import CHUNK_ROWS, WEIGHT_CLIPS, LayerProblem, RoundedWeight, compute_channel_scale

#: Least and most share of the mean diagonal added to the Hessian's diagonal: keeps it invertible and pulls towards the trained weight.
DAMPING, MOST_DAMPING = 0.01, 100.0

#: Columns that take up each other's errors one by one; between more, errors are passed on in one product.
BLOCK = 32

#: Weights of a layer (of one group) up to which every clip is tried in full and integers are descended on.
SEARCHED = 2**16

#: Weights that choose the clips of a wide layer; its columns are thinned evenly to so many.
CLIPPED = 2**18

#: Sweeps of coordinate descent at most; it ends earlier when no integer moves.
SWEEPS = 6


@dataclass(frozen=True)
class Moments:
    """Centred second moments of one layer over its rows, each group of a convolution apart.

    With â the inputs that the quantized layer sees and a the full-precision ones, both weighted by the rows' weights:

    Attributes:
        hessian: Cov(â), (groups, k, k).
        cross: Cov(â, W(â − a)), (groups, k, out / groups): the error that the layers before leave, seen from each input.
        seen_mean: E[â], (groups, k).
        wanted_mean: W E[a], (groups, out / groups).
        damping: what to add to the Hessian's diagonal, as a share of its mean, (groups,).
    """

    hessian: torch.Tensor
    cross: torch.Tensor
    seen_mean: torch.Tensor
    wanted_mean: torch.Tensor
    damping: torch.Tensor


def compute_moments(problem: LayerProblem) -> Moments:
    """Sum the moments in chunks of rows, means first; memory does not grow with the rows' number.

    Fewer rows than inputs say little about the inputs' covariance, and what is made up for along directions that no row knows is
    guesswork. The damping is then that of Ledoit and Wolf (2004): the multiple of the identity that, mixed in, brings the covariance
    nearest to the one of all rows there could be.
    """
    weight = problem.grouped(problem.weight)
    groups, out, k = weight.shape
    seen_mean, wanted_mean = torch.zeros(groups, k), torch.zeros(groups, k)
    for share, seen, wanted in _vectors(problem):
        seen_mean += (share * seen).sum(dim=1)
        wanted_mean += (share * wanted).sum(dim=1)
    hessian, cross = torch.zeros(groups, k, k), torch.zeros(groups, k, out)
    lengths, evenness = torch.zeros(groups), torch.zeros(())
    for share, seen, wanted in _vectors(problem):
        centred = seen - seen_mean[:, None]
        weighted = share * centred
        hessian.baddbmm_(centred.mT, weighted)
        if seen is not wanted:
            cross.baddbmm_(weighted.mT, (seen - wanted) @ weight.mT)
        lengths += (weighted * centred).sum(dim=2).square().sum(dim=1)
        evenness += share.square().sum()
    size, trace = hessian.square().sum(dim=(1, 2)), hessian.diagonal(dim1=1, dim2=2).sum(dim=1)
    uncertain = lengths - evenness * size
    certain = size - trace.square() / k - uncertain
    damping = torch.where(certain > uncertain / MOST_DAMPING, uncertain / certain, MOST_DAMPING).clamp_min(DAMPING)
    if float(evenness) * k < 1:  # as many rows, counting what they weigh, as inputs
        damping = torch.full_like(damping, DAMPING)
    return Moments(hessian, cross, seen_mean, (weight @ wanted_mean[:, :, None])[:, :, 0], damping)


def _vectors(problem: LayerProblem) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A few rows at a time: each vector's share of all weight (m, 1), and the vectors seen and wanted, (groups, m, k) each."""
    share = problem.row_weights / problem.row_weights.sum()
    for start in range(0, len(share), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        seen = problem.patches(fake_quantize(problem.seen[chunk], problem.form))
        same = problem.seen is problem.inputs and problem.form.is_float
        each = seen.shape[1] // len(share[chunk])
        yield share[chunk].repeat_interleave(each)[:, None] / each, seen, seen if same else problem.patches(problem.inputs[chunk])


@dataclass(frozen=True)
class HessianFactors:
    """What rounding one layer needs whatever the width, each group of a convolution apart; columns in the order they are rounded in.

    Attributes:
        moments: of the layer.
        order: columns in falling order of their variance, (groups, k).
        hessian: the damped Hessian H in that order, (groups, k, k).
        passing: M of H = M D Mᵀ, unit upper triangular, (groups, k, k): M_jk of column j's error is made up for by column k.
        variance: the diagonal D, (groups, k): what of each column's variance the columns behind it cannot make up for.
        wanted: the real weights that reproduce the full-precision output best (least squares), in that order, (groups, k, out / groups):
            transposed, because rounding goes column by column.
    """

    compute_moments: Moments
    order: torch.Tensor
    hessian: torch.Tensor
    passing: torch.Tensor
    variance: torch.Tensor
    wanted: torch.Tensor


def factorize_hessian(problem: LayerProblem) -> HessianFactors:
    """The part of :func:`round_compensated` that does not depend on the width."""
    statistics = compute_moments(problem)
    diagonal = statistics.hessian.diagonal(dim1=1, dim2=2)
    damping = statistics.damping[:, None] * diagonal.mean(dim=1, keepdim=True) + 1e-8
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    last_first = order.flip(1)
    backwards = torch.stack([part[columns][:, columns] for part, columns in zip(statistics.hessian, last_first, strict=True)])
    backwards.diagonal(dim1=1, dim2=2).add_(damping)
    # The factor of the Hessian read backwards, read backwards itself, is upper triangular.
    lower = torch.linalg.cholesky(backwards)
    root = lower.diagonal(dim1=1, dim2=2)
    wanted = torch.stack([part[:, columns].mT for part, columns in zip(problem.grouped(problem.weight), order, strict=True)])
    if bool(statistics.cross.any()):
        cross = torch.stack([part[columns] for part, columns in zip(statistics.cross, last_first, strict=True)])
        wanted = wanted - torch.cholesky_solve(cross, lower).flip(1)
    return HessianFactors(statistics, order, backwards.flip(1, 2), (lower / root[:, None]).flip(1, 2), root.square().flip(1), wanted)


def round_compensated(problem: LayerProblem, preparation: HessianFactors | None = None, search: bool = True) -> RoundedWeight:
    """Round one layer so that its quantized output is nearest to its full-precision output over the weighted rows.

    First the real weights that would do so (least squares, which also mends the layers before), then integers near them: columns in
    falling order of their variance, each one's error passed on to the columns behind it. Narrow layers try every clip of the scale
    in full and end with coordinate descent on the integers; wide ones choose the clip by plain rounding. The bias takes up the mean
    error.

    Args:
        problem: the layer.
        preparation: :func:`factorize_hessian`'s answer for the same layer, inputs and format, where the caller has it.
        search: False leaves clips and descent out: quick, for measuring.
    """
    ready = preparation or factorize_hessian(problem)
    groups, k, out = ready.wanted.shape
    full = compute_channel_scale(problem.weight, problem.limit).reshape(groups, out)
    integers, scale = torch.empty(groups, out, k), torch.empty(groups, out)
    search = search and problem.weight.numel() // groups <= SEARCHED
    for group in range(groups):
        found, scale[group] = _rounded(ready, group, full[group], problem.limit, search)
        integers[group][:, ready.order[group]] = found.mT
    rounded = integers * scale[:, :, None]
    bias = ready.moments.wanted_mean - (rounded @ ready.moments.seen_mean[:, :, None])[:, :, 0]
    if problem.bias is not None:
        bias = bias + problem.bias.reshape(groups, out)
    return RoundedWeight(integers.reshape(problem.weight.shape).to(torch.int8), scale.flatten(), bias.flatten())


def round_at_widths(problem: LayerProblem, widths: Iterable[int]) -> Iterator[RoundedWeight]:
    """``problem`` rounded to each of ``widths`` without searching clips and integers, for measuring what rounding does.

    A layer with more inputs than half the vectors at hand is rounded plainly, with the clip that suits their variance and a bias that
    takes up the mean error: compensation would fit these very vectors, and the figure say nothing about others.
    """
    k = problem.grouped(problem.weight).shape[2]
    if 2 * k > len(problem.inputs) * problem.patches(problem.inputs[:1]).shape[1]:
        mean, variance = _mean_and_variance(problem)
        yield from (_plainly_rounded(replace(problem, bits=bits), mean, variance) for bits in widths)
    else:
        ready = factorize_hessian(problem)
        yield from (round_compensated(replace(problem, bits=bits), ready, search=False) for bits in widths)


def _mean_and_variance(problem: LayerProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and variance of the layer's inputs, (groups, k) each."""
    sums = [((share * seen).sum(dim=1), (share * seen.square()).sum(dim=1)) for share, seen, _ in _vectors(problem)]
    mean, second = (torch.stack(part).sum(dim=0) for part in zip(*sums, strict=True))
    return mean, (second - mean.square()).clamp_min_(0)


def _plainly_rounded(problem: LayerProblem, mean: torch.Tensor, variance: torch.Tensor) -> RoundedWeight:
    weight = problem.grouped(problem.weight)
    full = compute_channel_scale(problem.weight, problem.limit).reshape(weight.shape[:2])
    clips = [_plain_clip(*group, problem.limit) for group in zip(weight.mT, variance, full, strict=True)]
    scale = full * torch.stack(clips)
    integers = torch.round(weight / scale[:, :, None]).clamp_(-problem.limit, problem.limit)
    left = ((weight - integers * scale[:, :, None]) @ mean[:, :, None]).flatten()
    bias = left if problem.bias is None else problem.bias + left
    return RoundedWeight(integers.reshape(problem.weight.shape).to(torch.int8), scale.flatten(), bias)


def _rounded(ready: HessianFactors, group: int, full: torch.Tensor, limit: int, search: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers (k, out) and scales (out,) of one group, whose largest weights stand at ``full`` (out,) times ``limit``."""
    wanted, hessian, passing = ready.wanted[group], ready.hessian[group], ready.passing[group]
    if not search:
        scale = full * _plain_clip(wanted, ready.variance[group], full, limit)
        return _passed_on(wanted, passing, scale, limit), scale
    # All clips at once: the same column of every candidate is rounded in one step.
    candidates = full * torch.tensor(WEIGHT_CLIPS[::2])[:, None]
    found = _passed_on(wanted.repeat(1, len(candidates)), passing, candidates.flatten(), limit).reshape(len(wanted), *candidates.shape)
    change = (found * candidates - wanted[:, None]).flatten(1)
    best = ((hessian @ change) * change).sum(dim=0).reshape(candidates.shape).argmin(dim=0)
    channels = torch.arange(len(full))
    integers, scale = found[:, best, channels].contiguous(), candidates[best, channels]
    _descend(integers, wanted, hessian, scale, limit)
    return integers, scale


def _plain_clip(wanted: torch.Tensor, variance: torch.Tensor, full: torch.Tensor, limit: int) -> torch.Tensor:
    """For each channel the clip at which plain rounding errs least, weighing columns by their variance."""
    every = slice(None, None, -(-wanted.numel() // CLIPPED))
    wanted, variance = wanted[every], variance[every]
    best, chosen = torch.full_like(full, torch.inf), torch.ones_like(full)
    for clip in WEIGHT_CLIPS[::4]:
        steps = full * clip
        error = variance @ torch.round(wanted / steps).clamp_(-limit, limit).mul_(steps).sub_(wanted).square_()
        chosen = torch.where(error < best, torch.full_like(chosen, clip), chosen)
        best = torch.minimum(error, best)
    return chosen


def _passed_on(wanted: torch.Tensor, passing: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """Round column by column; each column first takes up what the errors of those before it leave it to make up for."""
    due, integers, errors = wanted.clone(), torch.empty_like(wanted), torch.empty_like(wanted)

    def round_columns(start: int, end: int) -> None:
        if end - start > BLOCK:
            # The first half's errors reach the second half in one product.
            middle = (start + end) // 2
            round_columns(start, middle)
            due[middle:end].addmm_(passing[start:middle, middle:end].mT, errors[start:middle])
            round_columns(middle, end)
            return
        for column in range(start, end):
            goal = torch.addmv(due[column], errors[start:column].mT, passing[start:column, column])
            torch.div(goal, scale, out=integers[column]).round_().clamp_(-limit, limit)
            torch.addcmul(wanted[column], integers[column], scale, value=-1, out=errors[column])

    round_columns(0, len(wanted))
    return integers


def _descend(integers: torch.Tensor, wanted: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, limit: int) -> None:
    """Move integers one column at a time to where the error is least with all others held, in place; the error never grows."""
    slope = (integers * scale - wanted).mT @ hessian
    bend = hessian.diagonal()
    for _ in range(SWEEPS):
        # Columns where something is to gain as things stand; those before them in the sweep may change that.
        moving = (_step(integers, slope.mT, bend[:, None], scale, limit) != 0).any(dim=1).nonzero()[:, 0].tolist()
        for column in moving:
            step = _step(integers[column], slope[:, column], bend[column], scale, limit)
            integers[column] += step
            slope.addr_(step * scale, hessian[column])
        if not moving:
            return


def _step(integers: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """How far to move ``integers`` where that lowers the error, of slope and bend in their weights; 0 elsewhere."""
    step = (integers - slope / bend / scale).round_().clamp_(-limit, limit) - integers
    return step * (step * scale * (2 * slope + bend * step * scale) < 0)
