"""Uniform allocation, one width for all layers."""

from __future__ import annotations

from collections.abc import Mapping

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.scores import LayerScores
from cfptq.quantize.formats import WIDTHS


def allocate_uniformly(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """Give all layers that are not pinned the widest width that the budget pays for.

    The width is the same for all channels of a layer, and none is dropped. Where layers have different candidates, all take the candidate
    at the same position.

    Args:
        scores: names and sizes of the layers. Their scores are not used.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, from 2 to 8, the same for all layers or by layer name.
        pinned: width that a layer keeps, by layer name.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    budget = Budget.of(budget)
    candidates = [[bits for bits in own if bits] for own in resolve_widths(scores.names, widths)]
    pins = dict(pinned or {})
    best = assign_lowest_bits(scores.names, scores.parameters, budget, widths, pins)
    for position in range(1, max(map(len, candidates))):
        bits = [pins.get(name, own[min(position, len(own) - 1)]) for name, own in zip(scores.names, candidates, strict=True)]
        if sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True)) <= budget.ceiling(scores.parameters):
            best = bits
    if isinstance(scores, ChannelScores):
        spread = tuple((width,) * len(own) for width, own in zip(best, scores.channels, strict=True))
        return BitAllocation(scores.names, scores.parameters, spread)
    return BitAllocation(scores.names, scores.parameters, tuple(best))
