"""Wall time from a model in memory to a quantized file on disk: cfptq over ``torch.onnx.export`` + ``quantize_static``.

Both get the same 1,024 rows of the adult training set (random rows for the wide net), in one process, interleaved, on one
thread. The figures are ratios of medians of seven runs; absolute seconds are noise.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.quantize_static import vanilla_onnx
from cfptq.files import write_text
from cfptq.recipe import Recipe

RUNS = 7
METHODS = ("cf-ptq", "faithful")
ROWS = 1024


def vanilla(model: nn.Module, rows: torch.Tensor, path: Path) -> None:
    """What a user does today."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (rows[:2],), dynamo=True, opset_version=21, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None
    vanilla_onnx(program.model_proto, rows, 8, path)


def vanilla_without_export(exported: onnx.ModelProto, rows: torch.Tensor, path: Path) -> None:
    """``quantize_static`` alone."""
    vanilla_onnx(exported, rows, 8, path)


def interleaved(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(RUNS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(model: nn.Module, rows: torch.Tensor, action_set: ActionSet, method: str) -> dict[str, object]:
    """Ratios for one model, with and without the ONNX export that both sides need."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "theirs.onnx"
        loader = list(rows.split(256))

        def calibrated() -> cfptq.Result:
            return cfptq.calibrate(model, loader, action_set, method=method, progress=False)

        exported = calibrated().network.to_onnx_model()
        seconds = interleaved(
            {
                "theirs": lambda: vanilla(model, rows, theirs),
                "ours": lambda: calibrated().to_onnx(ours),
                "theirs without export": lambda: vanilla_without_export(exported, rows, theirs),
                "ours without export": calibrated,
            }
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio": round(medians["ours"] / medians["theirs"], 3),
        "ratio_without_export": round(medians["ours without export"] / medians["theirs without export"], 3),
        "share_of_our_time_in_export": round(1 - medians["ours without export"] / medians["ours"], 3),
        "runs": RUNS,
    }


def wide_net() -> tuple[nn.Module, torch.Tensor, ActionSet]:
    """512-2048-2048-2048-2 with random weights and rows; every column continuous, at most five change."""
    generator = torch.Generator().manual_seed(0)
    widths = (512, 2048, 2048, 2048)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(2048, 2)).eval()
    rows = torch.randn(ROWS, 512, generator=generator)
    features = [Continuous(f"x{column}", column=column) for column in range(512)]
    return model, rows, ActionSet.from_columns(rows, features, max_changes=5, favourable=1)


def main() -> None:
    """Measure both nets and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    recipe = Recipe.load("recipes/adult.yaml")
    experiment = recipe.prepare(0)
    rows = experiment.columns.train[:ROWS]
    narrow = experiment.model, rows, experiment.action_set
    results: dict[str, dict[str, object]] = {method: {} for method in METHODS}
    for name, net in (("adult 64-64", narrow), ("512-2048-2048-2048-2", wide_net())):
        for method in METHODS:
            results[method][name] = measure(*net, method)
            write_text(arguments.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
