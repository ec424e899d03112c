"""A file whose integers differ from the twin's at ties alone is written, and one that differs otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.rounding_replay import replay_roundings
from cfptq.errors import ModelError

Edit = Callable[[str, np.ndarray], np.ndarray]


def draw_rows_at_ties() -> torch.Tensor:
    """Rows between 0 and 255, so that a step is 1, of which each value but those of the first two rows is a half."""
    halves = torch.randint(255, (400, 4), generator=torch.Generator().manual_seed(0)) + 0.5
    return torch.cat((torch.zeros(1, 4), torch.full((1, 4), 255.0), halves))


def calibrate_at_ties(budget: float = 8.0, method: str = "ptq") -> cfptq.Result:
    rows = draw_rows_at_ties()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        with torch.no_grad():
            scores = model(rows)
            model[2].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
    space = ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(4)], favourable=1)
    return cfptq.calibrate(model, [rows], space, budget=budget, method=method, input_bits=8, progress=False)


def edit_file(model: onnx.ModelProto, edit: Edit) -> onnx.ModelProto:
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    for tensor in edited.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT32):
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(edit(tensor.name, value), value.dtype), tensor.name))
    return edited


def nudge_input_scale(name: str, value: np.ndarray) -> np.ndarray:
    """Divide ties by a step that is larger by one part in ten million, so that all of them are rounded down."""
    return np.nextafter(value, np.float32(2)) if name == "input_scale" else value


DIFFERENCES: dict[str, Edit] = {
    "a scale that is off by a hundredth": lambda name, value: value * 1.01 if name == "input_scale" else value,
    "a bias that is off": lambda name, value: value + 4000 if name == "0.bias_integers" else value,
    "a weight scale that is off": lambda name, value: value * 1.1 if name == "2.weight_scale" else value,
}


def write_instead(result: cfptq.Result, model: onnx.ModelProto, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfptq.Result, "_columns_model", lambda *_, **__: model)
    result.to_onnx(path, check=True)


@pytest.mark.parametrize(("budget", "method"), [(8.0, "ptq"), (4.0, "faithful")])
def test_a_file_that_rounds_ties_otherwise_is_written(budget: float, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = calibrate_at_ties(budget, method)
    assert result.plan.input_format(result.plan.layers[0]).scale == 1
    file = edit_file(result.onnx_model(), nudge_input_scale)
    rows = draw_rows_at_ties()
    replay = replay_roundings(file, result.network, result.plan, rows)
    assert replay is not None
    with torch.no_grad():
        twin = result.module()(rows)
    assert float(((replay.file_output - twin).abs().amax(dim=1) > 1e-3).float().mean()) > 0.5, "most rows differ from the twin"
    assert bool(replay.follows.all())
    assert torch.allclose(replay.output, replay.file_output, atol=1e-4)
    write_instead(result, file, tmp_path / "model.onnx", monkeypatch)
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_file_that_differs_otherwise_is_refused(difference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = calibrate_at_ties()
    file = edit_file(result.onnx_model(), DIFFERENCES[difference])
    with pytest.raises(ModelError, match=r"must agree with the plan on 99\.9%"):
        write_instead(result, file, tmp_path / "model.onnx", monkeypatch)
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_without_the_integers_of_the_plan_is_not_replayed() -> None:
    result = calibrate_at_ties()
    assert replay_roundings(result.onnx_model(weight_only=True), result.network, result.plan, draw_rows_at_ties()) is None
    other = calibrate_at_ties(3.0)
    assert replay_roundings(other.onnx_model(), result.network, result.plan, draw_rows_at_ties()) is None


@pytest.mark.parametrize("bits", ["two-step", 16, 8])
def test_every_form_of_activation_follows_in_an_honest_file(bits: str | int) -> None:
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    space = ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(4)], favourable=1)
    result = cfptq.calibrate(model, [rows], space, input_bits=bits, progress=False)  # type: ignore[arg-type]
    replay = replay_roundings(result.onnx_model(), result.network, result.plan, rows)
    assert replay is not None
    assert bool(replay.follows.all())
    assert torch.allclose(replay.output, replay.file_output, atol=1e-5)
