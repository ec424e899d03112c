"""Quantization, from calibration rows and a width for each layer to a plan and its fake-quantized module."""

from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, HOLD_OUT_EVERY, CalibrationSet, hold_out_people, keep_first_points
from cfptq.quantize.compensate import factorize_hessian, round_at_widths, round_compensated
from cfptq.quantize.cross_layer_equalization import equalize_network
from cfptq.quantize.fake_quantized import check_matches, fake_quantize_network, quantize_weights
from cfptq.quantize.formats import (
    ALL_WIDTHS,
    FINE_ZERO_POINT,
    PORTABLE_WIDTHS,
    WIDTHS,
    ActivationFormat,
    container_bits,
    fake_quantize,
    integer_limit,
)
from cfptq.quantize.kept_structure import KeptStructure, count_kept_structure
from cfptq.quantize.margin_rounding import round_by_margins
from cfptq.quantize.partial_run import LayerwiseRun, RecordedRun
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.quantizer import Activations, InputBits, build_layer_problem, equalize_on_calibration, find_candidate_widths, quantize
from cfptq.quantize.reconstruct import round_nearest, round_nearest_full_range
from cfptq.quantize.rounding_rule import LayerProblem, RoundedWeight, Rounding
from cfptq.quantize.row_sampling import sample_affordable_rows
from cfptq.quantize.structure import STRUCTURE, SignBounds, check_keep
from cfptq.quantize.sweep import MarginTarget, sweep_plan
from cfptq.quantize.variants import Variability, sample_variants

__all__ = [
    "ALL_WIDTHS",
    "COUNTERFACTUAL",
    "FACTUAL",
    "FINE_ZERO_POINT",
    "HOLD_OUT_EVERY",
    "PORTABLE_WIDTHS",
    "STRUCTURE",
    "WIDTHS",
    "ActivationFormat",
    "Activations",
    "CalibrationSet",
    "InputBits",
    "KeptStructure",
    "LayerPlan",
    "LayerProblem",
    "LayerwiseRun",
    "MarginTarget",
    "QuantizationPlan",
    "RecordedRun",
    "RoundedWeight",
    "Rounding",
    "SignBounds",
    "Variability",
    "build_layer_problem",
    "check_keep",
    "check_matches",
    "container_bits",
    "count_kept_structure",
    "equalize_network",
    "equalize_on_calibration",
    "factorize_hessian",
    "fake_quantize",
    "fake_quantize_network",
    "find_candidate_widths",
    "hold_out_people",
    "integer_limit",
    "keep_first_points",
    "quantize",
    "quantize_weights",
    "round_at_widths",
    "round_by_margins",
    "round_compensated",
    "round_nearest",
    "round_nearest_full_range",
    "sample_affordable_rows",
    "sample_variants",
    "sweep_plan",
]
