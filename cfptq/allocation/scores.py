"""How much each layer matters: the scores that a bit allocation is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cfptq.allocation.gradient_norm import compute_gradient_norms, outputs
from cfptq.errors import DataError, ModelError, name_rows
from cfptq.network import Head, Network, class_logits, decide, infer_head
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, CalibrationSet


@dataclass(frozen=True)
class LayerScores:
    """What one more bit is worth in each quantizable layer, in execution order.

    Attributes:
        names: layer names, L of them, distinct.
        parameters: n_l, weights per layer.
        scores: s_l >= 0, finite.
        kind: what was measured, for a reader: "counterfactual gradient", "factual gradient", ...
        note: what a reader should know about how; "" where there is nothing to say.

    Raises:
        ModelError: lengths differ, a name comes twice, a layer has no weights, or a score is negative or not finite.
    """

    names: tuple[str, ...]
    parameters: tuple[int, ...]
    scores: tuple[float, ...]
    kind: str
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("names", "parameters", "scores"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not len(self.names) == len(self.parameters) == len(self.scores) > 0:
            raise ModelError(f"{len(self.names)} layers, {len(self.parameters)} sizes and {len(self.scores)} scores do not belong together")
        if len(set(self.names)) != len(self.names):
            raise ModelError(f"a layer comes twice in {self.names}")
        for name, n, score in zip(self.names, self.parameters, self.scores, strict=True):
            if n < 1:
                raise ModelError(f"layer {name!r} has {n} weights; only layers with weights are scored")
            if not (math.isfinite(score) and score >= 0):
                raise ModelError(
                    f"layer {name!r} scores {score}; a score must be finite and at least 0: look for huge or NaN values in its inputs"
                )

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """What layer l gains at each of ``widths``, the summand of eq. 24: s_l b. Scores measured per width override this."""
        return tuple(tuple(score * bits for bits in widths) for score in self.scores)

    def by_layer(self) -> dict[str, float]:
        """Layer name -> score, in execution order."""
        return dict(zip(self.names, self.scores, strict=True))


class Score(Protocol):
    """Scores the layers of a network on a calibration set: one of the functions below, or the user's own.

    It must not change the network, and be deterministic.
    """

    def __call__(
        self,
        network: Network,
        calibration: CalibrationSet,
        *,
        head: Head | None = None,
        threshold: float | None = None,
        progress: bool = True,
    ) -> LayerScores: ...


def score_by_counterfactual_gradient(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> LayerScores:
    """Eq. 23: the mean over teacher recourse points of the l1 norm of the *row's own* gradient of L_valid in W_l.

    L_valid is the cross-entropy towards the row's target. Rows count by their calibration weights.

    Args:
        network: the full-precision model f.
        calibration: a set with counterfactual rows x + delta_fp and their targets.
        head: what the network's raw output means; None infers it.
        threshold: decision threshold of a two-class model.
        progress: show a bar when it takes long.

    Raises:
        DataError: the set holds no counterfactual rows, or all of them weigh nothing.
    """
    chosen = calibration.origin == COUNTERFACTUAL
    if not bool(chosen.any()):
        raise DataError(
            "the calibration set holds no counterfactual points to score layers at: nobody in it was rejected, or it is factual only"
        )
    return _mean_norms(network, calibration, chosen, calibration.target[chosen], head, threshold, progress, "counterfactual gradient")


def score_by_factual_gradient(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> LayerScores:
    """The accuracy-oriented score of "mixed-precision PTQ": eq. 23's formula with the task loss on the factual rows.

    The task loss is the cross-entropy towards the label; where a label is missing the network's own decision stands in,
    and the note says for how many rows.

    Args:
        network: the full-precision model f.
        calibration: its factual rows are used.
        head: what the network's raw output means; None infers it.
        threshold: decision threshold of a two-class model.
        progress: show a bar when it takes long.

    Raises:
        DataError: a label is no class of the network, or all factual rows weigh nothing.
    """
    chosen = calibration.origin == FACTUAL
    rows = calibration.rows[chosen]
    output = outputs(network, rows)
    head = head or infer_head(output)
    logits = class_logits(output, head, threshold)
    labels, note = decide(logits), "the teacher's decisions stand in for labels"
    if calibration.labels is not None:
        given = calibration.labels[chosen]
        _check_labels(given, logits.shape[1])
        missing = given < 0
        labels = torch.where(missing, labels, given)
        if not calibration.labels_are_teacher:
            note = f"the teacher's decision stands in for {int(missing.sum())} missing labels" if bool(missing.any()) else ""
    return _mean_norms(network, calibration, chosen, labels, head, threshold, progress, "factual gradient", note)


def _mean_norms(
    network: Network,
    calibration: CalibrationSet,
    chosen: Tensor,
    target: Tensor,
    head: Head | None,
    threshold: float | None,
    progress: bool,
    kind: str,
    note: str = "",
) -> LayerScores:
    norms = compute_gradient_norms(network, calibration.rows[chosen], target, head=head, threshold=threshold, progress=progress)
    weights = calibration.weights[chosen].double()
    if not float(weights.sum()) > 0:
        raise DataError(f"the rows to take the {kind} at all weigh nothing; give at least one of them a positive weight")
    mean = (norms * weights.unsqueeze(1)).sum(0) / weights.sum()
    layers = network.layers
    return LayerScores(tuple(layer.name for layer in layers), tuple(layer.parameters for layer in layers), tuple(mean.tolist()), kind, note)


def _check_labels(labels: Tensor, n_classes: int) -> None:
    wrong = (labels >= n_classes).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"labels of rows {name_rows(wrong)} are not among the network's {n_classes} classes 0..{n_classes - 1}; -1 means unknown"
        )
