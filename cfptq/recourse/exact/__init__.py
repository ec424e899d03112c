"""Exact recourse: linear models and ReLU networks as linear and mixed-integer programs (appendix A.6)."""

from cfptq.recourse.exact.engine import exact, missing_status, read_network
from cfptq.recourse.exact.settings import Exact

__all__ = ["Exact", "exact", "missing_status", "read_network"]
