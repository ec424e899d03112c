"""Exact recourse of linear models and ReLU networks by linear and mixed-integer programs (appendix A.6)."""

from cfptq.recourse.exact.settings import Exact
from cfptq.recourse.exact.solver import compute_infeasibility_status, read_network, solve_exact

__all__ = ["Exact", "compute_infeasibility_status", "read_network", "solve_exact"]
