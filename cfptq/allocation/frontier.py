"""The allocations of all budgets: from the lowest width everywhere to the highest."""

from __future__ import annotations

from collections.abc import Mapping

from cfptq.allocation.bit_allocation import Allocator, BitAllocation
from cfptq.allocation.budget import Budget, Widths, resolve_widths
from cfptq.allocation.scores import LayerScores
from cfptq.errors import BudgetError
from cfptq.quantize.formats import WIDTHS

#: Budgets tried between two whole numbers of bits.
STEPS_A_BIT = 4


def allocation_path(
    allocate: Allocator, scores: LayerScores, pinned: Mapping[str, int] | None = None, widths: Widths = WIDTHS
) -> list[BitAllocation]:
    """The allocations that ``allocate`` makes from 2 to 8 average bits in steps of a quarter, each once, by total bits.

    Raises:
        BudgetError: the pins cannot be met at any budget.
    """
    allocations: dict[tuple[int, ...], BitAllocation] = {}
    last = STEPS_A_BIT * WIDTHS[-1]
    for step in range(STEPS_A_BIT * WIDTHS[0], last + 1):
        try:
            allocation = allocate(scores, Budget.average(step / STEPS_A_BIT), widths, pinned)
        except BudgetError:
            if step == last:
                raise
            continue  # the pins need more
        allocations[allocation.bits] = allocation
    return sorted(allocations.values(), key=lambda allocation: allocation.total_bits)


def predict_damage(scores: LayerScores, allocation: BitAllocation, widths: Widths = WIDTHS) -> float:
    """What ``scores`` say that ``allocation`` loses against each layer's widest candidate, in their own unit."""
    widest = [own[-1] for own in resolve_widths(scores.names, widths)]
    among = sorted({*allocation.bits, *widest})
    worth = scores.benefits(among)
    chosen = zip(worth, allocation.bits, widest, strict=True)
    return sum(row[among.index(most)] - row[among.index(bits)] for row, bits, most in chosen)
