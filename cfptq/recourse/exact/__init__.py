"""Exact recourse: linear models and ReLU networks as linear and mixed-integer programs (appendix A.6)."""

from cfptq.recourse.exact.settings import Exact
from cfptq.recourse.exact.solver import exact, missing_status, read_network

__all__ = ["Exact", "exact", "missing_status", "read_network"]
