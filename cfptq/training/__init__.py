"""Counterfactual-faithful quantization by training, and the baselines that it is compared with (Section 4, Appendices B, C, E, G, H)."""

from cfptq.training.bit_policy import BitCost, BitPolicy
from cfptq.training.distributed import Workers
from cfptq.training.objective import Match, Objective
from cfptq.training.presets import QAT_METHODS, QatMethod, as_qat_method
from cfptq.training.schedule import Schedule
from cfptq.training.student import Start, Student
from cfptq.training.supervision import Batch, Supervision, TeacherSettings, supervise
from cfptq.training.trainer import Files, History, Search, Trainer

__all__ = [
    "QAT_METHODS",
    "Batch",
    "BitCost",
    "BitPolicy",
    "Files",
    "History",
    "Match",
    "Objective",
    "QatMethod",
    "Schedule",
    "Search",
    "Start",
    "Student",
    "Supervision",
    "TeacherSettings",
    "Trainer",
    "Workers",
    "as_qat_method",
    "supervise",
]
