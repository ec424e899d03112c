"""Hand-over of a plan to PyTorch FX as a ``QConfigMapping`` for ``prepare_fx`` and ``convert_fx``.

Call ``observed = prepare_fx(result.prepared_model(), result.qconfig_mapping(), (rows,))``, run one batch through ``observed``, then call
``convert_fx(observed)`` and ``check_coverage``. A layer whose rounded output goes to planned layers only becomes an integer kernel.
FX has no integer kernels with a float output. The other layers become its reference modules, which hold the integers and compute in
float. An input in float or in two steps stays in float.

Checked with torch 2.13. PyTorch has announced the removal of these functions. Use PT2E with a torch that lacks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn

from cfptq.backends.prepared_model import Edge, build_float_module, calibrate_observers, check_weight, find_edges
from cfptq.errors import MissingDependencyError, ModelError
from cfptq.network import Network
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan

try:
    from torch.ao.nn.intrinsic.modules.fused import _FusedModule
    from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule
    from torch.ao.nn.quantized.reference.modules.utils import ReferenceQuantizedModule
    from torch.ao.quantization import QConfig, QConfigMapping, get_default_qconfig_mapping
    from torch.ao.quantization.observer import ObserverBase
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
except Exception as error:  # Packages of versions that do not fit each other fail with any error.
    raise MissingDependencyError(
        f"torch {torch.__version__} no longer has FX graph mode quantization (torch.ao.quantization.quantize_fx). "
        "Use result.pt2e_quantizer(), after pip install 'cfptq[pt2e]'."
    ) from error

__all__ = ["build_qconfig_mapping", "check_coverage", "convert_fx", "prepare_fx", "quantize_by_default", "read_integers"]


class PlannedActivation(ObserverBase):
    """Observer whose scale and zero point are the plan's, whatever it sees."""

    def __init__(self, form: ActivationFormat) -> None:
        super().__init__(torch.quint8)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = 0, form.highest
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the plan's scale and zero point."""
        return torch.tensor([self.form.scale]), torch.tensor([self.form.zero_point])


class FloatActivation(ObserverBase):
    """Observer of a tensor that the plan keeps in float, where FX requires an observer.

    FX quantizes a layer only if its observers have an 8-bit dtype when the model is prepared. It leaves a tensor in float only if its
    observer has a float dtype when the model is converted. This observer therefore changes its dtype on the first batch.
    """

    def __init__(self) -> None:
        super().__init__(torch.quint8)
        self.qscheme = torch.per_tensor_affine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.dtype = torch.float32
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise ModelError, because FX asks for a float tensor's scale only if the observer has seen no batch."""
        raise ModelError("The model that prepare_fx returned has seen no rows. Before convert_fx, run one batch through it.")


class PlannedWeight(ObserverBase):
    """Observer of one layer's weight that returns the plan's scales and refuses any other weight."""

    def __init__(self, layer: LayerPlan) -> None:
        super().__init__(torch.qint8)
        self.qscheme = torch.per_channel_symmetric
        self.ch_axis = 0
        # convert_fx ignores the range and clips to -128..127; the plan's integers are within the narrow range by themselves.
        self.quant_min, self.quant_max = -128, 127
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_weight(self.layer, x)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the plan's scales, and zero points of 0."""
        return self.layer.scale, torch.zeros(len(self.layer.scale), dtype=torch.int64)


class _ObserverFactory:
    """Callable that makes observers for FX, and a class so that qconfigs can be compared and copied."""

    def __init__(self, kind: type[ObserverBase], *arguments: Any) -> None:
        self.kind = kind
        self.arguments = arguments

    def __call__(self) -> ObserverBase:
        return self.kind(*self.arguments)

    def __deepcopy__(self, memo: object) -> _ObserverFactory:
        return self


def build_qconfig_mapping(network: Network, plan: QuantizationPlan) -> QConfigMapping:
    """Build the ``QConfigMapping`` for ``prepare_fx``, by the names of the prepared model's modules.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.

    Raises:
        ModelError: the plan has 16-bit activations, which FX does not support.
    """
    wide = [form.tensor for form in plan.activations if form.bits == 16 and form.is_affine]
    if wide:
        raise ModelError(
            f"PyTorch FX has no 16-bit activations, and the plan has them for {', '.join(wide)}. Calibrate with activation_bits=8 and "
            "input_bits=8 or 32, or use result.to_onnx() or result.pt2e_quantizer()."
        )
    edges = find_edges(network, plan)
    rounded = {edge.producer: edge for edge in edges if edge.producer}
    mapping = QConfigMapping().set_global(None)
    for edge in edges:
        if edge.producer is None:
            # FX asks for a weight observer although an Identity has no weight.
            mapping.set_module_name(edge.name, _build_qconfig(_build_activation_observer(edge), plan.layers[0]))
    for layer in plan.layers:
        mapping.set_module_name(layer.name, _build_qconfig(_build_activation_observer(rounded.get(layer.name)), layer))
    return mapping


def _build_qconfig(activation: _ObserverFactory, layer: LayerPlan) -> QConfig:
    return QConfig(activation, _ObserverFactory(PlannedWeight, layer))  # type: ignore[no-untyped-call]


def _build_activation_observer(edge: Edge | None) -> _ObserverFactory:
    if edge is None or not edge.form.is_affine:
        return _ObserverFactory(FloatActivation)
    return _ObserverFactory(PlannedActivation, edge.form)


def quantize_by_default(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """Quantize ``network`` by FX with its default settings for x86.

    Args:
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
    """
    observed = prepare_fx(build_float_module(network), get_default_qconfig_mapping("x86"), (rows[:2],))
    calibrate_observers(observed, rows)
    converted: fx.GraphModule = convert_fx(observed)
    return converted


def read_integers(converted: nn.Module) -> dict[str, torch.Tensor]:
    """Return the int8 integers of every layer that ``convert_fx`` quantized, by the layer's name."""
    return {name: weight.int_repr() for name, weight in _iterate_weights(converted)}


def _iterate_weights(converted: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield quantized weights with their layers' names, also from modules that are fused with a ReLU."""
    fused = {f"{name}.0": name for name, module in converted.named_modules() if isinstance(module, _FusedModule)}
    for name, module in converted.named_modules():
        if isinstance(module, ReferenceQuantizedModule):  # holds a float weight and its format
            yield fused.get(name, name), cast(Any, module).get_quantized_weight()
        elif isinstance(module, WeightedQuantizedModule):
            yield name, cast(Any, module).weight()


def _read_formats(converted: fx.GraphModule) -> set[tuple[float, int]]:
    """Return scale and zero point of every tensor that ``converted`` rounds."""
    formats = set()
    for node in converted.graph.nodes:
        if node.target is torch.quantize_per_tensor:
            scale, zero_point = (getattr(converted, str(argument.target)) for argument in node.args[1:3])
            formats.add((float(scale), int(zero_point)))
    for module in converted.modules():
        if isinstance(module, WeightedQuantizedModule) and not isinstance(module, ReferenceQuantizedModule):
            formats.add((float(cast(Any, module).scale), int(cast(Any, module).zero_point)))
    return formats


def check_coverage(converted: fx.GraphModule, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``converted`` holds every layer's integers and scales and rounds every tensor as planned.

    FX leaves layers in float without a warning, and this check finds them.

    Args:
        converted: the model that ``convert_fx`` returned.
        plan: the plan.
    """
    advice = "Pass result.prepared_model() and result.qconfig_mapping() to prepare_fx, both unchanged."
    weights = dict(_iterate_weights(converted))
    for layer in plan.layers:
        if layer.name not in weights:
            raise ModelError(f"convert_fx left layer {layer.name!r} in float. {advice}")
        weight = weights[layer.name]
        if not torch.equal(weight.int_repr(), layer.integers) or not torch.equal(weight.q_per_channel_scales().float(), layer.scale):
            raise ModelError(f"convert_fx gave layer {layer.name!r} other integers or scales than the plan's. {advice}")
    planned = {(form.scale, form.zero_point): form.tensor for form in plan.activations if form.is_affine}
    missing = planned.keys() - _read_formats(converted)
    if missing:
        raise ModelError(f"convert_fx does not round the tensor {planned[missing.pop()]!r} as planned. {advice}")
