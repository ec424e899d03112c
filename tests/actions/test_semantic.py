"""Edits of attributes within a budget, checked against the fractional knapsack and against brute force."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfptq.actions import ActionSpace, SemanticActionSet, load_action_space
from cfptq.errors import ActionSetError, CfptqError
from cfptq.network import OnnxModule, capture, to_onnx_model
from cfptq.recourse import solve

NAMES = ("smile", "glasses", "hat", "male", "young")
COSTS = (1.0, 2.0, 0.5, 1.0, 1.0)
SPACE = SemanticActionSet(NAMES, budget=1.5, fixed=("male", "young"), costs=COSTS)


def people(count: int = 20) -> Tensor:
    return torch.rand(count, len(NAMES), generator=torch.Generator().manual_seed(4))


def linear_classifier(slope: list[float], bias: float) -> nn.Module:
    layer = nn.Linear(len(slope), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0] * len(slope), slope]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return layer


def cheapest_by_hand(x: list[float], slope: list[float], need: float) -> float | None:
    """Buy the margin by the best ratio of gain to cost first, each attribute up to its bounds, within the budget."""
    spent = 0.0
    for gain, column in sorted(((abs(slope[j]) / COSTS[j], j) for j in range(3)), reverse=True):
        room = (1 - x[column] if slope[column] > 0 else x[column]) * COSTS[column]
        used = min(room, need / gain)
        spent, need = spent + used, need - used * gain
        if need <= 1e-9:
            return spent if spent <= 1.5 else None
    return None


def test_it_has_the_methods_of_an_action_space() -> None:
    assert isinstance(SPACE, ActionSpace)


def test_minimal_cost_recourse_is_the_fractional_knapsack() -> None:
    x, slope = people(60), [2.0, -3.0, 1.5, 5.0, 5.0]
    model = linear_classifier(slope, -8.0)
    with torch.no_grad():
        logits = model(x)
    need = (logits[:, 0] - logits[:, 1]).tolist()
    batch = solve(model, x, SPACE, target=1, progress=False)
    expected = [cheapest_by_hand(row, slope, lack) if lack > 0 else 0.0 for row, lack in zip(x.tolist(), need, strict=True)]
    assert sum(cost is None for cost in expected) > 3 and sum(cost is not None and cost > 0 for cost in expected) > 10
    for cost, found, actual in zip(expected, batch.found.tolist(), batch.cost.tolist(), strict=True):
        if cost is None:
            assert not found
        elif cost < 1.49:
            # Next to the budget, the projection shrinks all edits together.
            assert found and actual == pytest.approx(cost, rel=2e-3 if cost < 1.3 else 2e-2, abs=1e-3)
    assert bool((batch.delta[:, 3:] == 0).all())


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.01, 20))
def test_projected_edits_are_feasible_stay_and_are_nearest(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, delta = people(), size * torch.randn(20, len(NAMES), generator=generator)
    once = SPACE.project(x, delta)
    assert bool((SPACE.cost(x, once) <= 1.5 * (1 + 1e-4)).all()) and bool((once[:, 3:] == 0).all())
    assert float((x + once).min()) >= -1e-6 and float((x + once).max()) <= 1 + 1e-6
    assert torch.equal(SPACE.project(x, once), once)
    # No random feasible edit is nearer.
    others = torch.rand(400, len(NAMES), generator=generator) * 2 - 1
    others[:, 3:] = 0
    for row in range(3):
        inside = ((x[row] + others >= 0) & (x[row] + others <= 1))[:, :3].all(1) & (SPACE.cost(x[:1].expand(400, -1), others) <= 1.5)
        free = torch.tensor([True, True, True, False, False])
        nearest = ((once[row] - delta[row]) * free).norm()
        assert bool((((others[inside] - delta[row]) * free).norm(dim=1) >= nearest - 1e-4).all())


@cache
def identity_networks() -> tuple[OnnxModule, OnnxModule]:
    """Encoder and decoder of images of two pixels, which are their own codes."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    flatten, unflatten = nn.Sequential(nn.Flatten(), first), nn.Sequential(second, nn.Unflatten(1, (1, 1, 2)))
    examples = torch.zeros(2, 1, 1, 2), torch.zeros(2, 2)
    encoder, decoder = (OnnxModule(to_onnx_model(capture(net, x))) for net, x in zip((flatten, unflatten), examples, strict=True))
    return encoder, decoder


def image_space(**more: Any) -> SemanticActionSet:
    """Images whose first attribute is the light of both pixels, and the second one that of the right pixel."""
    encoder, decoder = identity_networks()
    images: dict[str, Any] = {"encoder": encoder, "decoder": decoder, "row_shape": (1, 1, 2), "directions": ((1.0, 1.0), (0.0, 1.0))}
    return SemanticActionSet(("light", "right"), 0.5, **{**images, **more})


def test_attributes_of_images_move_the_code_along_their_directions(tmp_path: Path) -> None:
    space = image_space(fixed=("right",))
    x = torch.tensor([[[[0.2, 0.4]]], [[[0.9, 0.1]]]])
    delta = space.project(x, torch.tensor([[0.3, 9.0], [9.0, 0.0]]))
    torch.testing.assert_close(delta, torch.tensor([[0.3, 0.0], [0.5, 0.0]]))
    torch.testing.assert_close(space.apply(x, delta).flatten(1), torch.tensor([[0.5, 0.7], [1.0, 0.6]]))
    assert space.describe(x, delta) == ["light by +0.3", "light by +0.5"]
    space.save(tmp_path / "edits.yaml")
    again = load_action_space(tmp_path / "edits.yaml")
    assert isinstance(again, SemanticActionSet) and repr(again) == repr(space)
    assert torch.equal(again.apply(x, delta), space.apply(x, delta))


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    SPACE.save(tmp_path / "edits.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["edits.yaml"]
    again = load_action_space(tmp_path / "edits.yaml")
    assert repr(again) == repr(SPACE)
    x = people()
    assert torch.equal(again.project(x, 3 * x), SPACE.project(x, 3 * x))


def test_sentences_say_what_may_change_and_what_does() -> None:
    assert str(SPACE) == (
        "Edits of 5 attributes, each from -1 to 1. male, young stay fixed. An edit costs the weighted sum of its changes, at most 1.5."
    )
    x = torch.tensor([[0.25, 0.5, 0.0, 1.0, 1.0]] * 2)
    assert SPACE.describe(x, torch.tensor([[0.0] * 5, [0.5, -0.5, 0.0, 0.0, 0.0]])) == [
        "no change",
        "smile from 0.25 to 0.75, glasses from 0.5 to 0",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"names": ()}, "at least one attribute"),
        ({"names": "smile"}, "names must be a list"),
        ({"names": ("a", "a")}, "each attribute once"),
        ({"fixed": ("smyle",)}, "got 'smyle' \\(did you mean 'smile'"),
        ({"budget": 0}, "budget must be a positive number"),
        ({"costs": (1.0,)}, "one number for each of the 5"),
        ({"costs": (1.0, 1.0, 0.0, 1.0, 1.0)}, "cost of 'hat' must be a positive number"),
        ({"edit_bounds": (0.5, 1.0)}, "must hold 0"),
        ({"bounds": (1.0, 1.0)}, "bounds must be two finite numbers"),
        ({"encoder": nn.Flatten()}, "decoder and row_shape and directions are missing"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CfptqError, match=message):
        SemanticActionSet(**{"names": NAMES, "budget": 1.0, **wrong})


def test_directions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ActionSetError, match="one direction of 2 finite numbers for each of the 2 attributes"):
        image_space(directions=((1.0, 1.0),))
    with pytest.raises(ActionSetError, match="one direction of 2 finite numbers"):
        image_space(directions=((1.0, 1.0), (float("nan"), 1.0)))


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ActionSetError, match="rows 0, 1 do not"):
        SPACE.check(torch.full((2, 5), 2.0))
    with pytest.raises(ActionSetError, match="one value an attribute"):
        SPACE.check(torch.zeros(2, 4))
