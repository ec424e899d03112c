"""Actions on the codes of images, checked against linear networks whose answers are known in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cfptq.actions import ActionSpace, LatentActionSet, load_action_space
from cfptq.errors import ActionSetError, CfptqError, FileError
from cfptq.recourse import MinimalCost, ProjectedGradient, solve

SHAPE, CODE = (1, 4, 4), 3


def orthonormal_basis() -> Tensor:
    """Three orthonormal directions of images, (16, 3)."""
    return torch.linalg.qr(torch.randn(16, CODE, generator=torch.Generator().manual_seed(3)))[0]


def linear_networks() -> tuple[nn.Module, nn.Module]:
    """E(x) = Bᵀ(x − ½) and D(z) = ½ + B z, so that moving a code by δ moves the image by B δ."""
    basis = orthonormal_basis()
    encoder, decoder = nn.Linear(16, CODE), nn.Linear(CODE, 16)
    with torch.no_grad():
        encoder.weight.copy_(basis.T)
        encoder.bias.copy_(-0.5 * basis.sum(0))
        decoder.weight.copy_(basis)
        decoder.bias.fill_(0.5)
    return nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, SHAPE))


def make_space(**more: Any) -> LatentActionSet:
    encoder, decoder = (onnx.load_model_from_string(EXPORTED[name]) for name in ("encoder", "decoder"))
    return LatentActionSet(encoder, decoder, **{"row_shape": SHAPE, "radius": 1.0, **more})


def images(count: int = 12, spread: float = 0.05) -> Tensor:
    """Images on the plane that the decoder reaches, near grey."""
    code = spread * torch.randn(count, CODE, generator=torch.Generator().manual_seed(5))
    return (0.5 + code @ orthonormal_basis().T).reshape(count, *SHAPE)


def linear_classifier(bias: float = -1.0) -> nn.Module:
    """Two classes whose margin is linear in the image."""
    layer = nn.Linear(16, 2)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 16, generator=generator))
        layer.bias.copy_(torch.tensor([0.0, 0.0]))
        grey = torch.full((16,), 0.5)
        layer.bias[1] = bias - float((layer.weight[1] - layer.weight[0]) @ grey)
    return nn.Sequential(nn.Flatten(), layer)


EXPORTED = LatentActionSet(*linear_networks(), SHAPE, 1.0).coder.contents
SPACE = make_space()
NEAR = make_space(max_change=0.8)


def test_it_has_the_methods_of_an_action_space() -> None:
    assert isinstance(SPACE, ActionSpace)


def test_an_action_moves_the_image_by_the_decoded_move() -> None:
    x, delta = images(), 0.1 * torch.randn(12, CODE, generator=torch.Generator().manual_seed(1))
    expected = x.flatten(1) + delta @ orthonormal_basis().T
    torch.testing.assert_close(SPACE.apply(x, delta).flatten(1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(SPACE.cost(x, delta), delta.norm(dim=1))


def test_pixels_cost_their_share() -> None:
    x, delta = images(), 0.1 * torch.randn(12, CODE, generator=torch.Generator().manual_seed(1))
    moved = (delta @ orthonormal_basis().T).abs().sum(1)
    torch.testing.assert_close(make_space(pixel_cost=0.5).cost(x, delta), delta.norm(dim=1) + 0.5 * moved, atol=1e-5, rtol=0)


def test_the_zero_action_keeps_the_image_and_has_the_decoders_gradient() -> None:
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))  # Off the plane, so that its reconstruction differs.
    delta = SPACE.zero(x).requires_grad_(True)
    point = SPACE.apply(x, delta)
    assert torch.equal(point.detach(), x)
    assert float(SPACE.cost(x, delta.detach()).sum()) == 0
    (gradient,) = torch.autograd.grad(point[:, 0, 0, 0].sum(), delta)
    torch.testing.assert_close(gradient, orthonormal_basis()[0].expand(3, CODE), atol=1e-6, rtol=0)


def test_no_rows_have_no_actions() -> None:
    x = images(0)
    nothing = NEAR.project(x, NEAR.zero(x))
    assert NEAR.apply(x, nothing).shape == (0, *SHAPE) and len(NEAR.cost(x, nothing)) == 0 and NEAR.describe(x, nothing) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.01, 30), st.sampled_from([SPACE, NEAR]))
def test_projected_actions_are_feasible_and_stay_when_projected_again(seed: int, size: float, space: LatentActionSet) -> None:
    x = images()
    delta = size * torch.randn(len(x), CODE, generator=torch.Generator().manual_seed(seed))
    once = space.project(x, delta)
    assert bool((once.norm(dim=1) <= space.radius * (1 + 1e-5)).all())
    point = space.apply(x, once)
    assert float(point.min()) >= 0 and float(point.max()) <= 1
    if space.max_change is not None:
        assert bool(((point - x).flatten(1).abs().sum(1) <= space.max_change * (1 + 1e-5)).all())
    assert torch.equal(space.project(x, once), once)
    feasible = (delta.norm(dim=1) <= space.radius) & (((space.apply(x, delta) - x).flatten(1).abs().sum(1)) <= (space.max_change or 1e9))
    assert torch.equal(once[feasible], delta[feasible])


def test_minimal_cost_recourse_is_the_shortest_move_to_a_plane() -> None:
    model, x = linear_classifier(), images()
    weight = next(model.parameters()).detach()
    slope = (weight[1] - weight[0]) @ orthonormal_basis()
    with torch.no_grad():
        logits = model(x)
    distance = (logits[:, 0] - logits[:, 1]) / slope.norm()
    batch = solve(model, x, SPACE, target=1, progress=False)
    refused = distance > 0
    assert bool(refused.any()) and bool(batch.found[refused & (distance < 1)].all())
    assert not bool(batch.found[distance > 1.001].any())
    solvable = refused & (distance < 1)
    torch.testing.assert_close(batch.cost[solvable], distance[solvable], rtol=2e-3, atol=1e-4)


def test_minimal_cost_recourse_weighs_pixels() -> None:
    """With a dear pixel cost, the least of ‖δ‖ + λ‖Bδ‖₁ on a plane is found by brute force over directions."""
    model, x = linear_classifier(-0.5), images(4, 0.01)
    space = make_space(pixel_cost=1.0)
    weight = next(model.parameters()).detach()
    slope = (weight[1] - weight[0]) @ orthonormal_basis()
    with torch.no_grad():
        need = (model(x)[:, 0] - model(x)[:, 1]).clamp_min(0)
    direction = torch.nn.functional.normalize(torch.randn(200_000, CODE, generator=torch.Generator().manual_seed(0)), dim=1)
    rate = direction @ slope
    price = (1 + (direction @ orthonormal_basis().T).abs().sum(1)) / rate.clamp_min(1e-9)
    least = float(price[rate > 0].min())
    batch = solve(model, x, space, target=1, progress=False)
    acting = batch.found & (batch.cost > 0)
    assert bool(acting.any())
    assert bool((batch.cost[acting] <= need[acting] * least * 1.02 + 1e-3).all())
    assert bool((batch.cost[acting] >= need[acting] * least * 0.99).all())


def test_projected_gradient_reaches_the_target_with_a_feasible_action() -> None:
    model, x = linear_classifier(-0.3), images()
    batch = solve(model, x, NEAR, target=1, method=ProjectedGradient(step_size=0.05), progress=False)
    assert bool(batch.found.any())
    assert torch.equal(NEAR.project(x, batch.delta), batch.delta)
    with torch.no_grad():
        assert torch.equal(model(batch.points).argmax(1) == 1, batch.found)


def test_a_confident_decision_costs_more() -> None:
    model, x = linear_classifier(), images()
    plain = solve(model, x, SPACE, target=1, progress=False)
    sure = solve(model, x, SPACE, target=1, method=MinimalCost(confidence=0.6), progress=False)
    both = plain.found & sure.found & (plain.cost > 0)
    assert bool((sure.cost[both] > plain.cost[both]).all())


def test_it_is_saved_with_its_networks_and_read_again(tmp_path: Path) -> None:
    space = make_space(max_change=0.8, pixel_cost=0.25, favourable=1)
    space.save(tmp_path / "actions.yaml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["actions.decoder.onnx", "actions.encoder.onnx", "actions.yaml"]
    again = load_action_space(tmp_path / "actions.yaml")
    assert isinstance(again, LatentActionSet) and repr(again) == repr(space)
    x, delta = images(), 0.3 * torch.randn(12, CODE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.apply(x, again.project(x, delta)), space.apply(x, space.project(x, delta)))
    assert torch.equal(again.cost(x, delta), space.cost(x, delta))


def test_another_network_beside_the_file_is_refused(tmp_path: Path) -> None:
    make_space().save(tmp_path / "actions.yaml")
    content = bytearray((tmp_path / "actions.decoder.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "actions.decoder.onnx").write_bytes(bytes(content))
    with pytest.raises(FileError, match="SHA-256"):
        LatentActionSet.load(tmp_path / "actions.yaml")
    (tmp_path / "actions.decoder.onnx").unlink()
    with pytest.raises(FileError, match="There is no file"):
        LatentActionSet.load(tmp_path / "actions.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("file: actions.decoder.onnx", "file: ../actions.decoder.onnx"), "must lie beside"),
        (("radius: 1.0", "radios: 1.0"), "unknown key 'radios'"),
        (("radius: 1.0", "radius: -1.0"), "radius must be a positive number"),
        (("version: 1", "version: 9"), "version must be 1"),
        (("radius: 1.0\n", ""), "radius"),
        (("radius: 1.0", "radius: 1.0\nradius: 2.0"), "repeats the key"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "actions.yaml"
    SPACE.save(path)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(CfptqError, match=message):
        load_action_space(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"radius": 0}, "radius must be a positive number"),
        ({"radius": float("nan")}, "radius must be a positive number"),
        ({"max_change": -1.0}, "max_change must be a positive number"),
        ({"pixel_cost": -0.1}, "pixel_cost must be a number from 0"),
        ({"bounds": (1.0, 0.0)}, "bounds must be two finite numbers"),
        ({"favourable": -1}, "favourable must be a class"),
        ({"row_shape": (1, 5, 5)}, "encoder"),
        ({"row_shape": "28"}, "row_shape must hold positive whole numbers"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CfptqError, match=message):
        make_space(**wrong)


def test_networks_that_do_not_fit_are_refused() -> None:
    encoder, decoder = linear_networks()
    with pytest.raises(ActionSetError, match="decoder must give rows of shape"):
        LatentActionSet(encoder, nn.Linear(CODE, 16), SHAPE, 1.0)
    with pytest.raises(CfptqError, match="decoder"):
        LatentActionSet(encoder, nn.Sequential(nn.Linear(CODE + 1, 16), nn.Unflatten(1, SHAPE)), SHAPE, 1.0)
    with pytest.raises(ActionSetError, match=r"encoder must be a torch\.nn\.Module or an ONNX file"):
        LatentActionSet(3, decoder, SHAPE, 1.0)  # type: ignore[arg-type]


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ActionSetError, match=r"rows 1 do not\. Divide 8-bit pixels by 255"):
        SPACE.check(torch.stack((torch.zeros(SHAPE), torch.full(SHAPE, 200.0))))
    with pytest.raises(ActionSetError, match="must have the shape"):
        SPACE.check(torch.zeros(2, 16))


def test_sentences_say_what_may_change_and_what_does() -> None:
    assert str(NEAR) == (
        "Actions on codes of 3 values of images of shape (1, 4, 4). A code may move by at most 1. The image may change by at most 0.8 in "
        "the sum over its values. Images stay between 0 and 1. An action costs the length of its move."
    )
    x = images(2)
    delta = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    still, moved = SPACE.describe(x, delta)
    assert still == "no change"
    assert moved.startswith("the code moves by 0.4, and ") and "of 16 values change visibly" in moved


def test_a_table_of_people_is_still_read_as_an_action_set(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("format: something\n")
    with pytest.raises(FileError, match="cfptq-action-set"):
        load_action_space(tmp_path / "wrong.yaml")
    with pytest.raises(FileError, match="There is no action-set file"):
        load_action_space(tmp_path / "missing.yaml")
