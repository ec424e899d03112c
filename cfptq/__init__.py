"""Quantize a classifier without breaking the recourse that people were promised.

Every name is loaded when it is first used, so that ``import cfptq`` is fast and needs no optional toolchain.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cfptq import errors
from cfptq.errors import CfptqError

if TYPE_CHECKING:
    from cfptq import actions, allocation, auditing, backends, calibration, datasets, metrics, models, network, quantize, recourse, training
    from cfptq.actions import ActionSet
    from cfptq.allocation import Budget
    from cfptq.api import audit, calibrate, compare, load, qat, tuning_score
    from cfptq.auditing import AuditReport
    from cfptq.pipeline.comparison import Comparison
    from cfptq.pipeline.method import Method
    from cfptq.pipeline.result import Result

__version__ = "0.1.0.dev0"

__all__ = [
    "ActionSet",
    "AuditReport",
    "Budget",
    "CfptqError",
    "Comparison",
    "Method",
    "Result",
    "__version__",
    "actions",
    "allocation",
    "audit",
    "auditing",
    "backends",
    "calibrate",
    "calibration",
    "compare",
    "datasets",
    "errors",
    "load",
    "metrics",
    "models",
    "network",
    "qat",
    "quantize",
    "recourse",
    "training",
    "tuning_score",
]

#: Public name -> the module that defines it.
_HOMES = {
    "ActionSet": "cfptq.actions",
    "AuditReport": "cfptq.auditing",
    "Budget": "cfptq.allocation",
    "Comparison": "cfptq.pipeline.comparison",
    "Method": "cfptq.pipeline.method",
    "Result": "cfptq.pipeline.result",
    "audit": "cfptq.api",
    "calibrate": "cfptq.api",
    "compare": "cfptq.api",
    "load": "cfptq.api",
    "qat": "cfptq.api",
    "tuning_score": "cfptq.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
