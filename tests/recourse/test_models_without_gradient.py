"""Recourse on models whose gradient is zero or missing, and by the head and threshold of the model's owner."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from box_space import BoxSpace
from torch import Tensor, nn

from cfptq.errors import ModelError
from cfptq.recourse import RecourseBatch, solve


class Steep(nn.Module):
    """A probability that is exactly 0 or 1 but at x0 + x1 = 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1e6 * (x.sum(1) - 1))


class Stairs(nn.Module):
    """A logit of whole numbers, which has no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0.5).float().sum(1) - 0.5


BOX = BoxSpace(torch.full((2,), -3.0), torch.full((2,), 3.0), torch.ones(2))
ROWS = torch.tensor([[-0.5, 0.2], [0.1, 0.1], [2.0, 1.0]])


def test_a_zero_gradient_is_named_as_the_reason_and_not_the_action_set(tmp_path: Path) -> None:
    batch = solve(Steep(), ROWS, BOX, target=1, method="projected-gradient")
    assert batch.found.tolist() == [False, False, True]
    assert "gradient of Steep is zero at 2 of the 2 rows" in batch.note and batch.note in str(batch)
    batch.save(tmp_path / "batch.safetensors")
    assert RecourseBatch.load(tmp_path / "batch.safetensors").note == batch.note
    assert batch[batch.found].note == batch.note


def test_a_search_that_needs_no_gradient_reaches_the_other_side_of_a_flat_model() -> None:
    batch = solve(Steep(), ROWS, BOX, target=1)
    assert bool(batch.found.all()) and batch.note == ""
    assert bool((Steep()(batch.points) > 0.5).all())


def test_a_sloping_model_has_no_note() -> None:
    batch = solve(lambda x: x, ROWS, BOX, target=1, method="gradient-free", head="logits")
    assert batch.note == ""


def test_a_model_without_gradient_is_searched_without_or_refused_in_those_words() -> None:
    batch = solve(Stairs(), ROWS, BOX, target=1)
    assert batch.method == "gradient-free" and bool(batch.found.all())
    with pytest.raises(ModelError, match="differentiable operations"):
        solve(Stairs(), ROWS, BOX, target=1, method="projected-gradient")


@pytest.mark.parametrize("method", ["minimal-cost", "projected-gradient", "gradient-free"])
def test_recourse_reaches_the_threshold_that_the_owner_decides_by(method: str) -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    points = solve(model, ROWS, BOX, target=1, method=method, head="logit", threshold=0.8).points
    assert bool((model(points)[:, 0] > math.log(4)).all())
    assert bool((model(solve(model, ROWS, BOX, target=1, method=method, head="logit").points)[:, 0] > 0).all())
