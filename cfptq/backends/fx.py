"""PyTorch FX: a plan as a ``QConfigMapping`` for ``prepare_fx`` and ``convert_fx``.

``observed = prepare_fx(result.prepared_model(), result.qconfig_mapping(), (rows,))``, one batch through ``observed``, then
``convert_fx(observed)`` and :func:`check_coverage`. Layers whose output goes, rounded, to other planned layers alone become integer
kernels. FX has none with a float output: the others become its reference modules, which hold the integers and compute in float.
An input in float or in two steps stays in float.

Checked with torch 2.13. PyTorch has announced that these functions will go; a torch without them has PT2E.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx, nn

from cfptq.backends.prepared_model import Edge, check_weight, edges, module_form, show
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
except ImportError as error:
    raise MissingDependencyError(
        f"torch {torch.__version__} has no FX graph mode quantization (torch.ao.quantization.quantize_fx) any more; use PT2E: "
        "result.pt2e_quantizer(), with pip install 'cfptq[pt2e]'"
    ) from error

__all__ = ["check_coverage", "convert_fx", "prepare_fx", "qconfig_mapping", "stored_integers", "vanilla"]


class PlannedActivation(ObserverBase):
    """Observes nothing: its scale and zero point are the plan's."""

    def __init__(self, form: ActivationFormat) -> None:
        super().__init__(torch.quint8)
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = 0, form.highest
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The plan's scale and zero point."""
        return torch.tensor([self.form.scale]), torch.tensor([self.form.zero_point])


class FloatActivation(ObserverBase):
    """Stands where FX insists on an observer and the plan has the tensor in float.

    FX takes a layer for quantizable only if its observers say 8 bits, and leaves a tensor alone only if its observer says float when
    the model is converted: this one changes its mind when it sees the first batch.
    """

    def __init__(self) -> None:
        super().__init__(torch.quint8)
        self.qscheme = torch.per_tensor_affine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.dtype = torch.float32
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Asked for only where no batch has been seen."""
        raise ModelError("the model that prepare_fx gave has seen no rows; run one batch through it before convert_fx")


class PlannedWeight(ObserverBase):
    """Gives the plan's scales for one layer's weight, and refuses any other weight than the plan's."""

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
        """The plan's scales; zero points are 0."""
        return self.layer.scale, torch.zeros(len(self.layer.scale), dtype=torch.int64)


class _Maker:
    """Makes an observer whenever FX asks for one. A class of its own, so that qconfigs can be compared and copied."""

    def __init__(self, kind: type[ObserverBase], *arguments: Any) -> None:
        self.kind = kind
        self.arguments = arguments

    def __call__(self) -> ObserverBase:
        return self.kind(*self.arguments)

    def __deepcopy__(self, memo: object) -> _Maker:
        return self


def qconfig_mapping(network: Network, plan: QuantizationPlan) -> QConfigMapping:
    """``plan`` for ``prepare_fx``, by the names of the prepared model's modules.

    Raises:
        ModelError: the plan has 16-bit activations, which FX does not.
    """
    wide = [form.tensor for form in plan.activations if form.bits == 16 and form.is_affine]
    if wide:
        raise ModelError(
            f"PyTorch FX has no 16-bit activations, and the plan has them for {', '.join(wide)}; calibrate with activation_bits=8 and "
            "input_bits=8 (or 32), or use result.to_onnx() or result.pt2e_quantizer()"
        )
    found = edges(network, plan)
    rounded = {edge.producer: edge for edge in found if edge.producer}
    mapping = QConfigMapping().set_global(None)
    for edge in found:
        if edge.producer is None:
            # An Identity has no weight: FX asks for an observer of one all the same.
            mapping.set_module_name(edge.name, _qconfig(_activation(edge), plan.layers[0]))
    for layer in plan.layers:
        mapping.set_module_name(layer.name, _qconfig(_activation(rounded.get(layer.name)), layer))
    return mapping


def _qconfig(activation: _Maker, layer: LayerPlan) -> QConfig:
    return QConfig(activation, _Maker(PlannedWeight, layer))  # type: ignore[no-untyped-call]


def _activation(edge: Edge | None) -> _Maker:
    if edge is None or not edge.form.is_affine:
        return _Maker(FloatActivation)
    return _Maker(PlannedActivation, edge.form)


def vanilla(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """What FX makes of ``network`` by itself, with its default settings for x86, calibrated on ``rows``."""
    observed = prepare_fx(module_form(network), get_default_qconfig_mapping("x86"), (rows[:2],))
    show(observed, rows)
    converted: fx.GraphModule = convert_fx(observed)
    return converted


def stored_integers(converted: nn.Module) -> dict[str, torch.Tensor]:
    """The integers of every layer that ``convert_fx`` quantized, int8, by the layer's name."""
    return {name: weight.int_repr() for name, weight in _weights(converted)}


def _weights(converted: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Quantized weights by name; a layer's module may stand inside one that is fused with a ReLU."""
    inside = {f"{name}.0": name for name, module in converted.named_modules() if isinstance(module, _FusedModule)}
    for name, module in converted.named_modules():
        if isinstance(module, ReferenceQuantizedModule):  # a float weight, and how to round it
            yield inside.get(name, name), cast(Any, module).get_quantized_weight()
        elif isinstance(module, WeightedQuantizedModule):
            yield name, cast(Any, module).weight()


def _formats(converted: fx.GraphModule) -> set[tuple[float, int]]:
    """Scale and zero point of every tensor that is rounded."""
    found = set()
    for node in converted.graph.nodes:
        if node.target is torch.quantize_per_tensor:
            scale, zero_point = (getattr(converted, str(argument.target)) for argument in node.args[1:3])
            found.add((float(scale), int(zero_point)))
    for module in converted.modules():
        if isinstance(module, WeightedQuantizedModule) and not isinstance(module, ReferenceQuantizedModule):
            found.add((float(cast(Any, module).scale), int(cast(Any, module).zero_point)))
    return found


def check_coverage(converted: fx.GraphModule, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``converted`` holds every layer's integers and scales and rounds every tensor as planned.

    FX leaves layers in float without a warning; this finds them.
    """
    mend = "give prepare_fx result.prepared_model() and result.qconfig_mapping(), both unchanged"
    weights = dict(_weights(converted))
    for layer in plan.layers:
        if layer.name not in weights:
            raise ModelError(f"convert_fx left layer {layer.name!r} in float; {mend}")
        weight = weights[layer.name]
        if not torch.equal(weight.int_repr(), layer.integers) or not torch.equal(weight.q_per_channel_scales().float(), layer.scale):
            raise ModelError(f"convert_fx gave layer {layer.name!r} other integers or scales than the plan's; {mend}")
    planned = {(form.scale, form.zero_point): form.tensor for form in plan.activations if form.is_affine}
    missing = planned.keys() - _formats(converted)
    if missing:
        raise ModelError(f"convert_fx does not round the tensor {planned[missing.pop()]!r} as planned; {mend}")
