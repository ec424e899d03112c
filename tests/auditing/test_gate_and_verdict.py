"""The verdict in words and counts, and limits that are kept, broken or not judged, alike in every form of a report."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from halfline import QUICK, Cut, Plane, crowd, people

from cfptq.auditing import AuditReport, run_audit
from cfptq.auditing.gate import Finding, format_junit, judge
from cfptq.auditing.sections import SMALLEST_SHOWN, build_sections
from cfptq.errors import ConfigurationError
from cfptq.io.csv import neutralize_formula, write_csv
from cfptq.io.tables import as_text
from cfptq.testing import random_classifier, small_action_set, small_people


@pytest.fixture(scope="module")
def report() -> AuditReport:
    rows = crowd(200)
    groups = {"sex": np.where(rows[:, 1].numpy() > 0, "f", "m")}
    return run_audit(Cut(0.0), Cut(0.15), rows, Plane(), groups=groups, protocol=QUICK, progress=False)


@pytest.fixture(scope="module")
def letters_report() -> AuditReport:
    action_set, frame = small_action_set(), small_people(400)
    f = random_classifier(action_set.encode(frame), seed=2)
    letters = frame.assign(debt=(frame["debt"] * 0.2).round(2), job="nurse")
    logits = f(action_set.encode(letters)).detach()
    margin = logits[:, 1] - logits[:, 0]
    bar = torch.tensor([0.0, float(margin[margin > 0].median())])
    groups = {"<b>": frame["job"]}
    protocol = replace(QUICK, max_people=20)
    return run_audit(f, lambda x: f(x) - bar, frame, action_set, issued=letters, groups=groups, protocol=protocol, progress=False)


@pytest.mark.parametrize(
    ("value", "interval", "limit", "level", "outcome"),
    [
        (0.02, (0.01, 0.03), 0.02, None, "kept"),
        (0.02, (0.01, 0.03), 0.02, 0.95, "broken"),
        (-0.02, (-0.05, 0.01), 0.04, None, "kept"),
        (-0.02, (-0.05, 0.01), 0.04, 0.95, "broken"),
        (math.nan, (math.nan, math.nan), 0.5, None, "not judged"),
        (0.0, (math.nan, math.nan), 0.5, 0.95, "not judged"),
    ],
)
def test_a_limit_is_judged_on_the_estimate_or_on_the_farther_end(
    value: float, interval: tuple[float, float], limit: float, level: float | None, outcome: str
) -> None:
    gate = judge([(Finding("It", value, interval), limit, "max_it")], level)
    assert gate.outcome == outcome and bool(gate) == (outcome == "kept")


def test_a_broken_limit_outweighs_one_that_cannot_be_judged() -> None:
    unknown, bad = Finding("A", math.nan, (math.nan, math.nan)), Finding("B", 0.5, (0.4, 0.6))
    assert judge([(unknown, 0.1, "max_a"), (bad, 0.1, "max_b")]).outcome == "broken"
    assert judge([(unknown, 0.1, "max_a"), (bad, 0.9, "max_b")]).outcome == "not judged"
    assert judge([(unknown, None, "max_a")]).outcome == "kept"


def test_every_limit_of_a_report_is_judged(report: AuditReport) -> None:
    values = {
        "max_vd": report.validity_drop,
        "max_disagreement": report.boundary_disagreement,
        "max_crg": abs(report.recourse_gap),
        "max_drift": abs(report.favourable_rate_drift),
        "max_group_gap": max(report.groups["sex"].validity_drop.gap, report.groups["sex"].boundary_disagreement.gap),
    }
    for option, value in values.items():
        if value < 1:
            assert report.gate(**{option: min(1.0, value + 1e-9)}).held, option  # type: ignore[arg-type]
        assert report.gate(**{option: value / 2}).outcome == "broken", option  # type: ignore[arg-type]
    bound = report.ci95["favourable_rate_drift"]
    assert report.gate(max_drift=max(map(abs, bound)), level=0.95).held
    assert not report.gate(max_drift=values["max_drift"], level=0.95).held
    with pytest.raises(ConfigurationError, match=r"that of the intervals, 0.95, got 0.9"):
        report.gate(max_vd=0.1, level=0.9)
    with pytest.raises(ConfigurationError, match="needs groups"):
        replace(report, metrics=replace(report.metrics, groups={})).gate(max_group_gap=0.1)


def test_a_gap_between_groups_is_that_of_the_letters_where_there_are_any(letters_report: AuditReport) -> None:
    advice = letters_report.issued
    assert advice is not None
    groups = advice.groups["<b>"].groups
    assert sum(group.kept_before for group in groups.values()) == advice.kept_before
    assert sum(group.broken for group in groups.values()) == len(advice.broken)
    shares = [group.broken / group.kept_before for group in groups.values() if group.kept_before >= 10]
    gate = letters_report.gate(max_group_gap=0.0)
    finding = gate.rulings[0].finding
    assert finding.name == "Gap between groups of <b> in the Validity Drop of letters"
    assert finding.value == pytest.approx(max(shares) - min(shares)) and len(shares) > 1
    assert "| Group | With letters |" in letters_report.to_markdown() and "Letters by &lt;b&gt;" in letters_report.to_markdown()


def test_junit_counts_broken_limits_as_failures_and_unjudged_ones_as_errors(tmp_path: Path) -> None:
    findings = [Finding("A <b>", 0.5, (0.4, 0.6)), Finding("B", math.nan, (math.nan, math.nan)), Finding("C", 0.0, (0.0, 0.0))]
    gate = judge([(finding, 0.1, f"max_{place}") for place, finding in enumerate(findings)])
    gate.to_junit(tmp_path / "gate.xml", 'a "q" <model>')
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [["failure"], ["error"], []]
    assert "A <b> 0.5000" in str(suite[0][0].get("message"))
    assert len(ElementTree.fromstring(format_junit([("a", gate), ("b", gate)]))) == 2


def test_the_verdict_comes_first_in_words_and_counts(report: AuditReport, letters_report: AuditReport) -> None:
    gate = report.gate(max_vd=0.02, max_drift=0.9)
    broken, total = len(report.broken), report.metrics.counts["with_recourse"]
    verdict = report.verdict(gate)
    assert verdict[0] == "Not kept: 1 of 2 limits broken."
    whom = "people who were refused by the first Cut and for whom a change was computed that it accepts (recourse)"
    assert verdict[1].startswith(f"Of {total} {whom}, {broken} (")
    assert verdict[1].endswith("would be refused again by the second Cut after doing it. Limit: 2 %. Not kept.")
    assert verdict[2].endswith("Limit: 90 %. Kept.")
    advice = letters_report.issued
    assert advice is not None
    words = letters_report.verdict()[1]
    assert words.startswith(f"Of {advice.kept_before} people who were told what to change")
    assert f", {len(advice.broken)} ({100 * advice.validity_drop:.1f} %; 95 % interval" in words
    for text in (str(report), report.to_markdown(gate)):
        places = [text.index(title) for title in ("Verdict", "Who is affected", "What it costs them now", "Groups", "All measures")]
        assert places == sorted(places)
    plain = report.to_dict(gate)
    assert list(plain)[:2] == ["schema", "verdict"] and plain["verdict"]["outcome"] == "broken"


def test_every_measure_has_a_line_of_explanation(report: AuditReport) -> None:
    measures = next(section for section in build_sections(report) if section.name == "measures").grids[0]
    assert all(row[-1] for row in measures.rows) and len(measures.rows) > 15


def test_people_affected_are_shown_only_where_they_are_asked_for(letters_report: AuditReport) -> None:
    advice, consequences = letters_report.issued, letters_report.consequences
    assert advice is not None and advice.broken
    assert tuple(person.row for person in consequences.people) == advice.broken
    assert all("→" in person.told for person in consequences.people)
    assert all(person.cost_now >= 0 for person in consequences.people if not math.isnan(person.cost_now))
    told = {entry.feature: entry.told for entry in consequences.features}
    assert 0.95 * advice.promised < told["debt"] <= advice.promised and "age" not in told
    assert consequences.people[0].told not in letters_report.to_markdown()
    shown = letters_report.to_markdown(include_people=True)
    assert shown.count("refused again") >= len(advice.broken) and "### People affected" in shown


def test_small_groups_are_not_broken_down_without_personal_rows(report: AuditReport) -> None:
    rows = crowd(60)
    groups = {"town": ["tiny"] * (SMALLEST_SHOWN - 1) + ["large"] * (60 - SMALLEST_SHOWN + 1)}
    small = run_audit(Cut(0.0), Cut(0.1), rows, Plane(), groups=groups, protocol=QUICK, progress=False)
    assert "tiny" not in small.to_markdown() and "not shown: 1 group with fewer than 10 people" in small.to_markdown()
    assert "| tiny |" in small.to_markdown(include_people=True)


def test_the_printed_report_shows_groups_of_any_size() -> None:
    rows = crowd(60)
    groups = {"town[/b]": ["[tiny]"] * (SMALLEST_SHOWN - 1) + ["large"] * (60 - SMALLEST_SHOWN + 1)}
    report = run_audit(Cut(0.0), Cut(0.1), rows, Plane(), groups=groups, protocol=QUICK, progress=False)
    for text in (str(report), repr(report), report._repr_html_()):
        assert "[tiny]" in text and "town[/b]" in text and "not shown" not in text
    assert list(report.to_dict()["groups"]["town[/b]"]["groups"]) == ["large"]
    assert "tiny" not in report.to_markdown()
    assert "tiny" not in as_text(report.render(include_small_groups=False))


def test_a_gap_needs_two_groups_with_enough_people() -> None:
    rows = crowd(60)
    groups = {"town": ["tiny"] * 5 + ["large"] * 55}
    report = run_audit(Cut(0.0), Cut(0.1), rows, Plane(), groups=groups, protocol=QUICK, progress=False)
    assert report.gate(max_group_gap=0.5).outcome == "not judged"
    assert "No other group has enough people to compare" in report.to_markdown()


def test_text_from_data_is_no_markup_in_markdown(letters_report: AuditReport) -> None:
    text = letters_report.to_markdown()
    assert "<b>" not in text and "&lt;b&gt;" in text


def test_formulas_are_neutralized_in_csv_files(letters_report: AuditReport, tmp_path: Path) -> None:
    for cell in ("=1+1", "+1", "-1", "@x", "\t=1", " =1"):
        assert neutralize_formula(cell) == f"'{cell}"
    assert [neutralize_formula(cell) for cell in (-1.5, "a=1", None)] == [-1.5, "a=1", None]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"=cmd": ["=HYPERLINK()", "x"], "n": [-1, 2]}))
    assert list(csv.reader((tmp_path / "a.csv").open())) == [["'=cmd", "n"], ["'=HYPERLINK()", "-1"], ["x", "2"]]
    letters_report.to_csv(tmp_path / "people.csv")
    assert len(pd.read_csv(tmp_path / "people.csv")) == len(letters_report.consequences.people)


def test_nobody_affected_is_said(tmp_path: Path) -> None:
    report = run_audit(Cut(0.0), Cut(0.0), people(-0.5, 1.0), Plane(), protocol=QUICK, progress=False)
    assert "Nobody would be refused again" in report.to_markdown()
    report.to_csv(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().startswith("row,key,told")
    none = run_audit(Cut(0.0), Cut(0.0), people(1.0, 2.0), Plane(), protocol=QUICK, progress=False)
    assert "nothing can be said about promises" in none.verdict()[1]
