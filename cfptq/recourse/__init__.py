"""Recourse: what a person can change to be decided otherwise, at what price (section 3.1, appendix A)."""

from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.diverse import diverse
from cfptq.recourse.exact import Exact
from cfptq.recourse.gradient import ProjectedGradient, projected_gradient
from cfptq.recourse.gradient_free import GradientFree, search_without_gradient
from cfptq.recourse.infeasibility import prove_missing
from cfptq.recourse.margin_descent import Descent
from cfptq.recourse.minimal_cost import MinimalCost, minimal_cost
from cfptq.recourse.robustness import WorstOf, holds, robust
from cfptq.recourse.single_feature import single_feature
from cfptq.recourse.solver import METHODS, Method, solve
from cfptq.recourse.target import Target, TargetRule, opposite_class, runner_up_class, target_of_rows
from cfptq.recourse.unrolled_gradient import unrolled

__all__ = [
    "METHODS",
    "Descent",
    "Exact",
    "GradientFree",
    "Method",
    "MinimalCost",
    "ProjectedGradient",
    "RecourseBatch",
    "Status",
    "Target",
    "TargetRule",
    "WorstOf",
    "diverse",
    "holds",
    "minimal_cost",
    "opposite_class",
    "projected_gradient",
    "prove_missing",
    "robust",
    "runner_up_class",
    "search_without_gradient",
    "single_feature",
    "solve",
    "target_of_rows",
    "unrolled",
]
