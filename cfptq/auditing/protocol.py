"""The standard evaluation protocol, and the full-precision model's recourse under it.

Every benchmark, ``compare`` and ``audit`` use these settings, with the same people and the same solver for both models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.inputs import parse_labels
from cfptq.auditing.last_steps import LastSteps
from cfptq.errors import DataError
from cfptq.io.json import canonicalize
from cfptq.metrics import EPSILON, SUPPORT_TOLERANCE, accuracy, favourable_rate, feasible_recourse_rate
from cfptq.metrics.arrays import Floats
from cfptq.metrics.intervals import check_level
from cfptq.network.head import decide
from cfptq.network.predictor import Predictor
from cfptq.recourse import GradientFree, MinimalCost, ProjectedGradient, RecourseBatch, Target, name_method, resolve_target, solve

#: Confidence at which CRG, DirSim and ActOverlap compare the two models' minimal-cost recourse.
PLAIN = 0.5


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation, by default those of the standard protocol.

    Attributes:
        max_people: Most rejected people measured, the first after a seeded shuffle. None measures all, 0 leaves recourse out.
        projected_gradient: Settings of the paper's recourse (eq. 6), which Validity Drop is measured on.
        minimal_cost: Settings of minimal-cost recourse. Each of ``confidences`` replaces its own confidence.
        confidences: Probabilities τ of the target at which minimal-cost recourse is issued. 0.5 must be among them.
        epsilon: ε of CRG, DirSim and ActOverlap.
        support_tolerance: τ of supp_τ in ActOverlap, in units of the columns.
        resamples: Bootstrap draws for each interval.
        level: Confidence level of the intervals, within (0, 1).
        smallest_group: Fewest people with recourse for a group to count for the worst group and the gap.
    """

    max_people: int | None = 2000
    projected_gradient: ProjectedGradient = field(default_factory=ProjectedGradient)
    minimal_cost: MinimalCost = field(default_factory=MinimalCost)
    confidences: tuple[float, ...] = (PLAIN, 0.55, 0.60)
    epsilon: float = EPSILON
    support_tolerance: float = SUPPORT_TOLERANCE
    resamples: int = 1000
    level: float = 0.95
    smallest_group: int = 10

    def __post_init__(self) -> None:
        if self.max_people is not None and self.max_people < 0:
            raise DataError(f"max_people must not be negative, got {self.max_people}. None measures everyone who is rejected.")
        if PLAIN not in self.confidences or len(set(self.confidences)) < len(self.confidences):
            raise DataError(f"confidences must be distinct and hold {PLAIN}, got {self.confidences}.")
        if not all(0.5 <= confidence < 1 for confidence in self.confidences):
            raise DataError(f"confidences must lie within [0.5, 1), got {self.confidences}.")
        if not (self.epsilon > 0 and self.support_tolerance >= 0):
            raise DataError(f"epsilon must be above 0 and support_tolerance at least 0, got {self.epsilon} and {self.support_tolerance}.")
        if self.resamples < 1 or self.smallest_group < 1:
            raise DataError(f"resamples and smallest_group must be at least 1, got {self.resamples} and {self.smallest_group}.")
        check_level(self.level)


@dataclass(frozen=True, eq=False)
class ReferenceRecourse:
    """Decisions and recourse of the full-precision model, computed once and compared with every quantized model.

    Attributes:
        name: Name of the model.
        decisions: Class of every row, (N,) int64.
        target: Target class of every row, (N,) int64.
        people: Row numbers of the M rejected people who are measured, ascending, (M,) int64.
        projected: Projected-gradient recourse of these M people. For a model without gradient it is that of the gradient-free search
            at confidence 0.5.
        last_steps: Lines through the last steps of their paths. None if the protocol's solver does not decide at every step.
        crossings: Positions on these lines at which the model's decision changes, (M,), NaN without recourse.
        minimal: Minimal-cost recourse of these M people, by the confidence as text ("0.50").
        protocol: Settings of the evaluation.
        seed: Seed of the shuffle, the solvers and the intervals.
    """

    name: str
    decisions: Tensor
    target: Tensor
    people: Tensor
    projected: RecourseBatch
    last_steps: LastSteps | None
    crossings: Floats
    minimal: Mapping[str, RecourseBatch]
    protocol: Protocol
    seed: int

    @cached_property
    def plain(self) -> RecourseBatch:
        """Minimal-cost recourse at confidence 0.50."""
        return self.minimal[format_confidence(PLAIN)]

    @property
    def n_rejected(self) -> int:
        """Number of the N rows that are rejected, measured or not."""
        return int((self.decisions != self.target).sum())

    def check_rows(self, rows: Tensor) -> None:
        """Check that ``rows`` (N, ...) are the rows that the recourse was computed for.

        Raises:
            DataError: They are other rows.
        """
        if len(rows) != len(self.decisions) or not torch.equal(rows[self.people], self.projected.factual):
            raise DataError(
                f"rows must be the {len(self.decisions)} rows that the recourse of {self.name} was computed for, got other rows. "
                "Call reference_recourse() for these."
            )

    def to_dict(self, labels: Any = None) -> dict[str, Any]:
        """Return the model's entry ``fp32`` of results.json.

        Args:
            labels: True classes (N,), NaN or -1 where unknown. None leaves accuracy out.
        """
        known = None if labels is None else parse_labels(labels, self.decisions, None)
        found, cost = self.plain.found, self.plain.cost
        entry = {
            "accuracy": None if known is None else accuracy(self.decisions, known),
            "recourse_method": self.projected.method,
            "favourable_rate": favourable_rate(self.decisions, self.target),
            "feasible_recourse_rate": feasible_recourse_rate(self.projected.found),
            "feasible_recourse_rate_minimal_cost": feasible_recourse_rate(found),
            "mean_recourse_cost": float(cost[found].mean()) if bool(found.any()) else None,
            "counts": {"rows": len(self.decisions), "rejected": self.n_rejected, "people": len(self.people)},
        }
        result: dict[str, Any] = canonicalize(entry)
        return result


def reference_recourse(
    f: Predictor,
    rows: Tensor,
    space: ActionSpace,
    target: Target,
    protocol: Protocol | None = None,
    seed: int = 0,
    *,
    threads: int | None = 1,
    progress: bool = True,
) -> ReferenceRecourse:
    """Find the recourse of the people whom the full-precision model rejects, under the protocol.

    A model without gradient, such as a tree ensemble or a Python function, is searched without one. Its recourse at 0.5 then stands in
    for projected-gradient recourse.

    Args:
        f: Full-precision model.
        rows: Columns of everyone, accepted and rejected, (N, ...) float32.
        space: Action space, which says what people can change.
        target: A class, one class a row (N,), or a rule ``(rows, class logits) -> classes``.
        protocol: Settings of the evaluation. The standard protocol by default.
        seed: Seed of the shuffle and the solvers.
        threads: Torch threads while solving. None leaves the number as it is.
        progress: Show progress where solving takes long.

    Raises:
        ActionSetError: Rows break the action set's rules.
        DataError: The target is not a class of the model.
    """
    protocol = protocol or Protocol()
    logits = f.logits(rows)
    decided, wanted = decide(logits), resolve_target(target, rows, logits)
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    people = shuffled[(decided != wanted)[shuffled]][: protocol.max_people].sort().values

    def solve_by(method: ProjectedGradient | MinimalCost) -> RecourseBatch:
        return solve_rows(f, rows[people], space, wanted[people], method, seed=seed, threads=threads, progress=progress)

    minimal = {
        format_confidence(confidence): solve_by(replace(protocol.minimal_cost, confidence=confidence))
        for confidence in protocol.confidences
    }
    searches_by_gradient = f.is_differentiable or len(people) == 0
    projected = solve_by(protocol.projected_gradient) if searches_by_gradient else minimal[format_confidence(PLAIN)]
    last_steps = LastSteps.from_batch(projected)
    return ReferenceRecourse(
        name=f.name,
        decisions=decided,
        target=wanted,
        people=people,
        projected=projected,
        last_steps=last_steps,
        crossings=np.full(len(people), np.nan) if last_steps is None else last_steps.find_crossings(f),
        minimal=minimal,
        protocol=protocol,
        seed=seed,
    )


def solve_rows(
    predictor: Predictor,
    rows: Tensor,
    space: ActionSpace,
    target: Tensor,
    method: ProjectedGradient | MinimalCost | GradientFree,
    *,
    seed: int,
    threads: int | None,
    progress: bool,
) -> RecourseBatch:
    """Solve for recourse of N rows, and return an empty batch if N is 0.

    Args:
        predictor: Model to solve on.
        rows: Rejected rows, (N, ...) float32.
        space: Action space, which says what people can change.
        target: Target class of each row, (N,) int64.
        method: Solver.
        seed: Seed of the solver.
        threads: Torch threads while solving. None leaves the number as it is.
        progress: Show progress where solving takes long.
    """
    if len(rows):
        return solve(predictor, rows, space, target=target, method=method, seed=seed, threads=threads, progress=progress)
    nothing = torch.zeros(0)
    return RecourseBatch(
        factual=rows,
        points=rows,
        delta=rows.flatten(1),
        cost=nothing,
        found=nothing.bool(),
        margin=nothing,
        target=target,
        method=name_method(method),
        confidence=getattr(method, "confidence", PLAIN),
    )


def format_confidence(confidence: float) -> str:
    """Return a confidence as text with two decimals ("0.50"), or more if it has more."""
    text = f"{confidence:.2f}"
    return text if float(text) == confidence else repr(confidence)
