"""The output-distance score: how far the network's output moves when one layer is rounded (as Sony's Model Compression Toolkit asks)."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.allocation.gradient_norm import outputs
from cfptq.allocation.margin_change import MeasuredScores
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.io.progress import track
from cfptq.network import Head, Network, class_logits, infer_head
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS


def score_by_output_distance(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> MeasuredScores:
    """For each layer and width, the mean squared distance between the class logits before and after that layer alone is rounded plainly.

    Over all rows of the set, factual and counterfactual, by their weights. Unlike :func:`cfptq.allocation.score_by_margin_change` it counts a
    change of every logit, whether or not it moves the decision.

    Args:
        network: the full-precision model f.
        calibration: rows and weights.
        head: what the network's raw output means; None infers it.
        threshold: decision threshold of a two-class model.
        progress: show a bar when it takes long.
    """
    before = outputs(network, calibration.rows)
    known = head or infer_head(before)
    share = (calibration.weights / calibration.weights.sum()).double()

    def logits(raw: Tensor) -> Tensor:
        return class_logits(raw, known, threshold).double()

    wanted = logits(before)
    damage: list[tuple[float, ...]] = []
    for layer in track(network.layers, "measuring layers", enabled=progress):
        weight, bias = network.weight(layer.name), network.bias(layer.name)
        row = []
        for bits in ALL_WIDTHS:
            rounded = network.with_parameters({layer.name: (round_weight_to_nearest(weight, bits), bias)})
            moved = (logits(outputs(rounded, calibration.rows)) - wanted).square().sum(dim=1)
            row.append(float(torch.dot(share, moved)))
        damage.append(tuple(row))
    return MeasuredScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple(row[0] for row in damage),
        kind="output distance",
        widths=ALL_WIDTHS,
        damage=tuple(damage),
    )
