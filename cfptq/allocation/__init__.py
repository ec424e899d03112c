"""Which layer gets how many bits: scores, budgets, allocations (Section 4.3, eqs. 23 and 24)."""

from cfptq.allocation.allocate import Allocator, BitAllocation, greedy, uniform
from cfptq.allocation.budget import Budget, BudgetUnit, stored_bytes
from cfptq.allocation.exact import exact
from cfptq.allocation.gradient import per_row_gradient_norms
from cfptq.allocation.measured import MeasuredScores, margin_change
from cfptq.allocation.scores import LayerScores, Score, counterfactual_gradient, factual_gradient

__all__ = [
    "Allocator",
    "BitAllocation",
    "Budget",
    "BudgetUnit",
    "LayerScores",
    "MeasuredScores",
    "Score",
    "counterfactual_gradient",
    "exact",
    "factual_gradient",
    "greedy",
    "margin_change",
    "per_row_gradient_norms",
    "stored_bytes",
    "uniform",
]
