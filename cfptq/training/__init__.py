"""Counterfactual-faithful quantization by training, and the baselines that it is compared with (Section 4, Appendices B, C, E, G, H)."""

from cfptq.training.loop import Files, History, Search, Trainer
from cfptq.training.objective import Match, Objective
from cfptq.training.policy import BitCost, BitPolicy
from cfptq.training.presets import QAT_METHODS, QatMethod, as_qat_method
from cfptq.training.schedule import Schedule
from cfptq.training.student import Start, Student
from cfptq.training.supervision import Batch, Supervision, TeacherSettings, supervise
from cfptq.training.workers import Workers

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
