"""Rounding by margins: after compensation, integers move to where the decision errs least, not each layer's output for itself.

:func:`~cfptq.quantize.compensate.round_compensated` treats all outputs of a layer alike and each for itself. A decision hangs on one number,
the target margin m, to which some outputs matter more than others, on some rows only, and in which their errors can cancel. So the
integers of one output channel after the other descend on

    E_w[Δm²] + λ Σ_r γ_r E_w[Δz_r²]

with w the rows' weights (closeness to the boundary). Δm is the margin's error when the layers up to this one are quantized and those
behind it are not, taken as linear in the weights by its slope ∂m/∂z at the layer's output z. Δz_r is channel r's own error, and
γ_r = E_w[(∂m/∂z_r)²] what it would cost in margin if no other error went with it. The second sum alone is the layerwise objective. It
keeps the first, which has one term a row and one unknown a weight, from fitting these very rows: λ is the layer's weights for each row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.quantize.compensate import SEARCHED, SWEEPS, HessianFactors, factorize_hessian, round_compensated
from cfptq.quantize.formats import fake_quantize
from cfptq.quantize.reconstruct import CHUNK_ROWS, LayerProblem, RoundedWeight
from cfptq.quantize.row_sampling import sample_rows

Floats = NDArray[np.float32]

#: Multiply-adds that one sweep may take, numbers that it may hold, and the fewest rows worth it: a layer that affords fewer stays
#: compensated.
WORK, HELD, FEWEST_ROWS = 2**33, 2**25, 512

#: Least γ_r, as a share of their mean: channels that no row's margin hangs on keep what suits their own output.
LEAST_PULL = 1e-3

#: Widths from here on have steps so fine that the activations' are coarser; nothing is left to gain from moving integers.
FINE = 7


def round_by_margins(problem: LayerProblem) -> RoundedWeight:
    """Round one layer by compensation, then move its integers to where margins err least.

    Layers of 7 or 8 bits, of more than 2^16 weights, or whose margins are unknown (``problem.margins`` is None) stay compensated.
    """
    ready = factorize_hessian(problem)
    start = round_compensated(problem, ready)
    affordable = min(WORK // ready.wanted.shape[1], HELD) // problem.weight.numel()
    if problem.margins is None or problem.bits >= FINE or not worth_moving(problem, affordable):
        return start
    return moved(problem, ready, start, *problem.margins(start), affordable)


def worth_moving(problem: LayerProblem, rows: int) -> bool:
    """Whether integers can be descended on: where the layer is narrow and ``rows``, as many as are affordable, are enough."""
    groups, _, _ = problem.grouped(problem.weight).shape
    return problem.weight.numel() // groups <= SEARCHED and rows >= FEWEST_ROWS


def moved(
    problem: LayerProblem, ready: HessianFactors, start: RoundedWeight, error: Tensor, slope: Tensor, most_rows: int
) -> RoundedWeight:
    """``start`` after every channel's integers have descended once, on at most ``most_rows`` rows.

    Args:
        problem: the layer. ready: of the same layer; its ``wanted`` is what each channel's own error is counted from.
        error, slope: what ``problem.margins`` says of ``start``.
    """
    if not bool(slope.any()):
        return start
    layer = _Moving(problem, ready, start, most_rows)
    layer.sweep(error, slope)
    return layer.rounded()


class _Moving:
    """One layer's integers, and its bias at the mean input b + ŵ·E[â], on the way; columns in the order of the preparation."""

    def __init__(self, problem: LayerProblem, ready: HessianFactors, start: RoundedWeight, affordable: int) -> None:
        self.problem, self.ready = problem, ready
        groups, k, out = ready.wanted.shape
        grouped = start.integers.to(torch.float32).reshape(groups, out, k)
        self.integers = torch.stack([part[:, order] for part, order in zip(grouped, ready.order, strict=True)])
        self.scale = start.scale.reshape(groups, out)
        self.mean = ready.moments.seen_mean.gather(1, ready.order)
        wanted = ready.moments.wanted_mean
        self.wanted_level = wanted if problem.bias is None else wanted + problem.bias.reshape(groups, out)
        self.level = self.wanted_level.clone()
        self.rows, times = sample_rows(problem.row_weights, affordable)
        self.share = times / times.sum()
        #: λ: weights for each row, rows counted by how evenly they weigh (Kish's effective number).
        self.own_error = problem.weight.numel() * float(self.share.square().sum())

    def rounded(self) -> RoundedWeight:
        """The layer as it has become."""
        integers = torch.empty_like(self.integers)
        for group, order in enumerate(self.ready.order):
            integers[group][:, order] = self.integers[group]
        bias = self.level - ((self.integers * self.scale[:, :, None]) @ self.mean[:, :, None])[:, :, 0]
        return RoundedWeight(integers.reshape(self.problem.weight.shape).to(torch.int8), self.scale.flatten(), bias.flatten())

    def sweep(self, error: Tensor, slope: Tensor) -> None:
        """Let every channel descend once, each with the others as they have become; arguments as LayerProblem's ``margins`` gives them."""
        out = self.integers.shape[1]
        root = self.share.sqrt()
        left = root * error[self.rows]
        slope = root[:, None, None] * slope[self.rows]
        own = self.own_error * slope.square().sum(dim=(0, 2))
        own = own.clamp_min(LEAST_PULL * float(own.mean()))
        for place, direction in enumerate(self._directions(slope)):
            group, channel = divmod(place, out)
            left = self._descend(group, channel, direction, slope[:, place].sum(dim=1), left, float(own[place]))

    def _descend(self, group: int, channel: int, direction: Tensor, lift: Tensor, left: Tensor, own: float) -> Tensor:
        """Move one channel's integers and bias; what is then left of the margins' errors, (n,).

        Args:
            direction: (n, k) how each weight moves each margin while the level is held.
            lift: (n,) how the level does.
            left: (n,) the margins' errors. All three times the root of the row's share.
            own: λ γ_r.
        """
        hessian, integers, scale = self.ready.hessian[group], self.integers[group, channel], float(self.scale[group, channel])
        bend = torch.addmm(hessian, direction.mT, direction, beta=own)
        slope = torch.addmv(own * (hessian @ (integers * scale - self.ready.wanted[group][:, channel])), direction.mT, left)
        # The level is free to follow: eliminated from the quadratic form, and put where it is best in the end.
        both, alone = direction.mT @ lift, float(lift @ lift) + own
        level_slope = float(lift @ left) + own * float(self.level[group, channel] - self.wanted_level[group, channel])
        change = _descend(
            integers.numpy(), (slope - both * (level_slope / alone)).numpy(), bend.addr_(both, both, alpha=-1 / alone).numpy(), scale,
            self.problem.limit,
        )  # fmt: skip
        moved = torch.from_numpy(change) * scale
        shift = -(level_slope + float(both @ moved)) / alone
        integers += torch.from_numpy(change)
        self.level[group, channel] += shift
        return left.addmv(direction, moved).add_(lift, alpha=shift)

    def _directions(self, slope: Tensor) -> Iterator[Tensor]:
        """How the weights of one channel after the other move the rows' margins, (n, k) each, for ``slope`` (n, channels, positions)."""
        groups, out, k = self.integers.shape
        count, _, positions = slope.shape
        seen = self.problem.seen[self.rows]
        parts = []
        for start in range(0, count, CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            vectors = self.problem.patches(fake_quantize(seen[chunk], self.problem.form)).reshape(groups, -1, positions, k)
            ordered = torch.stack([part[:, :, order] for part, order in zip(vectors, self.ready.order, strict=True)])
            centred = ordered - self.mean[:, None, None]
            pulls = slope[chunk].reshape(-1, groups, out, positions).transpose(0, 1)
            parts.append(centred if positions == 1 else pulls @ centred)
        every = torch.cat(parts, dim=1).transpose(1, 2)
        for place in range(groups * out):
            group, channel = divmod(place, out)
            yield every[group, 0] * slope[:, place] if positions == 1 else every[group, channel]


def _descend(
    integers: NDArray[np.float32], slope: NDArray[np.float32], bend: NDArray[np.float32], scale: float, limit: int
) -> NDArray[np.float32]:
    """How far to move each of one channel's integers (k,): column by column to where the error is least with the others held.

    The same as ``_descend`` of :mod:`cfptq.quantize.compensate` does for all channels at once where they share a Hessian.

    Args:
        integers: (k,) whole numbers.
        slope: (k,) half the error's gradient in the weights; used up.
        bend: (k, k) half its second derivatives.
        scale: the step.
        limit: largest magnitude.
    """
    moved = np.zeros_like(integers)
    diagonal = bend.diagonal() * scale
    for _ in range(SWEEPS):
        steps = np.clip(np.round(integers + moved - slope / diagonal), -limit, limit) - integers - moved
        columns = np.flatnonzero(steps)
        if len(columns) == 0:
            break
        for column in columns.tolist():
            here = integers[column] + moved[column]
            step = min(max(round(float(here - slope[column] / diagonal[column])), -limit), limit) - float(here)
            if step * (2 * slope[column] + diagonal[column] * step) < 0:
                moved[column] += step
                slope += bend[column] * (step * scale)
    return moved
