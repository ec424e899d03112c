"""Intel Neural Compressor 3.x: a plan as a config of its own for ``prepare``, ``convert`` and ``autotune``.

``convert(prepare(result.prepared_model(), result.neural_compressor_config()))`` gives the PT2E form of the plan (Neural Compressor's
own static quantization is PT2E too), to be compiled like any of its; a two-step input stays in float. ``autotune`` on the user's own
model tries the configs of several results in turn; ``cfptq.tuning_score`` is the evaluation function that knows about recourse.

Checked with neural-compressor 3.9 and 3.10.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from cfptq.backends.prepared_model import build_float_module, build_prepared_module, check_prepared, show
from cfptq.errors import MissingDependencyError, ModelError
from cfptq.network import Network, capture
from cfptq.network.serialize import digest
from cfptq.quantize import QuantizationPlan, container_bits

try:
    from neural_compressor.common import logger
    from neural_compressor.common.base_config import register_config
    from neural_compressor.common.utils import Mode
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare
    from neural_compressor.torch.quantization.config import TorchBaseConfig
    from neural_compressor.torch.utils import register_algo

    # Behind Neural Compressor, so that where both are missing the extra that is named brings both.
    from cfptq.backends.pt2e import PlanQuantizer, check_coverage, convert_pt2e, export_with_dynamic_batch, prepare_pt2e
except MissingDependencyError:
    raise
except ImportError as error:
    raise MissingDependencyError(f"this needs Intel Neural Compressor 3.9 or later ({error}): pip install 'cfptq[inc]'") from error

__all__ = ["NAME", "PlanConfig", "build_static_config", "quantize_by_default"]

#: The algorithm's name in Neural Compressor's registries.
NAME = "cfptq"

#: Neural Compressor tries algorithms of a higher priority first; its own lie between 50 and 100.
PRIORITY = 110


@register_config(framework_name="torch", algo_name=NAME, priority=PRIORITY)
class PlanConfig(TorchBaseConfig):  # type: ignore[misc]
    """One plan. Without a plan it stands for none: ``get_all_config_set`` builds one such of every registered config."""

    name = NAME

    def __init__(self, network: Network | None = None, plan: QuantizationPlan | None = None, white_list: Any = None, **kwargs: Any) -> None:
        super().__init__(white_list=white_list)
        self.network = network
        self.plan = plan

    def to_dict(self) -> dict[str, Any]:
        """What Neural Compressor logs about the config: which plan, not its tensors."""
        return {} if self.plan is None else {"method": self.plan.method, "bits": self.plan.bits, "plan": self.plan.digest}

    def expand(self) -> list[PlanConfig]:
        """The configs that ``autotune`` tries: this one, or none without a plan."""
        return [] if self.plan is None else [self]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlanConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def register_supported_configs(cls) -> None:
        """Nothing to register: a plan names its own layers."""

    @classmethod
    def get_config_set_for_tuning(cls) -> PlanConfig:
        """No plan comes without calibration."""
        return cls()

    @staticmethod
    def get_model_info(model: nn.Module) -> list[tuple[str, str]]:
        """The whole model is one entry."""
        return [("", type(model).__name__)]

    def to_config_mapping(self, config_list: Any = None, model_info: Any = None) -> OrderedDict[tuple[str, str], PlanConfig]:
        """The whole model has this config."""
        return OrderedDict((entry, self) for entry in model_info)

    def check(self, model: nn.Module) -> None:
        """Raise ModelError unless ``model`` is the plan's prepared model, or the model that the plan was made for."""
        network, plan = self._made()
        try:
            check_prepared(model.state_dict(), network, plan)
        except ModelError as error:
            if digest(capture(model, torch.zeros(2, *network.input_shape))) != plan.network:
                raise ModelError(f"{error} (nor is it the model that was calibrated)") from None

    def quantized(self) -> fx.GraphModule:
        """The plan's PT2E form."""
        network, plan = self._made()
        module = export_with_dynamic_batch(build_prepared_module(network, plan), torch.zeros(2, *network.input_shape))
        converted: fx.GraphModule = convert_pt2e(prepare_pt2e(module, PlanQuantizer(network, plan)))
        check_coverage(converted, plan)
        return converted

    def _made(self) -> tuple[Network, QuantizationPlan]:
        if self.network is None or self.plan is None:
            raise ModelError("this config holds no plan; take the one that result.neural_compressor_config() gives")
        return self.network, self.plan


@register_algo(NAME)  # type: ignore[untyped-decorator]
def apply_plan(model: nn.Module, configs_mapping: Mapping[tuple[str, str], Any], mode: Any = Mode.QUANTIZE, **_: Any) -> nn.Module:
    """What Neural Compressor calls: refuse another model when it prepares, give the quantized one when it converts."""
    config = next(config for config in configs_mapping.values() if config.name == NAME)
    config.check(model)
    if mode == Mode.PREPARE:
        return model
    logger.info("cfptq: %s", config.to_dict())
    quantized: nn.Module = config.quantized()
    return quantized


def build_static_config(plan: QuantizationPlan) -> Any:
    """Overrides for Neural Compressor's *own* static quantization of the prepared model, where it can express the plan.

    It has 8-bit weights and activations, with ranges of its own finding. Layers of fewer bits, and layers whose input is not 8 bits,
    stay in float32: their weights are on the plan's grid already, so that only their size is lost.
    """
    config = StaticQuantConfig()
    for layer in plan.layers:
        if container_bits(layer.bits) != 8 or plan.input_format(layer).bits != 8:
            config.set_local([layer.name, _in_code(layer.name)], StaticQuantConfig(w_dtype="fp32", act_dtype="fp32"))
    return config


def quantize_by_default(network: Network, rows: torch.Tensor) -> fx.GraphModule:
    """What Neural Compressor's static quantization makes of ``network`` with its default settings, calibrated on ``rows``."""
    program = export(build_float_module(network), (rows[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    observed = prepare(program, StaticQuantConfig())
    show(observed, rows)
    converted: fx.GraphModule = convert(observed)
    return converted


def _in_code(name: str) -> str:
    """How Neural Compressor's ``export`` calls a submodule of a graph module whose name has a number in it."""
    place = "L['self']"
    for part in name.split("."):
        place = f"{place}.{part}" if part.isidentifier() else f"getattr({place}, {part!r})"
    return place
