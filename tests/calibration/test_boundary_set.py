"""Boundary-weighted calibration rows: who is in, and how much each counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfptq.actions import ActionSet, Continuous
from cfptq.calibration import build_boundary_set
from cfptq.calibration.counterfactual_points import (
    MAX_MINIMAL_COST_PEOPLE,
    MAX_SINGLE_FEATURE_PEOPLE,
    MINIMAL_COST_WEIGHT,
    WANTED_RECOURSE_PEOPLE,
)
from cfptq.network import Predictor, as_predictor, decide, target_margin


def divided(rows: int, seed: int, direction: tuple[float, float, float]) -> tuple[torch.Tensor, ActionSet, Predictor]:
    """People of three numbers, what they can change, and a model that grants class 1 on one side of a plane through 0."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([(0.0, 0.0, 0.0), direction]))
        model.bias.zero_()
    space = ActionSet.from_columns(x, [Continuous("a", column=0), Continuous("b", column=1), Continuous("c", column=2)], favourable=1)
    return x, space, as_predictor(model, example=x)


def test_rows_are_people_and_where_their_recourse_ends_weighted_by_how_near_the_decision_is() -> None:
    x, space, predictor = divided(300, 0, (1.0, 1.0, 0.0))
    points, recourse = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    rejected = (decide(predictor.logits(x)) != 1).nonzero()[:, 0]
    assert torch.equal(points.factual, x)
    own = len(points.counterfactual) - (min(WANTED_RECOURSE_PEOPLE, len(x)) - len(rejected))
    alone = own - len(recourse) - min(len(rejected), MAX_MINIMAL_COST_PEOPLE)
    assert len(recourse) == len(rejected) and 0 < alone <= 2 * MAX_SINGLE_FEATURE_PEOPLE
    assert len(torch.unique(points.source[len(x) + own - alone : len(x) + own])) <= MAX_SINGLE_FEATURE_PEOPLE
    assert torch.equal(points.counterfactual[: len(recourse)], recourse.points)
    assert set(points.source[points.origin == 1][:own].tolist()) <= set(rejected.tolist())
    assert bool((decide(predictor.logits(points.counterfactual)) == 1).all())
    margin = target_margin(predictor.logits(points.rows), points.target).abs()
    farthest = margin.argmax()
    plain = len(x) + len(recourse)
    assert points.weights[farthest] == points.weights.min() and points.weights[:plain].argmax() == margin[:plain].argmin()
    weights = torch.exp(-margin / (margin[: len(x)].median() / 2))
    weights[plain : len(x) + own] *= MINIMAL_COST_WEIGHT
    assert torch.allclose(points.weights, weights, atol=1e-6)


def test_minimal_cost_points_lie_on_the_boundary_and_cost_no_more_than_gradient_steps() -> None:
    x, space, predictor = divided(400, 1, (1.0, 2.0, 0.0))
    points, recourse = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    behind = points.origin.nonzero()[len(recourse) : len(recourse) + min(len(recourse), MAX_MINIMAL_COST_PEOPLE), 0]
    margin = target_margin(predictor.logits(points.rows[behind]), points.target[behind])
    assert bool((margin > 0).all()) and float(margin.max()) < 1e-2
    price = {int(row): float(cost) for row, cost in zip(points.source[points.origin == 1], recourse.cost, strict=False)}
    for row, cost in zip(
        points.source[behind], space.cost(x[points.source[behind]], points.rows[behind] - x[points.source[behind]]), strict=True
    ):
        assert float(cost) <= price[int(row)] + 1e-5


@pytest.mark.parametrize("number", ["MAX_SINGLE_FEATURE_PEOPLE", "MAX_MINIMAL_COST_PEOPLE", "WANTED_RECOURSE_PEOPLE"])
def test_each_kind_of_point_can_be_left_out(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, space, predictor = divided(300, 0, (1.0, 2.0, 0.0))
    whole, _ = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    monkeypatch.setattr("cfptq.calibration.counterfactual_points." + number, 0)
    part, _ = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    assert len(x) < len(part) < len(whole)


def test_where_nobody_is_rejected_only_the_people_are_there() -> None:
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    space = ActionSet.from_columns(x, [Continuous("a", column=0), Continuous("b", column=1)], favourable=1)
    points, recourse = build_boundary_set(x, None, as_predictor(model, example=x), space, target=1, progress=False)
    assert len(recourse) == 0 and len(points) == 20


def test_where_few_are_rejected_people_recombined_of_the_rows_add_their_recourse() -> None:
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(2))
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        model.bias.copy_(torch.tensor([0.0, 2.2]))  # about a tenth is rejected
    space = ActionSet.from_columns(x, [Continuous("a", column=0), Continuous("b", column=1), Continuous("c", column=2)], favourable=1)
    predictor = as_predictor(model, example=x)
    points, recourse = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    rejected = int((decide(predictor.logits(x)) != 1).sum())
    assert len(recourse) == rejected < 60
    others = points.counterfactual[-(400 - rejected) :]
    assert 2 * rejected < len(points.counterfactual) - len(others) <= 2 * rejected + 3 * min(rejected, MAX_SINGLE_FEATURE_PEOPLE) and bool(
        (decide(predictor.logits(others)) == 1).all()
    )
    margin = target_margin(predictor.logits(points.rows), points.target).abs()
    assert margin[-len(others) :].median() < margin[: len(x)].median() / 2
    again, _ = build_boundary_set(x, None, predictor, space, target=1, progress=False)
    assert torch.equal(points.rows, again.rows)


def test_what_a_feature_could_do_alone_is_seen_though_nobody_would_pay_for_it() -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(3))
    x[0, 1] = 15.0  # one outlier shows how far "dear" may go
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.2]]))
        model.bias.copy_(torch.tensor([0.0, -1.0]))
    space = ActionSet.from_columns(x, [Continuous("cheap", column=0), Continuous("dear", column=1)], favourable=1, max_changes=1)
    points, _ = build_boundary_set(x[1:], None, as_predictor(model, example=x), space, target=1, progress=False)
    moved = points.rows[points.origin == 1]
    assert float(moved[:, 1].max()) > 5 > float(x[1:, 1].max())
