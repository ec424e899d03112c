"""Files that point elsewhere are refused, and logs hold nothing about people."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from halfline import QUICK, Cut, Plane, people
from onnx import TensorProto, helper, numpy_helper

from cfptq.auditing import run_audit, to_canonical_json
from cfptq.errors import CfptqError, FileError
from cfptq.network import OnnxModule
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.sizes import MAX_ELEMENTS, MAX_EXTERNAL_BYTES, MAX_MODEL_BYTES
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


@pytest.mark.parametrize("read", [OnnxModule, OnnxFile])
def test_models_and_weights_beyond_the_limits_are_refused_before_they_are_read(tmp_path: Path, read: type) -> None:
    (tmp_path / "huge.onnx").touch()
    os.truncate(tmp_path / "huge.onnx", MAX_MODEL_BYTES + 1)  # A hole, which takes no space on the disk.
    with pytest.raises(FileError, match=rf"huge\.onnx must have at most {MAX_MODEL_BYTES} bytes, got {MAX_MODEL_BYTES + 1}"):
        read(tmp_path / "huge.onnx")
    save_with_weights_at(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").touch()
    os.truncate(tmp_path / "weights.bin", MAX_EXTERNAL_BYTES + 1)
    with pytest.raises(FileError, match=rf"weights\.bin must have at most {MAX_EXTERNAL_BYTES} bytes, got {MAX_EXTERNAL_BYTES + 1}"):
        read(tmp_path / "model.onnx")
    os.truncate(tmp_path / "weights.bin", MAX_EXTERNAL_BYTES)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    weight = model.graph.initializer[0]
    del weight.external_data[1:]  # Without a length each tensor takes the whole file.
    model.graph.initializer.add().CopyFrom(weight)
    (tmp_path / "twice.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FileError, match=f"at most {MAX_EXTERNAL_BYTES} bytes of the files beside it .*got {2 * MAX_EXTERNAL_BYTES}"):
        read(tmp_path / "twice.onnx")


@pytest.mark.parametrize("shape", [[2**20, 2**20], [2**62, 2**62], [MAX_ELEMENTS + 1], [-2, 1]])
def test_a_shape_that_claims_too_much_is_refused(tmp_path: Path, shape: list[int]) -> None:
    save_with_weights_at(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    model.graph.initializer[0].dims[:] = shape
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for read in (OnnxModule, OnnxFile):
        with pytest.raises(FileError, match=f"at most {MAX_ELEMENTS} elements, got the shape .* of 'weight'"):
            read(tmp_path / "model.onnx")


@pytest.mark.parametrize("place", ["function", "graph within the graph", "graph within a function"])
def test_a_constant_that_claims_too_much_is_found_wherever_it_hides(tmp_path: Path, place: str) -> None:
    save_with_weights_at(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    huge = TensorProto(data_type=TensorProto.FLOAT, name="huge", dims=[2**20, 2**20])
    constant = helper.make_node("Constant", [], ["c"], value=huge)
    inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    if place == "graph within the graph":
        model.graph.node.append(branch)
    else:
        nodes = [constant] if place == "function" else [branch]
        model.functions.append(helper.make_function("own", "f", ["x"], ["c"], nodes, [helper.make_opsetid("", 21)]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for read in (OnnxModule, OnnxFile):
        with pytest.raises(FileError, match=f"at most {MAX_ELEMENTS} elements, got the shape .* of 'huge'"):
            read(tmp_path / "model.onnx")


def test_reports_hold_the_digests_of_weights_beside_a_model(tmp_path: Path) -> None:
    save_with_weights_at(tmp_path / "model.onnx", "weights.bin")
    reports = []
    for weight in (1.0, 2.0):
        (tmp_path / "weights.bin").write_bytes(np.array([weight, 0.0], dtype=np.float32).tobytes())
        report = run_audit(tmp_path / "model.onnx", Cut(0.0), people(-0.5, 0.5), Plane(), protocol=QUICK, progress=False)
        digest = hashlib.sha256((tmp_path / "weights.bin").read_bytes()).hexdigest()
        assert report.digests["First model, weights in weights.bin"] == digest
        assert digest in report.to_markdown() and digest in to_canonical_json(report.to_dict())
        reports.append(report)
    assert reports[0].full_precision.sha256 == reports[1].full_precision.sha256
    assert not any(name.startswith("Second model") for name in reports[0].digests)


def test_json_holds_no_character_that_a_terminal_would_obey_and_reads_back_the_same() -> None:
    value = {"a\x9b2J": ["\x85", "\x7f", "\u202e", "\u2028", "\x1b", "\U000e0001", "Zoë, 漢字", "\ud800"], "b": 'line\n"quoted"\t\\'}
    text = to_canonical_json(value)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert json.loads(text) == value
    assert "\\u009b2J" in text and "Zoë, 漢字" in text


def test_logs_hold_nothing_about_people(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    frame = small_people(40).assign(person_id=[f"secret-{row}" for row in range(40)])
    action_set = small_action_set()
    f = random_classifier(action_set.encode(frame), seed=2)
    letters = frame.assign(debt=frame["debt"] * 0.5, person_id=frame["person_id"].where(frame.index > 0, "secret-nobody"))
    with caplog.at_level(logging.DEBUG):
        run_audit(f, f, frame, action_set, issued=letters, id="person_id", protocol=QUICK, progress=True)
    assert "secret" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("operator", ["Tile", "Expand", "ConstantOfShape", "Pad"])
def test_a_small_file_that_computes_a_huge_tensor_is_refused_before_it_is_opened(operator: str, tmp_path: Path) -> None:
    huge = 2**40
    sizes, inputs = {
        "Tile": ([1, huge], ["x", "sizes"]),
        "Expand": ([1, huge], ["one", "sizes"]),
        "ConstantOfShape": ([huge], ["sizes"]),
        "Pad": ([0, 0, 0, huge], ["x", "sizes"]),
    }[operator]
    nodes = [
        onnx.helper.make_node(operator, inputs, ["wide"]),
        onnx.helper.make_node("ReduceMax", ["wide"], ["top"], keepdims=1),
        onnx.helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    held = [
        onnx.numpy_helper.from_array(np.array(sizes, np.int64), "sizes"),
        onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "one"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], held)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "f.onnx")
    with pytest.raises(FileError, match=f"computes must have at most {MAX_ELEMENTS} elements"):
        OnnxFile(tmp_path / "f.onnx")
