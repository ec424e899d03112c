"""Metrics of each group of people, with the worst group and the gaps between groups (eqs. 37, 38, Table 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfptq.auditing.protocol import Protocol
from cfptq.io.json import canonicalize
from cfptq.metrics import Disparity, Interval, Statistic, bootstrap_intervals, disparity, evaluate_statistic

#: Metrics of each group. Table 8 shows some of them, and the others show at what price Validity Drop is low.
GROUP_METRICS = (
    "accuracy",
    "boundary_disagreement",
    "premature_validity",
    "validity_drop",
    "recourse_gap",
    "recourse_gap_of_sums",
    "feasible_recourse_rate",
    "factual_flip_rate",
    "favourable_rate_drift",
)


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of one group (eqs. 37, 38).

    Attributes:
        rows: Number of rows of the group.
        people: Number of rejected people among them who are measured.
        with_recourse: Number of measured people with recourse on the full-precision model. Validity Drop is a share of these.
        values: Value of each of ``GROUP_METRICS``, NaN where it is undefined.
        ci95: Interval of each of ``GROUP_METRICS``.
    """

    rows: int
    people: int
    with_recourse: int
    values: Mapping[str, float]
    ci95: Mapping[str, Interval]

    @property
    def validity_drop(self) -> float:
        """VD_g, eq. 37."""
        return self.values["validity_drop"]

    @property
    def recourse_gap(self) -> float:
        """CRG_g, eq. 38."""
        return self.values["recourse_gap"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"rows": self.rows, "people": self.people, "with_recourse": self.with_recourse}
        result: dict[str, Any] = canonicalize({**counts, **self.values, "ci95": self.ci95})
        return result


@dataclass(frozen=True)
class Grouping:
    """Groups of one attribute, with the worst of them and the gaps between them (Table 9).

    Attributes:
        groups: Metrics by the name of the group, sorted by name.
        validity_drop: Worst group by Validity Drop, and the gap between the largest and the smallest value.
        boundary_disagreement: The same for boundary disagreement.
        recourse_gap: The same for the recourse gap.
        too_small: Names of groups with too few people with recourse to count for the worst group and the gap.
    """

    groups: Mapping[str, GroupMetrics]
    validity_drop: Disparity
    boundary_disagreement: Disparity
    recourse_gap: Disparity
    too_small: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        result: dict[str, Any] = canonicalize(
            {
                "groups": {name: group.to_dict() for name, group in self.groups.items()},
                "validity_drop": vars(self.validity_drop),
                "boundary_disagreement": vars(self.boundary_disagreement),
                "recourse_gap": vars(self.recourse_gap),
                "too_small": self.too_small,
            }
        )
        return result


def evaluate_groups(
    groups: Mapping[str, NDArray[np.int64]],
    person: Mapping[int, int],
    row_statistics: Mapping[str, Statistic],
    people_statistics: Mapping[str, Statistic],
    protocol: Protocol,
    seed: int,
) -> Grouping:
    """Evaluate the metrics of each group.

    Args:
        groups: Row numbers by the name of the group.
        person: Position among the measured people by row number.
        row_statistics: Statistics over all rows.
        people_statistics: Statistics over the measured people.
        protocol: Resamples and level of the intervals, and the fewest people of a group that counts.
        seed: Seed of the intervals.
    """
    found = {}
    for name, members in groups.items():
        people = np.array([person[row] for row in members.tolist() if row in person], dtype=np.int64)
        of_rows = {metric: row_statistics[metric].take(members) for metric in GROUP_METRICS if metric in row_statistics}
        of_people = {metric: people_statistics[metric].take(people) for metric in GROUP_METRICS if metric in people_statistics}
        statistics = {**of_rows, **of_people}
        intervals = {**compute_intervals(of_rows, protocol, seed), **compute_intervals(of_people, protocol, seed)}
        found[name] = GroupMetrics(
            rows=len(members),
            people=len(people),
            with_recourse=int((~np.isnan(first_column(of_people["validity_drop"]))).sum()),
            values={metric: evaluate_statistic(statistics[metric]) for metric in GROUP_METRICS},
            ci95={metric: intervals[metric] for metric in GROUP_METRICS},
        )
    counted = {name: group for name, group in found.items() if group.with_recourse >= protocol.smallest_group}
    return Grouping(
        groups=found,
        validity_drop=disparity({name: group.validity_drop for name, group in counted.items()}),
        boundary_disagreement=disparity({name: group.values["boundary_disagreement"] for name, group in counted.items()}),
        recourse_gap=disparity({name: group.recourse_gap for name, group in counted.items()}),
        too_small=tuple(name for name in found if name not in counted),
    )


def compute_intervals(statistics: Mapping[str, Statistic], protocol: Protocol, seed: int) -> dict[str, Interval]:
    """Return the intervals of statistics under a protocol."""
    return bootstrap_intervals(statistics, resamples=protocol.resamples, seed=seed, level=protocol.level)


def first_column(statistic: Statistic) -> NDArray[np.float64]:
    """Return the values of each person that a statistic is computed from."""
    return statistic.columns[0]
