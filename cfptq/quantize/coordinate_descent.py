"""Coordinate descent on the integers of a quadratic error.

Both functions move one integer at a time to where the error is least with all others held. They may end in different local optima, so that
neither can replace the other without changing plans. ``descend_channels`` moves all channels that share one Hessian in one tensor
operation. In each sweep it visits every column in which any channel has a gain. ``descend_channel`` serves channels with a Hessian
each, and visits only the columns in which its own channel has one. It uses NumPy, because a tensor operation for each integer would cost
more than the arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

#: Sweeps over all integers at most. Descent ends earlier when no integer moves.
MAX_SWEEPS = 6


def descend_channels(
    integers: torch.Tensor, wanted: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor
) -> None:
    """Lower the error (ŵ − w)ᵀ H (ŵ − w) of every channel by moving ``integers`` in place.

    Args:
        integers: whole numbers as float32, (k, out).
        wanted: the real weights w, (k, out).
        hessian: H, (k, k), the same for all channels.
        scale: step of each channel, (out,).
        lowest: least value of each integer, (k, out).
        highest: largest value of each integer, (k, out).
    """
    slope = (integers * scale - wanted).mT @ hessian
    curvature = hessian.diagonal()
    for _ in range(MAX_SWEEPS):
        # Only columns in which some channel has a gain at the start of the sweep are visited.
        columns = (_compute_step(integers, slope.mT, curvature[:, None], scale, lowest, highest) != 0).any(dim=1).nonzero()[:, 0].tolist()
        for column in columns:
            step = _compute_step(integers[column], slope[:, column], curvature[column], scale, lowest[column], highest[column])
            integers[column] += step
            slope.addr_(step * scale, hessian[column])
        if not columns:
            return


def _compute_step(
    integers: torch.Tensor,
    slope: torch.Tensor,
    curvature: torch.Tensor,
    scale: torch.Tensor,
    lowest: torch.Tensor,
    highest: torch.Tensor,
) -> torch.Tensor:
    """Compute the change of ``integers`` that lowers the error most, 0 where none lowers it."""
    step = (integers - slope / curvature / scale).round_().clamp_(lowest, highest) - integers
    lowers = step * scale * (2 * slope + curvature * step * scale) < 0
    # Where numbers leave float32 nothing moves.
    return torch.where(lowers, step, torch.zeros_like(step))


def descend_channel(
    integers: NDArray[np.float32],
    slope: NDArray[np.float32],
    hessian: NDArray[np.float32],
    scale: float,
    lowest: NDArray[np.float32],
    highest: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Find the changes of one channel's integers that lower a quadratic error.

    Args:
        integers: whole numbers, (k,).
        slope: half the error's gradient in the weights, (k,). It is overwritten.
        hessian: half the error's second derivatives, (k, k).
        scale: step of the channel.
        lowest: least value of each integer, (k,).
        highest: largest value of each integer, (k,).

    Returns:
        The change of each integer, (k,).
    """
    moved = np.zeros_like(integers)
    curvature = np.maximum(hessian.diagonal() * scale, np.finfo(np.float32).tiny)
    if not (np.isfinite(slope).all() and np.isfinite(hessian).all() and np.isfinite(curvature).all()):
        return moved  # Numbers that leave float32 say nothing about a better integer.
    for _ in range(MAX_SWEEPS):
        steps = np.clip(np.round(integers + moved - slope / curvature), lowest, highest) - integers - moved
        columns = np.flatnonzero(steps)
        if len(columns) == 0:
            break
        for column in columns.tolist():
            here = integers[column] + moved[column]
            goal = min(max(float(here - slope[column] / curvature[column]), float(lowest[column])), float(highest[column]))
            step = round(goal) - float(here)
            if step * (2 * slope[column] + curvature[column] * step) < 0:
                moved[column] += step
                slope += hessian[column] * (step * scale)
    return moved
