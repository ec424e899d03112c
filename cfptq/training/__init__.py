"""Counterfactual-faithful quantization by training, and its baselines (Section 4, Appendices B, C, E, G, H)."""

from cfptq.training.bit_policy import BitCost, BitPolicy
from cfptq.training.distributed import Workers
from cfptq.training.history import History
from cfptq.training.objective import Match, Objective
from cfptq.training.presets import QAT_METHODS, QatMethod, as_qat_method
from cfptq.training.run_files import RunFiles
from cfptq.training.schedule import Schedule
from cfptq.training.student import Start, Student
from cfptq.training.supervision import Batch, Supervision, TeacherSettings, supervise
from cfptq.training.trainer import PolicySearch, Trainer

__all__ = [
    "QAT_METHODS",
    "Batch",
    "BitCost",
    "BitPolicy",
    "History",
    "Match",
    "Objective",
    "PolicySearch",
    "QatMethod",
    "RunFiles",
    "Schedule",
    "Start",
    "Student",
    "Supervision",
    "TeacherSettings",
    "Trainer",
    "Workers",
    "as_qat_method",
    "supervise",
]
