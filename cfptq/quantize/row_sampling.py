"""Number of calibration rows that a layer or network can afford, and their choice."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.network import Network, count_multiply_adds

#: Multiply-adds that trying one candidate may cost. Beyond, rows are thinned evenly.
MAX_CANDIDATE_MACS = 2**28

#: Rows that thinning leaves at least, whatever they cost.
MIN_CANDIDATE_ROWS = 192

#: Rows whose patches are held at a time. More rows are processed in chunks, so that memory does not grow with their number.
CHUNK_ROWS = 256


def sample_affordable_rows(network: Network, weights: Tensor, max_macs: int, min_rows: int) -> tuple[Tensor, Tensor]:
    """Choose rows that one pass of ``network`` can afford.

    Args:
        network: the network that will run on the rows.
        weights: weight of each row, (N,).
        max_macs: multiply-adds that one pass over the rows may take.
        min_rows: rows to choose at least, whatever they cost.

    Returns:
        Positions of the chosen rows and their weights, as ``sample_rows`` gives them. Rows of weight 0 are never chosen.
    """
    positive = (weights > 0).nonzero()[:, 0]
    kept, sampled = sample_rows(weights[positive], max(min_rows, max_macs // count_multiply_adds(network)))
    return positive[kept], sampled


def sample_rows(weights: Tensor, max_rows: int) -> tuple[Tensor, Tensor]:
    """Choose at most ``max_rows`` rows by systematic sampling.

    All rows are chosen where they are few enough. Otherwise ``max_rows`` equal steps along the cumulative weights each choose the row that
    they fall on. Weighted means over the sample are unbiased estimates of those over all rows. Rows of little weight cost nothing.

    Args:
        weights: weight of each row, (N,).
        max_rows: rows to choose at most.

    Returns:
        Positions of the chosen rows, (n,), and the weight of each in the sample, (n,).
    """
    if len(weights) <= max_rows:
        return torch.arange(len(weights)), weights
    cumulative = weights.double().cumsum(0)
    steps = (torch.arange(max_rows, dtype=torch.float64) + 0.5) / max_rows * cumulative[-1]
    chosen, counts = torch.unique(torch.searchsorted(cumulative, steps), return_counts=True)
    return chosen, counts.to(weights.dtype)


def every_nth(rows: int, macs_per_row: int) -> slice:
    """Return the slice of every n-th row, with n chosen so that they cost at most ``MAX_CANDIDATE_MACS``.

    Args:
        rows: number of rows.
        macs_per_row: multiply-adds that one row costs.
    """
    return slice(None, None, -(-rows // max(MIN_CANDIDATE_ROWS, MAX_CANDIDATE_MACS // macs_per_row)))
