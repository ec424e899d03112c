"""What the paper's greedy rule leaves on the table, against the exact allocation of the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfptq.allocation.bit_allocation import BitAllocation, allocate_greedily
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.knapsack import allocate_exactly
from cfptq.allocation.scores import LayerScores
from cfptq.quantize.formats import WIDTHS


@dataclass(frozen=True)
class AllocationGap:
    """Two allocations of one budget, and what each is worth by the same scores.

    Attributes:
        greedy, exact: the allocations.
        lowest_benefit: total benefit of the lowest widths, where both rules start.
        greedy_benefit, exact_benefit: total benefit of each.
    """

    allocate_greedily: BitAllocation
    allocate_exactly: BitAllocation
    lowest_benefit: float
    greedy_benefit: float
    exact_benefit: float

    @property
    def absolute(self) -> float:
        """How much more the exact allocation is worth, in the scores' own unit."""
        return self.exact_benefit - self.greedy_benefit

    @property
    def relative(self) -> float:
        """The same as a share of all that the budget can buy above the lowest widths; 0 where it buys nothing."""
        bought = self.exact_benefit - self.lowest_benefit
        return self.absolute / bought if bought > 0 else 0.0

    def __str__(self) -> str:
        if self.absolute <= 0:
            return "the greedy rule finds as good an allocation"
        return f"the greedy rule ({self.greedy}) leaves {self.relative:.1%} of what the budget can buy"


def compare_allocations(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> AllocationGap:
    """Spend ``budget`` by the greedy rule (eq. 24) and exactly, and compare what both are worth. Arguments as both allocators'.

    Raises:
        BudgetError: as :func:`cfptq.allocation.allocate_greedily`.
    """
    rule, optimum = allocate_greedily(scores, budget, widths, pinned), allocate_exactly(scores, budget, widths, pinned)
    ladder = sorted(set().union(*resolve_widths(scores.names, widths)))
    worth = scores.benefits(ladder)

    def benefit(bits: Sequence[int]) -> float:
        return sum(row[ladder.index(width)] for row, width in zip(worth, bits, strict=True))

    start = assign_lowest_bits(scores.names, scores.parameters, Budget.of(budget), widths, pinned)
    return AllocationGap(rule, optimum, benefit(start), benefit(rule.bits), benefit(optimum.bits))
