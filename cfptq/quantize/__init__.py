"""Integer formats, ranges, rounding, the plan, and its fake-quantized torch twin."""

from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, SET_ASIDE, CalibrationSet, first_points, set_aside
from cfptq.quantize.compensate import compensated, prepare, rounded_quickly
from cfptq.quantize.cross_layer_equalization import equalized
from cfptq.quantize.fake_quantized import check_matches, fake_quantized_module, prepared
from cfptq.quantize.formats import (
    ALL_WIDTHS,
    FINE_ZERO,
    PORTABLE_WIDTHS,
    WIDTHS,
    ActivationFormat,
    container_bits,
    fake_quantize,
    integer_limit,
)
from cfptq.quantize.margin_rounding import margin_guided
from cfptq.quantize.partial_run import LayerByLayer, Recording
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.quantizer import Activations, InputBits, candidate_widths, equalized_for, layer_problem, quantize
from cfptq.quantize.reconstruct import LayerProblem, RoundedWeight, Rounding, nearest, nearest_on_full_range
from cfptq.quantize.row_sampling import affordable_rows
from cfptq.quantize.sweep import Aim, sweep_plan
from cfptq.quantize.variants import Variability, sample_variants

__all__ = [
    "ALL_WIDTHS",
    "COUNTERFACTUAL",
    "FACTUAL",
    "FINE_ZERO",
    "PORTABLE_WIDTHS",
    "SET_ASIDE",
    "WIDTHS",
    "ActivationFormat",
    "Activations",
    "Aim",
    "CalibrationSet",
    "InputBits",
    "LayerByLayer",
    "LayerPlan",
    "LayerProblem",
    "QuantizationPlan",
    "Recording",
    "RoundedWeight",
    "Rounding",
    "Variability",
    "affordable_rows",
    "candidate_widths",
    "check_matches",
    "compensated",
    "container_bits",
    "equalized",
    "equalized_for",
    "fake_quantize",
    "fake_quantized_module",
    "first_points",
    "integer_limit",
    "layer_problem",
    "margin_guided",
    "nearest",
    "nearest_on_full_range",
    "prepare",
    "prepared",
    "quantize",
    "rounded_quickly",
    "sample_variants",
    "set_aside",
    "sweep_plan",
]
