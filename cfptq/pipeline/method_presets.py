"""Methods of quantization by name, the default and the paper's training-free variants."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cfptq.errors import ConfigurationError
from cfptq.pipeline.method import Method
from cfptq.quantize import Activations

#: The default. ``benchmarks/rounding.py`` measures each of its parts.
FAITHFUL = Method(
    "faithful",
    rows="boundary",
    score="margin",
    granularity="channel",
    allocator="exact",
    rounding="margin",
    activations=Activations(input_bits=None, clip=False, margin_ranges=True),
    minimal_cost_points=False,
    both_sides=True,
    drops_channels=True,
    split_inputs=True,
    equalize=True,
    equalization_exponent=0.75,
    sequential=True,
    sweeps=2,
    drops_extreme_rows=True,
)

#: Preset name -> method: the default "faithful", and the paper's training-free variants (Appendix F).
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            FAITHFUL,
            Method("ptq", rows="factual", score="factual", allocator="uniform"),
            Method("mixed-ptq", rows="factual", score="factual"),
            Method("cf-ptq-calibration", rows="augmented", score="factual"),
            Method("cf-ptq-allocation", rows="factual", score="counterfactual"),
            Method("cf-ptq", rows="augmented", score="counterfactual"),
        )
    }
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
