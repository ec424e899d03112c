"""The exponential surrogate of Appendix L.5: damage that halves with every bit, and its optimum in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cfptq.allocation.margin_change import MeasuredScores
from cfptq.allocation.scores import score_by_counterfactual_gradient
from cfptq.errors import BudgetError
from cfptq.network import Head, Network
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS


def score_by_exponential_surrogate(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> MeasuredScores:
    """Eq. 71: s̄_l κ_l 2^-b for each layer and width.

    s̄_l is the mean gradient norm at the counterfactual points (eqs. 23 and 79). κ_l is the radius that the layer's integers span (half a
    step of b bits is about radius 2^-b, eq. 59): the largest weight of a channel, averaged over channels, each of which has its own step.

    Args, Raises: as :func:`cfptq.allocation.score_by_counterfactual_gradient`.
    """
    gradient = score_by_counterfactual_gradient(network, calibration, head=head, threshold=threshold, progress=progress)
    radius = [float(network.weight(name).flatten(1).abs().amax(dim=1).mean()) for name in gradient.names]
    damage = tuple(tuple(s * r * 2.0**-bits for bits in ALL_WIDTHS) for s, r in zip(gradient.scores, radius, strict=True))
    return MeasuredScores(
        names=gradient.names,
        parameters=gradient.parameters,
        scores=tuple(row[0] for row in damage),
        kind="exponential surrogate",
        widths=ALL_WIDTHS,
        damage=damage,
    )


def solve_relaxed_allocation(
    coefficients: Sequence[float], parameters: Sequence[int], average_bits: float, lowest: float = 0.0, highest: float = math.inf
) -> tuple[float, ...]:
    """The real-valued bits that minimize Σ c_l 2^-b_l under Σ n_l b_l ≤ B and lowest ≤ b_l ≤ highest (eqs. 71 to 75).

    b_l = log2(ln 2 · c_l / n_l) − log2 ν between the bounds (eq. 75). What is spent grows piecewise linearly as log2 ν falls, so the ν that
    spends B follows by interpolation between the points where a layer meets a bound. No discrete allocation within the bounds and the
    budget reaches a smaller sum, which makes this a check of the allocators.

    Args:
        coefficients: c_l = s̄_l κ_l, at least 0.
        parameters: n_l.
        average_bits: B / Σ n_l.
        lowest, highest: bounds of every b_l.

    Raises:
        BudgetError: not even ``lowest`` is affordable, or coefficients that are negative or not finite.
    """
    c, n = np.asarray(coefficients, dtype=float), np.asarray(parameters, dtype=float)
    if c.shape != n.shape or not (np.isfinite(c).all() and (c >= 0).all() and (n > 0).all()):
        raise BudgetError("the relaxed allocation needs one finite coefficient, at least 0, for each layer, and layers with weights")
    if not lowest <= average_bits or not lowest <= highest:
        raise BudgetError(f"an average of {average_bits} bits does not pay for the lowest width {lowest}, or exceeds what is allowed")
    budget = average_bits * n.sum()
    # No layer can have more bits than if all of the budget above the lowest width were its own.
    top = min(highest, lowest + (budget - lowest * n.sum()) / n.min())
    wish = np.log2(math.log(2) * np.maximum(c, np.finfo(float).tiny) / n)
    shifts = np.unique(np.concatenate((lowest - wish, top - wish)))
    spent = [float((n * np.clip(wish + shift, lowest, top)).sum()) for shift in shifts]
    shift = np.interp(budget, spent, shifts)
    return tuple(np.clip(wish + shift, lowest, top).tolist())
