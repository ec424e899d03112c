"""Unrolled projected steps are feasible and differentiable with respect to the model's parameters (Appendix B)."""

from __future__ import annotations

import pytest
import torch
from box_space import BoxSpace
from torch import Tensor, nn

from cfptq.actions import ActionSet, Continuous
from cfptq.errors import DataError
from cfptq.recourse import ProjectedGradient, run_projected_gradient, unroll_projected_gradient


def _smooth_model(width: int, seed: int, dtype: torch.dtype) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def _loss(model: nn.Module, x: Tensor, space: BoxSpace, steps: int, **settings: object) -> Tensor:
    delta = unroll_projected_gradient(model, x, space, torch.ones(len(x), dtype=torch.int64), steps, 0.1, **settings)  # type: ignore[arg-type]
    towards = torch.linspace(-1, 1, delta.numel(), dtype=delta.dtype).reshape(delta.shape)
    return (delta - towards).square().sum()


def _by_finite_differences(model: nn.Module, x: Tensor, space: BoxSpace, steps: int, **settings: object) -> list[Tensor]:
    slopes = []
    for parameter in model.parameters():
        slope = torch.zeros_like(parameter)
        for place in range(parameter.numel()):
            with torch.no_grad():
                flat = parameter.view(-1)
                kept = float(flat[place])
                flat[place] = kept + 1e-6
                above = _loss(model, x, space, steps, **settings)
                flat[place] = kept - 1e-6
                below = _loss(model, x, space, steps, **settings)
                flat[place] = kept
            slope.view(-1)[place] = float(above - below) / 2e-6
        slopes.append(slope)
    return slopes


@pytest.mark.parametrize("settings", [{}, {"loss": "margin"}, {"accumulate": True}])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_is_that_of_finite_differences_where_the_projection_is_smooth(steps: int, settings: dict[str, object]) -> None:
    model = _smooth_model(4, 0, torch.float64)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.full((4,), 100.0, dtype=torch.float64)
    space = BoxSpace(-wide, wide, torch.ones(4, dtype=torch.float64), frozen=(2,))
    gradients = torch.autograd.grad(_loss(model, x, space, steps, **settings), list(model.parameters()), allow_unused=True)
    expected = _by_finite_differences(model, x, space, steps, **settings)
    assert any(float(slope.abs().max()) > 1e-3 for slope in expected)
    for gradient, slope in zip(gradients, expected, strict=True):
        assert torch.allclose(torch.zeros_like(slope) if gradient is None else gradient, slope, rtol=1e-4, atol=1e-7)


def _people(width: int) -> tuple[ActionSet, Tensor]:
    x = torch.randn(30, width, generator=torch.Generator().manual_seed(0))
    features = [
        Continuous(f"x{column}", column=column, mutability="immutable" if column == 0 else "free")  # type: ignore[arg-type]
        for column in range(width)
    ]
    return ActionSet.from_columns(x, features, max_changes=2), x


def test_forward_it_is_projected_gradient_with_its_exact_projection() -> None:
    model, (action_set, x) = _smooth_model(5, 2, torch.float32), _people(5)
    target = torch.ones(len(x), dtype=torch.int64)
    literal = ProjectedGradient(steps=3, step_size=0.4, normalize=False, accumulate=False, early_stop=False)

    class AsPredictor:
        name, n_classes, is_differentiable = "model", 2, True

        def logits(self, rows: Tensor) -> Tensor:
            with torch.no_grad():
                return self.surrogate(rows)

        def surrogate(self, rows: Tensor) -> Tensor:
            result: Tensor = model(rows)
            return result

    delta = unroll_projected_gradient(model, x, action_set, target, 3, 0.4)
    assert torch.allclose(delta, run_projected_gradient(AsPredictor(), x, action_set, target, literal)[0], atol=1e-6)
    assert torch.equal(action_set.project(x, delta.detach()), delta.detach())
    assert not delta[:, 0].any() and int((delta != 0).sum(1).max()) <= 2


def test_backward_nothing_passes_through_fixed_coordinates_and_something_through_the_others() -> None:
    model, (action_set, x) = _smooth_model(5, 2, torch.float32), _people(5)
    target = torch.ones(len(x), dtype=torch.int64)
    delta = unroll_projected_gradient(model, x, action_set, target, 2, 0.4)
    fixed = torch.autograd.grad(delta[:, 0].sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in fixed)
    active = torch.autograd.grad(delta[:, 1:].abs().sum(), list(model.parameters()), allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in active)


def test_matching_a_detached_teacher_moves_the_students_actions_towards_the_teachers() -> None:
    teacher, student = _smooth_model(5, 2, torch.float32), _smooth_model(5, 3, torch.float32)
    action_set, x = _people(5)
    target = torch.ones(len(x), dtype=torch.int64)
    wanted = unroll_projected_gradient(teacher, x, action_set, target, 2, 0.4).detach()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03)
    apart = []
    for _ in range(25):
        distance = (unroll_projected_gradient(student, x, action_set, target, 2, 0.4) - wanted).abs().sum(1).mean()
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        apart.append(float(distance.detach()))
    assert apart[-1] < 0.8 * apart[0]


def test_settings_that_make_no_sense_are_refused() -> None:
    model, (action_set, x) = _smooth_model(5, 2, torch.float32), _people(5)
    target = torch.ones(len(x), dtype=torch.int64)
    for steps, size in ((0, 0.1), (1, 0.0), (1, float("nan"))):
        with pytest.raises(DataError, match="steps"):
            unroll_projected_gradient(model, x, action_set, target, steps, size)
    with pytest.raises(DataError, match="loss"):
        unroll_projected_gradient(model, x, action_set, target, 1, 0.1, loss="hinge")  # type: ignore[arg-type]
