"""Premature validity, boundary disagreement and Validity Drop at equal rate, by hand and as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cfptq import metrics
from cfptq.errors import DataError

MARGINS = arrays.arrays(np.float64, st.integers(1, 12), elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]))


def test_boundary_disagreement_is_the_mean_of_both_sides() -> None:
    target, found = [1, 1, 1, 1, 1], [True, True, True, True, False]
    failures = metrics.target_failures([0, 1, 1, 1, 0], target, found)  # the first person is refused behind the boundary
    premature = metrics.premature_acceptances([0, 1, 1, 0, 1], target, found)  # two are accepted before it
    assert metrics.validity_drop([0, 1, 1, 1, 0], target, found) == 1 / 4
    assert metrics.premature_validity([0, 1, 1, 0, 1], target, found) == 2 / 4
    assert metrics.boundary_disagreement(failures, premature) == 3 / 8
    assert math.isnan(metrics.boundary_disagreements(failures, premature)[4])


def test_nobody_with_recourse_leaves_the_measures_undefined() -> None:
    nothing = metrics.premature_acceptances([1, 0], [1, 1], [False, False])
    assert math.isnan(metrics.boundary_disagreement(nothing, nothing))
    assert math.isnan(metrics.premature_validity([], []))


def test_the_rate_is_made_equal_half_way_between_two_people() -> None:
    margins = [3.0, 1.0, 0.4, -0.2, -2.0]
    assert metrics.equalize_rate(margins, 3) == metrics.MarginThreshold(0.0)  # three are accepted already
    assert metrics.equalize_rate(margins, 2) == metrics.MarginThreshold(0.7)
    assert metrics.equalize_rate(margins, 4) == metrics.MarginThreshold(-1.1)
    # Full precision accepts two people. Recourse that reaches 0.5 fails once as few are accepted here, recourse that reaches 2 holds.
    assert metrics.validity_drop_at_equal_rate([0.5, 2.0], margins, 2) == 1 / 2


def test_ties_and_fractions_are_accepted_in_part() -> None:
    tied = metrics.equalize_rate([1.0, 1.0, 1.0, -1.0], 2)
    assert tied == metrics.MarginThreshold(1.0, 2 / 3)
    assert tied.accept([2.0, 1.0, 0.5]).tolist() == [1.0, 2 / 3, 0.0]
    assert metrics.equalize_rate([1.0, -1.0], 1.25) == metrics.MarginThreshold(-1.0, 0.25)


@given(MARGINS, st.floats(0, 1))
def test_the_threshold_accepts_as_many_as_asked(margins: np.ndarray, share: float) -> None:
    accepted = share * len(margins)
    threshold = metrics.equalize_rate(margins, accepted)
    assert threshold.accept(margins).sum() == pytest.approx(accepted)


@given(MARGINS, st.integers(0, 12))
def test_an_offset_is_undone(margins: np.ndarray, count: int) -> None:
    # Once the same number of people is accepted, a constant on every logit changes no decision.
    accepted = min(count, len(margins))
    before, after = metrics.equalize_rate(margins, accepted), metrics.equalize_rate(margins + 8.0, accepted)
    assert np.array_equal(before.accept(margins), after.accept(margins + 8.0))


@pytest.mark.parametrize(("margins", "accepted"), [([], 0), ([1.0, math.nan], 1), ([1.0], 2), ([1.0], -0.5)])
def test_a_rate_that_cannot_be_met_is_refused(margins: list[float], accepted: float) -> None:
    with pytest.raises(DataError):
        metrics.equalize_rate(margins, accepted)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.5))
def test_accepting_more_people_buys_validity_drop_but_not_agreement(seed: int, offset: float) -> None:
    # The last two points of 4,000 paths, before and behind the boundary at margin 0, and a quantized model with symmetric noise.
    random = np.random.default_rng(seed)
    before, behind = -random.uniform(0, 1, 4000), random.uniform(0, 1, 4000)
    noise = random.normal(0, 0.1, (2, 4000))
    target = np.ones(4000)

    def measure(extra: float) -> tuple[float, float, float]:
        failures = metrics.target_failures(behind + noise[0] + extra > 0, target)
        premature = metrics.premature_acceptances(before + noise[1] + extra > 0, target)
        return failures.mean(), premature.mean(), metrics.boundary_disagreement(failures, premature)

    drop, early, disagreement = measure(0.0)
    shifted_drop, shifted_early, shifted_disagreement = measure(offset)
    assert shifted_drop <= drop and shifted_early > early
    assert shifted_disagreement >= disagreement - 3 * math.sqrt(disagreement / 8000)
