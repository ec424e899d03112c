"""Bootstrap and Wilson intervals against direct resampling, known values and nominal coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cfptq.errors import DataError
from cfptq.metrics import Mean, Median, Proportion, RatioOfSums, bootstrap_intervals, evaluate_statistic, wilson_interval
from cfptq.metrics import intervals as module

SOME = arrays.arrays(np.float64, 9, elements=st.one_of(st.floats(-5, 5), st.just(float("nan"))))
COUNTS = arrays.arrays(np.int64, (4, 9), elements=st.integers(0, 3))


@given(SOME, SOME, COUNTS)
def test_statistics_of_draw_counts_equal_statistics_of_the_drawn_people(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> None:
    draws = counts.astype(np.float64)
    means, medians = Mean(first)(draws), Median(first)(draws)
    ratios = RatioOfSums(first, np.abs(second) + 1)(draws)
    for draw, mean, median, ratio in zip(counts, means, medians, ratios, strict=True):
        people = np.repeat(np.arange(9), draw)
        known = first[people][~np.isnan(first[people])]
        pairs = people[~np.isnan(first[people]) & ~np.isnan(second[people])]
        if len(known):
            assert mean == pytest.approx(known.mean(), abs=1e-9)
            assert median == pytest.approx(np.median(known), abs=1e-9)
        else:
            assert math.isnan(mean)
            assert math.isnan(median)
        if len(pairs):
            assert ratio == pytest.approx(first[pairs].sum() / (np.abs(second[pairs]) + 1).sum(), abs=1e-9)
        else:
            assert math.isnan(ratio)


def test_value_is_the_statistic_of_everyone() -> None:
    values = np.array([3.0, np.nan, 1.0, 2.0, 10.0])
    assert evaluate_statistic(Mean(values)) == 4.0
    assert evaluate_statistic(Median(values)) == 2.5
    assert evaluate_statistic(RatioOfSums(values, np.full(5, 2.0))) == 2.0


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, size=400)
    low, high = bootstrap_intervals({"mean": Mean(values)}, resamples=4000)["mean"]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_drawing_kinds_gives_the_interval_that_drawing_people_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = {"share": Proportion(np.repeat([0.0, 1.0, np.nan], [150, 50, 20]))}
    kinds = bootstrap_intervals(statistic, resamples=4000)["share"]
    monkeypatch.setattr(module, "MAX_DISTINCT_ROWS", 1)
    people = bootstrap_intervals(statistic, resamples=4000)["share"]
    assert kinds == pytest.approx(people, abs=0.008)
    assert kinds == pytest.approx((0.25 - 0.06, 0.25 + 0.06), abs=0.012)


def test_chunks_of_draws_do_not_change_the_kind_of_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).exponential(size=200)
    whole = bootstrap_intervals({"median": Median(values)}, resamples=2000)["median"]
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 1000)
    assert bootstrap_intervals({"median": Median(values)}, resamples=2000)["median"] == whole


def test_same_seed_same_interval_and_the_global_generator_is_left_alone() -> None:
    statistics = {"mean": Mean(np.random.default_rng(2).normal(size=100))}
    before = np.random.get_state()[1].copy()
    first = bootstrap_intervals(statistics, seed=7)
    assert bootstrap_intervals(statistics, seed=7) == first
    assert bootstrap_intervals(statistics, seed=8) != first
    assert (np.random.get_state()[1] == before).all()


def test_a_share_of_none_has_width() -> None:
    interval = bootstrap_intervals({"share": Proportion(np.zeros(75))})["share"]
    assert interval == wilson_interval(0, 75)
    assert interval == (0.0, pytest.approx(0.0487, abs=1e-4))


def test_undefined_statistics_have_undefined_intervals() -> None:
    empty = bootstrap_intervals({"mean": Mean(np.array([])), "median": Median(np.full(0, np.nan))})
    nothing_known = bootstrap_intervals({"mean": Proportion(np.full(5, np.nan))})
    assert all(math.isnan(end) for interval in (*empty.values(), *nothing_known.values()) for end in interval)
    assert bootstrap_intervals({}) == {}


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), Table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_covers_as_often_as_it_says() -> None:
    trials = np.random.default_rng(3).binomial(80, 0.07, size=2000)
    covered = [low <= 0.07 <= high for low, high in (wilson_interval(int(successes), 80) for successes in trials)]
    assert np.mean(covered) > 0.92


def test_nonsense_is_refused() -> None:
    with pytest.raises(DataError, match="same people"):
        bootstrap_intervals({"a": Mean(np.ones(3)), "b": Mean(np.ones(4))})
    with pytest.raises(DataError, match="at least 1"):
        bootstrap_intervals({"a": Mean(np.ones(3))}, resamples=0)
    with pytest.raises(DataError, match="between 0 and 1"):
        bootstrap_intervals({"a": Mean(np.ones(3))}, level=95)
    with pytest.raises(DataError, match="5 of 4"):
        wilson_interval(5, 4)
