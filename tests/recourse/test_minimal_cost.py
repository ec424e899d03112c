"""Minimal-cost recourse against brute force and closed forms."""

from __future__ import annotations

import itertools
from math import log

import pytest
import torch
from box_space import BoxSpace
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Continuous, Integer
from cfptq.errors import DataError
from cfptq.recourse import MinimalCost, ProjectedGradient, solve


def _network(width: int, seed: int, hidden: int = 16) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 if parameter.dim() > 1 else 0.2))
    return model


def _linear(weight: Tensor, bias: float) -> nn.Linear:
    model = nn.Linear(len(weight), 2)
    with torch.no_grad():
        model.weight.copy_(torch.stack((torch.zeros_like(weight), weight)))
        model.bias.copy_(torch.tensor([0.0, bias]))
    return model


def _mixed_space(count: int, seed: int, max_changes: int | None) -> tuple[BoxSpace, Tensor]:
    """Return a space of two integers, an immutable column and two one-hot groups, and rows in it."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([0.0, 0.0, -2.0] + [0.0] * 7)
    high = torch.tensor([4.0, 4.0, 2.0] + [1.0] * 7)
    weight = torch.rand(10, generator=generator) + 0.3
    groups = ((3, 4, 5), (6, 7, 8, 9))
    space = BoxSpace(low, high, weight, groups, (0, 1), (2,), max_changes)
    rows = torch.zeros(count, 10)
    rows[:, :2] = torch.randint(0, 5, (count, 2), generator=generator)
    rows[:, 2] = torch.randn(count, generator=generator).clamp(-2, 2)
    for group in groups:
        rows[torch.arange(count), torch.randint(group[0], group[-1] + 1, (count,), generator=generator)] = 1
    return space, rows


def _cheapest_by_enumeration(model: nn.Module, row: Tensor, space: BoxSpace, target: int) -> float:
    """Return the least cost over all points that ``row`` can reach in the mixed space."""
    combinations = list(itertools.product(range(5), range(5), range(3), range(4)))
    points = row.repeat(len(combinations), 1)
    points[:, 3:] = 0
    for point, (first, second, one, two) in zip(points, combinations, strict=True):
        point[0], point[1], point[3 + one], point[6 + two] = first, second, 1, 1
    delta = points - row
    changed = torch.stack([delta[:, list(columns)].abs().sum(1) > 0 for columns in space.feature_columns], 1).sum(1)
    allowed = changed <= (space.max_changes or len(space.feature_columns))
    with torch.no_grad():
        valid = allowed & (model(points).argmax(1) == target)
    return float(torch.where(valid, space.cost(points, delta), torch.inf).min())


@pytest.mark.parametrize("max_changes", [1, 2, None])
def test_costs_come_within_two_per_cent_of_enumeration_and_hardly_anybody_is_missed(max_changes: int | None) -> None:
    ratios: list[float] = []
    possible, found = 0, 0
    for seed in range(2):
        model = _network(10, seed)
        space, rows = _mixed_space(30, seed, max_changes)
        batch = solve(model, rows, space, target=1, method=MinimalCost(effort="thorough"))
        with torch.no_grad():
            rejected = model(rows).argmax(1) == 0
            for i in rejected.nonzero()[:, 0].tolist():
                optimum = _cheapest_by_enumeration(model, rows[i], space, 1)
                possible += optimum < float("inf")
                found += bool(batch.found[i])
                if batch.found[i]:
                    ratios.append(float(batch.cost[i]) / optimum)
    # It is a search: whether it comes upon the one far point that somebody has may hang on the last bit of a margin.
    assert possible - 1 <= found <= possible and possible > 10
    assert sum(ratios) / len(ratios) <= 1.02 and min(ratios) > 1 - 1e-5


@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_a_linear_model_is_solved_exactly_in_l1(effort: str) -> None:
    """Closed form: fill the columns with the best gain per cost one after the other, each to its bound."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(6, generator=generator)
    price = torch.rand(6, generator=generator) + 0.2
    rows = torch.rand(200, 6, generator=generator) * 2 - 1
    model = _linear(slope, -1.5)
    space = BoxSpace(torch.full((6,), -1.5), torch.full((6,), 1.5), price)
    batch = solve(model, rows, space, target=1, method=MinimalCost(effort=effort))  # type: ignore[arg-type]
    expected = torch.zeros(len(rows))
    need = -(rows @ slope - 1.5)
    order = (slope.abs() / price).argsort(descending=True)
    for column in order.tolist():
        room = 1.5 - slope[column].sign() * rows[:, column]
        step = torch.minimum(need.clamp_min(0) / slope[column].abs(), room)
        expected += price[column] * step
        need = need - step * slope[column].abs()
    possible = need <= 1e-6
    assert possible.sum() > 100 and torch.equal(batch.found, possible)
    assert torch.allclose(batch.cost[possible], expected[possible], rtol=2e-3, atol=1e-3)


def test_a_linear_model_comes_close_to_the_closed_form_in_l2() -> None:
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(5, generator=generator)
    price = torch.rand(5, generator=generator) + 0.5
    rows = torch.randn(100, 5, generator=generator).clamp(-2, 2)
    space = BoxSpace(torch.full((5,), -50.0), torch.full((5,), 50.0), price, norm=2)
    batch = solve(_linear(slope, -2.0), rows, space, target=1)
    distance = (-(rows @ slope - 2.0)).clamp_min(0) / (slope / price).norm()
    assert batch.found.all()
    assert torch.allclose(batch.cost, distance, rtol=5e-3, atol=1e-3)


def test_sparsity_bounds_and_immutables_hold_and_every_point_is_valid_in_the_model() -> None:
    for seed in range(2):
        model = _network(10, seed)
        space, rows = _mixed_space(50, seed, 2)
        batch = solve(model, rows, space, target=1)
        assert torch.equal(space.project(rows, batch.delta), batch.delta)
        changed = torch.stack([batch.delta[:, list(columns)].abs().sum(1) > 0 for columns in space.feature_columns], 1)
        assert int(changed.sum(1).max()) <= 2 and not batch.delta[:, 2].any()
        with torch.no_grad():
            assert torch.equal(model(batch.points).argmax(1)[batch.found], torch.ones(int(batch.found.sum()), dtype=torch.int64))
        assert not batch.delta[~batch.found].any()
        assert torch.equal(batch.factual, rows)


@pytest.mark.parametrize("confidence", [0.5, 0.55, 0.9])
def test_points_have_the_confidence_asked_for_and_hardly_more(confidence: float) -> None:
    model = _network(4, 2)
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    space = BoxSpace(torch.full((4,), -6.0), torch.full((4,), 6.0), torch.ones(4))
    batch = solve(model, rows, space, target=1, method=MinimalCost(confidence=confidence))
    moved = batch.found & (batch.cost > 0)
    assert moved.sum() > 10
    assert bool((batch.margin[moved] >= log(confidence / (1 - confidence))).all())
    assert float((batch.margin[moved] - log(confidence / (1 - confidence))).median()) < 1e-2


def test_more_confidence_costs_more() -> None:
    model = _network(4, 2)
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    space = BoxSpace(torch.full((4,), -6.0), torch.full((4,), 6.0), torch.ones(4))
    costs = [solve(model, rows, space, target=1, method=MinimalCost(confidence=p)).cost.mean() for p in (0.5, 0.6, 0.8)]
    assert costs[0] < costs[1] < costs[2]


def test_it_is_cheaper_than_projected_gradient() -> None:
    model = _network(10, 0)
    space, rows = _mixed_space(100, 0, 3)
    least = solve(model, rows, space, target=1)
    first = solve(model, rows, space, target=1, method=ProjectedGradient())
    both = least.found & first.found
    assert bool(least.found[first.found].all())
    assert bool((least.cost[both] <= first.cost[both] * 1.05 + 1e-5).all())
    assert float(least.cost[both].mean()) < float(first.cost[both].mean())


def test_no_action_is_found_when_only_immutable_features_decide() -> None:
    space, rows = _mixed_space(30, 0, None)
    model = _linear(torch.tensor([0.0, 0.0, 1.0] + [0.0] * 7), 0.0)
    batch = solve(model, rows, space, target=1)
    assert torch.equal(batch.found, rows[:, 2] > 0) and not batch.delta.any()


def test_an_action_set_of_mixed_features_is_obeyed() -> None:
    generator = torch.Generator().manual_seed(4)
    count = 200
    columns = torch.cat(
        (
            (torch.randint(18, 70, (count, 1), generator=generator) - 40) / 10,
            torch.randn(count, 2, generator=generator),
            torch.nn.functional.one_hot(torch.randint(0, 4, (count,), generator=generator), 4),
        ),
        1,
    ).float()
    action_set = ActionSet.from_columns(
        columns,
        [
            Integer("age", column=0, mutability="increase"),  # type: ignore[arg-type]
            Continuous("income", column=1),
            Continuous("debt", column=2, mutability="immutable"),  # type: ignore[arg-type]
            Categorical("job", columns=(3, 4, 5, 6), levels=("a", "b", "c", "d")),
        ],
        means=[40.0] + [0.0] * 6,
        scales=[10.0] + [1.0] * 6,
        max_changes=2,
    )
    model = _network(7, 5)
    batch = solve(model, columns, action_set, target=1)
    assert bool((batch.delta[:, 0] >= 0).all()) and not batch.delta[:, 2].any()
    assert torch.allclose(batch.points[:, 3:].sum(1), torch.ones(count))
    years = batch.points[:, 0] * 10 + 40
    assert torch.allclose(years, years.round(), atol=1e-4)
    assert len(action_set.validate(batch.points)) == 0
    assert batch.found.float().mean() > 0.2


@pytest.mark.parametrize(
    "settings",
    [
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"confidence": "high"},
        {"steps": 0},
        {"slack": -1.0},
        {"effort": "heroic"},
        {"portfolio": ()},
    ],
)
def test_settings_are_checked_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DataError):
        MinimalCost(**settings)  # type: ignore[arg-type]
