"""Bit allocation, with layer scores, budgets and allocators (Section 4.3, eqs. 23 and 24)."""

from cfptq.allocation.bit_allocation import Allocator, BitAllocation
from cfptq.allocation.budget import Budget, BudgetUnit, Widths, assign_lowest_bits, count_stored_bytes
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.exponential_surrogate import score_by_exponential_surrogate
from cfptq.allocation.frontier import allocation_path, predict_damage
from cfptq.allocation.gradient_norm import score_by_counterfactual_gradient, score_by_factual_gradient
from cfptq.allocation.greedy import allocate_greedily
from cfptq.allocation.hessian_trace import compute_trace_damage, estimate_hessian_traces, score_by_hessian_trace
from cfptq.allocation.knapsack import allocate_exactly
from cfptq.allocation.margin_change import score_by_margin_change
from cfptq.allocation.optimality_gap import AllocationGap, compare_allocations
from cfptq.allocation.output_distance import score_by_output_distance
from cfptq.allocation.per_row_gradients import compute_gradient_norms
from cfptq.allocation.relaxed_allocation import solve_relaxed_allocation
from cfptq.allocation.scores import LayerScores, MeasuredScores, Score
from cfptq.allocation.uniform import allocate_uniformly

__all__ = [
    "AllocationGap",
    "Allocator",
    "BitAllocation",
    "Budget",
    "BudgetUnit",
    "ChannelScores",
    "LayerScores",
    "MeasuredScores",
    "Score",
    "Widths",
    "allocate_exactly",
    "allocate_greedily",
    "allocate_uniformly",
    "allocation_path",
    "assign_lowest_bits",
    "compare_allocations",
    "compute_gradient_norms",
    "compute_trace_damage",
    "count_stored_bytes",
    "estimate_hessian_traces",
    "predict_damage",
    "score_by_counterfactual_gradient",
    "score_by_exponential_surrogate",
    "score_by_factual_gradient",
    "score_by_hessian_trace",
    "score_by_margin_change",
    "score_by_output_distance",
    "solve_relaxed_allocation",
]
