"""Integer formats, ranges, rounding, the plan, and its fake-quantized torch twin."""

from cfptq.quantize.formats import PORTABLE_LIMIT, WIDTHS, ActivationFormat, container_bits, fake_quantize, integer_limit
from cfptq.quantize.plan import LayerPlan, QuantizationPlan
from cfptq.quantize.quantizer import Activations, quantize
from cfptq.quantize.reconstruct import LayerProblem, RoundedWeight, Rounding, nearest, nearest_on_full_range
from cfptq.quantize.twin import check_matches, prepared, twin

__all__ = [
    "PORTABLE_LIMIT",
    "WIDTHS",
    "ActivationFormat",
    "Activations",
    "LayerPlan",
    "LayerProblem",
    "QuantizationPlan",
    "RoundedWeight",
    "Rounding",
    "check_matches",
    "container_bits",
    "fake_quantize",
    "integer_limit",
    "nearest",
    "nearest_on_full_range",
    "prepared",
    "quantize",
    "twin",
]
