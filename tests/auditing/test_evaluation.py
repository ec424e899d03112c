"""Metrics of a quantized model in a world where each can be worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from halfline import QUICK, Cut, Plane, crowd, people

from cfptq import metrics
from cfptq.auditing import evaluate, reference_recourse, run_audit, to_canonical_json
from cfptq.errors import DataError, ModelError
from cfptq.network.predictor import Predictor, as_predictor

ENTRY = {
    "accuracy",
    "average_bits",
    "activation_bits",
    "stored_bytes",
    "boundary_disagreement",
    "premature_validity",
    "validity_drop",
    "validity_drop_at_equal_rate",
    "crossing_shift",
    "validity_drop_at",
    "recourse_gap",
    "recourse_gap_median",
    "recourse_gap_abs_median",
    "recourse_gap_of_sums",
    "recourse_lost_rate",
    "direction_similarity",
    "action_overlap",
    "feasible_recourse_rate",
    "factual_flip_rate",
    "favourable_rate_drift",
    "ci95",
    "groups",
}


def audited(
    f: Cut, f_q: Cut, rows: torch.Tensor, space: Plane | None = None, labels: object = None, groups: object = None, **settings: object
):  # type: ignore[no-untyped-def]
    space = space or Plane()
    before, after = as_predictor(f, example=rows), as_predictor(f_q, example=rows)
    teacher = reference_recourse(before, rows, space, 1, replace(QUICK, **settings))  # type: ignore[arg-type]
    return evaluate(before, after, teacher, rows, labels, space, groups)  # type: ignore[arg-type]


def test_a_moved_cut_by_hand() -> None:
    # Full precision accepts above 0, the quantized model above 0.25. Steps of 0.3 from -0.1, -0.5, -0.2, -1.0 first pass 0 at
    # 0.2, 0.1, 0.1 and 0.2: none of them passes 0.25. From -0.02 it is 0.28.
    rows = people(-0.1, -0.5, -0.2, -1.0, -0.02, 0.1, 5.0, 6.0)
    found = audited(Cut(0.0), Cut(0.25), rows, labels=[0, 0, 0, 0, 1, 1, 1, 1])
    assert found.validity_drop == pytest.approx(4 / 5)
    assert found.broken == (0, 1, 2, 3)
    # Nobody is accepted above 0.25 at a point below 0. The quantized cut lies 0.25 / 0.3 of a step behind the other.
    assert found.premature_validity == 0
    assert found.boundary_disagreement == pytest.approx(2 / 5)
    assert found.crossing_shift == pytest.approx({"mean_abs": 5 / 6, "mean": 5 / 6, "p95": 5 / 6}, abs=1e-4)
    # Three rows are accepted again once the cut is half way between the rows at 0.1 and -0.02. All recourse lies above that.
    assert found.validity_drop_at_equal_rate == 0
    assert found.feasible_recourse_rate == 1.0
    assert found.accuracy == pytest.approx(6 / 8)
    assert found.factual_flip_rate == pytest.approx(1 / 8)
    assert found.favourable_rate_drift == pytest.approx(-1 / 8)
    gaps = np.array([0.25 / 0.1, 0.25 / 0.5, 0.25 / 0.2, 0.25 / 1.0, 0.25 / 0.02])
    assert found.recourse_gap == pytest.approx(gaps.mean(), rel=0.02)
    assert found.recourse_gap_median == pytest.approx(np.median(gaps), rel=0.02)
    assert found.recourse_gap_of_sums == pytest.approx(5 * 0.25 / 1.82, rel=0.02)
    assert found.direction_similarity == pytest.approx(1.0, abs=1e-4)
    assert found.action_overlap == pytest.approx(1.0)
    assert found.recourse_lost_rate == 0.0
    assert found.counts == {
        "rows": 8,
        "labelled": 8,
        "rejected": 5,
        "people": 5,
        "with_recourse": 5,
        "without_crossing": 0,
        "with_minimal_cost_recourse": 5,
        "with_both_recourses": 5,
        "direction_undefined": 0,
        "decided_otherwise_by_default_session": 0,
    }


def test_confidence_bought_in_advance_saves_the_recourse() -> None:
    # With slope 1 recourse issued at confidence τ lies at logit τ: 0, 0.2007, 0.4055; the quantized cut stands at 0.25.
    found = audited(Cut(0.0), Cut(0.25), people(-1, -2, -3, -4))
    assert found.validity_drop_at == {"0.50": 1.0, "0.55": 1.0, "0.60": 0.0}


def test_a_model_against_itself_changes_nothing() -> None:
    rows = crowd(200)
    found = audited(Cut(0.0), Cut(0.0), rows, groups={"half": np.arange(200) % 2})
    assert (found.validity_drop, found.validity_mismatch, found.recourse_gap, found.recourse_gap_of_sums) == (0, 0, 0, 0)
    assert (found.factual_flip_rate, found.favourable_rate_drift, found.recourse_lost_rate) == (0, 0, 0)
    assert found.direction_similarity == pytest.approx(1.0, abs=1e-4)
    assert found.action_overlap == pytest.approx(1.0, abs=1e-6)
    assert found.groups["half"].validity_drop.gap == 0
    assert found.ci95["validity_drop"] == metrics.wilson_interval(0, found.counts["people"])
    assert found.notes == ()


def test_where_the_quantized_model_already_accepts_recourse_is_free_and_has_no_direction() -> None:
    found = audited(Cut(0.0), Cut(-1.0), people(-0.5, -2.0))
    assert found.counts["direction_undefined"] == 1
    assert found.recourse_gap == pytest.approx((-1.0 - 0.5) / 2, abs=0.01)
    assert found.direction_similarity == pytest.approx(1.0, abs=1e-4)
    assert found.favourable_rate_drift == 0.5


def test_recourse_out_of_reach_on_the_quantized_model_is_counted_as_lost() -> None:
    found = audited(Cut(0.0), Cut(3.0), people(-0.5, -1.0, -2.0), Plane(reach=2.0))
    assert found.recourse_lost_rate == 1.0
    assert math.isnan(found.recourse_gap)
    assert math.isnan(found.direction_similarity)
    assert found.to_dict()["recourse_gap"] is None


def test_people_without_recourse_do_not_count_as_broken_but_show_in_the_mismatch() -> None:
    # Nobody gets above 1; full precision asks for 2, so nothing can break; the quantized model accepts what full precision refuses.
    found = audited(Cut(2.0), Cut(0.5), people(0.0, -3.0), Plane(reach=1.0))
    assert found.feasible_recourse_rate == 0.0
    assert math.isnan(found.validity_drop)
    assert found.validity_mismatch == 1.0
    assert any("No recourse was found" in note for note in found.notes)


def test_nobody_rejected_is_a_clear_result() -> None:
    found = audited(Cut(0.0), Cut(0.5), people(1.0, 2.0, 0.25), labels=[1, 1, 1], groups={"g": ["a", "b", "a"]})
    entry = found.to_dict()
    assert entry["validity_drop"] is None
    assert entry["validity_drop_at"] == {"0.50": None, "0.55": None, "0.60": None}
    assert entry["ci95"]["validity_drop"] == [None, None]
    assert entry["favourable_rate_drift"] == pytest.approx(-1 / 3, abs=1e-6)
    assert entry["groups"]["g"]["validity_drop"]["worst_group"] is None
    assert any("rejects none of the 3 rows" in note for note in found.notes)


def test_groups_by_hand() -> None:
    rows = people(-0.1, -0.5, -0.02, -0.05, 0.1, 5.0)  # the first two break, see above
    sex = ["f", "f", "m", "m", "f", "m"]
    grouping = audited(Cut(0.0), Cut(0.23), rows, labels=[0, 0, 0, 0, 1, 1], groups={"sex": sex}, smallest_group=1).groups["sex"]
    women, men = grouping.groups["f"], grouping.groups["m"]
    assert (women.rows, women.people, women.with_recourse) == (3, 2, 2)
    assert (women.validity_drop, men.validity_drop) == (1.0, 0.0)
    assert women.recourse_gap == pytest.approx((2.3 + 0.46) / 2, rel=0.02)
    assert women.values["favourable_rate_drift"] == pytest.approx(-1 / 3)
    assert (women.values["accuracy"], men.values["accuracy"]) == (pytest.approx(2 / 3), 1.0)
    assert (grouping.validity_drop.worst_group, grouping.validity_drop.worst, grouping.validity_drop.gap) == ("f", 1.0, 1.0)
    assert grouping.recourse_gap.worst_group == "m"
    assert grouping.too_small == ()


def test_a_group_of_a_few_people_is_listed_but_is_not_the_worst() -> None:
    rows = torch.cat([crowd(100), people(-0.1)])
    grouping = audited(Cut(0.0), Cut(0.25), rows, groups={"g": ["many"] * 100 + ["one"]}).groups["g"]
    assert grouping.groups["one"].validity_drop == 1.0
    assert grouping.validity_drop.worst_group == "many"
    assert grouping.too_small == ("one",)


def test_group_numbers_are_those_of_an_audit_of_the_group_alone() -> None:
    rows = crowd(80)
    name = np.where(rows[:, 1].numpy() > 0, "up", "down")
    whole = audited(Cut(0.0), Cut(0.1), rows, groups={"g": name}).groups["g"].groups["up"]
    alone = audited(Cut(0.0), Cut(0.1), rows[name == "up"])
    assert whole.validity_drop == alone.validity_drop
    assert whole.recourse_gap == pytest.approx(alone.recourse_gap, rel=1e-4)
    assert whole.values["favourable_rate_drift"] == alone.favourable_rate_drift


def test_the_entry_has_the_names_of_results_json_and_the_same_bytes_each_time() -> None:
    rows = crowd(50)
    entries = [
        audited(Cut(0.0), Cut(0.1), rows, labels=(rows[:, 0] > 0).int(), groups={"g": np.arange(50) % 2}).to_dict(
            average_bits=4.0, activation_bits=8, stored_bytes=123
        )
        for _ in range(2)
    ]
    assert entries[0].keys() >= ENTRY
    assert to_canonical_json(entries[0]) == to_canonical_json(entries[1])
    assert json.loads(to_canonical_json(entries[0])) == entries[0]
    assert entries[0].keys() - ENTRY == {"validity_mismatch", "counts", "notes"}
    assert all(len(ends) == 2 for ends in entries[0]["ci95"].values())
    single = {name for name, value in entries[0].items() if isinstance(value, float)} - {"average_bits"}
    assert single <= entries[0]["ci95"].keys()


def test_intervals_hold_the_number_they_are_about() -> None:
    found = audited(Cut(0.0), Cut(0.05), crowd(400), labels=np.ones(400))
    for name, (low, high) in found.ci95.items():
        if name.startswith("crossing_shift_"):
            value = found.crossing_shift[name.removeprefix("crossing_shift_")]
        elif name in ("validity_drop_at_0.50", "validity_drop_at_0.55", "validity_drop_at_0.60"):
            value = found.validity_drop_at[name[-4:]]
        else:
            value = getattr(found, name)
        assert low - 1e-12 <= value <= high + 1e-12, name


@pytest.mark.parametrize("blind", ["quantized", "full precision", "both"])
def test_without_a_gradient_recourse_is_searched_without_one(blind: str) -> None:
    # People at -0.1 and -0.5 pay 0.1 and 0.5 below the cut at 0, and 0.35 and 0.75 below the cut at 0.25.
    rows = people(-0.1, -0.5, 3.0)

    def accept_above(cut: float, name: str) -> Predictor:
        if blind in (name, "both"):
            return as_predictor(lambda x: 4 * (x[:, :1] - cut), example=rows, head="logit", name=name)
        return as_predictor(Cut(cut), example=rows, name=name)

    before, after = accept_above(0.0, "full precision"), accept_above(0.25, "quantized")
    reference = reference_recourse(before, rows, Plane(), 1, QUICK)
    found = evaluate(before, after, reference, rows, None, Plane())
    assert found.validity_drop == 1.0
    assert found.recourse_gap == pytest.approx((2.5 + 0.5) / 2, rel=0.02)
    assert found.recourse_lost_rate == 0.0
    (note,) = (note for note in found.notes if "has no gradient" in note)
    assert note.startswith("quantized" if blind == "quantized" else "full precision")
    assert reference.to_dict()["recourse_method"] == ("projected-gradient" if blind == "quantized" else "gradient-free")


def test_a_model_of_steps_is_audited_without_a_gradient() -> None:
    # The score jumps from 0 to 1 at the cut, as in a tree.
    rows = people(-0.1, -0.5, 3.0)
    report = run_audit(lambda x: (x[:, 0] > 0).astype(np.float32), lambda x: (x[:, 0] > -0.05).astype(np.float32), rows, Plane())
    assert report.feasible_recourse_rate == 1.0
    assert report.validity_drop == 0.0
    assert report.recourse_gap == pytest.approx((-0.5 - 0.1) / 2, rel=0.02)
    assert "Validity Drop of gradient-free recourse 0.0000" in str(report.gate(max_vd=0.02))


def test_multi_class_targets() -> None:
    class Three(torch.nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0] - self.shift, 2 * x[:, 0] - 2], dim=1)

    rows = people(-1.0, -0.5, 3.0)
    before, after = as_predictor(Three(0.0), example=rows), as_predictor(Three(0.25), example=rows)
    teacher = reference_recourse(before, rows, Plane(), torch.tensor([1, 2, 2]), QUICK)
    found = evaluate(before, after, teacher, rows, None, Plane())
    assert teacher.people.tolist() == [0, 1]
    assert found.validity_drop == pytest.approx(0.5)  # from -1 in steps of 0.3 to 0.2, short of 0.25; class 2 begins at 2
    with pytest.raises(ModelError, match=r"got 3 of .* and 2 of"):
        evaluate(before, as_predictor(Cut(0.0), example=rows), teacher, rows, None, Plane())


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 1], None, "one per row"),
        ([0, 1, 2], None, r"classes 0 to 1, got others in rows 2"),
        ([0, 1, 0.5], None, "rows 2"),
        (["no", "yes", "no"], None, "class indices"),
        (None, {"sex": ["f", "m"]}, "'sex' must be one per row, 3"),
        (None, ["f", "m", "f"], "map a name"),
    ],
)
def test_labels_and_groups_that_do_not_fit_are_refused(labels: object, groups: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        audited(Cut(0.0), Cut(0.1), people(-1, 1, 2), labels=labels, groups=groups)


def test_unknown_labels_are_left_out() -> None:
    found = audited(Cut(0.0), Cut(0.0), people(-1, 1, 2, 3), labels=[0, -1, None, float("nan")])
    assert (found.accuracy, found.counts["labelled"]) == (1.0, 1)


def test_recourse_of_other_rows_is_refused() -> None:
    rows = people(-1, 1, 2)
    f = as_predictor(Cut(0.0), example=rows)
    teacher = reference_recourse(f, rows, Plane(), 1, QUICK)
    with pytest.raises(DataError, match="other rows"):
        evaluate(f, f, teacher, rows + 1, None, Plane())
    with pytest.raises(DataError, match="other rows"):
        evaluate(f, f, teacher, rows[:2], None, Plane())
