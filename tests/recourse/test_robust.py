"""Recourse that is valid in several models, in closed form and in sampled deployments (Appendix E.2)."""

from __future__ import annotations

import pytest
import torch
from box_space import BoxSpace
from torch import Tensor, nn

from cfptq.errors import DataError, ModelError
from cfptq.network import as_predictor
from cfptq.recourse import ProjectedGradient, WorstCasePredictor, check_validity, robust, runner_up_class, solve


def _linear(weight: list[float], bias: float) -> nn.Linear:
    model = nn.Linear(len(weight), 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * len(weight), weight]))
        model.bias.copy_(torch.tensor([0.0, bias]))
    return model


def _line() -> tuple[BoxSpace, Tensor]:
    """Return a space of one mutable column and rows on a line."""
    return BoxSpace(torch.tensor([-9.0]), torch.tensor([9.0]), torch.ones(1)), torch.linspace(-4, 0, 9)[:, None]


def test_on_a_line_the_action_goes_to_the_farthest_threshold_and_no_farther() -> None:
    space, rows = _line()
    models = [_linear([1.0], -threshold) for threshold in (1.0, 2.5, 1.7)]
    batch = robust(models, rows, space, 1)
    assert batch.found.all()
    assert torch.allclose(batch.points[:, 0], torch.full((9,), 2.5), atol=1e-3)
    assert bool(check_validity(models, batch).all())


def test_the_standard_action_fails_in_a_stricter_variant_and_the_robust_one_costs_more() -> None:
    space, rows = _line()
    models = [_linear([1.0], -1.0), _linear([1.0], -1.2)]
    standard, both = solve(models[0], rows, space, target=1), robust(models, rows, space, 1)
    assert check_validity(models, standard).float().mean(1).tolist() == [1.0, 0.0]
    assert check_validity(models, both).float().mean(1).tolist() == [1.0, 1.0]
    assert bool((both.cost > standard.cost).all())


def test_contradicting_models_leave_no_recourse() -> None:
    space, rows = _line()
    batch = robust([_linear([1.0], -1.0), _linear([-1.0], -1.0)], rows, space, 1)
    assert not batch.found.any() and not batch.delta.any()


def test_each_row_may_want_another_class_and_keeps_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    models = []
    base = torch.randn(3, 2, generator=generator)
    for _ in range(3):
        model = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            model.weight.copy_(base + 0.1 * torch.randn(3, 2, generator=generator))
        models.append(model)
    rows = torch.randn(30, 2, generator=generator)
    space = BoxSpace(torch.full((2,), -6.0), torch.full((2,), 6.0), torch.ones(2))
    batch = robust(models, rows, space, runner_up_class)
    with torch.no_grad():
        assert torch.equal(batch.target, models[0](rows).topk(2, dim=1).indices[:, 1])
    assert torch.equal(batch.factual, rows)
    assert bool(check_validity(models, batch)[:, batch.found].all()) and batch.found.float().mean() > 0.8


def test_the_worst_of_several_has_the_least_margin_and_its_gradient() -> None:
    models = [_linear([1.0, 0.0], 0.0), _linear([0.0, 2.0], 0.0)]
    rows = torch.tensor([[1.0, 3.0], [4.0, 1.0]])
    worst = WorstCasePredictor(tuple(as_predictor(model, example=rows) for model in models), 1)
    assert worst.logits(rows).tolist() == [[0.0, 1.0], [0.0, 2.0]]
    x = rows.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(worst.surrogate(x)[:, 1].sum(), x)
    assert gradient.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_any_method_works_on_it_and_predictors_without_gradient_too() -> None:
    space, rows = _line()
    models = [_linear([1.0], -threshold) for threshold in (1.0, 2.0)]
    for batch in (
        robust(models, rows, space, 1, method=ProjectedGradient()),
        robust([lambda x: 8 * (x[:, :1] > 1) * [[-1, 1]], lambda x: 8 * (x[:, :1] > 2) * [[-1, 1]]], rows, space, 1),
    ):
        assert batch.found.all() and bool((batch.points >= 2 - 1e-3).all())
        assert "robust over 2" in batch.method


def test_invalid_predictors_are_refused() -> None:
    space, rows = _line()
    with pytest.raises(ModelError, match="at least one"):
        robust([], rows, space, 1)
    # nn.Sequential can be iterated over: its layers are no models.
    for one in (_linear([1.0], 0.0), nn.Sequential(_linear([1.0], 0.0)), "model.onnx"):
        with pytest.raises(ModelError, match="list of models"):
            robust(one, rows, space, 1)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="list of models"):
            check_validity(one, robust([_linear([1.0], 0.0)], rows, space, 1))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="classes"):
        robust([_linear([1.0], 0.0), nn.Linear(1, 3)], rows, space, 1)
    with pytest.raises(DataError, match="target"):
        robust([_linear([1.0], 0.0)], rows, space, 7)
