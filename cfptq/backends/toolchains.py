"""What toolchains make of a model by themselves: the peers that ``compare`` sets beside the methods."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from cfptq.backends.latency import Runnable
from cfptq.backends.quantize_static import vanilla_onnx
from cfptq.errors import CfptqError, ModelError
from cfptq.network import Head, Network, Predictor, as_predictor

#: Peers by name: weight bits. Activations have 8 bits everywhere, inputs too.
PEERS: Mapping[str, int] = {"ort-int8": 8, "ort-int4": 4, "pt2e-int8": 8, "fx-int8": 8, "inc-int8": 8}


def deployed_peer(
    name: str, network: Network, rows: torch.Tensor, folder: Path, head: Head, threshold: float | None
) -> tuple[Predictor, Path, Runnable]:
    """The peer called ``name`` (a key of :data:`PEERS`), calibrated on ``rows``; the file that it is stored in; and what runs it.

    A PyTorch toolchain's model is run as it is, and its file is its state as ``torch.save`` writes it; recourse on it is looked for
    with the gradients of the full-precision model and judged by the quantized one.

    Raises:
        MissingDependencyError: the toolchain is not installed; the message names the extra.
        ModelError: the toolchain cannot quantize this model.
    """
    if name.startswith("ort-"):
        path = folder / f"{name}.onnx"
        vanilla_onnx(network.to_onnx_model(), rows, PEERS[name], path)
        return as_predictor(path, example=rows[:256], head=head, threshold=threshold, name=name), path, path
    try:
        with _quiet():
            quantized = _vanilla(name)(network, rows)
        path = folder / f"{name}.state"
        torch.save(quantized.state_dict(), path)
        run = eager_run(quantized)
        return as_predictor(run, example=rows[:256], head=head, threshold=threshold, name=name, twin=network.module()), path, run
    except CfptqError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        raise ModelError(f"{name} cannot quantize this model ({type(error).__name__}: {lines[0]})") from error


def _vanilla(name: str) -> Callable[[Network, torch.Tensor], fx.GraphModule]:
    if name == "pt2e-int8":
        from cfptq.backends.pt2e import vanilla
    elif name == "fx-int8":
        from cfptq.backends.fx import vanilla
    else:
        from cfptq.backends.neural_compressor import vanilla
    return vanilla


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep toolchains from logging every step, and what they say about their own future, on the user's terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def eager_run(quantized: nn.Module) -> Callable[[Any], torch.Tensor]:
    """What runs a PyTorch model as it is, on arrays and tensors, without gradients."""

    def run(rows: Any) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = quantized(torch.as_tensor(rows))
        return answer

    return run
