"""The plan: checked when built, whole on disk or absent, the same bytes for the same content."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfptq.errors import FileError, ModelError
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan


def layer(name: str = "0", bits: int = 4, bias: bool = True) -> LayerPlan:
    integers = torch.tensor([[7, -7, 0], [1, 2, 3]], dtype=torch.int8).clamp(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    return LayerPlan(name, "linear", bits, integers, torch.tensor([0.5, 0.25]), torch.tensor([0.1, -0.2]) if bias else None, "x")


def plan() -> QuantizationPlan:
    return QuantizationPlan((layer("0"), layer("2", 2, bias=False)), (ActivationFormat("x", 8, 0.5, 3),), "network", "cf-ptq", 7)


def test_a_saved_plan_comes_back_whole(tmp_path: Path) -> None:
    original = plan()
    original.save(tmp_path / "plan")
    again = QuantizationPlan.load(tmp_path / "plan")
    assert again.digest == original.digest
    assert again.bits == {"0": 4, "2": 2}
    for mine, theirs in zip(original.layers, again.layers, strict=True):
        assert torch.equal(mine.integers, theirs.integers)
        assert torch.equal(mine.scale, theirs.scale)
        assert (mine.bias is None) == (theirs.bias is None)


def test_two_step_inputs_and_their_reason_are_saved(tmp_path: Path) -> None:
    two = replace(plan(), activations=(ActivationFormat.two_steps_from_range("x", -3, 5),), input_choice="asked for")
    two.save(tmp_path / "plan")
    again = QuantizationPlan.load(tmp_path / "plan")
    assert (again.activations, again.input_choice, again.digest) == (two.activations, "asked for", two.digest)


def test_a_bias_behind_two_steps_is_exact_to_the_finer_one() -> None:
    form, entry = ActivationFormat.two_steps_from_range("x", -3, 5), layer("0")
    (coarse, _), (fine, step) = entry.bias_integers(form)
    deployed = entry.deployed_bias(form)
    assert deployed is not None and entry.bias is not None
    assert bool(((deployed - entry.bias).abs() <= 0.51 * step).all())
    assert int(fine.abs().max()) <= 127 and coarse.dtype == torch.int32


def test_equal_plans_are_equal_bytes_and_any_change_changes_the_digest(tmp_path: Path) -> None:
    plan().save(tmp_path / "a")
    plan().save(tmp_path / "b")
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = replace(plan(), layers=(replace(layer("0"), scale=torch.tensor([0.5, 0.26])), layer("2", 2, bias=False)))
    assert other.digest != plan().digest
    assert replace(plan(), seed=8).digest != plan().digest


def test_average_bits_weigh_layers_by_their_weights_and_three_bits_are_stored_in_four() -> None:
    assert plan().average_bits == pytest.approx((6 * 4 + 6 * 2) / 12)
    three = replace(plan(), layers=(layer("0", 3),))
    assert three.stored_bytes == 3 + 8 + 8  # 6 nibbles, two scales, two biases


def test_the_deployed_bias_lies_on_the_grid_of_integer_kernels() -> None:
    entry, form = layer(), ActivationFormat("x", 8, 0.5, 3)
    deployed = entry.deployed_bias(form)
    assert deployed is not None
    step = 0.5 * entry.scale
    assert torch.allclose(deployed / step, torch.round(deployed / step))
    assert torch.allclose(deployed, torch.tensor([0.1, -0.2]), atol=0.13)
    assert entry.deployed_bias(ActivationFormat("x", 32)) is entry.bias


@pytest.mark.parametrize(
    "broken",
    [
        {"integers": torch.tensor([[8, 0, 0], [0, 0, 0]], dtype=torch.int8)},
        {"integers": torch.zeros(2, 3)},
        {"scale": torch.tensor([0.5, 0.0])},
        {"scale": torch.tensor([0.5])},
        {"bias": torch.tensor([float("nan"), 0.0])},
    ],
)
def test_a_layer_that_cannot_be_is_refused_by_name(broken: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="'0'"):
        replace(layer(), **broken)


def test_a_plan_without_a_format_for_some_input_is_refused() -> None:
    with pytest.raises(ModelError, match="no activation format"):
        replace(plan(), activations=())


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "empty"])
def test_damaged_files_are_file_errors(tmp_path: Path, name: str, damage: str) -> None:
    plan().save(tmp_path / "plan")
    file = tmp_path / "plan" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "garbage": b"\x80\x04garbage" * 9, "empty": b""}[damage])
    with pytest.raises(FileError, match="plan"):
        QuantizationPlan.load(tmp_path / "plan")


def negated(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: -tensor if name == "0.integers" else tensor for name, tensor in tensors.items()}, file)


def narrowed(file: Path) -> None:
    file.write_text(file.read_text().replace('"bits": 8', '"bits": 16'))


@pytest.mark.parametrize(("name", "change"), [("plan.safetensors", negated), ("plan.json", narrowed)])
def test_a_plan_that_was_changed_after_it_was_saved_is_refused(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    plan().save(tmp_path / "plan")
    change(tmp_path / "plan" / name)
    with pytest.raises(FileError, match=rf"plan/{name} was changed|plan/{name} or .* was changed"):
        QuantizationPlan.load(tmp_path / "plan")


def test_a_plan_without_its_digest_is_refused(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    head = json.loads(file.read_text())
    assert head.pop("digest") == plan().digest
    file.write_text(json.dumps(head))
    with pytest.raises(FileError, match="was changed"):
        QuantizationPlan.load(tmp_path / "plan")


def test_a_plan_is_saved_over_an_earlier_one_and_over_nothing_else(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan")
    replace(plan(), seed=8).save(tmp_path / "plan")
    assert QuantizationPlan.load(tmp_path / "plan").seed == 8
    (tmp_path / "plan" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"other files \(notes.txt\). Give a new or empty folder"):
        plan().save(tmp_path / "plan")


def test_a_crash_while_saving_leaves_the_old_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan().save(tmp_path / "plan")
    before = (tmp_path / "plan" / "plan.json").read_bytes()

    def crash(self: QuantizationPlan, folder: Path) -> None:
        (folder / "plan.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(QuantizationPlan, "write_into", crash)
    with pytest.raises(KeyboardInterrupt):
        replace(plan(), seed=1).save(tmp_path / "plan")
    assert (tmp_path / "plan" / "plan.json").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan"]
