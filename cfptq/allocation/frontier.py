"""Allocations at all budgets, from the lowest width everywhere to the highest."""

from __future__ import annotations

from collections.abc import Mapping

from cfptq.allocation.bit_allocation import Allocator, BitAllocation
from cfptq.allocation.budget import Budget, Widths, resolve_widths
from cfptq.allocation.channel_allocation import sum_channel_benefit
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.scores import LayerScores
from cfptq.allocation.uniform import allocate_uniformly
from cfptq.errors import BudgetError
from cfptq.quantize.formats import WIDTHS, Bits

#: Budgets that are tried for each bit.
STEPS_PER_BIT = 4


def allocation_path(
    allocate: Allocator, scores: LayerScores, pinned: Mapping[str, int] | None = None, widths: Widths = WIDTHS
) -> list[BitAllocation]:
    """Return the allocations at 2 to 8 average bits in steps of a quarter, each once, by total bits.

    Args:
        allocate: the allocator.
        scores: scores of the layers.
        pinned: width that a layer keeps, by layer name.
        widths: candidate widths in bits, the same for all layers or by layer name.

    Raises:
        BudgetError: no budget pays for the pins.
    """
    allocations: dict[tuple[Bits, ...], BitAllocation] = {}
    last = STEPS_PER_BIT * WIDTHS[-1]
    for step in range(STEPS_PER_BIT * WIDTHS[0], last + 1):
        try:
            allocation = allocate(scores, Budget.average(step / STEPS_PER_BIT), widths, pinned)
        except BudgetError:
            if step == last:
                raise
            continue  # the pins need more
        allocations[allocation.bits] = allocation
    return sorted(allocations.values(), key=lambda allocation: allocation.total_bits)


def predict_damage(scores: LayerScores, allocation: BitAllocation, widths: Widths = WIDTHS) -> float:
    """Predict the benefit that an allocation loses against each layer's widest candidate, in the unit of the scores.

    Args:
        scores: scores of the layers.
        allocation: widths of the same layers.
        widths: candidate widths in bits, the same for all layers or by layer name.
    """
    if isinstance(scores, ChannelScores):
        all_widest = Budget.total(sum(n * own[-1] for n, own in zip(scores.parameters, resolve_widths(scores.names, widths), strict=True)))
        widest_channels = allocate_uniformly(scores, all_widest, widths)
        return sum_channel_benefit(scores, widest_channels, widths) - sum_channel_benefit(scores, allocation, widths)
    widest = [own[-1] for own in resolve_widths(scores.names, widths)]
    own_widths = [bits for bits in allocation.bits if isinstance(bits, int)]
    all_widths = sorted({*own_widths, *widest})
    chosen = zip(scores.benefits(all_widths), own_widths, widest, strict=True)
    return sum(row[all_widths.index(most)] - row[all_widths.index(bits)] for row, bits, most in chosen)
