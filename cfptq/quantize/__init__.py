"""Integer formats, ranges, rounding, the plan, and its fake-quantized torch twin."""

from cfptq.quantize.compensate import compensated, prepare, rounded_quickly
from cfptq.quantize.equalize import equalized
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
from cfptq.quantize.margin import margin_guided
from cfptq.quantize.partial_run import LayerByLayer, Recording
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.quantizer import Activations, InputBits, candidate_widths, equalized_for, layer_problem, quantize
from cfptq.quantize.reconstruct import LayerProblem, RoundedWeight, Rounding, nearest, nearest_on_full_range
from cfptq.quantize.rows import affordable_rows, multiply_adds
from cfptq.quantize.sweep import Aim, swept
from cfptq.quantize.twin import check_matches, prepared, twin
from cfptq.quantize.variants import Variability, sample_variants

__all__ = [
    "ALL_WIDTHS",
    "FINE_ZERO",
    "PORTABLE_WIDTHS",
    "WIDTHS",
    "ActivationFormat",
    "Activations",
    "Aim",
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
    "integer_limit",
    "layer_problem",
    "margin_guided",
    "multiply_adds",
    "nearest",
    "nearest_on_full_range",
    "prepare",
    "prepared",
    "quantize",
    "rounded_quickly",
    "sample_variants",
    "swept",
    "twin",
]
