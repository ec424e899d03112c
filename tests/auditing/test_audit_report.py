"""The audit: promises checked first, a report that reads well, and a gate."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from halfline import QUICK, Cut, Plane, crowd, people
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table

from cfptq.auditing import AuditReport, canonicalize
from cfptq.auditing import run_audit as run_standard_audit
from cfptq.errors import ActionSetError, ConfigurationError, DataError, FileError

ROWS = people(-0.1, -0.5, -1.0, 2.0)


def run_audit(*arguments: Any, **keywords: Any) -> AuditReport:
    return run_standard_audit(*arguments, protocol=QUICK, **keywords)


def cut_file(path: Path, cut: float) -> Path:
    """The cut as an ONNX file with one logit."""
    weight = numpy_helper.from_array(np.array([[1.0], [0.0]], dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.array([-cut], dtype=np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["input", "weight", "bias"], ["output"])],
        "cut",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1])],
        [weight, bias],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_promises_are_counted_and_broken_rows_named() -> None:
    issued = people(0.1, 0.4, 0.2, 2.0)  # The last person is accepted without advice.
    advice = run_audit(Cut(0.0), Cut(0.25), ROWS, Plane(), issued=issued).issued
    assert advice is not None
    assert (advice.promised, advice.kept, advice.kept_before) == (3, 1, 3)
    assert advice.broken == (0, 2)
    assert advice.validity_drop == pytest.approx(2 / 3)
    assert advice.kept_rate == pytest.approx(1 / 3)
    assert "Of 3 people with letters, 1 still get" in advice.describe()
    assert "Refused: rows 0, 2." in advice.describe()


def test_advice_that_never_held_is_told_apart_from_advice_that_quantization_broke() -> None:
    advice = run_audit(Cut(0.0), Cut(0.25), ROWS, Plane(), issued=people(-0.05, 0.1, 0.9, 2.0)).issued
    assert advice is not None
    assert (advice.refused, advice.broken) == ((0, 1), (1,))
    assert advice.validity_drop == 0.5
    assert "None of the letters of 1 person holds on the first model either" in advice.describe()


def test_people_without_advice_are_missing_rows() -> None:
    issued = people(0.1, 0.4, 0.0, 0.0)
    issued[2:] = float("nan")
    advice = run_audit(Cut(0.0), Cut(0.25), ROWS, Plane(), issued=issued).issued
    assert advice is not None
    assert (advice.promised, advice.broken) == (2, (0,))


def test_advice_may_be_a_table_of_raw_features_with_several_letters_for_a_person() -> None:
    frame = pd.DataFrame({"skill": [0.1, None, 0.2, 0.9, 0.3], "luck": [0.5, None, 0.5, 0.5, 0.5]}, index=[0, 3, 2, 1, 2])
    advice = run_audit(Cut(0.0), Cut(0.25), ROWS, Plane(), issued=frame).issued
    assert advice is not None
    assert (advice.promised, advice.broken) == (3, (0,))  # The second letter of person 2 holds.


def test_advice_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="must ask for a change"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), issued=np.full((4, 2), np.nan))
    with pytest.raises(DataError, match="all columns of a row or none"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), issued=np.array([[np.nan, 1.0]] * 4))
    with pytest.raises(DataError, match=r"got \(3,\)"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), issued=np.ones((4, 3)))
    with pytest.raises(DataError, match="one row per person"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), issued=np.ones((3, 2)))
    with pytest.raises(DataError, match="DataFrame of features or an array"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), issued="letters")


def test_promises_can_be_checked_on_models_without_gradient() -> None:
    report = run_audit(lambda x: x[:, :1] * 9, lambda x: x[:, :1] * 9 - 2.25, ROWS, Plane(), issued=people(0.1, 0.4, 0.2, 2.0))
    assert report.issued is not None
    assert report.issued.broken == (0, 2)
    assert report.validity_drop == 1.0  # Solver recourse ends just above 0, and the quantized model accepts above 0.25.


def test_files_are_run_and_named_by_digest(tmp_path: Path) -> None:
    before, after = cut_file(tmp_path / "fp32.onnx", 0.0), cut_file(tmp_path / "int4.onnx", 0.25)
    report = run_audit(str(before), after, ROWS, Plane(), labels=[0, 0, 0, 1])
    assert report.validity_drop == 1.0
    assert report.recourse_gap == pytest.approx((2.5 + 0.5 + 0.25) / 3, rel=0.02)
    assert report.quantized.name == "int4.onnx"
    assert report.quantized.sha256 == hashlib.sha256(after.read_bytes()).hexdigest()
    assert report.accuracy == 1.0
    with pytest.raises(FileError):
        run_audit(before, tmp_path / "absent.onnx", ROWS, Plane())


def test_a_decision_threshold_moves_both_models() -> None:
    # The probability must be above 0.6: the cut moves from 0 to logit 0.6 = 0.405.
    report = run_audit(Cut(0.0), Cut(0.0), people(0.3, 0.5), Plane(), threshold=0.6)
    assert report.metrics.counts["rejected"] == 1


def test_rows_may_be_raw_features() -> None:
    frame = pd.DataFrame({"luck": [0.5] * 4, "skill": [-0.1, -0.5, -1.0, 2.0]})
    assert run_audit(Cut(0.0), Cut(0.25), frame, Plane()).to_dict() == run_audit(Cut(0.0), Cut(0.25), ROWS, Plane()).to_dict()


def test_inputs_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ActionSetError, match="target class is unknown"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(favourable=None))
    with pytest.raises(DataError, match="rows must be floats"):
        run_audit(Cut(0.0), Cut(0.1), torch.ones(3, 2, dtype=torch.int64), Plane())
    with pytest.raises(DataError, match="one per row"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), labels=[1])
    with pytest.raises(DataError, match="'sex' must be one per row"):
        run_audit(Cut(0.0), Cut(0.1), ROWS, Plane(), groups={"sex": ["f"]})


def test_the_gate_judges_validity_drop_and_the_size_of_drift() -> None:
    report = run_audit(Cut(0.0), Cut(-0.2), people(-0.1, -0.5, -1.0, 2.0), Plane())  # lenient: nothing breaks, one more accepted
    assert report.validity_drop == 0.0
    assert report.favourable_rate_drift == 0.25
    assert report.gate(max_vd=0.02)
    broken = report.gate(max_vd=0.02, max_drift=0.1)
    assert not broken.held
    assert len(broken.reasons) == 2
    assert "Drift of the favourable rate 0.2500" in broken.reasons[1]
    assert "breaks the limit 0.1" in broken.reasons[1] and "projected-gradient recourse" in broken.reasons[0]
    stricter = run_audit(Cut(0.0), Cut(0.2), people(0.1, -0.5, 2.0, 3.0), Plane())
    assert stricter.favourable_rate_drift == -0.25
    assert not stricter.gate(max_drift=0.1)
    assert report.gate().held


def test_the_gate_judges_issued_advice_where_there_is_any() -> None:
    kept = run_audit(Cut(0.0), Cut(0.25), ROWS, Plane(), issued=people(0.9, 0.9, 0.9, 2.0))
    assert kept.validity_drop > 0.5
    assert kept.gate(max_vd=0.02).held
    assert "Validity Drop of the letters" in kept.gate(max_vd=0.02).reasons[0]


def test_the_gate_does_not_pass_what_it_cannot_see() -> None:
    report = run_audit(Cut(0.0), Cut(0.0), people(1.0, 2.0), Plane())
    gate = report.gate(max_vd=0.5)
    assert not gate.held
    assert "undefined" in gate.reasons[0]
    with pytest.raises(ConfigurationError, match="share between 0 and 1"):
        report.gate(max_vd=2)
    with pytest.raises(ConfigurationError, match=r"share between 0 and 1, got 'x'"):
        report.gate(max_vd="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_drift"):
        report.gate(max_drift=-0.1)


def test_the_report_prints_what_an_analyst_looks_for() -> None:
    rows = crowd(80)
    groups = {"[sex]": np.where(rows[:, 1].numpy() > 0, "f", "m")}
    report = run_audit(Cut(0.0), Cut(0.1), rows, Plane(), labels=(rows[:, 0] > 0).int(), groups=groups, issued=rows + 0.5)
    text = str(report)
    for words in (
        "Validity Drop",
        "Recourse gap (CRG)",
        "Drift of the favourable rate",
        "95 % interval",
        "By [sex]",
        "The gap between groups is",
    ):
        assert words in text
    assert text.index("Letters kept") < text.index("Validity Drop, mismatch")
    assert f"{report.validity_drop:.4f}" in text
    assert isinstance(report.table(), Table)
    assert "Nobody needs recourse" in str(run_audit(Cut(0.0), Cut(0.0), people(1.0, 2.0), Plane())).replace("\n", " ")


def test_json_is_whole_deterministic_and_free_of_nan(tmp_path: Path) -> None:
    for name in ("first.json", "second.json"):
        report = run_audit(Cut(0.0), Cut(0.1), crowd(60), Plane(), groups={"g": np.arange(60) % 3}, seed=3)
        report.to_json(tmp_path / name)
    written = (tmp_path / "first.json").read_bytes()
    assert written == (tmp_path / "second.json").read_bytes()
    assert b"NaN" not in written
    content = json.loads(written)
    assert content == report.to_dict()
    assert content["schema"] == 1
    assert content["quantized"]["validity_drop"] == pytest.approx(report.validity_drop, abs=1e-6)
    assert content["quantized"]["accuracy"] is None
    assert content["issued"] is None
    assert content["protocol"]["max_people"] == 2000
    with pytest.raises(FileError):
        report.to_json(tmp_path / "nowhere" / "report.json")


def test_the_models_and_the_global_generators_are_left_as_they_were() -> None:
    f, f_q = Cut(0.0).train(), Cut(0.1).train()
    state, rng = {name: value.clone() for name, value in f.state_dict().items()}, torch.get_rng_state()
    threads = torch.get_num_threads()
    run_audit(f, f_q, ROWS, Plane())
    assert f.training
    assert f_q.training
    assert all(torch.equal(value, f.state_dict()[name]) for name, value in state.items())
    assert all(parameter.grad is None for parameter in f.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_num_threads() == threads


def test_canonical_values() -> None:
    value = {1: (np.float32(0.1), math.nan, -0.0, np.int64(3), True), "t": torch.tensor([1, 2]), "none": None, "inf": math.inf}
    assert canonicalize(value) == {"1": [0.1, None, 0.0, 3, True], "t": [1, 2], "none": None, "inf": "inf"}
    assert math.copysign(1, canonicalize(-0.0000000001)) == 1
    with pytest.raises(TypeError, match="object"):
        canonicalize(object())


def test_a_notebook_shows_the_report_as_html_with_names_as_they_are() -> None:
    rows = crowd(60)
    groups = {"<sex[/b]>": np.where(rows[:, 1].numpy() > 0, "cook[/x]", "a & b")}
    shown = run_audit(Cut(0.0), Cut(0.1), rows, Plane(), groups=groups)._repr_html_()
    assert "By &lt;sex[/b]&gt;" in shown and "cook[/x]" in shown and "a &amp; b" in shown
    assert "<sex" not in shown


class Halves(torch.nn.Module):
    """The cut at 0 as one logit, or as two of the same difference."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, outputs)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()
            self.layer.weight[-1, 0] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def test_the_report_says_how_each_output_was_read() -> None:
    same = run_audit(Halves(1), Halves(1), ROWS, Plane(), threshold=0.6)
    assert 'Both models put out one logit of class 1 (head="logit"), class 1 is decided above 0.6.' in same.notes
    different = run_audit(Halves(2), Halves(1), ROWS, Plane())
    text = " ".join(str(different).split())
    assert 'Halves puts out one logit per class (head="logits")' in text and 'Halves puts out one logit of class 1 (head="logit")' in text
    assert different.to_dict()["models"]["quantized"]["reading"].startswith("one logit of class 1")
    assert different.factual_flip_rate == 0


def test_a_gradient_of_zero_is_blamed_in_place_of_the_action_set() -> None:
    def steep(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(1e9 * x[:, 0])

    model = torch.fx.symbolic_trace(torch.nn.Identity())
    model.forward = steep
    text = " ".join(run_audit(model, model, ROWS, Plane()).notes)
    assert "gradient" in text and "is zero at 3 of the 3 rows" in text and "action set" not in text
