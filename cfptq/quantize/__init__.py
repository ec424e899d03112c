"""Quantization, from calibration rows and a width for each layer to a plan and its fake-quantized module."""

from cfptq.quantize.calibration_set import COUNTERFACTUAL, FACTUAL, HOLD_OUT_EVERY, CalibrationSet, hold_out_people, keep_first_points
from cfptq.quantize.channel_order import find_sortable_layers, sort_channels
from cfptq.quantize.compensate import factorize_hessian, round_at_widths, round_compensated
from cfptq.quantize.cross_layer_equalization import equalize_network
from cfptq.quantize.fake_quantized import check_matches, fake_quantize_network, quantize_weights
from cfptq.quantize.formats import (
    ALL_WIDTHS,
    CHANNEL_WIDTHS,
    FINE_ZERO_POINT,
    PORTABLE_WIDTHS,
    WIDTHS,
    ActivationFormat,
    Bits,
    Granularity,
    average_bits,
    container_bits,
    count_bits,
    count_channels,
    describe_bits,
    fake_quantize,
    integer_limit,
    integer_limits,
    layer_widths,
    narrowest_bits,
    read_bits,
    spread_bits,
    summarize_bits,
    widest_bits,
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
    "CHANNEL_WIDTHS",
    "COUNTERFACTUAL",
    "FACTUAL",
    "FINE_ZERO_POINT",
    "HOLD_OUT_EVERY",
    "PORTABLE_WIDTHS",
    "STRUCTURE",
    "WIDTHS",
    "ActivationFormat",
    "Activations",
    "Bits",
    "CalibrationSet",
    "Granularity",
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
    "average_bits",
    "build_layer_problem",
    "check_keep",
    "check_matches",
    "container_bits",
    "count_bits",
    "count_channels",
    "count_kept_structure",
    "describe_bits",
    "equalize_network",
    "equalize_on_calibration",
    "factorize_hessian",
    "fake_quantize",
    "fake_quantize_network",
    "find_candidate_widths",
    "find_sortable_layers",
    "hold_out_people",
    "integer_limit",
    "integer_limits",
    "keep_first_points",
    "layer_widths",
    "narrowest_bits",
    "quantize",
    "quantize_weights",
    "read_bits",
    "round_at_widths",
    "round_by_margins",
    "round_compensated",
    "round_nearest",
    "round_nearest_full_range",
    "sample_affordable_rows",
    "sample_variants",
    "sort_channels",
    "spread_bits",
    "summarize_bits",
    "sweep_plan",
    "widest_bits",
]
