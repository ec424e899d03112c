"""How long deployed models take on this machine, side by side: they take turns, so that whatever else runs here slows all of them alike.

The order of a round is drawn anew each time: the file before leaves its mark on the caches.
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

#: Rows a call: one request, a page of them, a nightly run.
BATCHES = (1, 256, 4096)

#: Calls of each model at each batch size, after the first, which is not counted.
ROUNDS = 20


def latencies(
    models: Mapping[str, Runnable], rows: torch.Tensor, batches: Sequence[int] = BATCHES, rounds: int = ROUNDS
) -> dict[str, dict[int, float]]:
    """Median microseconds of a call by name and batch size, on one thread.

    Args:
        models: by name; an ONNX file has one input.
        rows: (N, ...) float32, repeated to fill a batch.
    """
    runs = {name: model if callable(model) else _session(model) for name, model in models.items()}
    found: dict[str, dict[int, float]] = {name: {} for name in models}
    for batch in batches:
        fed = np.resize(rows.numpy(), (batch, *rows.shape[1:]))
        times: dict[str, list[int]] = {name: [] for name in models}
        order, draw = list(runs), random.Random(0)
        for _ in range(rounds + 1):
            draw.shuffle(order)
            for name in order:
                started = time.perf_counter_ns()
                runs[name](fed)
                times[name].append(time.perf_counter_ns() - started)
        for name, taken in times.items():
            found[name][batch] = statistics.median(taken[1:]) / 1000
    return found


def _session(model: Path | bytes) -> Callable[[npt.NDArray[Any]], object]:
    session = open_session(model, precise=False)  # as deployments open it
    name = session.get_inputs()[0].name
    return lambda rows: session.run(None, {name: rows})


def slower_than(reference: str, found: Mapping[str, Mapping[int, float]], margin: float = 1.05) -> dict[str, list[int]]:
    """Batch sizes at which each other model takes longer than ``reference``, by more than the margin that noise explains."""
    other = {name: times for name, times in found.items() if name != reference}
    slower = {name: [batch for batch, taken in times.items() if taken > margin * found[reference][batch]] for name, times in other.items()}
    return {name: sizes for name, sizes in slower.items() if sizes}
