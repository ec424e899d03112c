"""Optimality gap of the paper's greedy rule, against the exact allocation of the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.greedy import allocate_greedily
from cfptq.allocation.knapsack import allocate_exactly
from cfptq.allocation.scores import LayerScores
from cfptq.quantize.formats import WIDTHS


@dataclass(frozen=True)
class AllocationGap:
    """Greedy and exact allocation of one budget, and the benefit of each by the same scores.

    Attributes:
        greedy: the greedy allocation.
        exact: the exact allocation.
        lowest_benefit: total benefit of the lowest widths, where both start.
        greedy_benefit: total benefit of the greedy allocation.
        exact_benefit: total benefit of the exact allocation.
    """

    greedy: BitAllocation
    exact: BitAllocation
    lowest_benefit: float
    greedy_benefit: float
    exact_benefit: float

    @property
    def absolute(self) -> float:
        """Benefit that the greedy allocation lacks, in the unit of the scores."""
        return self.exact_benefit - self.greedy_benefit

    @property
    def relative(self) -> float:
        """The same as a share of the benefit that the budget can buy above the lowest widths. 0 where it buys none."""
        bought = self.exact_benefit - self.lowest_benefit
        return self.absolute / bought if bought > 0 else 0.0

    def __str__(self) -> str:
        if self.absolute <= 0:
            return "the greedy rule finds as good an allocation"
        return f"the greedy rule ({self.greedy}) leaves {self.relative:.1%} of what the budget can buy"


def compare_allocations(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> AllocationGap:
    """Spend a budget greedily (eq. 24) and exactly, and compare the benefits.

    Args:
        scores: scores of the layers.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, the same for all layers or by layer name.
        pinned: width that a layer keeps, by layer name.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    greedy, exact = allocate_greedily(scores, budget, widths, pinned), allocate_exactly(scores, budget, widths, pinned)
    all_widths = sorted(set().union(*resolve_widths(scores.names, widths)))
    benefits = scores.benefits(all_widths)

    def total_benefit(bits: Sequence[int]) -> float:
        return sum(row[all_widths.index(width)] for row, width in zip(benefits, bits, strict=True))

    start = assign_lowest_bits(scores.names, scores.parameters, Budget.of(budget), widths, pinned)
    return AllocationGap(greedy, exact, total_benefit(start), total_benefit(greedy.bits), total_benefit(exact.bits))
