"""People made of the features of others, where few are rejected: recourse to learn from does not run out with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Chance of each feature to come from somebody else.
SHARE = 0.3


def recombined(rows: Tensor, features: Sequence[Sequence[int]], count: int, seed: int, folds: int = 1) -> tuple[Tensor, Tensor]:
    """Made-up people: each is one of ``rows``, with each feature taken from another one with probability :data:`SHARE`.

    Every feature is somebody's own, all columns of it together: one-hot groups stay whole, and immutables keep values that occur.

    Args:
        rows: (N, d). features: the columns of every feature. count: how many to make. seed: of the draw.
        folds: a row lends features only to rows of the same position modulo ``folds``, so that these can be held out from each other.

    Returns:
        Rows (count, d), and the position of the row each started from (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(len(rows), (count,), generator=generator)
    fold = start % folds
    in_fold = (len(rows) - 1 - fold) // folds + 1
    lender = fold + folds * (torch.rand(count, generator=generator) * in_fold).long()
    made = rows[start].clone()
    for columns in features:
        taken = (torch.rand(count, generator=generator) < SHARE).nonzero()
        made[taken, list(columns)] = rows[lender[taken], torch.tensor(columns)]
    return made, start
