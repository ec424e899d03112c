"""Error-compensated rounding, in which later weights make up for the errors of earlier ones.

The method belongs to the family of GPTQ (Frantar et al. 2023) and differs in three points. The moments are those of the inputs that the
*quantized* layers before produce, while the target is the full-precision output. A layer therefore also corrects the error of the layers
before it. The moments are centred, because the bias is free. Integer coordinate descent follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from cfptq.errors import ModelError
from cfptq.quantize.coordinate_descent import descend_channels
from cfptq.quantize.formats import fake_quantize
from cfptq.quantize.reconstruct import WEIGHT_CLIPS
from cfptq.quantize.rounding_rule import LayerProblem, RoundedWeight
from cfptq.quantize.row_sampling import CHUNK_ROWS

#: Damping of the Hessian, as shares of its mean diagonal. It keeps the Hessian invertible and pulls towards the trained weights.
MIN_DAMPING, MAX_DAMPING = 0.01, 100.0

#: Columns that are compensated one by one. Between larger blocks, errors are propagated in one product.
BLOCK_COLUMNS = 32

#: Weights of one group up to which every clip is tried in full and integers are descended on. A larger layer has its clip chosen by plain
#: rounding and keeps the integers that compensation gives.
MAX_SEARCHED_WEIGHTS = 2**16

#: Weights that choose the clips of a larger layer. Its columns are thinned evenly to so many.
MAX_CLIP_WEIGHTS = 2**18


@dataclass(frozen=True)
class Moments:
    """Centred second moments of one layer over its rows, separately for each group of a convolution.

    â are the inputs of the quantized layer and a those of the full-precision one. Both are weighted by the rows' weights.

    Attributes:
        hessian: Cov(â), (groups, k, k).
        cross: Cov(â, W(â − a)), (groups, k, out / groups). It relates the error of the layers before to each input.
        seen_mean: E[â], (groups, k).
        wanted_mean: W E[a], (groups, out / groups).
        damping: term to add to the Hessian's diagonal, as a share of its mean, (groups,).
    """

    hessian: torch.Tensor
    cross: torch.Tensor
    seen_mean: torch.Tensor
    wanted_mean: torch.Tensor
    damping: torch.Tensor


def compute_moments(problem: LayerProblem) -> Moments:
    """Sum the moments of a layer in chunks of rows.

    Where rows are fewer than inputs, the covariance is uncertain, and compensation in directions that no row covers would fit noise. The
    damping is then that of Ledoit and Wolf (2004). It is the multiple of the identity that brings the covariance nearest to the true one.
    """
    weight = problem.grouped(problem.weight)
    groups, out, k = weight.shape
    seen_mean, wanted_mean = torch.zeros(groups, k), torch.zeros(groups, k)
    for share, seen, wanted in _iterate_vectors(problem):
        seen_mean += (share * seen).sum(dim=1)
        wanted_mean += (share * wanted).sum(dim=1)
    hessian, cross = torch.zeros(groups, k, k), torch.zeros(groups, k, out)
    squared_lengths, squared_shares = torch.zeros(groups), torch.zeros(())
    for share, seen, wanted in _iterate_vectors(problem):
        centred = seen - seen_mean[:, None]
        weighted = share * centred
        hessian.baddbmm_(centred.mT, weighted)
        if seen is not wanted:
            cross.baddbmm_(weighted.mT, (seen - wanted) @ weight.mT)
        squared_lengths += (weighted * centred).sum(dim=2).square().sum(dim=1)
        squared_shares += share.square().sum()
    size, trace = hessian.square().sum(dim=(1, 2)), hessian.diagonal(dim1=1, dim2=2).sum(dim=1)
    uncertain = squared_lengths - squared_shares * size
    certain = size - trace.square() / k - uncertain
    damping = torch.where(certain > uncertain / MAX_DAMPING, uncertain / certain, MAX_DAMPING).clamp_min(MIN_DAMPING)
    if float(squared_shares) * k < 1:  # The effective number of rows is at least that of inputs.
        damping = torch.full_like(damping, MIN_DAMPING)
    return Moments(hessian, cross, seen_mean, (weight @ wanted_mean[:, :, None])[:, :, 0], damping)


def _iterate_vectors(problem: LayerProblem) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield chunks of each vector's share of all weight, (m, 1), and the seen and full-precision vectors, (groups, m, k) each."""
    share = problem.row_weights / problem.row_weights.sum()
    for start in range(0, len(share), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        seen = problem.patches(fake_quantize(problem.seen[chunk], problem.form))
        same = problem.seen is problem.inputs and problem.form.is_float
        each = seen.shape[1] // len(share[chunk])
        yield share[chunk].repeat_interleave(each)[:, None] / each, seen, seen if same else problem.patches(problem.inputs[chunk])


@dataclass(frozen=True)
class HessianFactors:
    """Factorized Hessian of one layer, which serves every width.

    Each group of a convolution has its own. Columns stand in the order in which they are rounded.

    Attributes:
        moments: moments of the layer.
        order: columns in descending order of their variance, (groups, k).
        hessian: the damped Hessian H in that order, (groups, k, k).
        propagation: M of H = M D Mᵀ, unit upper triangular, (groups, k, k). Column k makes up for M_jk of column j's error.
        variance: the diagonal D, (groups, k). It is the part of each column's variance that the columns behind it cannot make up for.
        wanted: the real weights that reproduce the full-precision output best (least squares), (groups, k, out / groups). They are
            transposed, because rounding goes column by column.
    """

    moments: Moments
    order: torch.Tensor
    hessian: torch.Tensor
    propagation: torch.Tensor
    variance: torch.Tensor
    wanted: torch.Tensor


def factorize_hessian(problem: LayerProblem) -> HessianFactors:
    """Compute the part of ``round_compensated`` that does not depend on the width."""
    moments = compute_moments(problem)
    diagonal = moments.hessian.diagonal(dim1=1, dim2=2)
    damping = moments.damping[:, None] * diagonal.mean(dim=1, keepdim=True) + 1e-8
    order = torch.argsort(diagonal, dim=1, descending=True, stable=True)
    last_first = order.flip(1)
    reversed_hessian = torch.stack([part[columns][:, columns] for part, columns in zip(moments.hessian, last_first, strict=True)])
    reversed_hessian.diagonal(dim1=1, dim2=2).add_(damping)
    # The lower factor of the reversed Hessian, itself reversed, is upper triangular.
    lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
    if bool(failed.any()) or not bool(torch.isfinite(lower).all() & torch.isfinite(moments.cross).all()):
        raise ModelError(
            f"The products of weights and inputs of layer {problem.name!r} must stay within float32, got weights up to "
            f"{float(problem.weight.abs().max()):.3g} and inputs up to {float(problem.seen.abs().max()):.3g}. Rescale the layers before it."
        )
    root = lower.diagonal(dim1=1, dim2=2)
    wanted = torch.stack([part[:, columns].mT for part, columns in zip(problem.grouped(problem.weight), order, strict=True)])
    if bool(moments.cross.any()):
        cross = torch.stack([part[columns] for part, columns in zip(moments.cross, last_first, strict=True)])
        wanted = wanted - torch.cholesky_solve(cross, lower).flip(1)
    return HessianFactors(moments, order, reversed_hessian.flip(1, 2), (lower / root[:, None]).flip(1, 2), root.square().flip(1), wanted)


def round_compensated(problem: LayerProblem, factors: HessianFactors | None = None, search: bool = True) -> RoundedWeight:
    """Round one layer so that its quantized output is nearest to its full-precision output over the weighted rows.

    Least squares gives the real weights that would do so, which also correct the error of the layers before. Their columns are rounded in
    descending order of variance, and the error of each is propagated to the columns behind it. Narrow layers try every clip of the scale
    in full and end with coordinate descent. Wide ones choose the clip by plain rounding. The bias removes the mean error.

    Args:
        problem: the layer.
        factors: ``factorize_hessian`` of the same layer, inputs and format. None computes them.
        search: False leaves out the search of clips and the descent. It is quick, for measuring.
    """
    factors = factors or factorize_hessian(problem)
    groups, k, out = factors.wanted.shape
    full = problem.compute_full_scale().reshape(groups, out)
    integers, scale = torch.empty(groups, out, k), torch.empty(groups, out)
    search = search and problem.weight.numel() // groups <= MAX_SEARCHED_WEIGHTS
    lowest, highest = order_bounds(problem, factors)
    for group in range(groups):
        bounds = lowest[group], highest[group]
        found, scale[group] = _round_group(factors, group, full[group], bounds, search)
        integers[group][:, factors.order[group]] = found.mT
    rounded = integers * scale[:, :, None]
    bias = factors.moments.wanted_mean - (rounded @ factors.moments.seen_mean[:, :, None])[:, :, 0]
    if problem.bias is not None:
        bias = bias + problem.bias.reshape(groups, out)
    return RoundedWeight(integers.reshape(problem.weight.shape).to(torch.int8), scale.flatten(), bias.flatten())


def round_at_widths(problem: LayerProblem, widths: Iterable[int]) -> Iterator[RoundedWeight]:
    """Round one layer at several widths without searching clips and integers, to measure the effect of rounding.

    A layer with more inputs than half its vectors is rounded plainly, because compensation would fit these very vectors and the measure
    would say nothing about others. Its clip suits the inputs' variance, and its bias removes the mean error.

    Args:
        problem: the layer. Its own width does not matter.
        widths: widths to round at, in bits.

    Yields:
        The rounded weight at each width.
    """
    k = problem.grouped(problem.weight).shape[2]
    if 2 * k > len(problem.inputs) * problem.patches(problem.inputs[:1]).shape[1]:
        mean, variance = _compute_mean_and_variance(problem)
        yield from (_round_plainly(replace(problem, bits=bits), mean, variance) for bits in widths)
    else:
        factors = factorize_hessian(problem)
        yield from (round_compensated(replace(problem, bits=bits), factors, search=False) for bits in widths)


def _compute_mean_and_variance(problem: LayerProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the weighted mean and variance of a layer's inputs, (groups, k) each."""
    sums = [((share * seen).sum(dim=1), (share * seen.square()).sum(dim=1)) for share, seen, _ in _iterate_vectors(problem)]
    mean, second = (torch.stack(part).sum(dim=0) for part in zip(*sums, strict=True))
    return mean, (second - mean.square()).clamp_min_(0)


def _round_plainly(problem: LayerProblem, mean: torch.Tensor, variance: torch.Tensor) -> RoundedWeight:
    """Round to nearest at the clips that ``_choose_clips`` gives, and let the bias remove the mean error."""
    weight = problem.grouped(problem.weight)
    full = problem.compute_full_scale().reshape(weight.shape[:2])
    lowest, highest = (problem.grouped(bound) for bound in problem.bounds)
    clips = [_choose_clips(*parts) for parts in zip(weight.mT, variance, full, lowest.mT, highest.mT, strict=True)]
    scale = full * torch.stack(clips)
    integers = torch.round(weight / scale[:, :, None]).clamp_(lowest, highest)
    mean_error = ((weight - integers * scale[:, :, None]) @ mean[:, :, None]).flatten()
    bias = mean_error if problem.bias is None else problem.bias + mean_error
    return RoundedWeight(integers.reshape(problem.weight.shape).to(torch.int8), scale.flatten(), bias)


def order_bounds(problem: LayerProblem, factors: HessianFactors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and the largest value of each integer in the order of the factors, (groups, k, out / groups) each."""
    ordered = []
    for bound in problem.bounds:
        grouped = problem.grouped(bound)
        ordered.append(torch.stack([part[:, columns].mT for part, columns in zip(grouped, factors.order, strict=True)]))
    return ordered[0], ordered[1]


def _round_group(
    factors: HessianFactors,
    group: int,
    full: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor],
    search: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round one group, and return its integers (k, out) and scales (out,).

    Args:
        factors: the layer's factors.
        group: position of the group.
        full: scales at which no weight is clipped, (out,).
        bounds: the least and the largest value of each integer, (k, out) each.
        search: search clips and integers.
    """
    wanted, hessian, propagation = factors.wanted[group], factors.hessian[group], factors.propagation[group]
    if not search:
        scale = full * _choose_clips(wanted, factors.variance[group], full, *bounds)
        return _round_columns(wanted, propagation, scale, *bounds), scale
    # The same column of every candidate clip is rounded in one step.
    candidates = full * torch.tensor(WEIGHT_CLIPS[::2])[:, None]
    goals, lowest, highest = (part.repeat(1, len(candidates)) for part in (wanted, *bounds))
    found = _round_columns(goals, propagation, candidates.flatten(), lowest, highest)
    found = found.reshape(len(wanted), *candidates.shape)
    change = (found * candidates - wanted[:, None]).flatten(1)
    best = ((hessian @ change) * change).sum(dim=0).reshape(candidates.shape).argmin(dim=0)
    channels = torch.arange(len(full))
    integers, scale = found[:, best, channels].contiguous(), candidates[best, channels]
    descend_channels(integers, wanted, hessian, scale, *bounds)
    return integers, scale


def _choose_clips(
    wanted: torch.Tensor, variance: torch.Tensor, full: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """Choose the clip of each channel at which plain rounding has the least error, with columns weighted by their variance."""
    every = slice(None, None, -(-wanted.numel() // MAX_CLIP_WEIGHTS))
    wanted, variance, lowest, highest = wanted[every], variance[every], lowest[every], highest[every]
    best, chosen = torch.full_like(full, torch.inf), torch.ones_like(full)
    for clip in WEIGHT_CLIPS[::4]:
        steps = full * clip
        error = variance @ torch.round(wanted / steps).clamp_(lowest, highest).mul_(steps).sub_(wanted).square_()
        chosen = torch.where(error < best, torch.full_like(chosen, clip), chosen)
        best = torch.minimum(error, best)
    return chosen


def _round_columns(
    wanted: torch.Tensor, propagation: torch.Tensor, scale: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """Round column by column within bounds, each after it has taken up its part of the errors before it."""
    goals, integers, errors = wanted.clone(), torch.empty_like(wanted), torch.empty_like(wanted)

    def round_columns(start: int, end: int) -> None:
        if end - start > BLOCK_COLUMNS:
            # The first half's errors reach the second half in one product.
            middle = (start + end) // 2
            round_columns(start, middle)
            goals[middle:end].addmm_(propagation[start:middle, middle:end].mT, errors[start:middle])
            round_columns(middle, end)
            return
        for column in range(start, end):
            goal = torch.addmv(goals[column], errors[start:column].mT, propagation[start:column, column])
            torch.div(goal, scale, out=integers[column]).round_().clamp_(lowest[column], highest[column])
            torch.addcmul(wanted[column], integers[column], scale, value=-1, out=errors[column])

    round_columns(0, len(wanted))
    return integers
