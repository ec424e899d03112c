"""Exponential-surrogate score of Appendix L.5, whose damage halves with every bit."""

from __future__ import annotations

from cfptq.allocation.gradient_norm import score_by_counterfactual_gradient
from cfptq.allocation.scores import MeasuredScores
from cfptq.network import DecisionRule, Network
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS


def score_by_exponential_surrogate(
    network: Network, calibration: CalibrationSet, *, decision: DecisionRule | None = None, progress: bool = True
) -> MeasuredScores:
    """Score each layer and width by the exponential surrogate s̄_l κ_l 2^-b (eq. 71).

    s̄_l is the mean gradient norm at the counterfactual points (eqs. 23 and 79). κ_l is the radius that the layer's integers span, because
    half a step of b bits is about radius 2^-b (eq. 59). Each channel has its own step, so that κ_l is the mean over channels of their
    largest weight.

    Args:
        network: the full-precision network f.
        calibration: a set with counterfactual points x + δ and their targets.
        decision: head of the network's raw output and decision threshold. None infers the head.
        progress: show a bar when it takes long.

    Raises:
        DataError: the set holds no counterfactual points, or all of them have weight 0.
    """
    gradient = score_by_counterfactual_gradient(network, calibration, decision=decision, progress=progress)
    radius = [float(network.weight(name).flatten(1).abs().amax(dim=1).mean()) for name in gradient.names]
    damage = [[s * r * 2.0**-bits for bits in ALL_WIDTHS] for s, r in zip(gradient.scores, radius, strict=True)]
    return MeasuredScores.from_damage(network, damage, "exponential surrogate")
