"""Made-up people: whole features of real ones, nobody lent to across folds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfptq.calibration.recombination import EXCHANGE_PROBABILITY, recombine_rows

FEATURES = ((0,), (1, 3), (2,))


def people(count: int) -> torch.Tensor:
    """Rows in which every number tells whose it is: row r has 10 r + column in each column."""
    return 10.0 * torch.arange(count)[:, None] + torch.arange(4)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 40), st.integers(1, 200), st.integers(1, 4), st.integers(0, 10))
def test_every_feature_is_one_rows_own_and_of_the_same_fold(rows: int, count: int, folds: int, seed: int) -> None:
    made, start = recombine_rows(people(rows), FEATURES, count, seed, folds)
    assert made.shape == (count, 4) and start.shape == (count,)
    owner = (made - torch.arange(4)) / 10
    assert torch.equal(owner, owner.round()) and bool((owner >= 0).all() & (owner < rows).all())
    assert torch.equal(owner[:, 1], owner[:, 3])
    assert torch.equal(owner.long() % folds, (start % folds)[:, None].expand(-1, 4))
    lenders = [set(row.tolist()) - {float(own)} for row, own in zip(owner, start, strict=True)]
    assert all(len(each) <= 1 for each in lenders)  # one person and one lender, no more


def test_a_share_of_the_features_is_lent_and_the_draw_is_the_seeds() -> None:
    rows = people(500)
    made, start = recombine_rows(rows, FEATURES, 20_000, seed=3)
    lent = (made != rows[start])[:, [0, 1, 2]].float().mean()
    assert abs(float(lent) - EXCHANGE_PROBABILITY * 499 / 500) < 0.01
    again, _ = recombine_rows(rows, FEATURES, 20_000, seed=3)
    assert torch.equal(made, again)
