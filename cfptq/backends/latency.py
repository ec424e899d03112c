"""How long ONNX files take on this machine, side by side: they take turns, so that whatever else runs here slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch

#: Rows a call: one request, a page of them, a nightly run.
BATCHES = (1, 256, 4096)

#: Calls of each file at each batch size, after the first, which is not counted.
ROUNDS = 20


def latencies(
    files: Mapping[str, Path | bytes], rows: torch.Tensor, batches: Sequence[int] = BATCHES, rounds: int = ROUNDS
) -> dict[str, dict[int, float]]:
    """Median microseconds of a call by name and batch size, on one thread.

    Args:
        files: name -> ONNX file, or its content, with one input.
        rows: (N, ...) float32, repeated to fill a batch.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    sessions = {name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for name, path in files.items()}
    found: dict[str, dict[int, float]] = {name: {} for name in files}
    for batch in batches:
        fed = np.resize(rows.numpy(), (batch, *rows.shape[1:]))
        times: dict[str, list[int]] = {name: [] for name in files}
        for _ in range(rounds + 1):
            for name, session in sessions.items():
                feed = {session.get_inputs()[0].name: fed}
                started = time.perf_counter_ns()
                session.run(None, feed)
                times[name].append(time.perf_counter_ns() - started)
        for name, taken in times.items():
            found[name][batch] = statistics.median(taken[1:]) / 1000
    return found


def slower_than(reference: str, found: Mapping[str, Mapping[int, float]], margin: float = 1.05) -> dict[str, list[int]]:
    """Batch sizes at which each other file takes longer than ``reference``, by more than the margin that noise explains."""
    other = {name: times for name, times in found.items() if name != reference}
    slower = {name: [batch for batch, taken in times.items() if taken > margin * found[reference][batch]] for name, times in other.items()}
    return {name: sizes for name, sizes in slower.items() if sizes}
