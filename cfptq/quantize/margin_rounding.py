"""Rounding by margins, which lowers the error of the decision and not that of each layer's output.

``cfptq.quantize.compensate.round_compensated`` treats all outputs of a layer alike. A decision depends on one number, the target
margin m. Some outputs matter more to it than others, on some rows only, and their errors can cancel in it. After compensation, the integers
of one output channel after the other therefore descend on

    E_w[Δm²] + λ Σ_r γ_r E_w[Δz_r²]

with w the rows' weights (closeness to the boundary). Δm is the margin's error when the layers up to this one are quantized and those
behind it are not. It is linearized in the weights by its gradient ∂m/∂z at the layer's output z. Δz_r is channel r's own error, and
γ_r = E_w[(∂m/∂z_r)²] is its cost in margin if no other error accompanied it. The second sum alone is the layerwise objective. The first
has one term a row and one unknown a weight, and would overfit the rows without the second. λ is the number of weights for each row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cfptq.quantize.compensate import MAX_SEARCHED_WEIGHTS, HessianFactors, factorize_hessian, order_bounds, round_compensated
from cfptq.quantize.coordinate_descent import descend_channel
from cfptq.quantize.formats import fake_quantize, narrowest_bits
from cfptq.quantize.rounding_rule import LayerProblem, RoundedWeight
from cfptq.quantize.row_sampling import CHUNK_ROWS, sample_rows

#: Multiply-adds that the descent of one layer may take, and numbers that it may hold. A layer that costs more descends on fewer rows.
MAX_DESCENT_MACS, MAX_HELD_NUMBERS = 2**33, 2**25

#: Rows that a descent needs. A layer that affords fewer keeps its compensated integers.
MIN_DESCENT_ROWS = 512

#: Least γ_r, as a share of their mean. A channel that no row's margin depends on keeps the integers that suit its own output.
MIN_CHANNEL_SHARE = 1e-3

#: Least size of a margin's largest gradient, and the inverse of the greatest. Squares beyond leave float32, and integers stay as they are.
MIN_SLOPE = 1e-15

#: Width of the narrowest channel from which on layers keep their compensated integers. The activations' steps are coarser there.
MIN_FINE_BITS = 7


def round_by_margins(problem: LayerProblem) -> RoundedWeight:
    """Round one layer by compensation, then move its integers to lower the error of margins.

    Layers whose channels all have 7 or 8 bits, of more than 2^16 weights, or without ``problem.margins`` keep their compensated integers.
    """
    factors = factorize_hessian(problem)
    start = round_compensated(problem, factors)
    affordable = min(MAX_DESCENT_MACS // factors.wanted.shape[1], MAX_HELD_NUMBERS) // problem.weight.numel()
    if problem.margins is None or narrowest_bits(problem.bits) >= MIN_FINE_BITS or not is_descent_affordable(problem, affordable):
        return start
    return descend_on_margins(problem, factors, start, *problem.margins(start), affordable)


def is_descent_affordable(problem: LayerProblem, rows: int) -> bool:
    """Return True if the layer is narrow enough for descent, and ``rows``, as many as it affords, are enough."""
    groups, _, _ = problem.grouped(problem.weight).shape
    return problem.weight.numel() // groups <= MAX_SEARCHED_WEIGHTS and rows >= MIN_DESCENT_ROWS


def descend_on_margins(
    problem: LayerProblem, factors: HessianFactors, start: RoundedWeight, error: Tensor, slope: Tensor, max_rows: int
) -> RoundedWeight:
    """Let the integers of every channel descend once.

    Args:
        problem: the layer.
        factors: factors of the same layer. Each channel's own error is counted from their ``wanted`` weights.
        start: the rounding to start from. It is returned where no margin depends on the layer.
        error: each row's margin error at ``start``, (N,), as ``problem.margins`` gives it.
        slope: the margins' gradient in the layer's output, (N, out, positions).
        max_rows: rows to descend on at most.
    """
    if not MIN_SLOPE <= float(slope.abs().max()) <= 1 / MIN_SLOPE:
        return start
    descent = _LayerDescent(problem, factors, start, max_rows)
    descent.sweep(error, slope)
    return descent.result()


class _LayerDescent:
    """State of one layer's descent.

    Its columns stand in the order of the factors. Instead of the bias it holds the level b + ŵ·E[â], the output at the mean input.
    """

    def __init__(self, problem: LayerProblem, factors: HessianFactors, start: RoundedWeight, max_rows: int) -> None:
        self.problem, self.factors = problem, factors
        groups, k, out = factors.wanted.shape
        grouped = start.integers.to(torch.float32).reshape(groups, out, k)
        self.integers = torch.stack([part[:, order] for part, order in zip(grouped, factors.order, strict=True)])
        self.lowest, self.highest = order_bounds(problem, factors)
        self.scale = start.scale.reshape(groups, out)
        self.mean = factors.moments.seen_mean.gather(1, factors.order)
        wanted = factors.moments.wanted_mean
        self.wanted_level = wanted if problem.bias is None else wanted + problem.bias.reshape(groups, out)
        self.level = self.wanted_level.clone()
        self.rows, counts = sample_rows(problem.row_weights, max_rows)
        self.share = counts / counts.sum()
        #: λ, with rows counted by Kish's effective sample size.
        self.own_error_weight = problem.weight.numel() * float(self.share.square().sum())

    def result(self) -> RoundedWeight:
        """Return the rounding that the descent has reached."""
        integers = torch.empty_like(self.integers)
        for group, order in enumerate(self.factors.order):
            integers[group][:, order] = self.integers[group]
        bias = self.level - ((self.integers * self.scale[:, :, None]) @ self.mean[:, :, None])[:, :, 0]
        return RoundedWeight(integers.reshape(self.problem.weight.shape).to(torch.int8), self.scale.flatten(), bias.flatten())

    def sweep(self, error: Tensor, slope: Tensor) -> None:
        """Let every channel descend once, after the channels before it.

        Args:
            error: each row's margin error, (N,).
            slope: the margins' gradient in the layer's output, (N, out, positions).
        """
        out = self.integers.shape[1]
        root = self.share.sqrt()
        left = root * error[self.rows]
        slope = root[:, None, None] * slope[self.rows]
        own = self.own_error_weight * slope.square().sum(dim=(0, 2))
        own = own.clamp_min(MIN_CHANNEL_SHARE * float(own.mean()))
        # Nothing moves in a channel that no margin depends on, such as a dropped one, and that has no error of its own.
        is_exact = (self.integers * self.scale[:, :, None] == self.factors.wanted.mT).all(dim=2).flatten()
        is_idle = (is_exact & ~(slope != 0).any(dim=2).any(dim=0)).tolist()
        for place, (rows, direction) in enumerate(self._iterate_directions(slope)):
            if is_idle[place]:
                continue
            group, channel = divmod(place, out)
            level_slope = slope[rows, place].sum(dim=1)
            left[rows] = self._descend(group, channel, direction, level_slope, left[rows], float(own[place]))

    def _descend(self, group: int, channel: int, direction: Tensor, level_slope: Tensor, left: Tensor, own: float) -> Tensor:
        """Move one channel's integers and level, and return the margins' errors that are left, (m,).

        Rows enter multiplied by the root of their share.

        Args:
            group: position of the channel's group.
            channel: position of the channel in its group.
            direction: the margins' gradient in each weight at constant level, (m, k), of the m rows that depend on the channel.
            level_slope: the margins' gradient in the level, (m,).
            left: the margins' errors before, (m,).
            own: λ γ_r.
        """
        hessian, integers, scale = self.factors.hessian[group], self.integers[group, channel], float(self.scale[group, channel])
        curvature = torch.addmm(hessian, direction.mT, direction, beta=own)
        slope = torch.addmv(own * (hessian @ (integers * scale - self.factors.wanted[group][:, channel])), direction.mT, left)
        # The level is free. It is eliminated from the quadratic form, and set to its optimum in the end.
        mixed, level_curvature = direction.mT @ level_slope, float(level_slope @ level_slope) + own
        level_gradient = float(level_slope @ left) + own * float(self.level[group, channel] - self.wanted_level[group, channel])
        change = descend_channel(
            integers.numpy(),
            (slope - mixed * (level_gradient / level_curvature)).numpy(),
            curvature.addr_(mixed, mixed, alpha=-1 / level_curvature).numpy(),
            scale,
            self.lowest[group, :, channel].numpy(),
            self.highest[group, :, channel].numpy(),
        )
        moved = torch.from_numpy(change) * scale
        shift = -(level_gradient + float(mixed @ moved)) / level_curvature
        integers += torch.from_numpy(change)
        self.level[group, channel] += shift
        return left.addmv(direction, moved).add_(level_slope, alpha=shift)

    def _iterate_directions(self, slope: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Yield the rows whose margins depend on a channel, and their gradient in its weights, (m, k), for one channel after the other.

        Behind a ReLU this is about half of the rows, and descent takes half the time.

        Args:
            slope: the margins' gradient in the layer's output, (n, out, positions).
        """
        groups, out, k = self.integers.shape
        count, _, positions = slope.shape
        seen = self.problem.seen[self.rows]
        parts = []
        for start in range(0, count, CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            vectors = self.problem.patches(fake_quantize(seen[chunk], self.problem.form)).reshape(groups, -1, positions, k)
            ordered = torch.stack([part[:, :, order] for part, order in zip(vectors, self.factors.order, strict=True)])
            centred = ordered - self.mean[:, None, None]
            grouped_slope = slope[chunk].reshape(-1, groups, out, positions).transpose(0, 1)
            parts.append(centred if positions == 1 else grouped_slope @ centred)
        every = torch.cat(parts, dim=1).transpose(1, 2)
        for place in range(groups * out):
            group, channel = divmod(place, out)
            if positions == 1:
                rows = slope[:, place, 0].nonzero()[:, 0]
                yield rows, every[group, 0].index_select(0, rows) * slope[rows, place]
            else:
                yield slice(None), every[group, channel]
