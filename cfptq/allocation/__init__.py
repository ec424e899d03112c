"""Which layer gets how many bits: scores, budgets, allocations (Section 4.3, eqs. 23 and 24)."""

from cfptq.allocation.allocate import Allocator, BitAllocation, greedy, uniform
from cfptq.allocation.budget import Budget, BudgetUnit, Widths, lowest_bits, stored_bytes
from cfptq.allocation.distance import output_distance
from cfptq.allocation.exact import exact
from cfptq.allocation.frontier import ladder, predicted_damage
from cfptq.allocation.gap import AllocationGap, allocation_gap
from cfptq.allocation.gradient import per_row_gradient_norms
from cfptq.allocation.hessian import hessian_trace, hessian_traces
from cfptq.allocation.measured import MeasuredScores, margin_change
from cfptq.allocation.scores import LayerScores, Score, counterfactual_gradient, factual_gradient
from cfptq.allocation.surrogate import exponential_surrogate, relaxed_bits

__all__ = [
    "AllocationGap",
    "Allocator",
    "BitAllocation",
    "Budget",
    "BudgetUnit",
    "LayerScores",
    "MeasuredScores",
    "Score",
    "Widths",
    "allocation_gap",
    "counterfactual_gradient",
    "exact",
    "exponential_surrogate",
    "factual_gradient",
    "greedy",
    "hessian_trace",
    "hessian_traces",
    "ladder",
    "lowest_bits",
    "margin_change",
    "output_distance",
    "per_row_gradient_norms",
    "predicted_damage",
    "relaxed_bits",
    "stored_bytes",
    "uniform",
]
