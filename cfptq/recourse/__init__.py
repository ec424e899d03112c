"""Solvers that find recourse for rows of a classifier (section 3.1, appendix A)."""

from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.diverse import solve_diverse
from cfptq.recourse.exact import Exact
from cfptq.recourse.gradient import ProjectedGradient, run_projected_gradient
from cfptq.recourse.gradient_free import GradientFree, search_without_gradient
from cfptq.recourse.infeasibility import prove_infeasibility
from cfptq.recourse.margin_descent import Descent
from cfptq.recourse.minimal_cost import MinimalCost, search_minimal_cost
from cfptq.recourse.robustness import WorstCasePredictor, check_validity, robust
from cfptq.recourse.single_feature import find_single_feature_actions
from cfptq.recourse.solver import METHODS, Method, name_method, solve
from cfptq.recourse.target import Target, TargetRule, opposite_class, resolve_target, runner_up_class
from cfptq.recourse.unrolled_gradient import unroll_projected_gradient

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
    "WorstCasePredictor",
    "check_validity",
    "find_single_feature_actions",
    "name_method",
    "opposite_class",
    "prove_infeasibility",
    "resolve_target",
    "robust",
    "run_projected_gradient",
    "runner_up_class",
    "search_minimal_cost",
    "search_without_gradient",
    "solve",
    "solve_diverse",
    "unroll_projected_gradient",
]
