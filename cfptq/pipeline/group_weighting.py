"""Reweight groups of people, so that the worst group's Validity Drop falls without training (eq. 33).

The functions here only decide on weights and judge plans. ``cfptq.pipeline.quantize_task`` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.actions import ActionSpace
from cfptq.errors import DataError
from cfptq.metrics import Interval, group_rows, wilson_interval
from cfptq.network import DecisionRule, Network
from cfptq.pipeline.method import Groups
from cfptq.quantize import QuantizationPlan, fake_quantize_network
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet

#: Roundings with changed weights, at most, after the first one with even weights.
ROUNDS = 6

#: Change of a weight's logarithm in one round, for a group whose Validity Drop exceeds the overall one by the worst group's own.
RATE = 1.0

#: Recourse points below which a group is reported only. It changes no weights and cannot be the worst, since one person would be a
#: tenth of it.
SMALLEST_GROUP = 10


@dataclass(frozen=True)
class GroupValidity:
    """One group's recourse points among the calibration rows.

    Attributes:
        name: the group's name.
        points: number of its recourse points.
        broken_before: of those, refused by the model rounded with even weights.
        broken_after: of those, refused by the model that was kept.
        weight: factor of its rows' weights in the model that was kept; 1 is even.
        steers: True where it has enough points to change the weights.
    """

    name: str
    points: int
    broken_before: int
    broken_after: int
    weight: float
    steers: bool

    @property
    def before(self) -> float:
        """Validity Drop VD_g with even weights (eq. 37), NaN without points."""
        return _share(self.broken_before, self.points)

    @property
    def after(self) -> float:
        """Validity Drop VD_g of the model that was kept, NaN without points."""
        return _share(self.broken_after, self.points)

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % confidence interval of ``after``."""
        return wilson_interval(self.broken_after, self.points)


@dataclass(frozen=True)
class WorstGroup:
    """Validity Drop by group, before and after reweighting.

    It is an estimate at the recourse points of the calibration rows, which chose the weights too.

    Attributes:
        groups: the groups, in the order of their names.
        rounds: roundings that were tried, the first with even weights.
        kept: number of the rounding that was kept; 0 is the one with even weights.
    """

    groups: tuple[GroupValidity, ...]
    rounds: int
    kept: int

    @property
    def worst_before(self) -> float:
        """The largest VD_g with even weights among groups that steer, NaN where none does."""
        return max((group.before for group in self.groups if group.steers), default=math.nan)

    @property
    def worst_after(self) -> float:
        """The largest VD_g of the model that was kept among groups that steer, NaN where none does."""
        return max((group.after for group in self.groups if group.steers), default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> WorstGroup:
        """Build a report from what ``to_dict`` returned."""
        return WorstGroup(tuple(GroupValidity(**group) for group in content["groups"]), content["rounds"], content["kept"])

    def __str__(self) -> str:
        groups = "; ".join(
            f"{group.name}: {group.before:.3f} → {group.after:.3f} of {group.points} recourse points broken"
            + ("" if group.steers else " (too few to change the weights)")
            for group in self.groups
        )
        return f"worst group {self.worst_before:.3f} → {self.worst_after:.3f} (round {self.kept} of {self.rounds}). {groups}"


def label_rows(groups: Groups, rows: Tensor, space: ActionSpace) -> Sequence[Any]:
    """Return one label for each row, from a feature of the action set or from the user's function.

    Args:
        groups: a feature's name, or a function from rows (N, ...) to N labels.
        rows: (N, ...) the rows.
        space: the action space, which decodes a feature from the rows.

    Raises:
        DataError: the action space names no features or none of that name, or the function returns no labels or another number of them.
    """
    if isinstance(groups, str):
        decode = getattr(space, "decode", None)
        if decode is None:
            raise DataError(f"groups={groups!r} needs an action space that names features. Pass a function from rows to labels instead.")
        frame = decode(rows)
        if groups not in frame.columns:
            raise DataError(
                f"groups must be a feature of the action set, got {groups!r}. Choose one of {', '.join(map(str, frame.columns))}."
            )
        return list(frame[groups])
    labels = groups(rows)
    if np.ndim(labels) == 0:
        raise DataError(f"the groups function must return one label for each row, got a {type(labels).__name__}. Return a list or array.")
    if len(labels) != len(rows):
        raise DataError(f"the groups function must return one label for each row, got {len(labels)} labels for {len(rows)} rows.")
    return labels


@dataclass(frozen=True)
class GroupProblem:
    """The groups of the calibration rows, and the recourse points that their Validity Drop is measured at.

    Attributes:
        names: name of each of the G groups.
        member: (N,) group of each factual row, as a position in ``names``.
        rows: (M, ...) the recourse points.
        target: (M,) the class that each point reaches on the full-precision model.
        group: (M,) group of each point, as a position in ``names``.
        decision: head of the network's raw output and decision threshold.
    """

    names: tuple[str, ...]
    member: Tensor
    rows: Tensor
    target: Tensor
    group: Tensor
    decision: DecisionRule

    @cached_property
    def points(self) -> Tensor:
        """(G,) number of recourse points of each group, float64."""
        return torch.bincount(self.group, minlength=len(self.names)).double()

    @cached_property
    def steers(self) -> Tensor:
        """(G,) True for groups with enough points to change the weights."""
        return self.points >= SMALLEST_GROUP

    def weigh(self, calibration: CalibrationSet, factors: Tensor) -> CalibrationSet:
        """Return ``calibration`` with each row's weight multiplied by its group's factor (G,)."""
        return replace(calibration, weights=calibration.weights * factors[self.member[calibration.source]].to(torch.float32))

    def judge(self, network: Network, calibration: CalibrationSet, plan: QuantizationPlan, factors: Tensor) -> GroupTrial:
        """Measure Validity Drop by group of a plan that was rounded on ``calibration``, weighted by ``factors``."""
        with torch.no_grad():
            given = self.decision.decide(fake_quantize_network(network, plan)(self.rows))
        broken = torch.bincount(self.group[given != self.target], minlength=len(self.names)).double()
        drops = broken / self.points.clamp_min(1)
        return GroupTrial(factors, calibration, plan, broken, float(drops[self.steers].max()), float(broken.sum() / self.points.sum()))

    def next_factors(self, trials: Sequence[GroupTrial]) -> Tensor | None:
        """Return the factors (G,) of the next rounding, or None where no further rounding can help.

        The first rounding has even weights. Each later one multiplies a group's factor by exp of how far its Validity Drop lies above the
        overall one (multiplicative weights, the dual of the maximum in eq. 33).
        """
        if not trials:
            return torch.ones(len(self.names), dtype=torch.float64)
        last = trials[-1]
        if last.worst == 0 or len(trials) > ROUNDS:
            return None
        drops = last.broken / self.points.clamp_min(1)
        return torch.where(self.steers, last.factors * torch.exp(RATE * (drops - last.overall) / last.worst), last.factors)

    def report(self, trials: Sequence[GroupTrial], kept: int) -> WorstGroup:
        """Return Validity Drop by group of the first trial and of the one that was kept."""
        first, last = trials[0], trials[kept]
        groups = tuple(
            GroupValidity(
                name,
                int(self.points[number]),
                int(first.broken[number]),
                int(last.broken[number]),
                float(last.factors[number]),
                bool(self.steers[number]),
            )
            for number, name in enumerate(self.names)
        )
        return WorstGroup(groups, len(trials), kept)


@dataclass(frozen=True)
class GroupTrial:
    """One rounding with weighted groups, and its Validity Drop.

    Attributes:
        factors: (G,) factor of each group's weights, float64.
        calibration: the weighted calibration rows.
        plan: the plan that was rounded on them.
        broken: (G,) recourse points of each group that the plan refuses.
        worst: the largest Validity Drop among groups that steer.
        overall: Validity Drop over all groups' points.
    """

    factors: Tensor
    calibration: CalibrationSet
    plan: QuantizationPlan
    broken: Tensor
    worst: float
    overall: float


def build_group_problem(network: Network, people: CalibrationSet, labels: Sequence[Any], *, decision: DecisionRule) -> GroupProblem:
    """Assign the recourse points of ``people`` to groups. Points that the full-precision network itself refuses are left out.

    Args:
        network: the full-precision network.
        people: factual rows, and the points where their recourse ends.
        labels: group of each factual row.
        decision: head of the network's raw output and decision threshold.

    Raises:
        DataError: no group has ``SMALLEST_GROUP`` recourse points.
    """
    rows_of = group_rows(labels, "groups")
    member = torch.zeros(len(labels), dtype=torch.int64)
    for number, rows in enumerate(rows_of.values()):
        member[torch.from_numpy(rows)] = number
    with torch.no_grad():
        decided = decision.decide(network(people.rows))
    point = (people.origin == COUNTERFACTUAL) & (decided == people.target)
    problem = GroupProblem(tuple(rows_of), member, people.rows[point], people.target[point], member[people.source[point]], decision)
    if not bool(problem.steers.any()):
        raise DataError(
            f"groups must include one with {SMALLEST_GROUP} calibration people who have recourse, got at most "
            f"{int(problem.points.max())}. Give more rows, or coarser groups."
        )
    return problem


def choose_trial(trials: Sequence[GroupTrial]) -> int:
    """Return the position of the trial with the lowest Validity Drop of the worst group.

    Ties go to the lower overall Validity Drop, then to the earlier trial.
    """
    return min(range(len(trials)), key=lambda number: (trials[number].worst, trials[number].overall))


def _share(part: int, whole: int) -> float:
    """Return ``part / whole``, NaN where ``whole`` is 0."""
    return part / whole if whole else math.nan
