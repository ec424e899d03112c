"""The standard evaluation protocol, in one place, and the full-precision model's recourse under it.

Every benchmark, ``compare`` and ``audit`` measure with these settings, on the same people and with the same solver for both
models.
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
from cfptq.auditing.inputs import known_labels
from cfptq.errors import DataError
from cfptq.io.json import canonicalize
from cfptq.metrics import EPSILON, SUPPORT_TOLERANCE, accuracy, favourable_rate, feasible_recourse_rate
from cfptq.metrics.intervals import check_level
from cfptq.network.head import decide
from cfptq.network.predictor import Predictor
from cfptq.recourse import MinimalCost, ProjectedGradient, RecourseBatch, Target, solve, resolve_target

#: Confidence at which CRG, DirSim and ActOverlap compare the two models' minimal-cost recourse.
PLAIN = 0.5


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation; the defaults are the standard protocol.

    Attributes:
        max_people: rejected people measured, the first after a seeded shuffle; None is all of them, 0 leaves recourse out.
        projected_gradient: the paper's recourse (eq. 6), which heads Validity Drop.
        minimal_cost: settings of minimal-cost recourse; its own confidence is replaced by each of ``confidences``.
        confidences: τ, the probability of the target at which recourse is issued; 0.5 must be among them.
        epsilon: ε of CRG, DirSim and ActOverlap.
        support_tolerance: τ of supp_τ in ActOverlap, in units of the columns.
        resamples: bootstrap draws for each interval.
        level: confidence level of the intervals.
        smallest_group: groups with fewer people who have recourse are listed, but do not count for worst group and gap.
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
            raise DataError(f"max_people must not be negative, but is {self.max_people}; None measures everyone who is rejected")
        if PLAIN not in self.confidences or len(set(self.confidences)) < len(self.confidences):
            raise DataError(f"confidences must be distinct and hold {PLAIN}, but are {self.confidences}")
        if not all(0.5 <= confidence < 1 for confidence in self.confidences):
            raise DataError(f"confidences must lie within [0.5, 1), but are {self.confidences}")
        if not (self.epsilon > 0 and self.support_tolerance >= 0):
            raise DataError(f"epsilon must be above 0 and support_tolerance at least 0, but are {self.epsilon}, {self.support_tolerance}")
        if self.resamples < 1 or self.smallest_group < 1:
            raise DataError(f"resamples and smallest_group must be at least 1, but are {self.resamples} and {self.smallest_group}")
        check_level(self.level)


@dataclass(frozen=True, eq=False)
class ReferenceRecourse:
    """What the full-precision model decides and what recourse it gives: computed once, used for every quantized model.

    Attributes:
        name: the model's name.
        decisions: (N,) its class for every row.
        target: (N,) the class each row wants.
        people: (M,) row numbers, ascending, of the rejected people who are measured.
        projected: M rows, projected-gradient recourse.
        minimal: confidence as text ("0.50") → M rows, minimal-cost recourse.
        protocol: the settings.
        seed: of the shuffle, the solvers and the intervals.
    """

    name: str
    decisions: Tensor
    target: Tensor
    people: Tensor
    projected: RecourseBatch
    minimal: Mapping[str, RecourseBatch]
    protocol: Protocol
    seed: int

    @cached_property
    def plain(self) -> RecourseBatch:
        """Minimal-cost recourse at confidence 0.50."""
        return self.minimal[confidence_key(PLAIN)]

    @property
    def rejected(self) -> int:
        """How many of the N rows are rejected, measured or not."""
        return int((self.decisions != self.target).sum())

    def check_rows(self, rows: Tensor) -> None:
        """Refuse rows other than those the recourse was computed for.

        Raises:
            DataError: so.
        """
        if len(rows) != len(self.decisions) or not torch.equal(rows[self.people], self.projected.factual):
            raise DataError(
                f"the recourse of {self.name} was computed for {len(self.decisions)} other rows; call reference_recourse() for these"
            )

    def to_dict(self, labels: Any = None) -> dict[str, Any]:
        """The model's entry ``fp32`` of results.json; ``labels`` (N,) classes, NaN or -1 where unknown, or None."""
        known = None if labels is None else known_labels(labels, self.decisions, None)
        found, cost = self.plain.found, self.plain.cost
        entry = {
            "accuracy": None if known is None else accuracy(self.decisions, known),
            "favourable_rate": favourable_rate(self.decisions, self.target),
            "feasible_recourse_rate": feasible_recourse_rate(self.projected.found),
            "feasible_recourse_rate_minimal_cost": feasible_recourse_rate(found),
            "mean_recourse_cost": float(cost[found].mean()) if bool(found.any()) else None,
            "counts": {"rows": len(self.decisions), "rejected": self.rejected, "people": len(self.people)},
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
    """Recourse that the full-precision model gives to the people it rejects, under the protocol.

    Args:
        f: the full-precision model.
        rows: (N, ...) float32, everyone, accepted and rejected.
        space: what people can do.
        target: a class, one class per row (N,), or a rule ``(rows, class logits) -> classes``.
        protocol: settings; the standard protocol by default.
        seed: of the shuffle and the solvers.
        threads: torch threads while solving; None leaves them.
        progress: draw a bar where solving takes long.

    Raises:
        ActionSetError, DataError, ModelError: rows that break the action set's rules, a target that is no class, a model
            without gradient.
    """
    protocol = protocol or Protocol()
    logits = f.logits(rows)
    decided, wanted = decide(logits), resolve_target(target, rows, logits)
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
    people = shuffled[(decided != wanted)[shuffled]][: protocol.max_people].sort().values

    def solved(method: ProjectedGradient | MinimalCost) -> RecourseBatch:
        return recourse_of(f, rows[people], space, wanted[people], method, seed=seed, threads=threads, progress=progress)

    return ReferenceRecourse(
        name=f.name,
        decisions=decided,
        target=wanted,
        people=people,
        projected=solved(protocol.projected_gradient),
        minimal={
            confidence_key(confidence): solved(replace(protocol.minimal_cost, confidence=confidence)) for confidence in protocol.confidences
        },
        protocol=protocol,
        seed=seed,
    )


def recourse_of(
    predictor: Predictor,
    rows: Tensor,
    space: ActionSpace,
    target: Tensor,
    method: ProjectedGradient | MinimalCost,
    *,
    seed: int,
    threads: int | None,
    progress: bool,
) -> RecourseBatch:
    """:func:`cfptq.recourse.solve`, and an empty batch for nobody."""
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
        method=type(method).__name__,
        confidence=getattr(method, "confidence", PLAIN),
    )


def confidence_key(confidence: float) -> str:
    """A confidence as a key: two decimals ("0.50"), more where it has more."""
    text = f"{confidence:.2f}"
    return text if float(text) == confidence else repr(confidence)
