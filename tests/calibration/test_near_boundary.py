"""Boundary-weighted calibration rows: who is in, and how much each counts."""

from __future__ import annotations

import torch
from torch import nn

from cfptq.actions import ActionSet, Continuous
from cfptq.calibration import near_boundary
from cfptq.network import as_predictor, decisions, target_margin


def test_rows_are_people_and_where_their_recourse_ends_weighted_by_how_near_the_decision_is() -> None:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
        model.bias.zero_()
    space = ActionSet.from_columns(x, [Continuous("a", column=0), Continuous("b", column=1), Continuous("c", column=2)], favourable=1)
    predictor = as_predictor(model, example=x)
    points, recourse = near_boundary(x, None, predictor, space, target=1, progress=False)
    rejected = (decisions(predictor.logits(x)) != 1).nonzero()[:, 0]
    assert torch.equal(points.factual, x)
    assert len(points.counterfactual) == len(recourse) > 0
    assert set(points.source[points.origin == 1].tolist()) <= set(rejected.tolist())
    assert bool((decisions(predictor.logits(points.counterfactual)) == 1).all())
    margin = target_margin(predictor.logits(points.rows), points.target).abs()
    nearest, farthest = margin.argmin(), margin.argmax()
    assert points.weights[nearest] == points.weights.max() and points.weights[farthest] == points.weights.min()
    half = margin[: len(x)].median() / 2
    assert torch.allclose(points.weights, torch.exp(-margin / half), atol=1e-6)


def test_where_nobody_is_rejected_only_the_people_are_there() -> None:
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    space = ActionSet.from_columns(x, [Continuous("a", column=0), Continuous("b", column=1)], favourable=1)
    points, recourse = near_boundary(x, None, as_predictor(model, example=x), space, target=1, progress=False)
    assert len(recourse) == 0 and len(points) == 20
