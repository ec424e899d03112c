"""The teacher: the full-precision model, captured once, with the rows and the recourse that every method calibrates on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import nn

from cfptq.actions import ActionSpace
from cfptq.allocation import BitAllocation, Budget, LayerScores, Score, Widths, allocation_path, assign_lowest_bits
from cfptq.calibration import PAPER_TEACHER, build_augmented_set, draw_rows, build_factual_set, build_boundary_set
from cfptq.errors import BudgetError, DataError
from cfptq.io.progress import track
from cfptq.network import Head, Network, Predictor, as_head, as_predictor, capture, decisions, infer_head, multiply_adds
from cfptq.pipeline.bit_search import FewestBits
from cfptq.pipeline.group_weighting import group_labels, reweight_groups
from cfptq.pipeline.method import Method
from cfptq.pipeline.result import Result
from cfptq.quantize import (
    COUNTERFACTUAL,
    HOLD_OUT_EVERY,
    CalibrationSet,
    QuantizationPlan,
    find_candidate_widths,
    hold_out_people,
    keep_first_points,
)
from cfptq.quantize.repair import repair_last_layer
from cfptq.recourse import ProjectedGradient, RecourseBatch, Target

#: Rows of the calibration draw that decide what the model's output is.
PROBE_ROWS = 256

#: Multiply-adds that the teacher's recourse near the boundary may take, about; wide models solve a sample of their rejected rows.
RECOURSE_WORK = 2**35


@dataclass(frozen=True)
class Teacher:
    """A captured model and its calibration draw; what is expensive is computed once and shared by all methods.

    Attributes:
        network: the captured full-precision network f.
        predictor: f as a predictor, thresholded.
        head, threshold: what f puts out and where it decides.
        space: the action set.
        target: class (or rule) that recourse leads to.
        rows: (N, d) the factual calibration rows.
        labels: (N,) their labels, or None.
        settings: how teacher points are found (eq. 20).
        seed: seed of the draw.
    """

    network: Network
    predictor: Predictor
    head: Head
    threshold: float | None
    space: ActionSpace
    target: Target
    rows: torch.Tensor
    labels: torch.Tensor | None
    settings: ProjectedGradient
    seed: int

    @cached_property
    def factual(self) -> CalibrationSet:
        """X_cal."""
        return build_factual_set(self.rows, self.labels, self.predictor, target=self.target)

    @cached_property
    def _augmented(self) -> tuple[CalibrationSet, RecourseBatch]:
        return build_augmented_set(self.rows, self.labels, self.predictor, self.space, target=self.target, settings=self.settings, seed=self.seed)

    @property
    def augmented(self) -> CalibrationSet:
        """U_cal = X_cal ∪ {x + δ} (eq. 21)."""
        return self._augmented[0]

    @property
    def recourse(self) -> RecourseBatch:
        """The teacher's recourse for the rejected calibration rows (eq. 20)."""
        return self._augmented[1]

    @cached_property
    def _boundary(self) -> tuple[CalibrationSet, RecourseBatch]:
        runs = RECOURSE_WORK // multiply_adds(self.network)
        return build_boundary_set(self.rows, self.labels, self.predictor, self.space, target=self.target, runs=runs, seed=self.seed)

    def calibration(self, method: Method) -> tuple[CalibrationSet, RecourseBatch | None]:
        """The rows that ``method`` calibrates on, and the recourse among them."""
        if method.rows == "boundary":
            return self._boundary
        if method.rows == "augmented":
            return self._augmented
        return self.factual, self.recourse if method.needs_recourse else None

    @cached_property
    def _scores(self) -> dict[tuple[Score, bool], LayerScores]:
        return {}

    def scores(self, method: Method, progress: bool = True) -> LayerScores:
        """Layer scores by the method's own rule. Every score sees U_cal and picks the rows it is about."""
        score, boundary = method.score_function, method.rows == "boundary"
        if (score, boundary) not in self._scores:
            rows = self._boundary[0] if boundary else self.augmented if method.needs_recourse else self.factual
            self._scores[score, boundary] = score(self.network, rows, head=self.head, threshold=self.threshold, progress=progress)
        return self._scores[score, boundary]

    def quantized(
        self,
        method: Method,
        budget: Budget | float,
        *,
        pinned: Mapping[str, int] | None = None,
        portable: bool = True,
        widths: Widths | None = None,
        progress: bool = True,
    ) -> Result:
        """The model quantized by ``method`` within ``budget``; ``widths`` replaces the layers' candidate widths."""
        # What cannot be met is refused before the work, not after it.
        sizes = {layer.name: layer.parameters for layer in self.network.layers}
        candidates = widths or find_candidate_widths(self.network, method.activations, portable)
        assign_lowest_bits(tuple(sizes), tuple(sizes.values()), Budget.of(budget), candidates, pinned)
        if method.groups is not None:
            group_labels(method.groups, self.rows, self.space)
        scores = self.scores(method, progress)
        allocation = method.allocate(scores, budget, candidates, pinned)
        return self._rounded(method, scores, allocation, Budget.of(budget), pinned, portable, progress)

    def fewest_bits(
        self,
        method: Method,
        max_validity_drop: float,
        *,
        pinned: Mapping[str, int] | None = None,
        portable: bool = True,
        progress: bool = True,
    ) -> Result:
        """The model with the fewest bits whose Validity Drop on rejected rows set aside is at most ``max_validity_drop``.

        Every fourth rejected row with recourse is kept out of calibration and judged on the fake-quantized twin.

        Raises:
            BudgetError: not even the widest widths everywhere hold; the message says what the best allocation reaches.
            DataError: nobody rejected has recourse, so there is nobody to judge by.
        """
        if not (isinstance(max_validity_drop, Real) and 0 <= max_validity_drop <= 1):
            raise BudgetError(f"max_validity_drop is a share of people, between 0 and 1, not {max_validity_drop!r}")
        points, recourse = self._boundary
        chosen = torch.arange(0, len(recourse), HOLD_OUT_EVERY)
        if len(chosen) == 0:
            raise DataError(
                "no rejected calibration row has recourse, so there is nobody to judge max_validity_drop by; give a budget instead"
            )
        aside = recourse[chosen]
        others = torch.ones(len(self.rows), dtype=torch.bool)
        others[points.source[points.origin == COUNTERFACTUAL][chosen]] = False
        kept = self.among(others.nonzero()[:, 0])
        scores = kept.scores(method, progress)
        least = 1.0
        widths = find_candidate_widths(self.network, method.activations, portable)
        for allocation in track(allocation_path(method.allocate, scores, pinned, widths), "looking for the fewest bits", enabled=progress):
            budget = Budget.total(allocation.total_bits)
            result = kept._rounded(method, scores, allocation, budget, pinned, portable, progress=False)
            student = as_predictor(result.module(), example=aside.points, head=self.head, threshold=self.threshold)
            broken = int((decisions(student.logits(aside.points)) != aside.target).sum())
            held = FewestBits(float(max_validity_drop), len(aside), broken)
            if held.validity_drop <= max_validity_drop:
                return replace(result, fewest_bits=held)
            least = min(least, held.validity_drop)
        raise BudgetError(
            f"no allocation keeps the Validity Drop at {max_validity_drop} on the {len(aside)} people set aside; the least reached is "
            f"{least:.3f}: allow more, or leave activations wider (activation_bits=16)"
        )

    def among(self, positions: torch.Tensor) -> Teacher:
        """The same teacher on the rows at ``positions`` alone."""
        target = self.target[positions] if isinstance(self.target, torch.Tensor) else self.target
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, rows=self.rows[positions], labels=labels, target=target)

    def _rounded(
        self,
        method: Method,
        scores: LayerScores,
        allocation: BitAllocation,
        budget: Budget,
        pinned: Mapping[str, int] | None,
        portable: bool,
        progress: bool,
    ) -> Result:
        calibration, recourse = self.calibration(method)
        people = calibration
        if method.groups is not None or method.repair:
            points, issued = self._boundary
            people = keep_first_points(points, len(issued))
        group_report = repair_report = None

        def round_on(rows: CalibrationSet) -> QuantizationPlan:
            return method.plan(
                self.network,
                rows,
                allocation,
                head=self.head,
                threshold=self.threshold,
                seed=self.seed,
                portable=portable,
                progress=progress,
            )

        if method.groups is None:
            plan = round_on(calibration)
        else:
            labels = group_labels(method.groups, self.rows, self.space)
            calibration, plan, group_report = reweight_groups(
                self.network, calibration, people, labels, round_on, head=self.head, threshold=self.threshold, progress=progress
            )
        if method.repair:
            trial = round_on(hold_out_people(calibration)[0])
            plan, repair_report = repair_last_layer(self.network, plan, trial, people, head=self.head, threshold=self.threshold)
        return Result(
            network=self.network,
            plan=plan,
            allocation=allocation,
            sensitivity=scores,
            head=self.head,
            threshold=self.threshold,
            calibration=calibration,
            teacher=recourse,
            method=method,
            budget=budget,
            pinned=dict(pinned or {}),
            repair=repair_report,
            worst_group=group_report,
        )


def prepare(
    model: nn.Module,
    calib_loader: Iterable[Any],
    space: ActionSpace,
    *,
    target: Target | None = None,
    settings: ProjectedGradient | None = None,
    seed: int = 0,
    max_rows: int = 4096,
    head: Head | str | None = None,
    threshold: float | None = None,
    progress: bool = True,
) -> Teacher:
    """Capture ``model`` and draw its calibration rows; the model is left as it was.

    Raises:
        DataError: the loader's rows cannot be used, or no target is known.
        ActionSetError: rows break the action set's rules.
        ModelError: the model cannot be captured or has nothing to quantize, or there is no such head.
    """
    named = as_head(head)
    rows, labels = draw_rows(calib_loader, max_rows=max_rows, seed=seed, encode=getattr(space, "encode", None), progress=progress)
    space.check(rows)
    network = capture(model, rows[:2] if len(rows) > 1 else rows.repeat(2, *[1] * (rows.dim() - 1)))
    with torch.no_grad():
        output = network(rows[:PROBE_ROWS])
    shown = named or infer_head(output)
    predictor = as_predictor(network.graph, example=rows[:PROBE_ROWS], head=shown, threshold=threshold, name="fp32")
    wanted = target if target is not None else getattr(space, "favourable", None)
    if wanted is None:
        decided = decisions(predictor.logits(rows))
        shares = ", ".join(f"class {c}: {float((decided == c).float().mean()):.1%}" for c in range(predictor.n_classes))
        raise DataError(
            f"no target class is known; the model predicts {shares} of the calibration rows: pass target=, or set favourable= in the "
            "action set"
        )
    return Teacher(network, predictor, shown, threshold, space, wanted, rows, labels, settings or PAPER_TEACHER, seed)
