"""Rows on both sides of the boundary: who they are, how many count, and what is left out to bound the work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Continuous
from cfptq.calibration import CalibrationSet, build_boundary_set, hold_out_people
from cfptq.calibration.counterfactual_points import MAX_BOTH_SIDES_ROWS, draw_by_weight
from cfptq.network import Predictor, as_predictor, target_margin
from cfptq.quantize.calibration_set import FACTUAL, GENERATED
from cfptq.recourse import RecourseBatch

COLUMNS = 5


def people(seed: int = 0, rows: int = 300) -> tuple[Tensor, ActionSet, Predictor]:
    """People of two numbers and a category of three levels, and a model that weighs all of them."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.nn.functional.one_hot(torch.randint(3, (rows,), generator=generator), 3)
    x = torch.cat([torch.randn(rows, 2, generator=generator), level.float()], dim=1)
    model = nn.Linear(COLUMNS, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 5, [1.0, 0.7, -0.8, 0.1, 0.6]]))
        model.bias.zero_()
    features = [Continuous("a", column=0), Continuous("b", column=1), Categorical("c", columns=(2, 3, 4), levels=("x", "y", "z"))]
    return x, ActionSet.from_columns(x, features, favourable=1), as_predictor(model, example=x)


def built(minimal_cost: bool = False, both_sides: bool = True) -> tuple[CalibrationSet, RecourseBatch]:
    x, space, predictor = people()
    return build_boundary_set(x, None, predictor, space, target=1, minimal_cost=minimal_cost, both_sides=both_sides, progress=False)


def test_generated_rows_lie_on_both_sides_and_near() -> None:
    points, recourse = built()
    plain, same = built(both_sides=False)
    assert torch.equal(points.rows[: len(plain)], plain.rows) and torch.equal(recourse.points, same.points)
    assert not bool((plain.origin == GENERATED).any()) and bool((points.origin[len(plain) :] == GENERATED).all())
    assert int((points.weights > 0).sum()) <= MAX_BOTH_SIDES_ROWS
    margin = target_margin(people()[2].logits(points.rows), points.target)
    share = points.weights / points.weights.sum()
    accepted = float(share[(margin > 0) & (points.origin == GENERATED)].sum())
    refused = float(share[(margin < 0) & (points.origin == GENERATED)].sum())
    assert accepted > 0.2 and refused > 0.2
    assert float(share @ margin.abs()) < 0.7 * float(margin[points.origin == FACTUAL].abs().mean())


def test_generated_rows_are_people_and_the_same_for_the_same_seed() -> None:
    points, _ = built()
    made = points.rows[points.origin == GENERATED]
    assert bool(((made[:, 2:] == 0) | (made[:, 2:] == 1)).all()) and bool((made[:, 2:].sum(dim=1) == 1).all())
    assert torch.equal(built()[0].rows, points.rows)


def test_held_out_people_lend_nothing_to_the_others() -> None:
    points, _ = built()
    kept, held_out = hold_out_people(points)
    factual = {column: set(held_out.rows[held_out.origin == FACTUAL][:, column].tolist()) for column in (0, 1)}
    # A recombined person has two numbers of the kept people, and recourse moves both of them.
    made = kept.rows[kept.origin == GENERATED]
    assert not any(value in factual[column] for column in (0, 1) for value in made[:, column].tolist())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_the_draw_by_weight_is_within_one_step_of_each_rows_share(seed: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(50, generator=generator) + 1e-3
    origin = torch.tensor([FACTUAL] * 10 + [GENERATED] * 40, dtype=torch.uint8)
    every = torch.arange(50)
    points = CalibrationSet(every[:, None].float(), origin, weights, every % 10, every, every)
    drawn = draw_by_weight(points, most)
    assert torch.equal(drawn.factual, points.factual)
    assert int((drawn.weights > 0).sum()) <= most or most >= 50
    expected = weights / weights.sum()
    found = torch.zeros(50)
    found[drawn.rows[:, 0].long()] = drawn.weights / drawn.weights.sum()
    assert float((found - expected).abs().max()) <= (1 / most + 1e-5 if most < 50 else 1e-6)


def test_without_minimal_cost_points_single_features_stay() -> None:
    with_them, without = built(minimal_cost=True, both_sides=False)[0], built(both_sides=False)[0]
    assert 300 < len(without) < len(with_them)


class Decoded:
    """A user's own space: a code of four numbers, decoded to a change of the columns."""

    max_changes = None
    feature_columns = ((0,), (1,), (2,), (3,))

    def __init__(self) -> None:
        self.decoder = torch.randn(4, COLUMNS, generator=torch.Generator().manual_seed(0))

    def zero(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        return delta.clamp(-2, 2)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + torch.tanh(delta @ self.decoder)

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        return delta.abs().sum(dim=1)

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        return [""] * len(x)

    def check(self, x: Tensor) -> None:
        return None


def test_an_action_space_of_ones_own_gets_the_way_back() -> None:
    x, _, predictor = people()
    points, recourse = build_boundary_set(x, None, predictor, Decoded(), target=1, both_sides=True, minimal_cost=False, progress=False)
    made = points.origin == GENERATED
    assert len(recourse) > 50 and int(made.sum()) > len(recourse)
    accepted = target_margin(predictor.logits(points.rows[made]), points.target[made]) > 0
    assert 0.1 < float(accepted.float().mean()) < 0.9


def test_work_is_bounded_and_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x, space, predictor = people()
    rejected = int((predictor.logits(x).argmax(1) != 1).sum())
    few, recourse = build_boundary_set(x, None, predictor, space, target=1, runs=50 * 32, both_sides=True, progress=False)
    assert recourse.note == f"To bound the work, recourse was searched for 50 of {rejected} rejected calibration rows. " + (
        f"To bound the work, minimal-cost recourse was searched for 0 of {len(recourse)} people."
    )
    assert len(recourse) <= 50
    counted = [0]
    logits = type(predictor).logits

    def count(self: Predictor, rows: Tensor) -> Tensor:
        counted[0] += len(rows)
        return logits(self, rows)

    monkeypatch.setattr(type(predictor), "logits", count)
    # A decision that actions cannot change leaves everybody to the search of combinations.
    stubborn = replace_bias(predictor, -30.0)
    batch = build_boundary_set(x, None, stubborn, Decoded(), target=1, runs=2**15, progress=False)[1]
    assert len(batch) == 0 and counted[0] < 20 * 2**15
    assert few.weights.sum() > 0


def replace_bias(predictor: Predictor, bias: float) -> Predictor:
    """A model that refuses everybody by far."""
    model = nn.Linear(COLUMNS, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 5, [1.0, 0.7, -0.8, 0.1, 0.6]]))
        model.bias.copy_(torch.tensor([0.0, bias]))
    return as_predictor(model, example=torch.zeros(2, COLUMNS))


def test_nothing_is_said_where_nothing_is_left_out() -> None:
    assert built(minimal_cost=True)[1].note == ""


def test_people_without_weight_can_be_held_out() -> None:
    every = torch.arange(8)
    points = CalibrationSet(every[:, None].float(), torch.zeros(8, dtype=torch.uint8), (every % 4 < 3).float(), every, every)
    kept, held_out = hold_out_people(points)
    assert kept.weights.tolist() == [1.0] * 6 and held_out.weights.tolist() == [1.0] * 2 and held_out.rows[:, 0].tolist() == [3.0, 7.0]


def test_rows_without_weight_are_dropped_only_if_generated() -> None:
    every = torch.arange(6)
    origin = torch.tensor([FACTUAL] * 2 + [1] * 2 + [GENERATED] * 2, dtype=torch.uint8)
    points = CalibrationSet(every[:, None].float(), origin, torch.tensor([1e-9, 1e-9, 1e-9, 1e-9, 1.0, 1e-9]), every % 2, every, every)
    drawn = draw_by_weight(points, 3)
    assert drawn.rows[:, 0].tolist() == [0, 1, 2, 3, 4] and drawn.weights.tolist() == [0, 0, 0, 0, 3]
    assert torch.equal(draw_by_weight(replace(points, weights=torch.ones(6)), 6).rows, points.rows)
