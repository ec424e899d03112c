"""Recourse without gradients, against enumeration and against the gradient solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Continuous, Integer
from cfptq.errors import DataError, ModelError
from cfptq.models import MLP, TrainingSettings, train
from cfptq.network import as_predictor
from cfptq.recourse import GradientFree, MinimalCost, ProjectedGradient, solve


def _people(count: int, seed: int, max_changes: int | None = 3) -> tuple[ActionSet, Tensor]:
    """An integer that may only rise, two numbers, an immutable number, a category of four levels and one of three."""
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.nn.functional.one_hot(torch.randint(0, size, (count,), generator=generator), size) for size in (4, 3)]
    ages = (torch.randint(18, 70, (count, 1), generator=generator) - 40) / 10
    columns = torch.cat((ages, torch.randn(count, 3, generator=generator), *groups), 1).float()
    features = [
        Integer("age", column=0, mutability="increase"),  # type: ignore[arg-type]
        Continuous("income", column=1),
        Continuous("debt", column=2),
        Continuous("origin", column=3, mutability="immutable"),  # type: ignore[arg-type]
        Categorical("job", columns=(4, 5, 6, 7), levels=("a", "b", "c", "d")),
        Categorical("home", columns=(8, 9, 10), levels=("x", "y", "z")),
    ]
    scales = [10.0] + [1.0] * 10
    return ActionSet.from_columns(columns, features, means=[40.0] + [0.0] * 10, scales=scales, max_changes=max_changes), columns


def _network(width: int, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.6 if parameter.dim() > 1 else 0.2))
    return model


def _labels(columns: Tensor) -> np.ndarray:
    """Who is accepted: a formula with an interaction and a wave."""
    x = columns.numpy()
    score = x[:, 1] - x[:, 2] + 0.8 * x[:, 4] * (x[:, 0] > 0) - 0.7 * x[:, 9] + 0.5 * np.sin(2 * x[:, 1]) + 0.3 * x[:, 3]
    return (score > np.quantile(score, 0.6)).astype(np.int64)


def _boosted(columns: Tensor) -> GradientBoostingClassifier:
    return GradientBoostingClassifier(n_estimators=40, max_depth=3, random_state=0).fit(columns.numpy(), _labels(columns))


@pytest.mark.parametrize("seed", [0, 1])
def test_on_a_trained_network_its_mean_cost_is_within_five_per_cent_of_the_gradient_solvers(seed: int) -> None:
    action_set, x = _people(400, seed)
    model = MLP(x.shape[1], hidden=(16, 16), seed=seed)
    train(model, x, torch.from_numpy(_labels(x)), seed=seed, settings=TrainingSettings(epochs=15, learning_rate=0.01), progress=False)
    with torch.no_grad():
        refused = x[model(x).argmax(1) == 0][:80]
    with_gradient = solve(model, refused, action_set, target=1, method=MinimalCost())
    without = solve(model, refused, action_set, target=1, method="gradient-free")
    assert bool(without.found[with_gradient.found].all())
    both = with_gradient.found
    assert both.sum() > 40
    assert float(without.cost[both].mean()) <= 1.05 * float(with_gradient.cost[both].mean())


def _single_changes(model: GradientBoostingClassifier, action_set: ActionSet, row: Tensor) -> float:
    """The least cost of one changed feature: every level, every whole year, and numbers on a fine grid."""
    low, high = action_set.column_bounds(row[None])
    points = []
    for column in (0, 1, 2):
        for value in np.linspace(float(low[0, column]), float(high[0, column]), 1001):
            point = row.clone()
            point[column] = value
            points.append(point)
    for group in ((4, 5, 6, 7), (8, 9, 10)):
        for level in group:
            point = row.clone()
            point[list(group)] = 0
            point[level] = 1
            points.append(point)
    candidates = torch.stack(points)
    delta = action_set.project(row.expand_as(candidates), candidates - row)
    reached = torch.from_numpy(model.predict(action_set.apply(row.expand_as(candidates), delta).numpy()) == 1)
    cost = action_set.cost(row.expand_as(candidates), delta)
    return float(torch.where(reached, cost, torch.inf).min())


def test_on_boosted_trees_single_changes_are_as_cheap_as_a_fine_grid_finds_them() -> None:
    action_set, x = _people(300, 0, max_changes=1)
    model = _boosted(x)
    refused = x[torch.from_numpy(model.predict(x.numpy()) == 0)][:15]
    batch = solve(model.predict_proba, refused, action_set, target=1)
    assert batch.method == "gradient-free"
    ratios = []
    for place, row in enumerate(refused):
        least = _single_changes(model, action_set, row)
        assert bool(batch.found[place]) == (least < float("inf"))
        if least < float("inf"):
            ratios.append(float(batch.cost[place]) / least)
    assert len(ratios) > 10 and sum(ratios) / len(ratios) < 1.03


def test_on_boosted_trees_every_answer_is_valid_and_feasible_and_more_changes_cost_no_more() -> None:
    action_set, x = _people(300, 0)
    model = _boosted(x)
    refused = x[torch.from_numpy(model.predict(x.numpy()) == 0)][:60]
    batch = solve(model.predict_proba, refused, action_set, target=1, method="gradient-free")
    alone = solve(model.predict_proba, refused, action_set.replace(max_changes=1), target=1, method="gradient-free")
    assert bool(batch.found[alone.found].all()) and batch.found.float().mean() > 0.9
    assert (model.predict(batch.points[batch.found].numpy()) == 1).all()
    assert torch.equal(action_set.project(refused, batch.delta), batch.delta)
    assert bool((batch.cost[alone.found] <= 1.01 * alone.cost[alone.found] + 1e-6).all())


def test_a_scikit_learn_pipeline_is_a_predictor_like_any_other() -> None:
    action_set, x = _people(300, 1)
    labels = (x[:, 1] - x[:, 2] > 0).numpy().astype(int)
    pipeline = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=10, random_state=0)).fit(x.numpy(), labels)
    refused = x[torch.from_numpy(pipeline.predict(x.numpy()) == 0)][:20]
    batch = solve(pipeline.predict_proba, refused, action_set, target=1)
    assert batch.found.all() and (pipeline.predict(batch.points.numpy()) == 1).all()


def test_minimal_cost_falls_back_to_it_and_other_methods_say_what_to_do() -> None:
    action_set, x = _people(60, 0)
    model = _network(x.shape[1], 0)

    def deployed(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            answer: np.ndarray = model(torch.from_numpy(rows)).numpy()
        return answer

    batch = solve(deployed, x, action_set, target=1, method=MinimalCost(confidence=0.6))
    assert batch.method == "gradient-free" and batch.confidence == 0.6
    moved = batch.found & (batch.cost > 0)
    assert moved.sum() > 5 and float(batch.margin[moved].min()) >= 0.405
    with pytest.raises(ModelError, match="gradient-free"):
        solve(deployed, x, action_set, target=1, method=ProjectedGradient())


def test_what_chunk_a_row_is_in_changes_nothing_and_neither_does_a_second_run() -> None:
    action_set, x = _people(40, 2)
    model = as_predictor(_network(x.shape[1], 3), example=x)
    first = solve(model, x, action_set, target=1, method="gradient-free")
    again = solve(model, x, action_set, target=1, method="gradient-free", chunk_rows=7)
    assert torch.equal(first.found, again.found)
    assert torch.allclose(first.cost, again.cost, rtol=1e-3, atol=1e-4)
    assert torch.equal(solve(model, x, action_set, target=1, method="gradient-free").delta, first.delta)


@pytest.mark.parametrize(
    "settings", [{"confidence": 1.0}, {"confidence": "high"}, {"width": 0}, {"depth": 0}, {"keep": 0}, {"rounds": -1}, {"slack": -1.0}]
)
def test_settings_are_checked_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        GradientFree(**settings)  # type: ignore[arg-type]
