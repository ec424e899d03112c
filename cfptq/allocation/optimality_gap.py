"""Optimality gap of the paper's greedy rule, against the exact allocation of the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, BudgetUnit, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.channel_allocation import build_channel_problem, sum_channel_benefit
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.greedy import allocate_greedily
from cfptq.allocation.knapsack import allocate_exactly
from cfptq.allocation.scores import LayerScores
from cfptq.quantize.formats import WIDTHS, Bits, widest_bits


@dataclass(frozen=True)
class AllocationGap:
    """Greedy and exact allocation of one budget, and the benefit of each by the same scores.

    Attributes:
        greedy: the greedy allocation.
        exact: the exact allocation.
        lowest_benefit: total benefit of the lowest widths, where both start.
        greedy_benefit: total benefit of the greedy allocation.
        exact_benefit: total benefit of the exact allocation.
        bound: benefit that no allocation exceeds. With thousands of channels it may be larger than ``exact_benefit``.
    """

    greedy: BitAllocation
    exact: BitAllocation
    lowest_benefit: float
    greedy_benefit: float
    exact_benefit: float
    bound: float

    @property
    def absolute(self) -> float:
        """Benefit that the greedy allocation lacks, in the unit of the scores."""
        return self.exact_benefit - self.greedy_benefit

    @property
    def relative(self) -> float:
        """The same as a share of the benefit that the budget can buy above the lowest widths. 0 where it buys none."""
        bought = self.exact_benefit - self.lowest_benefit
        return self.absolute / bought if bought > 0 else 0.0

    @property
    def distance_to_bound(self) -> float:
        """Share of the benefit that the budget can buy by which a better allocation could exceed the exact one, at most."""
        bought = self.bound - self.lowest_benefit
        return max(self.bound - self.exact_benefit, 0.0) / bought if bought > 0 else 0.0

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
    if isinstance(scores, ChannelScores):
        return _compare_channel_allocations(scores, Budget.of(budget), widths, pinned)
    greedy, exact = allocate_greedily(scores, budget, widths, pinned), allocate_exactly(scores, budget, widths, pinned)
    all_widths = sorted(set().union(*resolve_widths(scores.names, widths)))
    benefits = scores.benefits(all_widths)

    def total_benefit(bits: Sequence[Bits]) -> float:
        return sum(row[all_widths.index(widest_bits(width))] for row, width in zip(benefits, bits, strict=True))

    start, best = assign_lowest_bits(scores.names, scores.parameters, Budget.of(budget), widths, pinned), total_benefit(exact.bits)
    return AllocationGap(greedy, exact, total_benefit(start), total_benefit(greedy.bits), best, best)


def _compare_channel_allocations(scores: ChannelScores, budget: Budget, widths: Widths, pinned: Mapping[str, int] | None) -> AllocationGap:
    """Compare the allocations of widths to channels."""
    greedy, exact = allocate_greedily(scores, budget, widths, pinned), allocate_exactly(scores, budget, widths, pinned)
    # Which channels are dropped is taken as given. The bits of the columns that they feed count as saved.
    problem = build_channel_problem(replace(scores, fine_inputs=exact.fine_inputs), budget, widths, pinned, exact.kept_inputs)
    # The bytes of a file do not follow from the bits. The bound is then that of the bits that the exact allocation has.
    ceiling = exact.total_bits if budget.unit is BudgetUnit.BYTES else budget.ceiling(scores.parameters)
    return AllocationGap(
        greedy,
        exact,
        problem.sum_benefit(problem.lowest_kept),
        sum_channel_benefit(scores, greedy, widths),
        sum_channel_benefit(scores, exact, widths),
        problem.bound_benefit(ceiling),
    )
