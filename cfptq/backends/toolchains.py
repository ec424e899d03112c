"""Registry of the toolchains' own default quantization, which ``compare`` sets beside cfptq's methods.

A new toolchain is one file of this package with a default quantizer, and one entry in ``TOOLCHAINS``.
"""

from __future__ import annotations

import logging
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import nn

from cfptq.backends.latency import Runnable
from cfptq.errors import CfptqError, MissingDependencyError, ModelError
from cfptq.network import DecisionRule, Network, Predictor, as_predictor
from cfptq.network.onnx.file import summarize_error

#: Quantizes a network with the toolchain's default settings, calibrated on float32 rows ``(N, ...)``.
DefaultQuantizer = Callable[[Network, torch.Tensor], onnx.ModelProto | nn.Module]

#: Rows that show a predictor the output's shape.
EXAMPLE_ROWS = 256


@dataclass(frozen=True)
class Toolchain:
    """One entry of the registry.

    Attributes:
        weight_bits: bits of every weight; activations and inputs have 8 bits.
        quantizer: the ``DefaultQuantizer`` as ``"package.module:function"``, imported when it is used.
        extra: the extra of cfptq that installs the toolchain; None where cfptq's own dependencies hold it.
    """

    weight_bits: int
    quantizer: str
    extra: str | None = None

    def load(self) -> DefaultQuantizer:
        """Import the default quantizer.

        Raises:
            MissingDependencyError: the toolchain is not installed.
        """
        try:
            return cast(DefaultQuantizer, pkgutil.resolve_name(self.quantizer))
        except CfptqError:
            raise
        except ImportError as error:
            package = "cfptq" if self.extra is None else f"cfptq[{self.extra}]"
            raise MissingDependencyError(f"A package of the toolchain is missing ({error}). Run pip install '{package}'.") from error


#: The toolchains by name.
TOOLCHAINS: Mapping[str, Toolchain] = {
    "ort-int8": Toolchain(8, "cfptq.backends.quantize_static:quantize_by_default"),
    "ort-int4": Toolchain(4, "cfptq.backends.quantize_static:quantize_to_int4_by_default"),
    "pt2e-int8": Toolchain(8, "cfptq.backends.pt2e:quantize_by_default", extra="pt2e"),
    "fx-int8": Toolchain(8, "cfptq.backends.fx:quantize_by_default"),
    "inc-int8": Toolchain(8, "cfptq.backends.neural_compressor:quantize_by_default", extra="inc"),
}


def deploy_toolchain(
    name: str, network: Network, rows: torch.Tensor, folder: Path, decision: DecisionRule
) -> tuple[Predictor, Path, Runnable]:
    """Quantize ``network`` with a toolchain's default settings and write the result to a file.

    An ONNX model is stored as ``.onnx``. A PyTorch model is run as it is, and its file is its ``state_dict`` as ``torch.save`` writes
    it. Recourse on a PyTorch model uses the gradients of the full-precision network, and the quantized model judges it.

    Args:
        name: a key of ``TOOLCHAINS``.
        network: the full-precision network.
        rows: calibration rows, ``(N, ...)`` float32.
        folder: where the file is written.
        decision: head of the network's raw output and decision threshold.

    Returns:
        The predictor, its file, and what runs it.

    Raises:
        MissingDependencyError: the toolchain is not installed; the message names the extra.
        ModelError: the toolchain cannot quantize this model.
    """
    try:
        with _silence_logs_and_warnings():
            quantized = TOOLCHAINS[name].load()(network, rows)
        path, run = _store(quantized, folder / name)
        model, twin = (run, network.graph) if callable(run) else (path, None)
        predictor = as_predictor(model, example=rows[:EXAMPLE_ROWS], head=decision.head, threshold=decision.threshold, name=name, twin=twin)
    except CfptqError:
        raise
    except Exception as error:
        raise ModelError(f"{name} cannot quantize this model ({type(error).__name__}: {summarize_error(error)}).") from error
    return predictor, path, run


def _store(quantized: onnx.ModelProto | nn.Module, stem: Path) -> tuple[Path, Runnable]:
    """Write a quantized model beside ``stem``, and return its file and what runs it."""
    if isinstance(quantized, onnx.ModelProto):
        path = stem.with_name(f"{stem.name}.onnx")
        onnx.save(quantized, path)
        return path, path
    path = stem.with_name(f"{stem.name}.state")
    torch.save(quantized.state_dict(), path)
    return path, make_eager_runner(quantized)


@contextmanager
def _silence_logs_and_warnings() -> Iterator[None]:
    """Keep toolchains' progress logs and deprecation warnings from the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def make_eager_runner(quantized: nn.Module) -> Callable[[Any], torch.Tensor]:
    """Return a function that runs a PyTorch model on arrays or tensors without gradients."""

    def run(rows: Any) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = quantized(torch.as_tensor(rows))
        return answer

    return run
