"""Gradient-norm scores at counterfactual points (eq. 23) and at factual rows."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.per_row_gradients import average_channel_norms, compute_gradient_norms, run_in_chunks
from cfptq.allocation.scores import LayerScores
from cfptq.errors import DataError, name_rows
from cfptq.network import DecisionRule, Network, decide, infer_head
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, CalibrationSet
from cfptq.quantize.formats import Granularity


def score_by_counterfactual_gradient(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score layers or channels by the mean ℓ1 norm of each counterfactual point's gradient of L_valid in their weights (eq. 23).

    L_valid is the cross-entropy towards the point's target. Points count by their calibration weights.

    Args:
        network: the full-precision network f.
        calibration: a set with counterfactual points x + δ and their targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.

    Raises:
        DataError: the set holds no counterfactual points, or all of them have weight 0.
    """
    chosen = calibration.origin == COUNTERFACTUAL
    if not bool(chosen.any()):
        raise DataError(
            "The calibration set holds no counterfactual points to score layers at. Nobody in it was rejected, or it is factual only."
        )
    return _average_norms(
        network, calibration, chosen, calibration.target[chosen], decision, granularity, progress, "counterfactual gradient"
    )


def score_by_factual_gradient(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score layers or channels by eq. 23 with the task loss on the factual rows, as accuracy-oriented mixed-precision PTQ does.

    The task loss is the cross-entropy towards the label. Where a label is missing, the network's own decision stands in. The note of the
    scores tells for how many rows.

    Args:
        network: the full-precision network f.
        calibration: a set whose factual rows are used.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.

    Raises:
        DataError: a label is no class of the network, or all factual rows have weight 0.
    """
    chosen = calibration.origin == FACTUAL
    output = run_in_chunks(network, calibration.rows[chosen])
    decision = decision or DecisionRule(infer_head(output))
    logits = decision.class_logits(output)
    labels, note = decide(logits), "the teacher's decisions stand in for labels"
    if calibration.labels is not None:
        given = calibration.labels[chosen]
        _check_labels(given, logits.shape[1])
        missing = given < 0
        labels = torch.where(missing, labels, given)
        if not calibration.labels_are_teacher:
            note = f"the teacher's decision stands in for {int(missing.sum())} missing labels" if bool(missing.any()) else ""
    return _average_norms(network, calibration, chosen, labels, decision, granularity, progress, "factual gradient", note)


def _average_norms(
    network: Network,
    calibration: CalibrationSet,
    chosen: Tensor,
    target: Tensor,
    decision: DecisionRule | None,
    granularity: Granularity,
    progress: bool,
    kind: str,
    note: str = "",
) -> LayerScores:
    """Average the gradient norms of the chosen rows by their weights."""
    rows, weights = calibration.rows[chosen], calibration.weights[chosen].double()
    if not float(weights.sum()) > 0:
        raise DataError(f"All rows for the {kind} have weight 0. Give at least one of them a positive weight.")
    if granularity == "channel":
        channels = average_channel_norms(network, rows, target, weights / weights.sum(), decision=decision, progress=progress)
        return ChannelScores.from_channels(network, channels, kind, note)
    norms = compute_gradient_norms(network, rows, target, decision=decision, progress=progress)
    mean = (norms * weights.unsqueeze(1)).sum(0) / weights.sum()
    layers = network.layers
    return LayerScores(tuple(layer.name for layer in layers), tuple(layer.parameters for layer in layers), tuple(mean.tolist()), kind, note)


def _check_labels(labels: Tensor, n_classes: int) -> None:
    """Check that every label is a class, or negative for unknown."""
    wrong = (labels >= n_classes).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"Labels must be among the network's {n_classes} classes 0..{n_classes - 1}, or -1 for unknown. Those of rows "
            f"{name_rows(wrong)} are not."
        )
