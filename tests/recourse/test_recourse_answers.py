"""Reasons, raw units, and validity after decoding and encoding."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_world import filled, least_cost, network, people
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical
from cfptq.datasets import locate
from cfptq.errors import DataError, FileError
from cfptq.experiments.recipe import Recipe
from cfptq.network import as_predictor, decide, target_margin
from cfptq.recourse import Exact, GradientFree, MinimalCost, RecourseBatch, Status, prove_infeasibility, solve, solve_diverse

RECIPES = Path(__file__).parents[2] / "recipes"


def decided_by(column: int) -> nn.Sequential:
    """A linear model on one column."""
    model = nn.Sequential(nn.Linear(10, 2))
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1, column] = 1.0
    return model.eval()


def test_every_row_without_recourse_has_a_reason() -> None:
    action_set, rows = people(12, seed=2)
    rows[:, 2] = torch.linspace(-2, 2, 12)
    batch = solve(decided_by(2), rows, action_set, target=1, progress=False)  # column 2 is immutable
    assert set(batch[~batch.found].reasons) == {"minimal-cost found no action (not proven)"}
    assert set(batch[batch.found].reasons) == {"already favourable"}
    with pytest.raises(DataError, match="got NoneType"):
        prove_infeasibility(decided_by(2), batch, None)  # type: ignore[arg-type]
    proven = prove_infeasibility(decided_by(2), batch, action_set)
    assert proven.statuses == [Status.FAVOURABLE if found else Status.IMMUTABLE for found in batch.found.tolist()]
    assert "immutable features alone decide" in proven.reasons[0]
    assert proven.bound is not None and bool(proven.bound[~proven.found].isinf().all())


def test_infeasible_by_sparsity_is_told_apart_from_infeasible_by_immutable_features() -> None:
    action_set, rows = people(1, seed=0, max_changes=1)
    rows[0, :3] = 0
    model = decided_by(0)
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[1, 1] = 1.0
        layer.bias[1] = -6.0  # each reaches 4, both together 8
    batch = prove_infeasibility(model, solve(model, rows, action_set, target=1, progress=False), action_set)
    assert batch.statuses == [Status.INFEASIBLE]
    assert solve(model, rows, action_set, target=1, method="exact", progress=False).statuses == [Status.INFEASIBLE]


def test_rows_proven_infeasible_have_no_valid_action() -> None:
    action_set, rows = people(40, seed=21, max_changes=1)
    model = network(10, seed=14, hidden=8)
    with torch.no_grad():
        model[-1].bias[0] += 3.0  # type: ignore[union-attr, operator]
    batch = solve(model, rows, action_set, target=1, progress=False)
    proven = prove_infeasibility(model, batch, action_set)
    codes = [status for status in proven.statuses if status in (Status.INFEASIBLE, Status.IMMUTABLE)]
    assert codes
    for row, status in enumerate(proven.statuses):
        if status in (Status.INFEASIBLE, Status.IMMUTABLE):
            assert least_cost(model, rows[row], action_set, 1) == float("inf")


def test_proofs_survive_indexing_and_a_file_and_old_batches_still_load(tmp_path: Path) -> None:
    action_set, rows = people(9, seed=5, max_changes=2)
    model = network(10, seed=6)
    batch = solve(model, rows, action_set, target=1, method="exact", progress=False)
    assert batch.status is not None and batch.bound is not None
    assert torch.equal(batch[batch.found].status, batch.status[batch.found])  # type: ignore[arg-type]
    batch.save(tmp_path / "exact.safetensors")
    again = RecourseBatch.load(tmp_path / "exact.safetensors")
    assert again.statuses == batch.statuses and torch.equal(again.bound, batch.bound)  # type: ignore[arg-type]
    plain = solve(model, rows, action_set, target=1, progress=False)
    assert plain.status is None and plain.bound is None and bool(plain.gap.isnan().all())
    plain.save(tmp_path / "plain.safetensors")
    assert RecourseBatch.load(tmp_path / "plain.safetensors").status is None
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "plain.safetensors").read_bytes()[:-8])
    with pytest.raises(FileError):
        RecourseBatch.load(tmp_path / "cut.safetensors")


def test_str_counts_the_statuses_in_one_line() -> None:
    action_set, rows = people(12, seed=2)
    rows[:, 2] = torch.linspace(-2, 2, 12)
    batch = solve(decided_by(2), rows, action_set, target=1, progress=False)
    accepted = int((rows[:, 2] > 0).sum())
    assert str(batch).startswith(f"minimal-cost recourse for 12 rows: {12 - accepted} not found, {accepted} already favourable.")
    assert str(batch) in repr(batch) and "\n" not in repr(batch)
    some = solve(decided_by(0), rows, action_set, target=1, method=MinimalCost(confidence=0.6), progress=False)
    acting = some.found & (some.cost > 0)
    assert f"{int(acting.sum())} found" in str(some) and f"median cost {float(some.cost[acting].median()):.4g}" in str(some)
    assert "recourse at 0.6" in str(some)


def test_a_status_of_another_length_or_type_is_refused() -> None:
    action_set, rows = people(4, seed=5)
    batch = solve(network(10, seed=6), rows, action_set, target=1, progress=False)
    parts = {name: getattr(batch, name) for name in ("factual", "points", "delta", "cost", "found", "margin", "target")}
    with pytest.raises(DataError, match="status"):
        RecourseBatch(**parts, method="exact", confidence=0.5, status=torch.zeros(3, dtype=torch.int8))
    with pytest.raises(DataError, match="int8"):
        RecourseBatch(**parts, method="exact", confidence=0.5, status=torch.zeros(4))


def test_the_table_shows_raw_units_changes_cost_and_status() -> None:
    action_set, rows = people(6, seed=8)
    batch = solve(network(10, seed=6), rows, action_set, target=1, method="exact", progress=False)
    table = batch.to_frame(action_set)
    assert list(dict.fromkeys(table.columns.get_level_values(0))) == ["recourse", "factual", "counterfactual"]
    for row, status in enumerate(batch.statuses):
        answer = table["recourse"].iloc[row]
        assert answer["status"] == status.name.lower()
        before, after = table["factual"].iloc[row], table["counterfactual"].iloc[row]
        changed = [name for name in action_set.names if before[name] != after[name]]
        assert all(f"{name} {before[name]} → {after[name]}" in answer["changes"] for name in changed if name in ("one", "two"))
        assert bool(changed) == (answer["changes"] != "no change")
    assert torch.equal(action_set.encode(table["factual"]), batch.factual)
    with pytest.raises(DataError, match="action set"):
        batch[batch.found].to_frame(people_of_another_width())
    with pytest.raises(DataError, match="got NoneType"):
        batch.to_frame(None)  # type: ignore[arg-type]


def test_each_of_several_actions_changes_other_features_and_holds() -> None:
    action_set, rows = people(12, seed=8)
    model = network(10, seed=6)
    batches = solve_diverse(model, rows, action_set, target=1, actions=3, method="exact", progress=False)
    assert len(batches) == 3
    sets = []
    for batch in batches:
        with torch.no_grad():
            margin = target_margin(model(batch.points), batch.target)
        assert bool((margin[batch.found] > 0).all())
        assert torch.equal(action_set.project(batch.factual, batch.delta), batch.delta)
        sets.append([[bool((row[list(columns)] != 0).any()) for columns in action_set.feature_columns] for row in batch.delta])
    several = 0
    for row in range(len(rows)):
        acting = [one[row] for one in sets if any(one[row])]
        several += len(acting) > 1
        assert len({tuple(one) for one in acting}) == len(acting)
        # Cheapest first, since each later one may do less.
        costs = [float(batch.cost[row]) for batch, one in zip(batches, sets, strict=True) if any(one[row])]
        assert all(later >= earlier * (1 - 1e-3) for earlier, later in pairwise(costs))
    assert several >= 3
    for actions in (0, 1.5, "3"):
        with pytest.raises(DataError, match="whole number"):
            solve_diverse(model, rows, action_set, target=1, actions=actions)  # type: ignore[arg-type]


def people_of_another_width() -> ActionSet:
    from cfptq.actions import Continuous

    return ActionSet.from_columns(torch.randn(5, 2), [Continuous("a", column=0), Continuous("b", column=1)])


def files_are_here(name: str) -> bool:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    if "CFPTQ_DATA_DIR" not in os.environ and beside.is_dir():
        os.environ["CFPTQ_DATA_DIR"] = str(beside)
    return all(path is not None for path in locate(name).values())


@pytest.mark.data
@pytest.mark.parametrize("name", ["adult", "german"])
@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_actions_hold_in_the_model_after_decoding_and_encoding_again(name: str, effort: str) -> None:
    """Rounding must not destroy validity, so the table holds the points that the model decided on."""
    if not files_are_here(name):
        pytest.skip(f"the files of {name} are not here; set CFPTQ_DATA_DIR")
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    if name == "adult":  # three epochs are enough for a model that rejects some and accepts others
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 3})})
    experiment = recipe.prepare(0, progress=False)
    action_set, rows = experiment.action_set, experiment.columns.test
    predictor = as_predictor(experiment.model, example=rows[:256])
    rejected = rows[decide(predictor.logits(rows)) != action_set.favourable][:200]
    method = MinimalCost(effort=effort)  # type: ignore[arg-type]
    batch = solve(experiment.model, rejected, action_set, target=action_set.favourable or 0, method=method, progress=False)
    table = batch.to_frame(action_set)
    again = action_set.encode(table["counterfactual"])
    assert torch.equal(again, batch.points)
    margin = target_margin(predictor.logits(again), batch.target)
    assert bool(batch.found.any()) and bool((margin[batch.found] > 0).all())
    assert len(action_set.validate(table["counterfactual"])) == 0
    for feature in action_set:
        if feature.is_immutable:
            assert table["factual"][feature.name].equals(table["counterfactual"][feature.name])


class Doubled(nn.Module):
    """A module in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = filled(nn.Sequential(nn.Linear(10, 2)), torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out * 2


def test_proofs_leave_the_model_unchanged() -> None:
    action_set, rows = people(5, seed=3)
    model = Doubled().train()
    batch = solve(model, rows, action_set, target=1, progress=False)
    prove_infeasibility(model, batch, action_set)
    solve(model, rows, action_set, target=1, method="exact", progress=False)
    assert model.training and model.inner.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", [MinimalCost(confidence=0.9), GradientFree(confidence=0.9), Exact(confidence=0.9), "projected-gradient"])
def test_who_is_accepted_already_is_asked_for_nothing_whatever_the_confidence(method: Any) -> None:
    action_set, rows = people(30, seed=4)
    model = network(10, seed=4)
    with torch.no_grad():
        model[-1].weight.mul_(0.2)  # type: ignore[operator]
    accepted = model(rows).argmax(1) == 1
    assert 0 < int(accepted.sum()) < 30
    batch = solve(model, rows, action_set, target=1, method=method, progress=False)
    assert bool(batch.found[accepted].all())
    assert not bool(batch.delta[accepted].any())
    assert set(batch[accepted].statuses) == {Status.FAVOURABLE}


@pytest.mark.parametrize("method", ["minimal-cost", "projected-gradient", "gradient-free", "exact"])
def test_features_that_are_all_categorical_have_recourse(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(40, 7)
    for first, last in ((0, 2), (3, 6)):
        rows[torch.arange(40), torch.randint(first, last + 1, (40,), generator=generator)] = 1
    features = [
        Categorical("one", columns=(0, 1, 2), levels=("a", "b", "c")),
        Categorical("two", columns=(3, 4, 5, 6), levels=tuple("pqrs")),
    ]
    action_set = ActionSet.from_columns(rows, features)
    first = nn.Linear(7, 2)
    with torch.no_grad():
        first.weight.zero_()
        first.bias.copy_(torch.tensor([0.5, 0.0]))
        first.weight[1, 0] = 1.0
    model = nn.Sequential(first).eval()
    batch = solve(model, rows, action_set, target=1, method=method, progress=False)
    assert bool(batch.found.all())
    assert bool((batch.points[:, 0] == 1).all())
    assert torch.equal(batch.points[:, 3:], rows[:, 3:]) or method == "projected-gradient"


def test_told_the_people_a_table_shows_what_is_missing_as_missing() -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"rent": draw.normal(900, 200, 60).round(), "years": draw.integers(0, 30, 60).astype(float)})
    frame["years"] = frame["years"].where(frame.index % 3 > 0)
    frame.index = frame.index + 500
    encoder = ColumnTransformer([("n", make_pipeline(SimpleImputer(), StandardScaler()), ["rent", "years"])]).fit(frame)
    action_set = ActionSet.from_frame(frame, immutable=["rent"], favourable=1).encoded_by(encoder)
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))  # type: ignore[operator]
        model[0].bias.copy_(torch.tensor([0.5, 0.0]))  # type: ignore[operator]
    batch = solve(model, action_set.encode(frame), action_set, target=1, progress=False)
    table = batch.to_frame(action_set, people=frame)
    assert table.index.tolist() == frame.index.tolist()
    assert table["factual", "years"].isna().tolist() == frame["years"].isna().tolist()
    assert table["recourse", "changes"].iloc[0].startswith("years (missing) → ")
