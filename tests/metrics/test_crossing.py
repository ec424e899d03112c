"""Crossings of one-dimensional models with known boundaries, and the shift between two of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfptq import metrics
from cfptq.metrics import crossing_shifts, find_nearest_crossings
from cfptq.metrics.crossing import AcceptsAt

CUTS = st.lists(st.floats(-3, 3.9), min_size=1, max_size=8)


def above(*cuts: float) -> AcceptsAt:
    """A model that accepts person i above its own cut."""

    def accepts_at(people: NDArray[np.int64], positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        answer: NDArray[np.bool_] = positions > np.asarray(cuts)[people]
        return answer

    return accepts_at


def test_a_crossing_is_found_on_either_side() -> None:
    found = find_nearest_crossings(above(0.3, 0.9, -2.4, 4.1), [0.5] * 4)
    assert found == pytest.approx([0.3, 0.9, -2.4, 4.1], abs=1e-4)


def test_the_nearest_of_two_crossings_counts() -> None:
    # Accepted between 1 and 1.6 alone.
    band: AcceptsAt = lambda people, positions: (positions > 1) & (positions < 1.6)  # noqa: E731
    assert find_nearest_crossings(band, [0.0, 1.5, 2.0, 1.2]) == pytest.approx([1.0, 1.6, 1.6, 1.0], abs=1e-4)


def test_a_line_without_crossing_is_told_apart_by_its_decision() -> None:
    assert find_nearest_crossings(above(9.0, -9.0), [0.5, 0.5]).tolist() == [math.inf, -math.inf]
    # Who refuses throughout asks for more, who accepts throughout asks for less.
    assert crossing_shifts([0.5, 0.5, 0.5], [math.inf, -math.inf, 0.75]).tolist() == [4.0, -4.0, 0.25]


def test_people_without_a_last_step_are_left_out() -> None:
    found = find_nearest_crossings(above(0.0, 0.0), [math.nan, 0.1])
    assert math.isnan(found[0]) and found[1] == pytest.approx(0.0, abs=1e-4)
    assert math.isnan(crossing_shifts([math.nan], [math.inf])[0])


@given(CUTS, st.data())
def test_exchanging_the_models_turns_the_sign_alone(cuts: list[float], data: st.DataObject) -> None:
    moved = np.clip(np.array(cuts) + data.draw(st.lists(st.floats(-3, 3), min_size=len(cuts), max_size=len(cuts))), -3, 3.9)
    first, second = above(*cuts), above(*moved)
    start = np.full(len(cuts), 0.5)
    one = find_nearest_crossings(first, start)
    other = find_nearest_crossings(second, start)
    forth = crossing_shifts(one, find_nearest_crossings(second, one))
    back = crossing_shifts(other, find_nearest_crossings(first, other))
    near = np.abs(moved - np.array(cuts)) < 3.99  # farther ones count as none
    assert forth[near] == pytest.approx((moved - np.array(cuts))[near], abs=1e-3)
    assert np.abs(back[near]) == pytest.approx(np.abs(forth[near]), abs=1e-3)


def test_a_quantile_of_drawn_people_is_one_of_them() -> None:
    values = np.array([4.0, math.nan, 1.0, 3.0, 2.0])
    assert metrics.evaluate_statistic(metrics.Quantile(values, 0.5)) == 2.0
    assert metrics.evaluate_statistic(metrics.Quantile(values, 0.95)) == 4.0
    twice = metrics.Quantile(values, 0.5)(np.array([[2.0, 5.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0]]))
    assert twice[0] == 4.0 and math.isnan(twice[1])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_quantile_is_numpys_inverted_distribution_function(values: list[float], share: float) -> None:
    expected = np.quantile(np.array(values), share, method="inverted_cdf")
    assert metrics.evaluate_statistic(metrics.Quantile(np.array(values), share)) == expected
