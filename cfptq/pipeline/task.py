"""One model and the calibration rows, recourse and layer scores that every method of quantization shares."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cfptq.actions import ActionSet, ActionSpace
from cfptq.allocation import LayerScores
from cfptq.calibration import PAPER_TEACHER, build_augmented_set, build_boundary_set, build_factual_set, draw_rows
from cfptq.errors import DataError, ModelWarning
from cfptq.network import (
    DecisionRule,
    Head,
    Network,
    OnnxModule,
    Predictor,
    as_head,
    as_predictor,
    capture,
    count_multiply_adds,
    decide,
)
from cfptq.network.onnx.file import OnnxFile
from cfptq.network.onnx.labels import describe_other_labels
from cfptq.network.onnx.verification import check_reading
from cfptq.network.predictor import ArtefactPredictor
from cfptq.pipeline.inputs import check_seed
from cfptq.pipeline.method import Method
from cfptq.quantize import CalibrationSet
from cfptq.quantize.column_importance import choose_fine_inputs
from cfptq.recourse import RecourseBatch, Target

#: Calibration rows that the model is run on to infer its head. More would change nothing.
PROBE_ROWS = 256

#: Multiply-adds that recourse near the boundary may take, about. A model that needs more solves a sample of its rejected rows.
RECOURSE_MULTIPLY_ADDS = 2**35


@dataclass(frozen=True)
class TaskSettings:
    """Settings of a task that the public functions share.

    Attributes:
        target: the class that recourse leads to, one for all, one a row (N,), or a rule. None takes the action set's ``favourable``.
        head: what the model puts out. None infers it from the output.
        threshold: decision threshold of a binary model, or None for the arg max.
        max_rows: most calibration rows kept.
        seed: seed of the calibration draw, from 0 to 2**32 - 1.
        progress: whether a progress bar may be shown.

    Raises:
        ConfigurationError: the seed is not such a number.
    """

    target: Target | None = None
    head: Head | str | None = None
    threshold: float | None = None
    max_rows: int = 4096
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class QuantizationTask:
    """A captured model and its calibration rows, with recourse and layer scores computed once and shared by all methods.

    Attributes:
        network: the captured full-precision network f.
        predictor: f as a predictor, with its decision threshold.
        decision: head of f's raw output and decision threshold.
        space: what people can change.
        target: the class that recourse leads to, one for all, one a row (N,), or a rule.
        rows: (N, ...) the factual calibration rows.
        labels: (N,) their labels, or None.
        seed: seed of the calibration draw.
    """

    network: Network
    predictor: Predictor
    decision: DecisionRule
    space: ActionSpace
    target: Target
    rows: torch.Tensor
    labels: torch.Tensor | None
    seed: int

    @cached_property
    def factual_set(self) -> CalibrationSet:
        """X_cal, the factual rows alone."""
        return build_factual_set(self.rows, self.labels, self.predictor, target=self.target)

    @cached_property
    def augmented_set(self) -> tuple[CalibrationSet, RecourseBatch]:
        """U_cal = X_cal ∪ {x + δ} (eq. 21), and the recourse of the rejected rows (eq. 20)."""
        return build_augmented_set(
            self.rows, self.labels, self.predictor, self.space, target=self.target, settings=PAPER_TEACHER, seed=self.seed
        )

    def boundary_set(self, method: Method) -> tuple[CalibrationSet, RecourseBatch]:
        """Return X_cal and the points where recourse ends, weighted by margin, and the projected-gradient recourse among them.

        Sets are kept. The recourse is the same in all of them.

        Args:
            method: the method, which says what kinds of points the set holds.
        """
        kinds = method.minimal_cost_points, method.both_sides
        if kinds not in self._boundary_sets:
            runs = RECOURSE_MULTIPLY_ADDS // (count_multiply_adds(self.network) + self._count_action_multiply_adds())
            minimal_cost, both_sides = kinds
            self._boundary_sets[kinds] = build_boundary_set(
                self.rows, self.labels, self.predictor, self.space,
                target=self.target, runs=runs, minimal_cost=minimal_cost, both_sides=both_sides, seed=self.seed,
            )  # fmt: skip
        return self._boundary_sets[kinds]

    def _count_action_multiply_adds(self) -> int:
        """Count the multiply-adds in which a user's own action space applies one action, such as those of a decoder."""
        if isinstance(self.space, ActionSet):
            return 0
        row = self.rows[:1]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.space.apply(row, self.space.zero(row))
        return int(counter.get_total_flops()) // 2

    @cached_property
    def _boundary_sets(self) -> dict[tuple[bool, bool], tuple[CalibrationSet, RecourseBatch]]:
        return {}

    def choose_calibration(self, method: Method) -> tuple[CalibrationSet, RecourseBatch | None]:
        """Return the calibration set that ``method`` uses and the recourse in it, or None for a method that uses no recourse."""
        if method.rows == "boundary":
            return self.boundary_set(method)
        if method.rows == "augmented":
            return self.augmented_set
        return self.factual_set, self.augmented_set[1] if method.needs_recourse else None

    def score_layers(self, method: Method, progress: bool = True) -> LayerScores:
        """Score the layers, or their channels, by the method's rule. The scores are kept, so that another budget computes nothing again.

        Args:
            method: the method, whose score function picks the rows that it needs from the calibration set.
            progress: whether a progress bar may be shown.
        """
        is_boundary, has_channels = method.rows == "boundary", method.granularity == "channel"
        kinds = (method.minimal_cost_points, method.both_sides) if is_boundary else None
        # Channels are scored on the network that is rounded, and so by how it is equalized.
        rounded = (method.equalize, method.equalization_exponent, method.activations, method.split_inputs) if has_channels else None
        key = method.score_function, kinds, rounded
        if key not in self._scores:
            rows = self.boundary_set(method)[0] if is_boundary else self.augmented_set[0] if method.needs_recourse else self.factual_set
            # A user's own score may know of layers alone.
            granularity: dict[str, Any] = {"granularity": "channel"} if has_channels else {}
            network = self.network
            if has_channels:
                network = self.equalize_network(method)
                if method.split_inputs:
                    granularity["fine_inputs"] = choose_fine_inputs(network, rows, self.decision, method.activations)
            self._scores[key] = method.score_function(network, rows, decision=self.decision, progress=progress, **granularity)
        return self._scores[key]

    def equalize_network(self, method: Method) -> Network:
        """Return the network whose channels a method with widths of channels rounds. It is kept for the method's next step."""
        rows = self.choose_calibration(method)[0]
        key = id(rows), method.equalize, method.equalization_exponent, method.activations
        if key not in self._equalized:
            self._equalized[key] = method.equalize_network(self.network, rows, self.decision)
        return self._equalized[key]

    @cached_property
    def _equalized(self) -> dict[tuple[Any, ...], Network]:
        return {}

    @cached_property
    def _scores(self) -> dict[tuple[Any, ...], LayerScores]:
        return {}

    def keep_rows(self, positions: torch.Tensor) -> QuantizationTask:
        """Return the same task on the rows at ``positions`` alone, with nothing computed yet."""
        target = self.target[positions] if isinstance(self.target, torch.Tensor) else self.target
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, rows=self.rows[positions], labels=labels, target=target)


def build_task(model: nn.Module, loader: Iterable[Any], space: ActionSpace, settings: TaskSettings) -> QuantizationTask:
    """Capture ``model`` and draw its calibration rows. The model is left as it was.

    Args:
        model: a trained classifier.
        loader: rows to calibrate on, in batches; see ``cfptq.calibration.draw_rows``.
        space: what people can change, in the model's own columns.
        settings: the target, the decision rule and the draw.

    Raises:
        DataError: the loader's rows cannot be used, or no target is known.
        ActionSetError: rows break the action set's rules.
        ModelError: the model cannot be captured or has nothing to quantize, or there is no such head.
    """
    given_head = as_head(settings.head)
    threshold, target = settings.threshold, settings.target
    encode = getattr(space, "encode", None)
    rows, labels = draw_rows(loader, max_rows=settings.max_rows, seed=settings.seed, encode=encode, progress=settings.progress)
    space.check(rows)
    if isinstance(model, OnnxModule):
        check_reading(model, rows)
        given_head = given_head or model.source.head
        threshold = model.source.threshold if threshold is None else threshold
    network = capture(model, rows[:2] if len(rows) > 1 else rows.repeat(2, *[1] * (rows.dim() - 1)))
    predictor = as_predictor(network.graph, example=rows[:PROBE_ROWS], head=given_head, threshold=threshold, name="fp32")
    assert isinstance(predictor, ArtefactPredictor)
    decision = DecisionRule(predictor.head, threshold)
    if isinstance(model, OnnxModule):
        file = OnnxFile(model.source.model, output=model.output_name, where=model.source.where)
        if said := describe_other_labels(file, rows, predictor.logits(rows), threshold):
            warnings.warn(said, ModelWarning, stacklevel=2)
    known_target = target if target is not None else getattr(space, "favourable", None)
    if known_target is None:
        decided = decide(predictor.logits(rows))
        shares = ", ".join(f"class {c}: {float((decided == c).float().mean()):.1%}" for c in range(predictor.n_classes))
        raise DataError(
            f"target must be given, because the action set has no favourable class. The model predicts {shares} of the calibration rows. "
            "Pass target=, or set favourable= in the action set."
        )
    return QuantizationTask(network, predictor, decision, space, known_target, rows, labels, settings.seed)
