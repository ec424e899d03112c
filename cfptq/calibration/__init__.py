"""Calibration data: a seeded sample of the user's loader, and the teacher's counterfactual points (appendix F)."""

from cfptq.calibration.counterfactual_points import PAPER_TEACHER, augment, factual_only, near_boundary
from cfptq.calibration.loader_sampling import draw_rows
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, SET_ASIDE, CalibrationSet, first_points, set_aside

__all__ = [
    "COUNTERFACTUAL",
    "FACTUAL",
    "PAPER_TEACHER",
    "SET_ASIDE",
    "CalibrationSet",
    "augment",
    "draw_rows",
    "factual_only",
    "first_points",
    "near_boundary",
    "set_aside",
]
