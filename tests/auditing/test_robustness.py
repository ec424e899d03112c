"""A report with estimates and proofs names each figure as what it is, in every form, and proofs agree with what is observed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import StandardScaler
from torch import nn

import cfptq
from cfptq.actions import ActionSet
from cfptq.auditing import AuditReport, Protocol, run_audit
from cfptq.errors import CfptqError, DataError
from cfptq.testing import random_classifier

QUICK = Protocol(max_people=80, resamples=50)
QUICK = replace(QUICK, minimal_cost=replace(QUICK.minimal_cost, portfolio=QUICK.minimal_cost.portfolio[:1]))


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame({name: draw.normal(50.0, 15.0, 200).round(2) for name in ("income", "savings", "debt")})


@pytest.fixture(scope="module")
def actions(people: pd.DataFrame) -> ActionSet:
    return ActionSet.from_frame(people, favourable=1).encoded_by(ColumnTransformer([("n", StandardScaler(), list(people))]).fit(people))


@pytest.fixture(scope="module")
def models(people: pd.DataFrame, actions: ActionSet) -> tuple[nn.Module, nn.Module]:
    f, f_q = (random_classifier(actions.encode(people), seed=1) for _ in range(2))
    with torch.no_grad():
        for parameter in f_q.parameters():
            parameter.mul_(100).round_().div_(100)
    return f, f_q


@pytest.fixture(scope="module")
def report(people: pd.DataFrame, actions: ActionSet, models: tuple[nn.Module, nn.Module]) -> AuditReport:
    return run_audit(*models, people, actions, protocol=QUICK, prove_within=0.002, progress=False)


def test_proofs_are_below_what_is_observed_and_risk_above_what_failed(report: AuditReport) -> None:
    found = report.robustness
    assert found is not None and found.at_point is not None and found.around is not None and found.around_before is not None
    observed = 1 - found.estimate.failed
    assert found.count == report.metrics.counts["with_recourse"]
    assert observed == pytest.approx(1 - report.validity_drop)
    assert 0 < found.around.fraction <= found.at_point.fraction <= observed
    assert not bool((found.at_point.holds & found.estimate.fails).any())
    assert found.proven_on_both <= min(found.around.fraction, found.around_before.fraction)
    assert found.estimate.risk >= found.estimate.failed


def test_every_form_of_the_report_names_observations_estimates_and_proofs(report: AuditReport, tmp_path: Path) -> None:
    report.to_html(tmp_path / "report.html")
    for text in (str(report), report.to_markdown(), (tmp_path / "report.html").read_text()):
        assert "Estimates and proofs" in text
        assert all(word in text for word in ("observed", "estimated", "proven"))
    entry = report.to_dict()["robustness"]
    assert entry["observed"]["held"] == pytest.approx(1 - report.validity_drop)
    assert entry["proven"]["quantized_within_radius"] <= entry["proven"]["quantized_at_point"]
    assert entry["radius"] == 0.002 and entry["estimated"]["samples"] == 16


def test_nothing_is_estimated_or_proven_unless_it_is_asked_for(
    people: pd.DataFrame, actions: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    plain = run_audit(*models, people, actions, protocol=replace(QUICK, max_people=10), progress=False)
    assert plain.robustness is None and plain.to_dict()["robustness"] is None
    assert "Estimates and proofs" not in str(plain)


def test_letters_are_what_is_proven_where_there_are_any(
    people: pd.DataFrame, actions: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    letters = people.assign(income=people["income"] + 20)
    protocol = replace(QUICK, max_people=0)
    report = run_audit(*models, people, actions, issued=letters, protocol=protocol, prove_within=0.01, progress=False)
    assert report.issued is not None and report.robustness is not None and report.robustness.around is not None
    assert report.robustness.about == "letters"
    assert report.robustness.count == sum(letter.held_before for letter in report.issued.letters)
    held = sum(letter.holds for letter in report.issued.letters if letter.held_before)
    assert report.robustness.estimate.failed == pytest.approx(1 - held / report.robustness.count)
    assert report.robustness.around.fraction <= held / report.robustness.count


def test_a_model_whose_graph_cannot_be_read_has_no_proof_and_the_report_says_so(
    people: pd.DataFrame, actions: ActionSet, models: tuple[nn.Module, nn.Module]
) -> None:
    f, f_q = models
    protocol = replace(QUICK, max_people=10)
    report = run_audit(f, lambda rows: f_q(rows).detach(), people, actions, protocol=protocol, prove_within=0.01, progress=False)
    assert report.robustness is not None
    assert report.robustness.around is None and report.robustness.around_before is not None
    assert "Nothing is proven about" in str(report) and "undefined" in report.to_markdown()


def test_a_radius_that_makes_no_sense_is_refused(people: pd.DataFrame, actions: ActionSet, models: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(DataError, match="prove_within"):
        run_audit(*models, people, actions, prove_within=-0.1)
    with pytest.raises(CfptqError, match="prove_within"):
        cfptq.audit(*models, people, actions, prove_within=float("inf"), progress=False)
