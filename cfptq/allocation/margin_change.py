"""Margin-change score, the measured effect of rounding one layer on the margins of rows near the boundary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from cfptq.allocation.channel_effect import measure_channel_effects
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.per_row_gradients import run_in_chunks
from cfptq.allocation.scores import LayerScores, MeasuredScores
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Layer, Network, infer_head, target_margin
from cfptq.quantize import (
    ALL_WIDTHS,
    CHANNEL_WIDTHS,
    ActivationFormat,
    Granularity,
    RecordedRun,
    RoundedWeight,
    build_layer_problem,
    round_at_widths,
    sample_affordable_rows,
)
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.split_inputs import MAX_SPLIT_BITS

#: Multiply-adds that one pass of the network over the rows may take. Beyond, rows are sampled.
MAX_PASS_MACS = 2**30

#: Rows that are used at least, whatever they cost.
MIN_ROWS = 256


def score_by_margin_change(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    fine_inputs: Mapping[str, tuple[bool, ...]] | None = None,
    progress: bool = True,
) -> LayerScores:
    """Score each layer or channel at each width by the mean squared change of the target margin when it alone is rounded.

    Rows count by their calibration weights. With boundary weights, the score is about the rows whose decision is near, on both sides of the
    boundary. Layers are rounded with compensation on full-precision inputs, or plainly where they have too many inputs for the rows. The
    change that one channel makes is its part of a layer's, to first order.

    Args:
        network: the full-precision network f.
        calibration: rows, weights and targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        fine_inputs: fine columns of layers whose columns are split, by the name of the layer, for channels. None splits none.
        progress: show a bar when it takes long.
    """
    kept, weights = sample_affordable_rows(network, calibration.weights, MAX_PASS_MACS, MIN_ROWS)
    if granularity == "channel":
        return _score_channels(network, calibration.rows[kept], calibration.target[kept], weights, decision, fine_inputs or {}, progress)
    run = RecordedRun(network, calibration.rows[kept])
    known, target = decision or DecisionRule(infer_head(run.output)), calibration.target[kept]

    def margins(raw: Tensor) -> Tensor:
        return target_margin(known.class_logits(raw), target).double()

    before = margins(run.output)
    share = (weights / weights.sum()).double()
    damage: list[list[float]] = []
    for layer in track(network.layers, "measuring layers", enabled=progress):
        inputs = run.inputs(layer)
        problem = build_layer_problem(network, layer, ALL_WIDTHS[0], inputs, inputs, ActivationFormat(layer.input, 32), weights)
        row = []
        for rounded in round_at_widths(problem, ALL_WIDTHS):
            change = margins(run.rerun(layer, rounded.weight(), rounded.bias)) - before
            row.append(float((share * change.square()).sum()))
        damage.append(row)
    return MeasuredScores.from_damage(network, damage, "margin change")


def _score_channels(
    network: Network,
    rows: Tensor,
    target: Tensor,
    weights: Tensor,
    decision: DecisionRule | None,
    fine_inputs: Mapping[str, tuple[bool, ...]],
    progress: bool,
) -> ChannelScores:
    """Score every output channel on rows, their targets and weights."""
    known = decision or DecisionRule(infer_head(run_in_chunks(network, rows)))

    def compute_margins(output: Tensor, chunk: slice) -> Tensor:
        return target_margin(known.class_logits(output), target[chunk])

    def round_layer(layer: Layer, inputs: Tensor) -> Iterable[RoundedWeight]:
        form, fine = ActivationFormat(layer.input, 32), fine_inputs.get(layer.name, ())
        problem = build_layer_problem(network, layer, CHANNEL_WIDTHS[0], inputs, inputs, form, weights, fine)
        widths = [min(width, MAX_SPLIT_BITS) if fine else width for width in CHANNEL_WIDTHS]
        return (rounded.join_columns(fine) for rounded in round_at_widths(problem, widths))

    damage = measure_channel_effects(network, rows, weights / weights.sum(), compute_margins, round_layer, progress)
    scores = ChannelScores.from_channel_damage(network, damage, "margin change")
    return replace(scores, fine_inputs=tuple(fine_inputs.get(name, ()) for name in scores.names)) if fine_inputs else scores
