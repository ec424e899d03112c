"""Output-distance score, the distance that rounding one layer moves the network's output (as in Sony's Model Compression Toolkit)."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.allocation.per_row_gradients import run_in_chunks
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.allocation.scores import MeasuredScores
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Network, infer_head
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS


def score_by_output_distance(
    network: Network, calibration: CalibrationSet, *, decision: DecisionRule | None = None, progress: bool = True
) -> MeasuredScores:
    """Score each layer and width by the mean squared distance of the class logits when that layer alone is rounded to nearest.

    The mean is over all rows of the set, factual and counterfactual, by their weights. Unlike
    ``cfptq.allocation.score_by_margin_change`` it counts a change of every logit, whether or not it moves the decision.

    Args:
        network: the full-precision network f.
        calibration: rows and weights.
        decision: head of the network's raw output and decision threshold. None infers the head.
        progress: show a bar when it takes long.
    """
    before = run_in_chunks(network, calibration.rows)
    known = decision or DecisionRule(infer_head(before))
    share = (calibration.weights / calibration.weights.sum()).double()

    def logits(raw: Tensor) -> Tensor:
        return known.class_logits(raw).double()

    wanted = logits(before)
    damage: list[list[float]] = []
    for layer in track(network.layers, "measuring layers", enabled=progress):
        weight, bias = network.weight(layer.name), network.bias(layer.name)
        row = []
        for bits in ALL_WIDTHS:
            rounded = network.with_parameters({layer.name: (round_weight_to_nearest(weight, bits), bias)})
            distance = (logits(run_in_chunks(rounded, calibration.rows)) - wanted).square().sum(dim=1)
            row.append(float(torch.dot(share, distance)))
        damage.append(row)
    return MeasuredScores.from_damage(network, damage, "output distance")
