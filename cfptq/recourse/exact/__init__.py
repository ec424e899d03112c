"""Exact recourse of linear models and ReLU networks by linear and mixed-integer programs (appendix A.6)."""

from cfptq.recourse.exact.ball_bounds import BallBounds
from cfptq.recourse.exact.relu_encoding import Purpose, read_magnitudes, read_piecewise_linear
from cfptq.recourse.exact.settings import Exact
from cfptq.recourse.exact.solver import (
    capture_network,
    compare_with_artefact,
    compute_infeasibility_status,
    read_network,
    solve_exact,
)

__all__ = [
    "BallBounds",
    "Exact",
    "Purpose",
    "capture_network",
    "compare_with_artefact",
    "compute_infeasibility_status",
    "read_magnitudes",
    "read_network",
    "read_piecewise_linear",
    "solve_exact",
]
