"""Hand a plan over, as an ONNX file or as the configuration of another toolchain."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from cfptq.backends.matmul_nbits import build_weight_only_model, with_float_activations
from cfptq.backends.onnxruntime import OPSET_INT2, Storage, build_prepared_onnx_model, to_onnx_model
from cfptq.backends.prepared_model import warn_about_two_step_input
from cfptq.backends.rounding_replay import replay_roundings
from cfptq.errors import ModelError, SaturationWarning, name_rows
from cfptq.io.atomic import atomic_write
from cfptq.network import INPUT, OUTPUT, DecisionRule, Network, as_predictor, rename_tensors
from cfptq.network.head import decide
from cfptq.network.onnx.file import takes_halves
from cfptq.network.onnx.interface import OnnxInterface
from cfptq.network.onnx.raw_inputs import without_preprocessing
from cfptq.network.onnx.session import describe_saturation
from cfptq.network.predictor import count_saturated_decisions
from cfptq.quantize import QuantizationPlan, fake_quantize_network

if TYPE_CHECKING:
    from torch.ao.quantization import QConfigMapping

    from cfptq.backends.neural_compressor import PlanConfig
    from cfptq.backends.pt2e import PlanQuantizer

#: Share of rows whose logits must agree between a written file and the fake-quantized module. Rows that differ by rounding ties alone
#: agree too, where the ties are proven (``cfptq.backends.rounding_replay``). Below it the file is refused.
MIN_AGREEMENT = 0.999

#: Difference of two logits up to which they agree. In half precision it is a share of the largest logit.
LOGIT_TOLERANCE, LOGIT_TOLERANCE_OF_HALVES = 1e-3, 2e-3

#: Difference of two probabilities up to which they agree, whatever their logits. Near 0 and 1, float32 cannot tell logits apart.
PROBABILITY_TOLERANCE, PROBABILITY_TOLERANCE_OF_HALVES = 1e-6, 1e-3

#: Margin up to which a rounding tie may change a decision, or two steps of the last layer's input where they move a logit further.
TIE_MARGIN = 0.05

#: Random rows that a file is checked on where the calibration rows were not kept.
RANDOM_CHECK_ROWS = 1024


def build_onnx(
    network: Network,
    plan: QuantizationPlan,
    *,
    decision: DecisionRule,
    tensor_names: tuple[str, str],
    interface: OnnxInterface | None = None,
    storage: Storage = "packed",
    weight_only: bool = False,
    opset: int = OPSET_INT2,
) -> onnx.ModelProto:
    """Build the quantized model as ONNX, in memory.

    Args:
        network: the full-precision network.
        plan: the quantization plan.
        decision: head of the network's raw output and decision threshold, recorded in the file.
        tensor_names: names of the file's input and output.
        interface: types and further outputs of the ONNX file that the model came as, which the file keeps.
        storage: "packed" stores narrow weights in their own widths; "plain" stores all as INT8.
        weight_only: use ONNX Runtime's MatMulNBits, with float activations.
        opset: the newest opset that the runtime reads.

    Raises:
        ModelError: the opset lacks what the plan needs.
    """
    threshold = "" if decision.threshold is None else repr(decision.threshold)
    metadata = {"cfptq.head": decision.head.value, "cfptq.threshold": threshold}
    if weight_only:
        model = build_weight_only_model(network, plan, metadata)
    else:
        model = to_onnx_model(network, plan, metadata, storage=storage, opset=opset)
    renamed = _rename(model, tensor_names)
    return renamed if interface is None else interface.apply(renamed)


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
    decision: DecisionRule,
    weight_only: bool,
) -> None:
    """Write an ONNX model to ``path`` if it agrees with the plan on ``rows``.

    Args:
        model: the quantized model.
        path: file to write.
        network: the full-precision network.
        plan: the plan that the model was built from.
        rows: (N, ...) rows to compare on; None draws random ones by the plan's seed.
        decision: head of the network's raw output and decision threshold.
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
        _check_file(aside, network, with_float_activations(plan) if weight_only else plan, rows, decision)


def build_qconfig_mapping(network: Network, plan: QuantizationPlan) -> QConfigMapping:
    """Build the configuration of PyTorch's FX quantization (``cfptq.backends.fx``)."""
    from cfptq.backends import fx

    warn_about_two_step_input(plan)
    return fx.build_qconfig_mapping(network, plan)


def build_pt2e_quantizer(network: Network, plan: QuantizationPlan) -> PlanQuantizer:
    """Build the quantizer for torchao's PT2E quantization (``cfptq.backends.pt2e``)."""
    from cfptq.backends.pt2e import PlanQuantizer

    warn_about_two_step_input(plan)
    return PlanQuantizer(network, plan)


def build_neural_compressor_config(network: Network, plan: QuantizationPlan) -> PlanConfig:
    """Build the configuration of Neural Compressor (``cfptq.backends.neural_compressor``)."""
    from cfptq.backends.neural_compressor import PlanConfig

    warn_about_two_step_input(plan)
    return PlanConfig(network, plan)


def _rename(model: onnx.ModelProto, tensor_names: tuple[str, str]) -> onnx.ModelProto:
    """Give the model's input and output the names ``tensor_names``, in place."""
    rename_tensors(model, dict(zip((INPUT, OUTPUT), tensor_names, strict=True)))
    return model


def _measure_last_step(plan: QuantizationPlan) -> float:
    """Return how far one step of the last layer's input can move an output."""
    last = plan.layers[-1]
    form = plan.input_format(last)
    if form.is_float:
        return 0.0
    largest = (last.integers.flatten(1).abs().amax(dim=1) * last.scale).max()
    return float(largest) * form.scale


def _check_file(path: Path, network: Network, plan: QuantizationPlan, rows: torch.Tensor, decision: DecisionRule) -> None:
    """Compare the file with the fake-quantized module on ``rows``, and warn where a default session decides otherwise."""
    twin = fake_quantize_network(network, plan)
    file = as_predictor(path, example=rows[:2], head=decision.head, threshold=decision.threshold, twin=twin)
    is_half = takes_halves(path)
    rows = rows.half().float() if is_half else rows
    logits, expected = file.logits(rows), file.surrogate(rows).detach()
    saturated = count_saturated_decisions(file, rows, decide(logits))
    difference = (logits - expected).abs().amax(dim=1)
    is_same = _find_same_logits(logits, expected, is_half)
    allowed = max(1, (1 - MIN_AGREEMENT) * len(rows))
    if int((~is_same).sum()) > allowed or bool(_find_clear_flips(plan, logits, expected, is_same).any()):
        is_same |= _find_rows_of_ties(path, network, plan, rows, logits, decision, is_half)
    if int((~is_same).sum()) > allowed:
        raise ModelError(
            f"The written model must agree with the plan on {MIN_AGREEMENT:.1%} of {len(rows)} rows, got "
            f"{float(is_same.float().mean()):.2%} (largest difference {float(difference.max()):.3g}). Nothing was written."
        )
    flipped = _find_clear_flips(plan, logits, expected, is_same)
    if bool(flipped.any()):
        raise ModelError(
            f"The written model must decide as the plan does, but does not in rows {name_rows(flipped.nonzero()[:, 0].tolist())}. "
            "Nothing was written."
        )
    if saturated:
        # The warning points at the line that called Result.to_onnx.
        warnings.warn(describe_saturation("the written model", saturated, len(rows)), SaturationWarning, stacklevel=5)


def _find_same_logits(logits: torch.Tensor, expected: torch.Tensor, is_half: bool) -> torch.Tensor:
    """Return the rows (N,) whose class logits, or whose probabilities, agree."""
    tolerance = LOGIT_TOLERANCE_OF_HALVES * float(expected.abs().max().clamp_min(1)) if is_half else LOGIT_TOLERANCE
    nearly = PROBABILITY_TOLERANCE_OF_HALVES if is_half else PROBABILITY_TOLERANCE
    is_near = (logits - expected).abs().amax(dim=1) <= tolerance
    return is_near | ((logits.softmax(dim=1) - expected.softmax(dim=1)).abs().amax(dim=1) <= nearly)


def _find_clear_flips(plan: QuantizationPlan, logits: torch.Tensor, expected: torch.Tensor, is_same: torch.Tensor) -> torch.Tensor:
    """Return the rows (N,) with other logits and another decision, although the plan decides them clearly."""
    margins = expected.topk(2, dim=1).values
    is_clear = margins[:, 0] - margins[:, 1] > max(TIE_MARGIN, 2 * _measure_last_step(plan))
    return is_clear & ~is_same & (decide(logits) != decide(expected))


def _find_rows_of_ties(
    path: Path,
    network: Network,
    plan: QuantizationPlan,
    rows: torch.Tensor,
    logits: torch.Tensor,
    decision: DecisionRule,
    is_half: bool,
) -> torch.Tensor:
    """Return the rows (N,) whose logits are the plan's on the file's own integers, each of which is nearest or a tie."""
    replay = replay_roundings(without_preprocessing(onnx.load(path)), network, plan, rows)
    if replay is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    own, replayed = (decision.class_logits(output) for output in (replay.file_output, replay.output))
    # Further outputs may change what ONNX Runtime fuses, so that it must be the run that was compared.
    return replay.follows & _find_same_logits(own, replayed, is_half) & _find_same_logits(logits, own, is_half)
