"""Recourse: what a person can change to be decided otherwise, at what price (section 3.1, appendix A)."""

from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.descent import Descent
from cfptq.recourse.gradient import ProjectedGradient, projected_gradient
from cfptq.recourse.minimal import MinimalCost, minimal_cost
from cfptq.recourse.solver import METHODS, Method, solve
from cfptq.recourse.target import Target, TargetRule, opposite_class, runner_up_class, target_of_rows

__all__ = [
    "METHODS",
    "Descent",
    "Method",
    "MinimalCost",
    "ProjectedGradient",
    "RecourseBatch",
    "Target",
    "TargetRule",
    "minimal_cost",
    "opposite_class",
    "projected_gradient",
    "runner_up_class",
    "solve",
    "target_of_rows",
]
