"""Which calibration rows a network can afford: all of them where it is small, a weighted sample where it is wide."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.network import Network, multiply_adds

#: Multiply-adds that one candidate may cost; rows are thinned evenly so that wide layers stay affordable.
AFFORDABLE = 2**28

#: Rows that are never thinned away.
FEWEST_ROWS = 192


def sample_affordable_rows(network: Network, weights: Tensor, work: int, fewest: int) -> tuple[Tensor, Tensor]:
    """Positions of rows that one pass of ``network`` takes at most ``work`` multiply-adds for, and how much each counts.

    Args:
        network: what will be run on the rows.
        weights: (N,) how much each row counts.
        work: multiply-adds.
        fewest: rows to take however much they cost.
    """
    return sample_rows(weights, max(fewest, work // multiply_adds(network)))


def sample_rows(weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Positions of at most ``most`` rows, and how much each counts.

    All rows where they are few enough. Otherwise a systematic sample: as many equal steps along the rows' summed weights, each
    choosing the row it falls on. Means over the sample are unbiased for those over all rows, and rows that count little cost nothing.
    """
    if len(weights) <= most:
        return torch.arange(len(weights)), weights
    reached = weights.double().cumsum(0)
    steps = (torch.arange(most, dtype=torch.float64) + 0.5) / most * reached[-1]
    chosen, times = torch.unique(torch.searchsorted(reached, steps), return_counts=True)
    return chosen, times.to(weights.dtype)


def every_nth(rows: int, a_row: int) -> slice:
    """Every n-th of ``rows``, so that all of them cost at most :data:`AFFORDABLE` multiply-adds at ``a_row`` each."""
    return slice(None, None, -(-rows // max(FEWEST_ROWS, AFFORDABLE // a_row)))
