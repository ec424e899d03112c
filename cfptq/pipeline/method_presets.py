"""Methods of quantization by name, the default and the paper's training-free variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from cfptq.errors import ConfigurationError
from cfptq.pipeline.method import Method
from cfptq.quantize import Activations

#: The default.
FAITHFUL = Method(
    "faithful",
    rows="boundary",
    score="margin",
    allocator="exact",
    rounding="margin",
    activations=Activations(input_bits=None, clip=False),
    equalize=True,
    sequential=True,
    drops_extreme_rows=True,
)

#: Preset name -> method: the default "faithful", the same with a width for each output channel, and the paper's training-free variants
#: (Appendix F).
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            FAITHFUL,
            replace(FAITHFUL, name="faithful-channel", granularity="channel"),
            Method("ptq", rows="factual", score="factual", allocator="uniform"),
            Method("mixed-ptq", rows="factual", score="factual"),
            Method("cf-ptq-calibration", rows="augmented", score="factual"),
            Method("cf-ptq-allocation", rows="factual", score="counterfactual"),
            Method("cf-ptq", rows="augmented", score="counterfactual"),
        )
    }
)

#: ``faithful`` with what brings rounding nearer to the boundary: rows on both of its sides, activation ranges by the error of margins, and
#: a sweep on the real margins. Single-feature points stand for minimal-cost ones, which take most of the time.
#: ``benchmarks/rounding.py`` measures each of them.
BOUNDARY_ROUNDING = replace(
    FAITHFUL,
    name="boundary-rounding",
    both_sides=True,
    minimal_cost_points=False,
    activations=Activations(input_bits=None, clip=False, margin_ranges=True),
    sweeps=1,
)


def as_method(method: str | Method) -> Method:
    """Return the preset of that name, or the method itself.

    Raises:
        ConfigurationError: no preset has that name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ConfigurationError(f"method must be a preset's name or a cfptq.Method, got {method!r}. Choose one of {', '.join(METHODS)}.")
    return METHODS[method]
