"""Generate people by recombining the features of others, so that recourse can be learned where few are rejected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Probability of each feature to be taken from another row.
EXCHANGE_PROBABILITY = 0.3


def recombine_rows(rows: Tensor, features: Sequence[Sequence[int]], count: int, seed: int, folds: int = 1) -> tuple[Tensor, Tensor]:
    """Return ``count`` generated rows, each a row of ``rows`` with some features taken from others.

    Each feature is taken from another row with probability ``EXCHANGE_PROBABILITY``. All columns of a feature are taken together, so
    one-hot groups stay whole and immutable features keep values that occur.

    Args:
        rows: (N, d) the rows to recombine.
        features: the columns of every feature.
        count: rows to generate.
        seed: seed of the draw.
        folds: a row gives features only to rows of the same position modulo ``folds``, so that folds can be held out from each other.

    Returns:
        Rows (count, d), and the position of the row that each started from (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(rows), (count,), generator=generator)
    fold = start % folds
    in_fold = (len(rows) - 1 - fold) // folds + 1
    donor = fold + folds * (torch.rand(count, generator=generator) * in_fold).long()
    made = rows[start].clone()
    for columns in features:
        taken = (torch.rand(count, generator=generator) < EXCHANGE_PROBABILITY).nonzero()
        made[taken, list(columns)] = rows[donor[taken], torch.tensor(columns)]
    return made, start
