"""Files that point elsewhere are refused, and logs hold nothing about people."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from halfline import QUICK, Cut, Plane, people
from onnx import TensorProto, helper, numpy_helper

from cfptq.auditing import run_audit
from cfptq.errors import CfptqError
from cfptq.testing import random_classifier, small_action_set, small_people


def save_with_weights_at(path: Path, location: str) -> None:
    """A model of two columns whose weight lies in another file."""
    weight = numpy_helper.from_array(np.array([[1.0], [0.0]], dtype=np.float32), "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def test_weights_beside_the_model_are_read_and_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "weights.bin").write_bytes(np.array([1.0, 0.0], dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    rows = people(-0.5, 0.5)
    save_with_weights_at(folder / "inside.onnx", "weights.bin")
    assert run_audit(folder / "inside.onnx", Cut(0.0), rows, Plane(), protocol=QUICK, progress=False).metrics.counts["rejected"] == 1
    for name, location in {"up": "../weights.bin", "absolute": str(tmp_path / "weights.bin"), "link": "link.bin"}.items():
        save_with_weights_at(folder / f"{name}.onnx", location)
        with pytest.raises(CfptqError):
            run_audit(folder / f"{name}.onnx", Cut(0.0), rows, Plane(), protocol=QUICK, progress=False)


def test_logs_hold_nothing_about_people(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    frame = small_people(40).assign(person_id=[f"secret-{row}" for row in range(40)])
    action_set = small_action_set()
    f = random_classifier(action_set.encode(frame), seed=2)
    letters = frame.assign(debt=frame["debt"] * 0.5, person_id=frame["person_id"].where(frame.index > 0, "secret-nobody"))
    with caplog.at_level(logging.DEBUG):
        run_audit(f, f, frame, action_set, issued=letters, id="person_id", protocol=QUICK, progress=True)
    assert "secret" not in caplog.text + "".join(capfd.readouterr())
