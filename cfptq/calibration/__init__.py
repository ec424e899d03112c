"""Calibration data: a seeded sample of the user's loader, and the teacher's counterfactual points (appendix F)."""

from cfptq.calibration.calibration_set import COUNTERFACTUAL, FACTUAL, CalibrationSet
from cfptq.calibration.draw import draw_rows
from cfptq.calibration.split import SET_ASIDE, set_aside, with_recourse
from cfptq.calibration.teacher import PAPER_TEACHER, augment, factual_only, near_boundary

__all__ = [
    "COUNTERFACTUAL",
    "FACTUAL",
    "PAPER_TEACHER",
    "SET_ASIDE",
    "CalibrationSet",
    "augment",
    "draw_rows",
    "factual_only",
    "near_boundary",
    "set_aside",
    "with_recourse",
]
