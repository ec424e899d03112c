"""Calibration data: a seeded sample of the user's loader, and the teacher's counterfactual points (appendix F)."""

from cfptq.calibration.counterfactual_points import PAPER_TEACHER, augment, factual_only, near_boundary
from cfptq.calibration.loader_sampling import draw_rows
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, HOLD_OUT_EVERY, CalibrationSet, hold_out_people, keep_first_points

__all__ = [
    "COUNTERFACTUAL",
    "FACTUAL",
    "HOLD_OUT_EVERY",
    "PAPER_TEACHER",
    "CalibrationSet",
    "augment",
    "draw_rows",
    "factual_only",
    "hold_out_people",
    "keep_first_points",
    "near_boundary",
]
