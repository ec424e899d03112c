"""What users' own tests can assert and start from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cfptq.auditing import Protocol
from cfptq.errors import CfptqError, ConfigurationError, DataError
from cfptq.testing import assert_recourse_preserved, random_classifier, small_action_set, small_people

QUICK = Protocol(max_people=40, resamples=20)
PEOPLE = small_people(120)
ACTION_SET = small_action_set()
ROWS = ACTION_SET.encode(PEOPLE)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return random_classifier(ROWS)


@pytest.fixture(scope="module")
def harsh(model: nn.Module) -> nn.Module:
    """The same model with a higher bar."""
    changed = copy.deepcopy(model)
    last = [module for module in changed.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = model(ROWS)
        last.bias[1] -= (logits[:, 1] - logits[:, 0]).std()
    return changed


def test_a_model_against_itself_keeps_every_limit(model: nn.Module) -> None:
    report = assert_recourse_preserved(model, model, PEOPLE, ACTION_SET, max_vd=0.0, max_drift=0.0, protocol=QUICK)
    assert report.validity_drop == 0.0 and report.favourable_rate_drift == 0.0
    assert assert_recourse_preserved(model, model, ROWS, ACTION_SET, max_drift=0.0, protocol=QUICK).validity_drop == 0.0


def test_a_broken_limit_is_an_assertion_error_with_the_gates_sentences(model: nn.Module, harsh: nn.Module) -> None:
    with pytest.raises(AssertionError, match=r"Gate broken.\nValidity Drop of .* breaks the limit 0.02.*\n.* breaks the limit 0.01"):
        assert_recourse_preserved(model, harsh, PEOPLE, ACTION_SET, max_vd=0.02, max_drift=0.01, protocol=QUICK)
    with pytest.raises(AssertionError, match="Drift"):
        assert_recourse_preserved(model, harsh, PEOPLE, ACTION_SET, max_drift=0.01, protocol=QUICK)


def test_settings_of_the_audit_are_passed_on(model: nn.Module, harsh: nn.Module) -> None:
    issued = PEOPLE.assign(income=10_000.0, debt=0.0)
    with pytest.raises(AssertionError, match="the letters"):
        assert_recourse_preserved(model, lambda rows: -model(rows), PEOPLE, ACTION_SET, max_vd=0.02, issued=issued, protocol=QUICK)


def test_a_model_that_only_accepts_more_people_breaks_the_limit_on_disagreement(model: nn.Module) -> None:
    def generous(rows: torch.Tensor) -> torch.Tensor:
        return model(rows) + torch.tensor([0.0, 0.1])

    report = assert_recourse_preserved(model, generous, PEOPLE, ACTION_SET, max_vd=0.0, protocol=QUICK)
    assert report.premature_validity > 0
    with pytest.raises(AssertionError, match=r"Boundary disagreement .* breaks the limit"):
        assert_recourse_preserved(
            model, generous, PEOPLE, ACTION_SET, max_vd=0.0, max_disagreement=report.premature_validity / 3, protocol=QUICK
        )


def test_an_assertion_without_a_limit_or_with_one_out_of_range_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="At least one limit"):
        assert_recourse_preserved(model, model, PEOPLE, ACTION_SET)
    with pytest.raises(CfptqError, match="max_disagreement must be a share"):
        assert_recourse_preserved(model, model, PEOPLE, ACTION_SET, max_disagreement=2, protocol=QUICK)
    with pytest.raises(CfptqError, match="max_vd must be a share"):
        assert_recourse_preserved(model, model, PEOPLE, ACTION_SET, max_vd=2, protocol=QUICK)


def test_people_whom_nobody_rejects_do_not_pass_for_preserved_recourse(model: nn.Module) -> None:
    accepted = ROWS[model(ROWS).argmax(1) == 1]
    with pytest.raises(AssertionError, match="undefined"):
        assert_recourse_preserved(model, model, accepted, ACTION_SET, max_vd=1.0, protocol=QUICK)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_the_classifier_accepts_the_share_that_was_asked_for(rate: float) -> None:
    model = random_classifier(ROWS, favourable_rate=rate)
    assert float((model(ROWS).argmax(1) == 1).double().mean()) == pytest.approx(rate, abs=1.5 / len(ROWS))
    assert not model.training


def test_the_small_parts_depend_on_their_seeds_alone() -> None:
    assert small_people(30, seed=1).equals(small_people(30, seed=1)) and not small_people(30, seed=1).equals(small_people(30, seed=2))
    assert torch.equal(random_classifier(ROWS, seed=4)(ROWS), random_classifier(ROWS, seed=4)(ROWS))
    assert not torch.equal(random_classifier(ROWS, seed=4)(ROWS), random_classifier(ROWS, seed=5)(ROWS))
    assert small_action_set().favourable == 1 and ROWS.shape == (120, 6)


def test_a_classifier_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(N, d\)"):
        random_classifier(torch.zeros(0, 6))
    with pytest.raises(DataError, match="favourable_rate"):
        random_classifier(ROWS, favourable_rate=1.0)
