"""Margin-change score, the measured effect of rounding one layer on the margins of rows near the boundary."""

from __future__ import annotations

from torch import Tensor

from cfptq.allocation.scores import MeasuredScores
from cfptq.io.progress import track
from cfptq.network import DecisionRule, Network, infer_head, target_margin
from cfptq.quantize import ALL_WIDTHS, ActivationFormat, RecordedRun, build_layer_problem, round_at_widths, sample_affordable_rows
from cfptq.quantize.calibration_set import CalibrationSet

#: Multiply-adds that one pass of the network over the rows may take. Beyond, rows are sampled.
MAX_PASS_MACS = 2**30

#: Rows that are used at least, whatever they cost.
MIN_ROWS = 256


def score_by_margin_change(
    network: Network, calibration: CalibrationSet, *, decision: DecisionRule | None = None, progress: bool = True
) -> MeasuredScores:
    """Score each layer and width by the mean squared change of the target margin when that layer alone is rounded.

    Rows count by their calibration weights. With boundary weights, the score is about the rows whose decision is near, on both sides of the
    boundary. Layers are rounded with compensation on full-precision inputs, or plainly where they have too many inputs for the rows.

    Args:
        network: the full-precision network f.
        calibration: rows, weights and targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        progress: show a bar when it takes long.
    """
    kept, weights = sample_affordable_rows(network, calibration.weights, MAX_PASS_MACS, MIN_ROWS)
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
