"""Hand a plan over, as an ONNX file or as the configuration of another toolchain."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from cfptq.backends.matmul_nbits import build_weight_only_model, with_float_activations
from cfptq.backends.onnxruntime import OPSET_INT2, build_prepared_onnx_model, to_onnx_model
from cfptq.backends.prepared_model import warn_about_two_step_input
from cfptq.errors import ModelError, SaturationWarning
from cfptq.io.atomic import atomic_write
from cfptq.network import INPUT, OUTPUT, Head, Network, as_predictor, rename_tensors
from cfptq.network.head import decide
from cfptq.network.onnx.session import describe_saturation
from cfptq.network.predictor import count_saturated_decisions
from cfptq.quantize import QuantizationPlan, fake_quantize_network

if TYPE_CHECKING:
    from torch.ao.quantization import QConfigMapping

    from cfptq.backends.neural_compressor import PlanConfig
    from cfptq.backends.pt2e import PlanQuantizer

#: Share of rows whose logits must agree between a written file and the fake-quantized module. Below it the file is refused.
MIN_AGREEMENT = 0.999

#: Difference of two logits up to which they agree. One-step rounding ties may differ by more.
LOGIT_TOLERANCE = 1e-3

#: Difference of two probabilities up to which they agree, whatever their logits. Near 0 and 1, float32 cannot tell logits apart.
PROBABILITY_TOLERANCE = 1e-6

#: Random rows that a file is checked on where the calibration rows were not kept.
RANDOM_CHECK_ROWS = 1024


def build_onnx(
    network: Network,
    plan: QuantizationPlan,
    *,
    head: Head,
    threshold: float | None,
    tensor_names: tuple[str, str],
    packed: bool = True,
    weight_only: bool = False,
    opset: int = OPSET_INT2,
) -> onnx.ModelProto:
    """Build the quantized model as ONNX, in memory.

    Args:
        network: the full-precision network.
        plan: the quantization plan.
        head: what the model puts out, recorded in the file.
        threshold: decision threshold of a binary model, or None for the arg max; recorded in the file.
        tensor_names: names of the file's input and output.
        packed: store narrow weights in INT2 and INT4; False stores all as INT8.
        weight_only: use ONNX Runtime's MatMulNBits, with float activations.
        opset: the newest opset that the runtime reads.

    Raises:
        ModelError: the opset lacks what the plan needs.
    """
    decision = {"cfptq.head": head.value, "cfptq.threshold": "" if threshold is None else repr(threshold)}
    if weight_only:
        model = build_weight_only_model(network, plan, decision)
    else:
        model = to_onnx_model(network, plan, decision, packed=packed, opset=opset)
    return _rename(model, tensor_names)


def build_prepared_onnx(network: Network, plan: QuantizationPlan, *, tensor_names: tuple[str, str]) -> onnx.ModelProto:
    """Build the prepared model as ONNX, for ONNX Runtime's own quantizer."""
    return _rename(build_prepared_onnx_model(network, plan), tensor_names)


def write_onnx(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write an ONNX model to ``path``, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_bytes(model.SerializeToString(deterministic=True))


def write_checked_onnx(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    network: Network,
    plan: QuantizationPlan,
    rows: torch.Tensor | None,
    *,
    head: Head,
    threshold: float | None,
    weight_only: bool,
) -> None:
    """Write an ONNX model to ``path`` if it agrees with the plan on ``rows``.

    Args:
        model: the quantized model.
        path: file to write.
        network: the full-precision network.
        plan: the plan that the model was built from.
        rows: (N, ...) rows to compare on; None draws random ones by the plan's seed.
        head: what the model puts out.
        threshold: decision threshold of a binary model, or None for the arg max.
        weight_only: the model has float activations, whatever the plan's.

    Raises:
        ModelError: the file disagrees with the plan. Nothing is written.
        FileError: the file cannot be written.
    """
    if rows is None:
        generator = torch.Generator().manual_seed(plan.seed)
        rows = torch.randn(RANDOM_CHECK_ROWS, *network.input_shape, generator=generator)
    with atomic_write(path) as aside:
        aside.write_bytes(model.SerializeToString(deterministic=True))
        _check_file(aside, network, with_float_activations(plan) if weight_only else plan, rows, head, threshold)


def build_qconfig_mapping(network: Network, plan: QuantizationPlan) -> QConfigMapping:
    """Build the configuration of PyTorch's FX quantization (:mod:`cfptq.backends.fx`)."""
    from cfptq.backends import fx

    warn_about_two_step_input(plan)
    return fx.build_qconfig_mapping(network, plan)


def build_pt2e_quantizer(network: Network, plan: QuantizationPlan) -> PlanQuantizer:
    """Build the quantizer for torchao's PT2E quantization (:mod:`cfptq.backends.pt2e`)."""
    from cfptq.backends.pt2e import PlanQuantizer

    warn_about_two_step_input(plan)
    return PlanQuantizer(network, plan)


def build_neural_compressor_config(network: Network, plan: QuantizationPlan) -> PlanConfig:
    """Build the configuration of Neural Compressor (:mod:`cfptq.backends.neural_compressor`)."""
    from cfptq.backends.neural_compressor import PlanConfig

    warn_about_two_step_input(plan)
    return PlanConfig(network, plan)


def _rename(model: onnx.ModelProto, tensor_names: tuple[str, str]) -> onnx.ModelProto:
    """Give the model's input and output the names ``tensor_names``, in place."""
    rename_tensors(model, dict(zip((INPUT, OUTPUT), tensor_names, strict=True)))
    return model


def _check_file(path: Path, network: Network, plan: QuantizationPlan, rows: torch.Tensor, head: Head, threshold: float | None) -> None:
    """Compare the file with the fake-quantized module on ``rows``, and warn where a default session decides otherwise."""
    twin = fake_quantize_network(network, plan)
    file = as_predictor(path, example=rows[:2], head=head, threshold=threshold, twin=twin)
    logits, expected = file.logits(rows), file.surrogate(rows).detach()
    saturated = count_saturated_decisions(file, rows, decide(logits))
    difference = (logits - expected).abs().amax(dim=1)
    has_same_probabilities = (logits.softmax(dim=1) - expected.softmax(dim=1)).abs().amax(dim=1) <= PROBABILITY_TOLERANCE
    agreement = float(((difference <= LOGIT_TOLERANCE) | has_same_probabilities).float().mean())
    if agreement < MIN_AGREEMENT:
        raise ModelError(
            f"the written model must agree with the plan on {MIN_AGREEMENT:.1%} of {len(rows)} rows, got {agreement:.2%} (largest "
            f"difference {float(difference.max()):.3g}). Nothing was written."
        )
    if saturated:
        # The warning points at the line that called Result.to_onnx.
        warnings.warn(describe_saturation("the written model", saturated, len(rows)), SaturationWarning, stacklevel=4)
