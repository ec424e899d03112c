"""Layer scores by Hessian traces of the task loss, for the mixed-precision baseline (HAWQ-V2, Dong et al. 2020)."""

from __future__ import annotations

import torch

from cfptq.allocation import ChannelScores, LayerScores, MeasuredScores
from cfptq.allocation.hessian_trace import compute_channel_trace_damage, estimate_channel_traces, estimate_hessian_traces
from cfptq.allocation.round_to_nearest import round_weight_to_nearest
from cfptq.network import DecisionRule, Network, infer_head
from cfptq.quantize import ALL_WIDTHS, Granularity
from cfptq.quantize.calibration_set import CalibrationSet


def score_by_task_hessian(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score each layer or channel at each width by the mean Hessian trace of the task loss in W_ℓ times ‖Ŵ_ℓ − W_ℓ‖², on the factual rows.

    Args:
        network: the full-precision model f.
        calibration: its factual rows are used. The teacher's decisions stand in for missing labels.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.
    """
    rows = calibration.factual
    with torch.no_grad():
        output = network(rows)
    known = decision or DecisionRule(infer_head(output))
    labels = known.decide(output)
    if calibration.labels is not None:
        given = calibration.labels[: len(rows)]
        labels = torch.where(given < 0, labels, given)
    share = torch.full((len(rows),), 1 / len(rows))
    if granularity == "channel":
        channels = estimate_channel_traces(network, rows, labels, share, decision=known, progress=progress)
        return ChannelScores.from_channel_damage(network, compute_channel_trace_damage(network, channels), "hessian trace of the task loss")
    traces = estimate_hessian_traces(network, rows, labels, share, decision=known, progress=progress)
    damage = []
    for layer, trace in zip(network.layers, traces.clamp_min(0).tolist(), strict=True):
        weight = network.weight(layer.name)
        damage.append(
            tuple(
                trace / layer.parameters * float((round_weight_to_nearest(weight, bits) - weight).double().square().sum())
                for bits in ALL_WIDTHS
            )
        )
    return MeasuredScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple(row[0] for row in damage),
        kind="hessian trace of the task loss",
        widths=ALL_WIDTHS,
        damage=tuple(damage),
    )
