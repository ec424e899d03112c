"""Widths of channels from calibration to the saved folder, training, and what older versions wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import ConfigurationError, FileError, ModelError
from cfptq.pipeline.method_presets import METHODS
from cfptq.quantize import integer_limit
from cfptq.training import QAT_METHODS

CHANNEL = METHODS["faithful"]


@cache
def people() -> tuple[nn.Module, torch.Tensor, ActionSet]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    rows = torch.randn(300, 6)
    with torch.no_grad():
        model[4].bias[0] += float((model(rows)[:, 1] - model(rows)[:, 0]).median())
    space = ActionSet.from_columns(rows, [Continuous(f"c{n}", column=n) for n in range(6)], max_changes=3, favourable=1)
    return model, rows, space


@cache
def calibrated(**keywords: object) -> cfptq.Result:
    model, rows, space = people()
    return cfptq.calibrate(model, [rows], space, **{"method": "faithful", "budget": 3.5, "progress": False, **keywords})  # type: ignore[arg-type]


def test_every_channel_stays_within_its_width_and_the_plan_within_the_budget() -> None:
    result = calibrated()
    assert result.plan.granularity == "channel" and result.plan.average_bits <= 3.5
    assert len({bits for own in result.bits.values() for bits in own}) > 1  # type: ignore[union-attr]
    for layer in result.plan.layers:
        largest = layer.integers.abs().flatten(1).amax(dim=1).tolist()
        assert all(top <= integer_limit(bits) for top, bits in zip(largest, layer.channel_bits, strict=True))
    assert [layer.is_sortable for layer in result.plan.layers] == [True, True, False]
    assert "output channels" in " ".join(result.notes) and str(result).count("(") >= 3


def test_a_saved_result_of_channel_widths_comes_back_whole(tmp_path: Path) -> None:
    result = calibrated()
    result.save(tmp_path / "plan")
    again = cfptq.load(tmp_path / "plan")
    assert (again.plan.digest, again.allocation, again.sensitivity) == (result.plan.digest, result.allocation, result.sensitivity)
    assert again.method is not None and again.method.granularity == "channel"
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["schema"] == 2
    assert again.pareto(progress=False).to_frame()["bits: 0"].between(2, 8).all()


def test_pins_repair_groups_and_the_fewest_bits_know_channels() -> None:
    assert calibrated(budget=cfptq.Budget.bytes(90), repair=True).repair is not None
    model, rows, space = people()
    pinned = cfptq.calibrate(model, [rows], space, method=CHANNEL, layers={"2": 5}, budget=4.0, progress=False)
    assert pinned.bits["2"] == (5,) * 8
    fewest = cfptq.calibrate(model, [rows], space, method=CHANNEL, max_validity_drop=0.5, progress=False)
    assert fewest.plan.average_bits < 4 and fewest.fewest_bits is not None


@pytest.mark.parametrize("bits", ["start", "learned"])
def test_training_starts_from_widths_of_channels(bits: str, tmp_path: Path) -> None:
    model, rows, space = people()
    preset = QAT_METHODS["cfq-qat"]
    method = replace(
        preset, name="own", start="faithful", bits=bits, schedule=replace(preset.schedule, epochs=4, least_steps=0, search=0.5)
    )
    result = cfptq.qat(model, [rows], space, method=method, budget=3.5, checkpoint=tmp_path / "run.safetensors", progress=False)
    assert result.plan.granularity == "channel" and result.plan.average_bits <= 3.5
    assert result.training is not None and result.training.bits == tuple(result.bits.values())
    result.save(tmp_path / "plan")
    assert cfptq.load(tmp_path / "plan").plan.digest == result.plan.digest
    result.to_onnx(tmp_path / "model.onnx", check=True)


def test_folders_of_former_versions_load(tmp_path: Path) -> None:
    model, rows, space = people()
    result = cfptq.calibrate(model, [rows], space, method="ptq", progress=False)
    result.save(tmp_path / "plan")
    path = tmp_path / "plan" / "result.json"
    content = json.loads(path.read_text())
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["schema"] == 1
    # The first version had neither digests nor the granularity and structure of a method.
    del content["digest"], content["files"], content["remarks"], content["interface"]
    del content["method"]["granularity"], content["method"]["keep"], content["method"]["drops_extreme_rows"]
    path.write_text(json.dumps({**content, "schema": 1}))
    again = cfptq.load(tmp_path / "plan")
    assert again.plan.digest == result.plan.digest and again.method is not None and again.method.granularity == "layer"
    path.write_text(json.dumps({**content, "schema": 4}))
    with pytest.raises(FileError, match="schema 1 to 3"):
        cfptq.load(tmp_path / "plan")


def test_another_granularity_and_wrong_widths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'layer' or 'channel'"):
        cfptq.Method("own", granularity="row")  # type: ignore[arg-type]
    layer = calibrated().plan.layers[0]
    with pytest.raises(ModelError, match="one width for each of 12 output channels"):
        replace(layer, bits=(4, 4))
    with pytest.raises(ModelError, match="the range of 2 bits"):
        replace(layer, bits=(2,) * 12, integers=torch.full_like(layer.integers, 2))


def test_the_earlier_name_of_the_storage_writes_the_same_bytes(tmp_path: Path) -> None:
    result = calibrated()
    for packed, storage in ((True, "packed"), (False, "plain")):
        result.to_onnx(tmp_path / "old.onnx", packed=packed)
        result.to_onnx(tmp_path / "new.onnx", storage=storage)
        assert (tmp_path / "old.onnx").read_bytes() == (tmp_path / "new.onnx").read_bytes()
