"""Exact allocation, a multiple-choice knapsack solved by SciPy's HiGHS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.channel_allocation import ChannelProblem, allocate_channels
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.greedy import spend_remaining
from cfptq.allocation.scores import LayerScores
from cfptq.errors import BudgetError
from cfptq.quantize.formats import WIDTHS


def allocate_exactly(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """Find the allocation with the largest total benefit within the budget (eq. 24, or benefits measured at each width).

    The program has one binary variable for each layer and width, one width a layer, and one budget constraint. Budget that the optimum
    leaves over is spent on the layers with the largest score per weight. With scores of channels, each channel has a width. Where their
    number is too large for the optimum, ``compare_allocations`` tells how near the allocation is to it.

    Args:
        scores: scores whose ``cfptq.allocation.LayerScores.benefits`` are maximized.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, from 2 to 8, the same for all layers or by layer name.
        pinned: width that a layer keeps, by layer name.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    if isinstance(scores, ChannelScores):
        return allocate_channels(scores, budget, widths, pinned, ChannelProblem.choose_best)
    budget = Budget.of(budget)
    candidates = resolve_widths(scores.names, widths)
    assign_lowest_bits(scores.names, scores.parameters, budget, widths, pinned)  # refuses a budget that cannot be met
    pins = dict(pinned or {})
    all_widths = sorted(set().union(*candidates))
    is_candidate = np.array([[bits in own for bits in all_widths] for own in candidates])
    # A wider candidate has at least the benefit of a narrower one of the same layer.
    benefit = np.array(scores.benefits(all_widths))
    benefit = np.maximum.accumulate(np.where(is_candidate, benefit, benefit.min(axis=1, keepdims=True)), axis=1)
    cost = np.array([[budget.cost(n, bits) for bits in all_widths] for n in scores.parameters], dtype=float)
    scale = max(float(np.ptp(benefit, axis=1).max()), np.finfo(float).tiny)
    layers, choices = benefit.shape
    allowed = np.array([[pins.get(name, bits) == bits for bits in all_widths] for name in scores.names]) & is_candidate
    one_width_each = np.kron(np.eye(layers), np.ones(choices))
    solved = milp(
        -((benefit - benefit[:, :1]) / scale).ravel(),
        integrality=np.ones(layers * choices),
        bounds=Bounds(np.zeros(layers * choices), allowed.ravel().astype(float)),
        constraints=[
            LinearConstraint(one_width_each, 1, 1),
            LinearConstraint(cost.reshape(1, -1), -np.inf, budget.ceiling(scores.parameters)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise BudgetError(f"No allocation within {budget} was found ({solved.message}). Ask for a larger budget.")
    bits = [all_widths[choice] for choice in solved.x.reshape(layers, choices).argmax(axis=1)]
    return BitAllocation(scores.names, scores.parameters, tuple(spend_remaining(bits, scores, budget, candidates, pins)))
