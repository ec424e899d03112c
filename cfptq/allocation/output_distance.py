"""Output-distance score, the distance that rounding one layer moves the network's output (as in Sony's Model Compression Toolkit)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cfptq.allocation.channel_effect import measure_channel_effects
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.per_row_gradients import run_in_chunks
from cfptq.allocation.round_to_nearest import round_to_nearest, round_weight_to_nearest
from cfptq.allocation.scores import LayerScores, MeasuredScores
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Layer, Network, infer_head
from cfptq.quantize import CHANNEL_WIDTHS, Granularity, RoundedWeight, sample_affordable_rows
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS

#: Multiply-adds that one pass over the rows may take where channels are scored, and rows that are used at least.
MAX_PASS_MACS, MIN_ROWS = 2**30, 256

#: Passes over the rows where channels are scored, one for each class or random projection of the class logits.
MAX_PROJECTIONS = 16


def score_by_output_distance(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score each layer or channel at each width by the mean squared distance of the class logits when it alone is rounded.

    It is rounded to nearest. The mean is over all rows of the set, factual and counterfactual, by their weights. The distance for a channel
    is to first order, on as many rows as a pass affords. Beyond 16 classes it is estimated from 16 random projections. Unlike
    ``cfptq.allocation.score_by_margin_change`` it counts a change of every logit, whether or not it moves the decision.

    Args:
        network: the full-precision network f.
        calibration: rows and weights.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.
    """
    before = run_in_chunks(network, calibration.rows)
    known = decision or DecisionRule(infer_head(before))
    if granularity == "channel":
        return _score_channels(network, calibration, known, progress)
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


def _score_channels(network: Network, calibration: CalibrationSet, decision: DecisionRule, progress: bool) -> ChannelScores:
    """Score every output channel, with one backward pass for each class or random projection of the class logits."""
    kept, weights = sample_affordable_rows(network, calibration.weights, MAX_PASS_MACS, MIN_ROWS)
    rows, share = calibration.rows[kept], weights / weights.sum()
    classes = decision.class_logits(run_in_chunks(network, rows[:1])).shape[1]
    projections = torch.eye(classes)
    if classes > MAX_PROJECTIONS:
        signs = torch.randint(0, 2, (MAX_PROJECTIONS, classes), generator=torch.Generator().manual_seed(0)).float()
        # The mean square of a random projection is the squared length.
        projections = (2 * signs - 1) / MAX_PROJECTIONS**0.5

    def round_layer(layer: Layer, inputs: Tensor) -> Iterable[RoundedWeight]:
        return (round_to_nearest(network.weight(layer.name), network.bias(layer.name), bits) for bits in CHANNEL_WIDTHS)

    damage = [torch.zeros(layer.weight_shape[0], len(CHANNEL_WIDTHS), dtype=torch.float64) for layer in network.layers]
    for projection in projections:

        def project(output: Tensor, chunk: slice, projection: Tensor = projection) -> Tensor:
            return decision.class_logits(output) @ projection

        for total, effect in zip(damage, measure_channel_effects(network, rows, share, project, round_layer, progress), strict=True):
            total += effect
    return ChannelScores.from_channel_damage(network, damage, "output distance")
