"""The worst-group objective (eq. 33) without training: rows of the group that fares worst weigh more when the model is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.actions import ActionSpace
from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.metrics import Interval, group_rows, wilson_interval
from cfptq.network import Head, Network, class_logits
from cfptq.pipeline.method import Groups
from cfptq.quantize import QuantizationPlan, fake_quantize_network
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet

#: Times that the weights are changed and the model rounded anew.
ROUNDS = 6

#: A group whose Validity Drop exceeds the overall one by as much as the worst group's own gains this much weight, as exp(RATE), a round.
RATE = 1.0

#: Groups with fewer recourse points are reported, but neither steer nor count as the worst: one person would be a tenth of them.
SMALLEST_GROUP = 10


@dataclass(frozen=True)
class GroupValidity:
    """One group's recourse points among the calibration rows.

    Attributes:
        name: the group.
        points: its recourse points.
        broken_before, broken_after: of those, refused by the model rounded with even weights, and by the one that was kept.
        weight: how much its rows count in the one that was kept, against even weights.
        steers: it has enough points to count.
    """

    name: str
    points: int
    broken_before: int
    broken_after: int
    weight: float
    steers: bool

    @property
    def before(self) -> float:
        """VD_g with even weights (eq. 37); NaN without points."""
        return _share(self.broken_before, self.points)

    @property
    def after(self) -> float:
        """VD_g of the model that was kept; NaN without points."""
        return _share(self.broken_after, self.points)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of :attr:`after`."""
        return wilson_interval(self.broken_after, self.points)


@dataclass(frozen=True)
class WorstGroup:
    """Validity Drop by group at the calibration rows' recourse points, before and after steering; an estimate on rows that were steered by.

    Attributes:
        groups: in the order of their names.
        rounds: how many roundings were tried, the first with even weights.
        kept: which of them was kept; 0 is the one with even weights.
    """

    groups: tuple[GroupValidity, ...]
    rounds: int
    kept: int

    @property
    def worst_before(self) -> float:
        """The largest VD_g among groups that steer, with even weights; NaN where none does."""
        return max((group.before for group in self.groups if group.steers), default=math.nan)

    @property
    def worst_after(self) -> float:
        """The same for the model that was kept."""
        return max((group.after for group in self.groups if group.steers), default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> WorstGroup:
        """What :meth:`to_dict` gave."""
        return WorstGroup(tuple(GroupValidity(**group) for group in content["groups"]), content["rounds"], content["kept"])

    def __str__(self) -> str:
        told = "; ".join(
            f"{group.name}: {group.before:.3f} → {group.after:.3f} of {group.points} recourse points broken"
            + ("" if group.steers else " (too few to steer by)")
            for group in self.groups
        )
        return f"worst group {self.worst_before:.3f} → {self.worst_after:.3f} (round {self.kept} of {self.rounds}). {told}"


def group_labels(groups: Groups, rows: Tensor, space: ActionSpace) -> Sequence[Any]:
    """One label for each of ``rows``: a feature of the action set, decoded, or what the user's function says.

    Raises:
        DataError: the action set does not name features, has none of that name, or the function gives no labels or another number of them.
    """
    if isinstance(groups, str):
        decode = getattr(space, "decode", None)
        if decode is None:
            raise DataError(f"groups={groups!r} names a feature, but the action space names none; give a function from rows to labels")
        frame = decode(rows)
        if groups not in frame.columns:
            raise DataError(f"groups={groups!r} is no feature of the action set; its features are {', '.join(map(str, frame.columns))}")
        return list(frame[groups])
    labels = groups(rows)
    if np.ndim(labels) == 0:
        raise DataError(f"the groups function gave a {type(labels).__name__}; it must give a list or array, one label for each row")
    if len(labels) != len(rows):
        raise DataError(f"the groups function gave {len(labels)} labels for {len(rows)} rows; it must give one for each")
    return labels


def reweight_groups(
    network: Network,
    calibration: CalibrationSet,
    people: CalibrationSet,
    labels: Sequence[Any],
    round_on: Callable[[CalibrationSet], QuantizationPlan],
    *,
    head: Head,
    threshold: float | None,
    progress: bool = True,
) -> tuple[CalibrationSet, QuantizationPlan, WorstGroup]:
    """The rounding with the lowest Validity Drop of the worst group among a few that weigh groups differently.

    Each round multiplies a group's weight by exp of how far its VD lies above the overall one (multiplicative weights, the dual of the
    maximum in eq. 33), and rounds again. Ties in the worst group go to the lower overall VD, then to the earlier round.

    Args:
        network: the full-precision network.
        calibration: rows to round on.
        people: the same factual rows, and the points where their recourse ends, which VD is measured at.
        labels: group of each factual row.
        round_on: makes a plan from calibration rows.
        head, threshold: what the network puts out and where it decides.

    Returns:
        The calibration rows as weighted for the plan that was kept, the plan, and the report.

    Raises:
        DataError: no group has enough recourse points.
    """
    rows_of = group_rows(labels, "groups")
    member = torch.zeros(len(labels), dtype=torch.int64)
    for number, rows in enumerate(rows_of.values()):
        member[torch.from_numpy(rows)] = number
    with torch.no_grad():
        decided = class_logits(network(people.rows), head, threshold).argmax(dim=1)
    point = (people.origin == COUNTERFACTUAL) & (decided == people.target)
    at, target, group = people.rows[point], people.target[point], member[people.source[point]]
    points = torch.bincount(group, minlength=len(rows_of)).double()
    steers = points >= SMALLEST_GROUP
    if not bool(steers.any()):
        raise DataError(f"no group has {SMALLEST_GROUP} calibration people with recourse; give more rows, or coarser groups")

    def broken(plan: QuantizationPlan) -> Tensor:
        with torch.no_grad():
            given = class_logits(fake_quantize_network(network, plan)(at), head, threshold).argmax(dim=1)
        return torch.bincount(group[given != target], minlength=len(rows_of)).double()

    factor = torch.ones(len(rows_of), dtype=torch.float64)
    tried: list[tuple[tuple[float, float], CalibrationSet, QuantizationPlan, Tensor, Tensor]] = []
    for _ in track(range(ROUNDS + 1), "weighing groups", enabled=progress):
        weights = calibration.weights * factor[member[calibration.source]].to(torch.float32)
        weighted = replace(calibration, weights=weights)
        plan = round_on(weighted)
        failures = broken(plan)
        share, overall = failures / points.clamp_min(1), float(failures.sum() / points.sum())
        worst = float(share[steers].max())
        tried.append(((worst, overall), weighted, plan, failures, factor))
        if worst == 0:
            break
        factor = torch.where(steers, factor * torch.exp(RATE * (share - overall) / worst), factor)
    kept = min(range(len(tried)), key=lambda number: tried[number][0])
    _, weighted, plan, failures, factor = tried[kept]
    even = tried[0][3]
    report = tuple(
        GroupValidity(name, int(points[g]), int(even[g]), int(failures[g]), float(factor[g]), bool(steers[g]))
        for g, name in enumerate(rows_of)
    )
    return weighted, plan, WorstGroup(report, len(tried), kept)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
