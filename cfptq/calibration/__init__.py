"""Calibration data from a seeded sample of the user's loader and the full-precision model's recourse (appendix F)."""

from cfptq.calibration.counterfactual_points import PAPER_TEACHER, build_augmented_set, build_boundary_set, build_factual_set
from cfptq.calibration.loader_sampling import draw_rows
from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, HOLD_OUT_EVERY, CalibrationSet, hold_out_people, keep_first_points

__all__ = [
    "COUNTERFACTUAL",
    "FACTUAL",
    "HOLD_OUT_EVERY",
    "PAPER_TEACHER",
    "CalibrationSet",
    "build_augmented_set",
    "build_boundary_set",
    "build_factual_set",
    "draw_rows",
    "hold_out_people",
    "keep_first_points",
]
