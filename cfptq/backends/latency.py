"""Latency of deployed models on this machine.

Models are called in turn, so that other work on the machine slows all of them alike. Their order is drawn anew in each round, because
each call leaves the caches in another state.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cfptq.network.onnx.session import open_session

#: What can be timed: an ONNX file, its content, or a function of rows.
Runnable = Path | bytes | Callable[[npt.NDArray[Any]], object]

#: Rows a call: one request, a page of requests, a nightly run.
BATCHES = (1, 256, 4096)

#: Calls of each model at each batch size, after one that is not counted.
ROUNDS = 20

#: A model counts as slower above this multiple of the reference's median. Smaller differences are noise.
NOISE_FACTOR = 1.05


def measure_latency(
    models: Mapping[str, Runnable], rows: torch.Tensor, batches: Sequence[int] = BATCHES, rounds: int = ROUNDS
) -> dict[str, dict[int, float]]:
    """Measure the median latency of each model at each batch size, on one thread.

    Args:
        models: by name; an ONNX file has one input.
        rows: (N, ...) float32, repeated to fill a batch.
        batches: batch sizes in rows.
        rounds: counted calls of each model at each batch size.

    Returns:
        Microseconds a call, by name and batch size.
    """
    runs = {name: model if callable(model) else _open_default_session(model) for name, model in models.items()}
    medians: dict[str, dict[int, float]] = {name: {} for name in models}
    for batch in batches:
        fed = np.resize(rows.numpy(), (batch, *rows.shape[1:]))
        times: dict[str, list[int]] = {name: [] for name in models}
        order, generator = list(runs), random.Random(0)
        for _ in range(rounds + 1):
            generator.shuffle(order)
            for name in order:
                started = time.perf_counter_ns()
                runs[name](fed)
                times[name].append(time.perf_counter_ns() - started)
        for name, nanoseconds in times.items():
            medians[name][batch] = statistics.median(nanoseconds[1:]) / 1000
    return medians


def _open_default_session(model: Path | bytes) -> Callable[[npt.NDArray[Any]], object]:
    """Open ``model`` as deployments do, and return a function of rows."""
    session = open_session(model, precise=False)
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows})


def find_slower(reference: str, latency: Mapping[str, Mapping[int, float]], noise_factor: float = NOISE_FACTOR) -> dict[str, list[int]]:
    """Return the batch sizes at which each other model takes longer than the reference.

    Args:
        reference: name of the model to compare with.
        latency: microseconds by name and batch size, as ``measure_latency`` returns them.
        noise_factor: a model is slower above this multiple of the reference's latency.

    Returns:
        Batch sizes by name, for the models that have any.
    """
    slower = {
        name: [batch for batch, microseconds in times.items() if microseconds > noise_factor * latency[reference][batch]]
        for name, times in latency.items()
        if name != reference
    }
    return {name: batches for name, batches in slower.items() if batches}
