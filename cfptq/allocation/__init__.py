"""Which layer gets how many bits: scores, budgets, allocations (Section 4.3, eqs. 23 and 24)."""

from cfptq.allocation.bit_allocation import Allocator, BitAllocation, greedy, uniform
from cfptq.allocation.budget import Budget, BudgetUnit, Widths, lowest_bits, stored_bytes
from cfptq.allocation.exponential_surrogate import exponential_surrogate, relaxed_bits
from cfptq.allocation.frontier import allocation_path, predicted_damage
from cfptq.allocation.gradient_norm import per_row_gradient_norms
from cfptq.allocation.hessian_trace import hessian_trace, hessian_traces
from cfptq.allocation.knapsack import exact
from cfptq.allocation.margin_change import MeasuredScores, margin_change
from cfptq.allocation.optimality_gap import AllocationGap, allocation_gap
from cfptq.allocation.output_distance import output_distance
from cfptq.allocation.scores import LayerScores, Score, counterfactual_gradient, factual_gradient

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
    "allocation_path",
    "counterfactual_gradient",
    "exact",
    "exponential_surrogate",
    "factual_gradient",
    "greedy",
    "hessian_trace",
    "hessian_traces",
    "lowest_bits",
    "margin_change",
    "output_distance",
    "per_row_gradient_norms",
    "predicted_damage",
    "relaxed_bits",
    "stored_bytes",
    "uniform",
]
