"""Hand-over of a plan to torchao PT2E as a quantizer for ``prepare_pt2e`` and ``convert_pt2e``.

Call ``program = torch.export.export(result.prepared_model(), (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))``, then
``convert_pt2e(prepare_pt2e(program.module(), result.pt2e_quantizer()))``. No calibration is needed, because all scales are the plan's.
Every format of a plan except the two-step input has a form here. A layer with a float or two-step input has its weight quantized only.
The converted graph is slow by itself. ``torch.compile`` with ``torch._inductor.config.freezing = True`` gives it integer kernels.

Checked with torchao 0.18, the first that fits torch 2.13.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from cfptq.backends.prepared_model import build_float_module, calibrate_observers, check_prepared, check_weight
from cfptq.errors import MissingDependencyError, ModelError
from cfptq.network import Network
from cfptq.network.layers import get_layer_kind
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan, integer_limit

try:
    from torchao.quantization.pt2e import ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation, QuantizationSpec, Quantizer
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
except Exception as error:  # Packages of versions that do not fit each other fail with any error.
    raise MissingDependencyError(f"PT2E needs torchao 0.18 or later ({error}). Run pip install 'cfptq[pt2e]'.") from error

__all__ = [
    "PlanQuantizer",
    "check_coverage",
    "convert_pt2e",
    "export_with_dynamic_batch",
    "prepare_pt2e",
    "quantize_by_default",
    "read_integers",
]

#: Metadata key of a node's annotation.
ANNOTATION = "quantization_annotation"
#: The integer type of each activation width.
TYPES = {8: torch.uint8, 16: torch.uint16}


class PlannedPerChannelWeight(ObserverBase):  # type: ignore[misc]
    """Observer of one layer's weight that returns the plan's scales and refuses any other weight.

    torchao tells from "PerChannel" in the class's name that there is one scale a channel.
    """

    def __init__(self, layer: LayerPlan, dtype: torch.dtype, **given: Any) -> None:
        super().__init__(dtype)
        self.layer = layer
        self.qscheme = torch.per_channel_symmetric
        self.ch_axis = 0
        self.quant_min, self.quant_max = given["quant_min"], given["quant_max"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_weight(self.layer, x)
        return x

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the plan's scales, and zero points of 0."""
        return self.layer.scale, torch.zeros(len(self.layer.scale), dtype=torch.int64)


class PlanQuantizer(Quantizer):  # type: ignore[misc]
    """Quantizer that annotates the exported prepared model with a plan's scales and zero points.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan.
    """

    def __init__(self, network: Network, plan: QuantizationPlan) -> None:
        super().__init__()
        self.network = network
        self.plan = plan

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate the weight and the input of every planned layer.

        Args:
            model: the exported prepared model, annotated in place.

        Raises:
            ModelError: ``model`` is not the exported prepared model.
        """
        check_prepared(model.state_dict(), self.network, self.plan)
        found = {str(node.args[1].target): node for node in model.graph.nodes if _takes_parameter(node)}
        for layer in self.plan.layers:
            node = found.get(f"{layer.name}.weight")
            if node is None:
                raise ModelError(f"The exported model has no separate operation for layer {layer.name!r}. Export result.prepared_model().")
            specs: dict[fx.Node, Any] = {node.args[1]: _build_weight_spec(layer)}
            form = self.plan.input_format(layer)
            if form.is_affine:
                specs[node.args[0]] = _build_activation_spec(form)
            node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=specs, output_qspec=None, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Accept ``model``, because ``annotate`` raises for every layer that it does not find."""


def _takes_parameter(node: fx.Node) -> bool:
    return get_layer_kind(node) is not None and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"


def _build_weight_spec(layer: LayerPlan) -> Any:
    limit = integer_limit(layer.held_bits)
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit,
        quant_max=limit,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PlannedPerChannelWeight.with_args(layer=layer),
    )


def _build_activation_spec(form: ActivationFormat) -> Any:
    return FixedQParamsQuantizationSpec(
        dtype=TYPES[form.bits],
        scale=form.scale,
        zero_point=form.zero_point,
        quant_min=0,
        quant_max=form.highest,
        qscheme=torch.per_tensor_affine,
    )


def export_with_dynamic_batch(model: torch.nn.Module, rows: torch.Tensor) -> fx.GraphModule:
    """Export ``model`` with a dynamic batch, the form that ``prepare_pt2e`` takes.

    Args:
        model: the module to export.
        rows: (N, ...) float32 with N >= 2; only the shape matters.
    """
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def quantize_by_default(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """Quantize ``network`` by PT2E with torchao's quantizer for x86 and its default settings.

    Args:
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
    """
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(export_with_dynamic_batch(build_float_module(network), rows[:2]), quantizer)
    calibrate_observers(observed, rows)
    converted: fx.GraphModule = convert_pt2e(observed)
    return converted


def read_integers(converted: fx.GraphModule) -> list[torch.Tensor]:
    """Return the int8 integers of every layer that ``convert_pt2e`` quantized, in execution order.

    The converted graph does not keep the layers' names.
    """
    integers = []
    for node in converted.graph.nodes:
        source = node.args[1] if get_layer_kind(node) is not None else None
        if isinstance(source, fx.Node) and source.target == torch.ops.quantized_decomposed.dequantize_per_channel.default:
            integers.append(getattr(converted, str(cast(fx.Node, source.args[0]).target)))
    return integers


def check_coverage(converted: fx.GraphModule, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``converted`` holds the plan's integers in every planned layer.

    Args:
        converted: the model that ``convert_pt2e`` returned.
        plan: the plan.
    """
    stored = read_integers(converted)
    if len(stored) != len(plan.layers):
        raise ModelError(
            f"The converted model has {len(stored)} quantized layers, and the plan has {len(plan.layers)}. Convert result.prepared_model()."
        )
    for layer, integers in zip(plan.layers, stored, strict=True):
        if not torch.equal(integers, layer.integers):
            raise ModelError(
                f"Layer {layer.name!r} of the converted model holds other integers than the plan's. Convert result.prepared_model()."
            )
