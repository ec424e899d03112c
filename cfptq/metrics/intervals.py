"""Confidence intervals by a seeded percentile bootstrap over people, and Wilson's interval for proportions.

A statistic is a function of the number of times that each person was drawn. Drawing everyone once gives its value. All statistics
of one call share the same draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cfptq.errors import DataError
from cfptq.metrics.arrays import Floats, check_lengths

Interval: TypeAlias = tuple[float, float]
#: Number of times that each of N people was drawn in each of B resamples, (B, N). They are float64 for the matrix products.
Draws: TypeAlias = Floats

#: Draw counts held in memory at a time. More resamples are drawn in chunks.
CHUNK_ENTRIES = 2_000_000
#: Distinct rows up to which a multinomial draw replaces the draw of single people. Its distribution is the same and it is faster.
MAX_DISTINCT_ROWS = 64


class Statistic(Protocol):
    """A number about N people that can be computed for any multiset of them."""

    @property
    def columns(self) -> tuple[Floats, ...]:
        """Arrays (N,) that the statistic is computed from."""

    def take(self, rows: NDArray[np.int64]) -> Statistic:
        """Return the same statistic of the people in ``rows``."""

    def __call__(self, draws: Draws) -> Floats:
        """Compute values (B,) for draw counts (B, N), NaN where undefined."""


class Ratio(ABC):
    """A ratio of two sums over people.

    Many such statistics are resampled in one matrix product.
    """

    @property
    @abstractmethod
    def sums(self) -> Floats:
        """Summands (N, 2) of the numerator and of the denominator."""

    def divide_sums(self, sums: Floats) -> Floats:
        """Compute values (B,) from the sums (B, 2)."""
        return _divide(sums[:, 0], sums[:, 1])

    def __call__(self, draws: Draws) -> Floats:
        return self.divide_sums(draws @ self.sums)


@dataclass(frozen=True, eq=False)
class Mean(Ratio):
    """Mean of ``values`` (N,) over the people for whom it is not NaN."""

    values: Floats

    @property
    def columns(self) -> tuple[Floats, ...]:
        return (self.values,)

    @property
    def sums(self) -> Floats:
        known = ~np.isnan(self.values)
        return np.column_stack((np.where(known, self.values, 0.0), known))

    def take(self, rows: NDArray[np.int64]) -> Mean:
        return type(self)(self.values[rows])


class Proportion(Mean):
    """Mean of values that are 0, 1 or NaN.

    If all values are equal, its bootstrap interval has no width, and Wilson's interval is returned instead.
    """


@dataclass(frozen=True, eq=False)
class Median:
    """Median of ``values`` (N,) over the people for whom it is not NaN."""

    values: Floats

    @property
    def columns(self) -> tuple[Floats, ...]:
        return (self.values,)

    def take(self, rows: NDArray[np.int64]) -> Median:
        return Median(self.values[rows])

    def __call__(self, draws: Draws) -> Floats:
        known = np.flatnonzero(~np.isnan(self.values))
        if not len(known):
            return np.full(len(draws), np.nan)
        order = known[np.argsort(self.values[known], kind="stable")]
        ordered = self.values[order]
        reached = np.cumsum(draws[:, order], axis=1)
        total = reached[:, -1:]  # whole numbers, exact in float64
        # The middle one of an odd number, the two in the middle of an even number.
        lower = (reached <= (total - 1) // 2).sum(axis=1)
        upper = (reached <= total // 2).sum(axis=1)
        last = len(order) - 1
        middle = (ordered[np.minimum(lower, last)] + ordered[np.minimum(upper, last)]) / 2
        return np.where(total[:, 0] > 0, middle, np.nan)


@dataclass(frozen=True, eq=False)
class Quantile:
    """Smallest of ``values`` (N,) that at least a given share of them does not exceed, over the people for whom it is not NaN.

    Attributes:
        values: (N,).
        share: within (0, 1], for example 0.95.
    """

    values: Floats
    share: float

    @property
    def columns(self) -> tuple[Floats, ...]:
        return (self.values,)

    def take(self, rows: NDArray[np.int64]) -> Quantile:
        return Quantile(self.values[rows], self.share)

    def __call__(self, draws: Draws) -> Floats:
        order = np.argsort(self.values, kind="stable")
        order = order[: int((~np.isnan(self.values)).sum())]  # NaN is sorted last.
        if not len(order):
            return np.full(len(draws), np.nan)
        reached = np.cumsum(draws[:, order], axis=1)
        # Draw counts are whole numbers, so that rounding of the share cannot skip a person.
        position = (reached < self.share * reached[:, -1:] - 1e-9).sum(axis=1)
        return np.where(reached[:, -1] > 0, self.values[order[position]], np.nan)


@dataclass(frozen=True, eq=False)
class RatioOfSums(Ratio):
    """Σ numerator / (Σ denominator + ε) over the people for whom neither is NaN.

    It is NaN where both sums are 0.

    Attributes:
        numerator: (N,).
        denominator: (N,).
        epsilon: ε ≥ 0.
    """

    numerator: Floats
    denominator: Floats
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        check_lengths(numerator=self.numerator, denominator=self.denominator)

    @property
    def columns(self) -> tuple[Floats, ...]:
        return (self.numerator, self.denominator)

    @property
    def sums(self) -> Floats:
        known = ~(np.isnan(self.numerator) | np.isnan(self.denominator))
        return np.column_stack((np.where(known, self.numerator, 0.0), np.where(known, self.denominator, 0.0)))

    def divide_sums(self, sums: Floats) -> Floats:
        above, below = sums[:, 0], sums[:, 1]
        return np.where((above == 0) & (below == 0), np.nan, _divide(above, below + self.epsilon))

    def take(self, rows: NDArray[np.int64]) -> RatioOfSums:
        return RatioOfSums(self.numerator[rows], self.denominator[rows], self.epsilon)


def evaluate_statistic(statistic: Statistic) -> float:
    """Compute the statistic with everyone drawn once."""
    everyone = np.ones((1, len(statistic.columns[0])))
    return float(statistic(everyone)[0])


def bootstrap_intervals(
    statistics: Mapping[str, Statistic], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Compute percentile intervals of statistics about the same N people, drawn with replacement.

    Resamples for which a statistic is undefined are left out of its percentiles. Equal arguments give equal intervals with the
    same version of NumPy. The global random state is neither read nor changed.

    Args:
        statistics: by name.
        resamples: number of resamples B.
        seed: seed of the draws.
        level: confidence level in (0, 1).

    Returns:
        (low, high) by name, (NaN, NaN) for a statistic that is undefined in all resamples.

    Raises:
        DataError: the statistics are about different numbers of people, ``resamples`` is below 1, or ``level`` is not in (0, 1).
    """
    if resamples < 1:
        raise DataError(f"resamples must be at least 1, got {resamples}.")
    check_level(level)
    if not statistics:
        return {}
    columns = [column for statistic in statistics.values() for column in statistic.columns]
    if len({len(column) for column in columns}) > 1:
        raise DataError("Statistics that share a bootstrap must be about the same people.")
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    people = len(columns[0])
    generator = np.random.default_rng(seed)
    distinct = _find_distinct_rows(columns)
    drawn = statistics if distinct is None else {name: statistic.take(distinct[0]) for name, statistic in statistics.items()}
    ratios = {name: statistic for name, statistic in drawn.items() if isinstance(statistic, Ratio)}
    others = {name: statistic for name, statistic in drawn.items() if name not in ratios}
    width = people if distinct is None else len(distinct[0])
    stacked = np.column_stack([np.empty((width, 0)), *(ratio.sums for ratio in ratios.values())])
    chunk = max(1, CHUNK_ENTRIES // max(width, 1))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        if distinct is None:
            draws = _draw_people(generator, count, people)
        else:
            draws = generator.multinomial(people, distinct[1], size=count).astype(np.float64)
        totals = draws @ stacked
        for position, (name, ratio) in enumerate(ratios.items()):
            values[name].append(ratio.divide_sums(totals[:, 2 * position : 2 * position + 2]))
        for name, statistic in others.items():
            values[name].append(statistic(draws))
    return {name: _compute_interval(statistic, np.concatenate(values[name]), level) for name, statistic in statistics.items()}


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Compute Wilson's score interval for a proportion.

    It has a width also at 0 and 1, and is accurate for few people.

    Args:
        successes: number of successes.
        total: number of trials.
        level: confidence level in (0, 1).

    Returns:
        (low, high), or (NaN, NaN) for no trials.

    Raises:
        DataError: there are more successes than trials, a count is negative, or ``level`` is not in (0, 1).
    """
    if not 0 <= successes <= total:
        raise DataError(f"successes must lie between 0 and the number of trials, got {successes} of {total}.")
    check_level(level)
    if total == 0:
        return (math.nan, math.nan)
    interval = binomtest(successes, total).proportion_ci(level, method="wilson")
    return (float(interval.low), float(interval.high))


def check_level(level: float) -> None:
    """Check that a confidence level lies in (0, 1).

    Raises:
        DataError: it does not.
    """
    if not 0 < level < 1:
        raise DataError(f"The confidence level must lie between 0 and 1, got {level}.")


def _compute_interval(statistic: Statistic, values: Floats, level: float) -> Interval:
    if isinstance(statistic, Proportion):
        known = statistic.values[~np.isnan(statistic.values)]
        if len(known) and known.sum() in (0, len(known)):
            return wilson_interval(int(known.sum()), len(known), level)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return (math.nan, math.nan)
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return (float(low), float(high))


def _draw_people(generator: np.random.Generator, count: int, people: int) -> Draws:
    drawn = generator.integers(0, people, size=(count, people)) if people else np.zeros((count, 0), dtype=np.int64)
    cells = drawn + np.arange(count)[:, None] * people
    return np.bincount(cells.ravel(), minlength=count * people).reshape(count, people).astype(np.float64)


def _find_distinct_rows(columns: list[Floats]) -> tuple[NDArray[np.int64], Floats] | None:
    """Return the first of each set of equal rows and the sets' shares, or None for more than ``MAX_DISTINCT_ROWS`` sets."""
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    if not len(codes):
        return None
    for column in columns:
        distinct, code = np.unique(column, return_inverse=True)
        if len(distinct) > MAX_DISTINCT_ROWS:
            return None
        distinct, codes = np.unique(codes * len(distinct) + code.reshape(-1), return_inverse=True)
        if len(distinct) > MAX_DISTINCT_ROWS:
            return None
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return first, counts / len(codes)


def _divide(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)
