"""Figures by group: statistics over seeds, the gap between groups, and what is taken from earlier results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import data_sets  # noqa: E402
import reporting  # noqa: E402
import subgroups  # noqa: E402

from cfptq.auditing.group_metrics import GROUP_METRICS  # noqa: E402

FIRST, SECOND = [0.04, 0.06, 0.05, 0.09], [0.02, 0.05, 0.01, 0.04]


def make_group(value: float, people: int = 50) -> dict[str, Any]:
    return {"rows": 2 * people, "people": people, "with_recourse": people, **dict.fromkeys(GROUP_METRICS, value)}


def make_entry(**values: float) -> dict[str, Any]:
    return {"average_bits": 4.0, "groups": {"sex": {group: make_group(value) for group, value in values.items()}}}


def test_the_gap_without_numbers_of_people_is_that_of_a_paired_t_test() -> None:
    gap = subgroups.summarize_gap((FIRST, None), (SECOND, None))
    low, high = scipy.stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.03, low, high))


def test_the_pooled_gap_is_the_difference_of_two_shares_with_about_the_error_of_the_jackknife() -> None:
    random = np.random.default_rng(0)
    people = random.integers(20, 60, (2, 40))
    hits = random.binomial(people, [[0.2], [0.1]])
    gap = subgroups.summarize_gap(*((list(hits[k] / people[k]), people[k].tolist()) for k in (0, 1)))
    assert gap.mean == pytest.approx(hits[0].sum() / people[0].sum() - hits[1].sum() / people[1].sum())
    left_out = [np.diff([(hits[k].sum() - hits[k][i]) / (people[k].sum() - people[k][i]) for k in (1, 0)])[0] for i in range(40)]
    jackknife = np.sqrt(39 / 40 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert gap.low is not None and gap.high is not None
    assert (gap.high - gap.low) / 2 / scipy.stats.t.ppf(0.975, 39) == pytest.approx(jackknife, rel=0.05)


def test_a_seed_without_people_of_a_group_adds_nothing_to_the_pooled_gap() -> None:
    whole = subgroups.summarize_gap(([0.1, 0.2], [10, 30]), ([0.0, 0.1], [20, 20]))
    with_empty = subgroups.summarize_gap(([0.1, 0.2, None], [10, 30, 0]), ([0.0, 0.1, None], [20, 20, 0]))
    assert with_empty.mean == pytest.approx(whole.mean)


def test_the_worst_group_is_that_with_the_largest_mean_among_groups_that_are_large_enough() -> None:
    entries = [make_entry(a=first, b=second) for first, second in zip(FIRST, SECOND, strict=True)]
    for entry in entries:
        entry["groups"]["sex"]["c"] = make_group(0.9, people=2)
    groups = subgroups.tabulate("adult", entries)["groups"]["sex"]
    found = subgroups.compare_groups("adult", groups, "validity_drop")
    assert found is not None and (found["worst_group"], found["best_group"]) == ("a", "b")
    assert found["worst"] == pytest.approx(np.mean(FIRST)) and found["gap"]["mean"] == pytest.approx(0.03)


def test_a_group_that_a_seed_lacks_counts_nobody_there() -> None:
    groups = subgroups.tabulate("german", [make_entry(a=0.5, b=0.1), make_entry(b=0.3)])["groups"]["sex"]
    assert groups["a"]["with_recourse"] == [50, 0] and groups["a"]["validity_drop"]["values"] == [0.5, None]
    assert groups["a"]["validity_drop"]["mean"] == 0.5 and groups["b"]["validity_drop"]["mean"] == pytest.approx(0.2)


def test_differences_between_methods_are_paired_over_seeds() -> None:
    content = {
        "methods": {
            "mixed-ptq": subgroups.tabulate("adult", [make_entry(a=value, b=0.0) for value in FIRST]),
            "faithful": subgroups.tabulate("adult", [make_entry(a=value, b=0.0) for value in SECOND]),
        }
    }
    subgroups.add_comparisons("adult", content)
    difference = content["methods"]["faithful"]["groups"]["sex"]["a"]["difference"]["validity_drop"]
    low, high = scipy.stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95)
    assert (difference["mean"], difference["low"], difference["high"]) == pytest.approx((-0.03, low, high), abs=1e-6)


def test_new_results_keep_what_earlier_ones_hold_of_other_methods_and_attributes() -> None:
    earlier = {"seeds": [10], "methods": {"faithful": {"groups": {"sex": "old", "age": "old"}, "margins": "old"}}}
    new = {"seeds": [10], "methods": {"faithful": {"groups": {"sex": "new"}}, "cfq-qat": {"groups": {}}}}
    joined = subgroups.join(earlier, new)["methods"]
    assert joined["faithful"] == {"groups": {"sex": "new", "age": "old"}, "margins": "old"} and "cfq-qat" in joined
    assert subgroups.join({**earlier, "seeds": [11]}, new) is new


def test_groups_are_read_from_the_headline_only_for_all_reporting_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    assert subgroups.read_headline("adult") == {}
    method = {"average_bits": 4.0, "groups": {"sex": {"groups": {"Female": make_group(0.1)}}}}
    for seeds, methods in ((range(3), set()), (reporting.REPORTING_SEEDS["adult"], {"faithful"})):
        runs = [{"seed": seed, "methods": {"faithful": method, "ptq": {"average_bits": 4.0}}} for seed in seeds]
        (tmp_path / "headline-adult.json").write_text(json.dumps({"runs": runs}))
        assert set(subgroups.read_headline("adult")) == methods


def test_errors_of_margins_are_those_at_the_same_points() -> None:
    margins = [subgroups.Margins(np.array([0.5, -0.25]), np.array([0.25, 0.25])), subgroups.Margins(np.array([1.0]), np.array([1.0]))]
    found = subgroups.summarize_margins(margins)
    assert found["own"]["share_at_most_0"] == pytest.approx(1 / 3, abs=1e-6) and found["own"]["people"] == 3
    assert found["own"]["mean_error"] == pytest.approx(-0.25 / 3, abs=1e-6)
    assert found["own"]["mean_abs_error"] == pytest.approx(0.25, abs=1e-6) and found["fp32"]["mean_abs_error"] == 0


@pytest.mark.data
def test_the_table_of_data_sets_has_the_counts_that_the_publishers_give() -> None:
    try:
        content = data_sets.measure()
    except Exception as error:  # The public files are absent.
        pytest.skip(str(error))
    published = {"adult": (32_561, 16_281), "bank": (36_168, 9_043), "default": (24_000, 6_000), "german": (700, 300)}
    assert {name: (content[name]["data"]["train"], content[name]["data"]["test"]) for name in published} == published
    for entry in content.values():
        actions = entry["actions"]
        assert actions["immutable_columns"] + actions["actionable_columns"] == entry["data"]["columns"]
        assert len(actions["immutable"]) + actions["actionable_features"] == entry["data"]["features"]
