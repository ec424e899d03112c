"""Hand-over of a plan to Intel Neural Compressor 3.x as a config for ``prepare``, ``convert`` and ``autotune``.

``convert(prepare(result.prepared_model(), result.neural_compressor_config()))`` returns the plan's PT2E form, because Neural Compressor's
static quantization is PT2E too. Compile it like any other PT2E model. A two-step input stays in float. ``autotune`` on the user's own
model tries the configs of several results in turn. ``cfptq.tuning_score`` is the evaluation function that measures recourse.

Checked with neural-compressor 3.9 and 3.10.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import fx, nn

from cfptq.backends.prepared_model import build_float_module, build_prepared_module, calibrate_observers, check_prepared
from cfptq.errors import MissingDependencyError, ModelError
from cfptq.network import Network, capture
from cfptq.network.serialize import digest
from cfptq.quantize import QuantizationPlan, container_bits

try:
    from neural_compressor.common import logger
    from neural_compressor.common.base_config import register_config
    from neural_compressor.common.utils import Mode
    from neural_compressor.torch.algorithms.pt2e_quant.save_load import save
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare
    from neural_compressor.torch.quantization.config import TorchBaseConfig
    from neural_compressor.torch.utils import register_algo

    # Imported after Neural Compressor, so that where both are missing the error names the extra that installs both.
    from cfptq.backends.pt2e import PlanQuantizer, check_coverage, convert_pt2e, export_with_dynamic_batch, prepare_pt2e
except MissingDependencyError:
    raise
except Exception as error:  # Packages of versions that do not fit each other fail with any error.
    raise MissingDependencyError(f"Intel Neural Compressor 3.9 or later is missing ({error}). Run pip install 'cfptq[inc]'.") from error

__all__ = ["NAME", "PlanConfig", "build_static_config", "quantize_by_default"]

#: The algorithm's name in Neural Compressor's registries.
NAME = "cfptq"

#: Neural Compressor tries algorithms of higher priority first. The priorities of its own lie between 50 and 100.
PRIORITY = 110


@register_config(framework_name="torch", algo_name=NAME, priority=PRIORITY)
class PlanConfig(TorchBaseConfig):  # type: ignore[misc]
    """Config that holds one plan.

    Neural Compressor's ``get_all_config_set`` builds every registered config without arguments. Such a config holds no plan.

    Args:
        network: the captured full-precision network that the plan is for.
        plan: the plan, or None.
        white_list: Neural Compressor's own filter of operators.
        kwargs: ignored; Neural Compressor passes them.
    """

    name = NAME

    def __init__(self, network: Network | None = None, plan: QuantizationPlan | None = None, white_list: Any = None, **kwargs: Any) -> None:
        super().__init__(white_list=white_list)
        self.network = network
        self.plan = plan

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's method, bits and digest, which Neural Compressor logs."""
        return {} if self.plan is None else {"method": self.plan.method, "bits": self.plan.bits, "plan": self.plan.digest}

    def expand(self) -> list[PlanConfig]:
        """Return the configs that ``autotune`` tries, which is this one if it holds a plan."""
        return [] if self.plan is None else [self]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def register_supported_configs(cls) -> None:
        """Register nothing, because a plan names its own layers."""

    @classmethod
    def get_config_set_for_tuning(cls) -> PlanConfig:
        """Return a config without a plan, because a plan needs calibration."""
        return cls()

    @staticmethod
    def get_model_info(model: nn.Module) -> list[tuple[str, str]]:
        """Return one entry for the whole model."""
        return [("", type(model).__name__)]

    def to_config_mapping(self, config_list: Any = None, model_info: Any = None) -> OrderedDict[tuple[str, str], PlanConfig]:
        """Return this config for the whole model."""
        return OrderedDict((entry, self) for entry in model_info)

    def check(self, model: nn.Module) -> None:
        """Raise ModelError unless ``model`` is the plan's prepared model or the model that the plan was made for."""
        network, plan = self._require_plan()
        try:
            check_prepared(model.state_dict(), network, plan)
        except ModelError as error:
            if digest(capture(model, torch.zeros(2, *network.input_shape))) != plan.network:
                raise ModelError(f"{error} It is not the calibrated model either.") from None

    def quantize(self) -> fx.GraphModule:
        """Return the plan's PT2E form."""
        network, plan = self._require_plan()
        module = export_with_dynamic_batch(build_prepared_module(network, plan), torch.zeros(2, *network.input_shape))
        converted: fx.GraphModule = convert_pt2e(prepare_pt2e(module, PlanQuantizer(network, plan)))
        check_coverage(converted, plan)
        return converted

    def _require_plan(self) -> tuple[Network, QuantizationPlan]:
        if self.network is None or self.plan is None:
            raise ModelError("This config holds no plan. Use the config that result.neural_compressor_config() returns.")
        return self.network, self.plan


@register_algo(NAME)  # type: ignore[untyped-decorator]
def apply_plan(model: nn.Module, configs_mapping: Mapping[tuple[str, str], Any], mode: Any = Mode.QUANTIZE, **_: Any) -> nn.Module:
    """Check the model in Neural Compressor's preparation, and return the quantized model in its conversion.

    Args:
        model: the model to prepare or convert.
        configs_mapping: configs by module and type; one of them is a ``PlanConfig``.
        mode: Neural Compressor's mode.
        _: further keywords, which are ignored.
    """
    config = next(config for config in configs_mapping.values() if config.name == NAME)
    config.check(model)
    if mode == Mode.PREPARE:
        return model
    logger.info("cfptq: %s", config.to_dict())
    quantized: nn.Module = config.quantize()
    _add_save(quantized, config)
    return quantized


def _add_save(model: nn.Module, config: PlanConfig) -> None:
    """Give the converted model the method ``save(example_inputs=…, output_dir=…)`` of those that Neural Compressor converts itself."""

    def save_model(module: nn.Module, example_inputs: tuple[torch.Tensor, ...], output_dir: str = "./saved_results") -> None:
        # Neural Compressor's function replaces the configs by their content, and would fail on its second call.
        module.qconfig = {NAME: config}  # type: ignore[assignment]
        save(module, example_inputs, output_dir)

    model.dynamic_shapes = ({0: torch.export.Dim("batch", min=1)},)  # type: ignore[assignment]
    model.save = MethodType(save_model, model)  # type: ignore[assignment]


def build_static_config(plan: QuantizationPlan) -> Any:
    """Build a config for Neural Compressor's *own* static quantization of the prepared model.

    Neural Compressor has 8-bit weights and activations and finds ranges itself. Layers of fewer bits, and layers whose input is not
    8 bits, stay in float32. Their weights are already on the plan's grid, so that only their size is lost.

    Args:
        plan: the plan.
    """
    config = StaticQuantConfig()
    for layer in plan.layers:
        if container_bits(layer.held_bits) != 8 or plan.input_format(layer).bits != 8:
            config.set_local([layer.name, _format_exported_name(layer.name)], StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
    return config


def quantize_by_default(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """Quantize ``network`` by Neural Compressor's static quantization with its default settings.

    Args:
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
    """
    program = export(build_float_module(network), (rows[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    observed = prepare(program, StaticQuantConfig())
    calibrate_observers(observed, rows)
    converted: fx.GraphModule = convert(observed)
    return converted


def _format_exported_name(name: str) -> str:
    """Return the name that Neural Compressor's ``export`` gives to a submodule whose path holds a number."""
    place = "L['self']"
    for part in name.split("."):
        place = f"{place}.{part}" if part.isidentifier() else f"getattr({place}, {part!r})"
    return place
