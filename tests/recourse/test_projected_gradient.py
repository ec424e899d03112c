"""Projected-gradient recourse: eq. 6 to the letter, and the accumulated form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from box_space import BoxSpace
from torch import Tensor, nn

from cfptq.errors import CfptqError, DataError, FileError, ModelError
from cfptq.recourse import MinimalCost, ProjectedGradient, RecourseBatch, opposite_class, runner_up_class, solve


def _linear(weight: list[float], bias: float) -> nn.Linear:
    """Two class logits (0, w.x + b)."""
    model = nn.Linear(len(weight), 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * len(weight), weight]))
        model.bias.copy_(torch.tensor([0.0, bias]))
    return model


def _network(width: int, seed: int, classes: int = 2) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return model


def _box(width: int, **options: object) -> BoxSpace:
    return BoxSpace(torch.full((width,), -3.0), torch.full((width,), 3.0), torch.ones(width), **options)  # type: ignore[arg-type]


def _rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def test_the_literal_form_is_equation_6_step_by_step() -> None:
    model = _network(4, 1)
    rows, space = _rows(20, 4), _box(4, max_changes=2)
    settings = ProjectedGradient(steps=3, step_size=0.5, normalize=False, early_stop=False, accumulate=False)
    batch = solve(model, rows, space, target=opposite_class, method=settings)

    delta = torch.zeros_like(rows)
    for _ in range(3):
        action = delta.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(model(rows + action), batch.target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, action)
        delta = space.project(rows, delta - 0.5 * gradient)
    assert torch.allclose(batch.delta, delta, atol=1e-6)


def test_normalized_steps_have_unit_max_norm_and_stop_at_the_first_point_that_reaches_the_target() -> None:
    model = _linear([2.0, 1.0], -2.1)
    batch = solve(model, torch.zeros(1, 2), _box(2), target=1, method="projected-gradient")
    # Steps of (0.3, 0.15) raise the margin by 0.75 each: -2.1, -1.35, -0.6, 0.15.
    assert torch.allclose(batch.delta, torch.tensor([[0.9, 0.45]]), atol=1e-6)
    assert batch.found.all() and torch.allclose(batch.margin, torch.tensor([0.15]), atol=1e-5)


def test_without_early_stop_the_final_iterate_is_returned_and_found_says_whether_it_holds() -> None:
    model = _linear([1.0, 0.0], -1.0)
    short = solve(model, torch.zeros(1, 2), _box(2), target=1, method=ProjectedGradient(steps=2, early_stop=False))
    assert torch.allclose(short.delta[0, 0], torch.tensor(0.6)) and not short.found.any()
    long = solve(model, torch.zeros(1, 2), _box(2), target=1, method=ProjectedGradient(steps=6, early_stop=False))
    assert torch.allclose(long.delta[0, 0], torch.tensor(1.8)) and long.found.all()


def test_small_steps_change_a_category_only_when_they_accumulate() -> None:
    # One group of two levels, of which level 1 is favourable.
    model = _linear([-1.0, 1.0], 0.0)
    space = BoxSpace(torch.zeros(2), torch.ones(2), torch.ones(2), groups=((0, 1),))
    rows = torch.tensor([[1.0, 0.0]])
    literal = solve(model, rows, space, target=1, method=ProjectedGradient(accumulate=False))
    summed = solve(model, rows, space, target=1, method=ProjectedGradient(accumulate=True))
    assert not literal.found.any() and summed.found.all()
    assert summed.points.tolist() == [[0.0, 1.0]]


def test_both_losses_point_the_same_way_for_two_classes() -> None:
    model, rows, space = _network(5, 2), _rows(30, 5), _box(5)
    one = solve(model, rows, space, target=opposite_class, method=ProjectedGradient(loss="cross-entropy"))
    two = solve(model, rows, space, target=opposite_class, method=ProjectedGradient(loss="margin"))
    assert torch.allclose(one.delta, two.delta, atol=1e-4)


def test_a_row_at_its_target_keeps_a_zero_action_and_counts_as_found() -> None:
    model, rows = _network(4, 3), _rows(40, 4)
    decided = model(rows).argmax(1)
    for method in ("projected-gradient", "minimal-cost", ProjectedGradient(early_stop=False, steps=2)):
        batch = solve(model, rows, _box(4), target=decided, method=method)
        assert batch.found.all() and not batch.delta.any() and not batch.cost.any()
        assert torch.equal(batch.points, rows) and torch.equal(batch.factual, rows)


def test_chunks_and_company_change_no_answer() -> None:
    model, rows, space = _network(6, 4), _rows(64, 6), _box(6, max_changes=3)
    for method in (ProjectedGradient(steps=8, restarts=2), MinimalCost()):
        whole = solve(model, rows, space, target=opposite_class, method=method, seed=5)
        parts = solve(model, rows, space, target=opposite_class, method=method, seed=5, chunk_rows=7)
        assert torch.equal(whole.found, parts.found)
        assert torch.allclose(whole.cost, parts.cost, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_restarts_find_more() -> None:
    # The model is flat around the row, so only a restart elsewhere has a gradient.
    class Plateau(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((torch.zeros(len(x)), (x[:, 0].abs() - 0.5).relu() - 0.2), 1)

    rows = _rows(50, 3) * 0.1
    without = solve(Plateau(), rows, _box(3), target=1, method=ProjectedGradient())
    first = solve(Plateau(), rows, _box(3), target=1, method=ProjectedGradient(restarts=3), seed=1)
    again = solve(Plateau(), rows, _box(3), target=1, method=ProjectedGradient(restarts=3), seed=1)
    assert not without.found.any() and first.found.all()
    assert torch.equal(first.delta, again.delta)


def test_several_classes_and_per_row_rules() -> None:
    model, rows, space = _network(5, 6, classes=4), _rows(60, 5), _box(5)
    logits = model(rows).detach()
    batch = solve(model, rows, space, target=runner_up_class)
    assert torch.equal(batch.target, logits.topk(2).indices[:, 1])
    assert torch.equal(model(batch.points).argmax(1)[batch.found], batch.target[batch.found])
    assert batch.found.float().mean() > 0.9


def test_the_model_and_the_global_state_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        solve(model, _rows(20, 3), _box(3), target=1, method=ProjectedGradient(restarts=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert model.training and model[1].training and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rows": torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])}, DataError, "rows 1"),
        ({"rows": torch.zeros(0, 2)}, DataError, "at least one row"),
        ({"rows": torch.zeros(2, 2, dtype=torch.int64)}, DataError, "int64"),
        ({"rows": [[0.0, 1.0]]}, DataError, "list"),
        ({"target": 2}, DataError, "2 classes"),
        ({"target": torch.tensor([0, 5])}, DataError, "rows 1"),
        ({"target": torch.tensor([0.0, 1.0])}, DataError, "integers"),
        ({"target": torch.tensor([1])}, DataError, "one class per row"),
        ({"target": "favourable"}, DataError, "rule"),
        ({"target": lambda rows, logits: "x"}, DataError, "Got 'x'"),
        ({"target": lambda rows, logits: None}, DataError, "Got None"),
        ({"method": "magic"}, DataError, "magic"),
        ({"chunk_rows": 0}, DataError, "chunk_rows"),
        ({"model": lambda x: x, "method": "projected-gradient"}, ModelError, "gradient"),
    ],
)
def test_what_cannot_be_solved_is_refused_by_name(change: dict[str, object], error: type[CfptqError], says: str) -> None:
    arguments: dict[str, object] = {"model": _linear([1.0, 1.0], 0.0), "rows": torch.zeros(2, 2), "target": 1} | change
    model, rows = arguments.pop("model"), arguments.pop("rows")
    with pytest.raises(error, match=says):
        solve(model, rows, _box(2), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"restarts": -1}, {"loss": "hinge"}])
def test_settings_are_checked_when_built(settings: dict[str, object]) -> None:
    with pytest.raises(DataError):
        ProjectedGradient(**settings)  # type: ignore[arg-type]


def test_a_batch_is_indexed_saved_and_loaded(tmp_path: Path) -> None:
    batch = solve(_network(4, 3), _rows(12, 4), _box(4), target=opposite_class)
    some = batch[batch.cost > batch.cost.median()]
    assert 0 < len(some) < len(batch) and torch.equal(some.points, batch.points[batch.cost > batch.cost.median()])
    batch.save(tmp_path / "batch.safetensors")
    back = RecourseBatch.load(tmp_path / "batch.safetensors")
    assert torch.equal(back.delta, batch.delta) and torch.equal(back.found, batch.found)
    assert (back.method, back.confidence) == (batch.method, batch.confidence)
    (tmp_path / "cut").write_bytes((tmp_path / "batch.safetensors").read_bytes()[:-9])
    for path in ("cut", "missing"):
        with pytest.raises(FileError):
            RecourseBatch.load(tmp_path / path)
