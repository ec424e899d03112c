"""Outcome of letters by group of people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfptq.auditing.group_metrics import compute_intervals
from cfptq.auditing.protocol import Protocol
from cfptq.io.json import canonicalize
from cfptq.metrics import Disparity, Interval, Statistic, disparity, evaluate_statistic


@dataclass(frozen=True)
class AdviceGroup:
    """Outcome of the letters of one group.

    Attributes:
        promised: Number of its people with letters.
        kept_before: Number of these people with a letter that the full-precision model accepts.
        broken: Number of them none of whose letters the quantized model accepts.
        validity_drop: Share of ``kept_before`` that is broken, NaN if ``kept_before`` is 0.
        ci95: Interval of ``validity_drop``.
    """

    promised: int
    kept_before: int
    broken: int
    validity_drop: float
    ci95: Interval


@dataclass(frozen=True)
class AdviceGrouping:
    """Outcome of letters by the groups of one attribute.

    Attributes:
        groups: Outcome by the name of the group, sorted by name.
        validity_drop: Worst group, and the gap between the largest and the smallest Validity Drop.
        too_small: Names of groups with too few people in ``kept_before`` to count for the worst group and the gap.
    """

    groups: Mapping[str, AdviceGroup]
    validity_drop: Disparity
    too_small: tuple[str, ...]

    def to_dict(self, smallest: int = 0) -> dict[str, Any]:
        """Return plain values for JSON, without groups with fewer than ``smallest`` people to judge by."""
        result: dict[str, Any] = canonicalize(
            {
                "groups": {name: vars(group) for name, group in self.groups.items() if group.kept_before >= smallest},
                "validity_drop": vars(self.validity_drop),
                "too_small": self.too_small,
            }
        )
        return result


def evaluate_advice_groups(
    groups: Mapping[str, NDArray[np.int64]], people: NDArray[np.int64], broken: Statistic, protocol: Protocol, seed: int
) -> AdviceGrouping:
    """Evaluate the letters of each group.

    Args:
        groups: Row numbers by the name of the group.
        people: Row numbers of the people with letters, (P,).
        broken: Share of broken promises over these people, without those whose letters never held.
        protocol: Resamples and level of the intervals, and the fewest people of a group that counts.
        seed: Seed of the intervals.
    """
    found = {}
    for name, members in groups.items():
        places = np.flatnonzero(np.isin(people, members))
        own = broken.take(places)
        outcomes = own.columns[0]
        found[name] = AdviceGroup(
            promised=len(places),
            kept_before=int((~np.isnan(outcomes)).sum()),
            broken=int((outcomes == 1).sum()),
            validity_drop=evaluate_statistic(own),
            ci95=compute_intervals({"validity_drop": own}, protocol, seed)["validity_drop"],
        )
    counted = {name: group.validity_drop for name, group in found.items() if group.kept_before >= protocol.smallest_group}
    return AdviceGrouping(found, disparity(counted), tuple(name for name in found if name not in counted))
