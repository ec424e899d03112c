"""Which layer gets how many bits: scores, budgets, allocations (Section 4.3, eqs. 23 and 24)."""

from cfptq.allocation.allocate import Allocator, BitAllocation, greedy, uniform
from cfptq.allocation.budget import Budget, BudgetUnit, stored_bytes
from cfptq.allocation.gradient import per_row_gradient_norms
from cfptq.allocation.scores import LayerScores, Score, counterfactual_gradient, factual_gradient

__all__ = [
    "Allocator",
    "BitAllocation",
    "Budget",
    "BudgetUnit",
    "LayerScores",
    "Score",
    "counterfactual_gradient",
    "factual_gradient",
    "greedy",
    "per_row_gradient_norms",
    "stored_bytes",
    "uniform",
]
