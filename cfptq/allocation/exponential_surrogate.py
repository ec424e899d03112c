"""Exponential-surrogate score of Appendix L.5, whose damage halves with every bit."""

from __future__ import annotations

import torch

from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.gradient_norm import score_by_counterfactual_gradient
from cfptq.allocation.scores import LayerScores, MeasuredScores
from cfptq.network import DecisionRule, Network
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS, CHANNEL_WIDTHS, Granularity


def score_by_exponential_surrogate(
    network: Network,
    calibration: CalibrationSet,
    *,
    decision: DecisionRule | None = None,
    granularity: Granularity = "layer",
    progress: bool = True,
) -> LayerScores:
    """Score each layer or channel at each width by the exponential surrogate s̄ κ 2^-b (eq. 71).

    s̄ is the mean gradient norm at the counterfactual points (eqs. 23 and 79). κ is the radius that the integers span, because half a step
    of b bits is about radius 2^-b (eq. 59). Each channel has its own step, at which its largest weight is the radius. A layer's κ is the
    mean over its channels.

    Args:
        network: the full-precision network f.
        calibration: a set with counterfactual points x + δ and their targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        granularity: what is scored, a layer or an output channel.
        progress: show a bar when it takes long.

    Raises:
        DataError: the set holds no counterfactual points, or all of them have weight 0.
    """
    if granularity == "channel":
        points = score_by_counterfactual_gradient(network, calibration, decision=decision, granularity="channel", progress=progress)
        assert isinstance(points, ChannelScores)
        halving = torch.tensor([2.0**-bits for bits in CHANNEL_WIDTHS], dtype=torch.float64)
        channels = [
            torch.tensor(own, dtype=torch.float64) * network.weight(name).flatten(1).abs().amax(dim=1)
            for name, own in zip(points.names, points.channels, strict=True)
        ]
        return ChannelScores.from_channel_damage(network, [own[:, None] * halving for own in channels], "exponential surrogate")
    gradient = score_by_counterfactual_gradient(network, calibration, decision=decision, progress=progress)
    radius = [float(network.weight(name).flatten(1).abs().amax(dim=1).mean()) for name in gradient.names]
    damage = [[s * r * 2.0**-bits for bits in ALL_WIDTHS] for s, r in zip(gradient.scores, radius, strict=True)]
    return MeasuredScores.from_damage(network, damage, "exponential surrogate")
