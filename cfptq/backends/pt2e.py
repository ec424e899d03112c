"""torchao PT2E: a plan as a quantizer for ``prepare_pt2e`` and ``convert_pt2e``.

``program = torch.export.export(result.prepared_model(), (rows,), dynamic_shapes=({0: torch.export.Dim("batch")},))``, then
``convert_pt2e(prepare_pt2e(program.module(), result.pt2e_quantizer()))``. No calibration: all scales are the plan's. Every format of a
plan but the two-step input has a form here; a layer whose input is that, or float, is quantized in its weight alone. The converted
graph is slow as it is; ``torch.compile`` with ``torch._inductor.config.freezing = True`` gives it integer kernels.

Checked with torchao 0.18, the first that fits torch 2.13.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from cfptq.backends.prepared_model import check_prepared, check_weight, module_form, show
from cfptq.errors import MissingDependencyError, ModelError
from cfptq.network import Network
from cfptq.network.layers import kind_of
from cfptq.quantize import ActivationFormat, LayerPlan, QuantizationPlan

try:
    from torchao.quantization.pt2e import ObserverBase
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation, QuantizationSpec, Quantizer
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
except ImportError as error:
    raise MissingDependencyError(f"PT2E needs torchao 0.18 or later ({error}): pip install 'cfptq[pt2e]'") from error

__all__ = ["PlanQuantizer", "check_coverage", "convert_pt2e", "exported", "prepare_pt2e", "stored_integers", "vanilla"]

#: Where a node's annotation stands in its metadata.
ANNOTATION = "quantization_annotation"
#: The integer type of each activation width.
TYPES = {8: torch.uint8, 16: torch.uint16}


class PlannedPerChannelWeight(ObserverBase):  # type: ignore[misc]
    """Gives the plan's scales for one layer's weight; torchao knows by the class's name that there is one a channel."""

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
        """The plan's scales; zero points are 0."""
        return self.layer.scale, torch.zeros(len(self.layer.scale), dtype=torch.int64)


class PlanQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the exported prepared model with a plan's scales and zero points, edge by edge."""

    def __init__(self, network: Network, plan: QuantizationPlan) -> None:
        super().__init__()
        self.network = network
        self.plan = plan

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the weight and the input of every planned layer.

        Raises:
            ModelError: ``model`` is not the exported prepared model.
        """
        check_prepared(model.state_dict(), self.network, self.plan)
        found = {str(node.args[1].target): node for node in model.graph.nodes if _takes_a_parameter(node)}
        for layer in self.plan.layers:
            node = found.get(f"{layer.name}.weight")
            if node is None:
                raise ModelError(f"the exported model has no operation of its own for layer {layer.name!r}; export result.prepared_model()")
            specs: dict[fx.Node, Any] = {node.args[1]: _weight(layer)}
            form = self.plan.input_format(layer)
            if form.is_affine:
                specs[node.args[0]] = _activation(form)
            node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=specs, output_qspec=None, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing is left to check: :meth:`annotate` refuses what it does not find."""


def _takes_a_parameter(node: fx.Node) -> bool:
    return kind_of(node) is not None and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"


def _weight(layer: LayerPlan) -> Any:
    limit = 2 ** (layer.bits - 1) - 1
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-limit,
        quant_max=limit,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PlannedPerChannelWeight.with_args(layer=layer),
    )


def _activation(form: ActivationFormat) -> Any:
    return FixedQParamsQuantizationSpec(
        dtype=TYPES[form.bits],
        scale=form.scale,
        zero_point=form.zero_point,
        quant_min=0,
        quant_max=form.highest,
        qscheme=torch.per_tensor_affine,
    )


def exported(model: torch.nn.Module, rows: torch.Tensor) -> fx.GraphModule:
    """``model`` as ``prepare_pt2e`` takes it: exported with a dynamic batch.

    Args:
        rows: (N, ...) float32, N >= 2; only the shape matters.
    """
    program = torch.export.export(model, (rows,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def vanilla(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """What PT2E makes of ``network`` with torchao's quantizer for x86 and its default settings, calibrated on ``rows``."""
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(exported(module_form(network), rows[:2]), quantizer)
    show(observed, rows)
    converted: fx.GraphModule = convert_pt2e(observed)
    return converted


def stored_integers(converted: fx.GraphModule) -> list[torch.Tensor]:
    """The integers of every layer that ``convert_pt2e`` quantized, int8, in execution order: the graph keeps no names."""
    found = []
    for node in converted.graph.nodes:
        source = node.args[1] if kind_of(node) is not None else None
        if isinstance(source, fx.Node) and source.target == torch.ops.quantized_decomposed.dequantize_per_channel.default:
            found.append(getattr(converted, str(cast(fx.Node, source.args[0]).target)))
    return found


def check_coverage(converted: fx.GraphModule, plan: QuantizationPlan) -> None:
    """Raise ModelError unless ``converted`` holds the plan's integers, all of them."""
    stored = stored_integers(converted)
    if len(stored) != len(plan.layers):
        raise ModelError(f"the converted model has {len(stored)} quantized layers, the plan {len(plan.layers)}; convert the prepared model")
    for layer, integers in zip(plan.layers, stored, strict=True):
        if not torch.equal(integers, layer.integers):
            raise ModelError(
                f"layer {layer.name!r} of the converted model holds other integers than the plan's; convert the prepared model"
            )
