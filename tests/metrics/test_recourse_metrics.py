"""Validity Drop, recourse gap, similarity and drift against cases worked out by hand, and properties that hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cfptq import metrics
from cfptq.errors import DataError

COSTS = arrays.arrays(np.float64, 6, elements=st.floats(0.01, 100))
ACTIONS = arrays.arrays(np.float64, (5, 4), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.0, 0.25, 1.0]))
CLASSES = arrays.arrays(np.int64, 7, elements=st.integers(0, 2))
MASKS = arrays.arrays(np.bool_, 7)


def test_validity_drop_counts_only_people_who_had_recourse() -> None:
    decisions = [1, 0, 1, 0, 0]
    target = [1, 1, 1, 1, 1]
    found = [True, True, True, True, False]
    assert metrics.validity_drop(decisions, target, found) == 2 / 4
    assert metrics.validity_drop(decisions, target) == 3 / 5


def test_the_two_validity_drops_differ_where_the_solver_failed_or_a_third_class_won() -> None:
    # Person 1 has no recourse on either model: no failure of transfer, and no mismatch. Person 2 lands in a third class on both.
    decisions_f, decisions_q, target = [1, 0, 2, 1], [1, 0, 2, 0], [1, 1, 1, 1]
    assert metrics.validity_mismatch(decisions_f, decisions_q) == 1 / 4
    assert metrics.validity_drop(decisions_q, target, np.equal(decisions_f, target)) == 1 / 2


def test_targets_may_differ_from_person_to_person() -> None:
    assert metrics.validity_drop([0, 1, 2], [0, 2, 2]) == pytest.approx(1 / 3)


def test_rates_of_recourse_found_and_lost() -> None:
    assert metrics.feasible_recourse_rate([True, True, False, True]) == 0.75
    assert metrics.recourse_lost_rate([True, True, False, True], [True, False, False, True]) == pytest.approx(1 / 3)


def test_recourse_gap_by_hand() -> None:
    cost_f, cost_q = [1.0, 2.0, 4.0, 1.0], [2.0, 1.0, 4.0, 7.0]
    kept = [True, True, True, False]  # relative gaps 1, -0.5, 0
    assert metrics.recourse_gap(cost_f, cost_q, kept) == pytest.approx(0.5 / 3)
    assert metrics.recourse_gap_median(cost_f, cost_q, kept) == pytest.approx(0.0)
    assert metrics.recourse_gap_abs_median(cost_f, cost_q, kept) == pytest.approx(0.5)
    assert metrics.recourse_gap_of_sums(cost_f, cost_q, kept) == pytest.approx(0.0)


def test_mean_gap_is_ruled_by_cheap_recourse_and_the_others_are_not() -> None:
    cost_f, cost_q = np.array([1e-3, 1.0, 1.0]), np.array([1e-1, 1.0, 1.0])
    assert metrics.recourse_gap(cost_f, cost_q) == pytest.approx(33.0, rel=1e-4)
    assert metrics.recourse_gap_median(cost_f, cost_q) == 0
    assert metrics.recourse_gap_of_sums(cost_f, cost_q) == pytest.approx(0.099 / 2.001)


def test_a_quantized_model_that_already_accepts_makes_recourse_free() -> None:
    assert metrics.recourse_gap([2.0], [0.0]) == pytest.approx(-1.0)


def test_direction_similarity_by_hand_and_undefined_without_an_action() -> None:
    delta_f = torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    delta_q = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])
    cosines = metrics.direction_cosines(delta_f, delta_q)
    assert cosines[[0, 1, 3]] == pytest.approx([1.0, 1 / math.sqrt(2), -1.0])
    assert np.isnan(cosines[2])
    assert metrics.direction_similarity(delta_f, delta_q) == pytest.approx(1 / math.sqrt(2) / 3)


def test_action_overlap_by_hand_ignores_noise() -> None:
    delta_f = [[1.0, 1.0, 0.0], [1.0, 1e-9, 0.0], [1.0, 0.0, 0.0]]
    delta_q = [[1.0, 0.0, 2.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert metrics.action_jaccards(delta_f, delta_q) == pytest.approx([1 / 3, 1.0, 0.0])
    assert metrics.action_overlap(delta_f, delta_q, [True, True, False]) == pytest.approx(2 / 3)


def test_actions_on_images_are_flattened() -> None:
    delta = torch.ones(2, 1, 3, 3)
    assert metrics.direction_similarity(delta, -delta) == pytest.approx(-1.0)


def test_accuracy_flips_and_drift_by_hand() -> None:
    decisions_f, decisions_q, target = [0, 0, 1, 1, 0], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]
    assert metrics.accuracy(decisions_q, [1, 1, 1, 1, 1]) == pytest.approx(3 / 5)
    assert metrics.factual_flip_rate(decisions_f, decisions_q) == pytest.approx(3 / 5)
    assert metrics.favourable_rate(decisions_f, target) == pytest.approx(2 / 5)
    assert metrics.favourable_rate_drift(decisions_f, decisions_q, target) == pytest.approx(1 / 5)


def test_unknown_labels_do_not_count_towards_accuracy() -> None:
    assert metrics.accuracy([1, 1, 0], [1.0, float("nan"), 1.0]) == 0.5


def test_what_is_undefined_is_nan() -> None:
    nobody = np.zeros(3, dtype=bool)
    assert math.isnan(metrics.validity_drop([1, 1, 1], [0, 0, 0], nobody))
    assert math.isnan(metrics.validity_mismatch([], []))
    assert math.isnan(metrics.feasible_recourse_rate([]))
    assert math.isnan(metrics.recourse_lost_rate(nobody, nobody))
    for gap in (
        metrics.recourse_gap,
        metrics.recourse_gap_median,
        metrics.recourse_gap_abs_median,
        metrics.recourse_gap_of_sums,
    ):
        assert math.isnan(gap([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], nobody))
    assert math.isnan(metrics.direction_similarity(np.zeros((2, 3)), np.ones((2, 3))))
    assert math.isnan(metrics.accuracy([0], [float("nan")]))


def test_arrays_about_different_people_are_refused() -> None:
    with pytest.raises(DataError, match="decisions has 2, target has 1"):
        metrics.validity_drop([0, 1], [0])
    with pytest.raises(DataError, match="shape"):
        metrics.direction_similarity(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(DataError, match="one row of numbers per person"):
        metrics.action_overlap([1.0], [1.0])
    with pytest.raises(DataError, match="True or False"):
        metrics.feasible_recourse_rate([0.3])
    with pytest.raises(DataError, match="must hold numbers"):
        metrics.accuracy(["yes"], ["no"])


@given(COSTS, COSTS, st.floats(0.1, 10))
def test_gap_does_not_depend_on_the_unit_of_cost(cost_f: np.ndarray, cost_q: np.ndarray, unit: float) -> None:
    assert metrics.recourse_gap(unit * cost_f, unit * cost_q) == pytest.approx(metrics.recourse_gap(cost_f, cost_q), rel=1e-4, abs=1e-6)


@given(COSTS, st.floats(-0.9, 5))
def test_gaps_agree_when_everyone_pays_the_same_share_more(cost: np.ndarray, share: float) -> None:
    dearer = cost * (1 + share)
    for gap in (metrics.recourse_gap, metrics.recourse_gap_median, metrics.recourse_gap_of_sums):
        assert gap(cost, dearer) == pytest.approx(share, rel=1e-4, abs=1e-5)
    assert metrics.recourse_gap_abs_median(cost, dearer) == pytest.approx(abs(share), rel=1e-4, abs=1e-5)


@given(ACTIONS, ACTIONS)
def test_similarity_is_symmetric_and_bounded(delta_f: np.ndarray, delta_q: np.ndarray) -> None:
    there, back = metrics.direction_cosines(delta_f, delta_q), metrics.direction_cosines(delta_q, delta_f)
    np.testing.assert_allclose(there, back)
    assert (np.abs(there[~np.isnan(there)]) <= 1 + 1e-9).all()
    overlap = metrics.action_jaccards(delta_f, delta_q)
    np.testing.assert_array_equal(overlap, metrics.action_jaccards(delta_q, delta_f))
    assert ((overlap >= 0) & (overlap <= 1)).all()


@given(ACTIONS)
def test_an_action_is_like_itself(delta: np.ndarray) -> None:
    acts = (delta != 0).any(axis=1)
    np.testing.assert_allclose(metrics.direction_cosines(delta, delta)[acts], 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics.action_jaccards(delta, delta)[acts], 1.0, atol=1e-6)
    assert np.isnan(metrics.direction_cosines(delta, delta)[~acts]).all()


@given(CLASSES, CLASSES, CLASSES)
def test_drift_is_antisymmetric_and_never_exceeds_the_flips(first: np.ndarray, second: np.ndarray, target: np.ndarray) -> None:
    drift = metrics.favourable_rate_drift(first, second, target)
    assert drift == pytest.approx(-metrics.favourable_rate_drift(second, first, target))
    assert drift == pytest.approx(metrics.favourable_rate(second, target) - metrics.favourable_rate(first, target))
    assert abs(drift) <= metrics.factual_flip_rate(first, second) + 1e-12


@given(CLASSES, CLASSES, MASKS)
def test_validity_drop_is_the_share_among_the_chosen(decisions: np.ndarray, target: np.ndarray, found: np.ndarray) -> None:
    drop = metrics.validity_drop(decisions, target, found)
    if found.any():
        assert drop == np.mean(decisions[found] != target[found])
    else:
        assert math.isnan(drop)
