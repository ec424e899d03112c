"""From a model in memory to a quantized file on disk: cfptq over ``torch.onnx.export`` + ``quantize_static``, and where the time goes.

Both get the same 1,024 rows of the adult training set (random rows for the wide net), in one process, in turns, PyTorch on one
thread. Ratios are of medians: wall time, and CPU time of the process, which other work on the machine disturbs less. Then the latency
of the default method's file by the format of its input, as a multiple of ``quantize_static``'s int8 file.

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
from typing import Any

import onnx
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.latency import measure_latency
from cfptq.backends.quantize_static import quantize_onnx_by_default
from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.network import to_onnx_model
from cfptq.pipeline.method_presets import as_method
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.quantize import InputBits

RUNS = 7
METHODS = ("cf-ptq", "faithful")
ROWS = 1024
#: Formats of the input whose files are timed.
INPUTS: dict[str, InputBits] = {"8-bit": 8, "two-step": "two-step", "float": 32, "16-bit": 16}


def vanilla(model: nn.Module, rows: torch.Tensor, path: Path) -> None:
    """Export and quantize with ONNX Runtime, as a user does today."""
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (rows[:2],), dynamo=True, opset_version=21, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None
    quantize_onnx_by_default(program.model_proto, rows, 8, path)


def vanilla_without_export(exported: onnx.ModelProto, rows: torch.Tensor, path: Path) -> None:
    """Quantize by ``quantize_static`` alone."""
    quantize_onnx_by_default(exported, rows, 8, path)


def interleaved(runs: dict[str, Callable[[], object]], count: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each run, taken in turn after one warm-up each."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(count + 1):
        for name, run in runs.items():
            started = time.perf_counter(), time.process_time()
            run()
            if turn:
                seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    return {
        name: (statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken)) for name, taken in seconds.items()
    }


def measure(model: nn.Module, rows: torch.Tensor, action_set: ActionSet, method: str, count: int) -> dict[str, object]:
    """Ratios for one model, with and without the ONNX export that both sides need."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "theirs.onnx"
        loader = list(rows.split(256))

        def calibrated() -> cfptq.Result:
            return cfptq.calibrate(model, loader, action_set, method=method, progress=False)

        exported = to_onnx_model(calibrated().network)
        medians = interleaved(
            {
                "theirs": lambda: vanilla(model, rows, theirs),
                "ours": lambda: calibrated().to_onnx(ours),
                "theirs without export": lambda: vanilla_without_export(exported, rows, theirs),
                "ours without export": calibrated,
            },
            count,
        )
    return {
        "ratio": round(medians["ours"][0] / medians["theirs"][0], 3),
        "cpu_ratio": round(medians["ours"][1] / medians["theirs"][1], 3),
        "ratio_without_export": round(medians["ours without export"][0] / medians["theirs without export"][0], 3),
        "cpu_seconds": {"theirs": round(medians["theirs"][1], 2), "ours": round(medians["ours"][1], 2)},
        "share_of_our_time": stages(model, rows, action_set, method),
        "runs": count,
    }


def stages(model: nn.Module, rows: torch.Tensor, action_set: ActionSet, method: str) -> dict[str, float]:
    """Share of CPU time that each stage of one calibration takes, after a warm-up."""
    chosen = as_method(method)
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            times = [time.process_time()]
            task = build_task(model, [rows], action_set, TaskSettings(progress=False))
            times.append(time.process_time())
            task.choose_calibration(chosen)
            times.append(time.process_time())
            task.score_layers(chosen, progress=False)
            times.append(time.process_time())
            result = quantize_with(task, chosen, 4.0, progress=False)
            times.append(time.process_time())
            result.to_onnx(Path(folder) / "model.onnx")
            times.append(time.process_time())
    names = ("capture", "teacher's recourse", "layer scores", "allocation and rounding", "ONNX file")
    return {name: round((after - before) / (times[-1] - times[0]), 3) for name, (before, after) in zip(names, pairwise(times), strict=True)}


def latency_by_input(model: nn.Module, rows: torch.Tensor, action_set: ActionSet) -> dict[str, Any]:
    """Time the default method's file with each input format by batch size, also in multiples of the int8 file's time."""
    task = build_task(model, [rows], action_set, TaskSettings(progress=False))
    with tempfile.TemporaryDirectory() as folder:
        files = {"ONNX Runtime int8": Path(folder) / "int8.onnx"}
        quantize_onnx_by_default(to_onnx_model(task.network), rows, 8, files["ONNX Runtime int8"])
        for name, bits in INPUTS.items():
            files[name] = Path(folder) / f"{name}.onnx"
            quantize_with(task, as_method("faithful").with_activations(None, bits), 4.0, progress=False).to_onnx(files[name])
        times = measure_latency(files, rows)
    chosen = quantize_with(task, as_method("faithful"), 4.0, progress=False)
    reference = times["ONNX Runtime int8"]
    ratios = {name: {str(batch): round(taken / reference[batch], 3) for batch, taken in each.items()} for name, each in times.items()}
    return {"chosen": f"{chosen.input_format}: {chosen.plan.input_choice}", "multiple_of_int8": ratios}


def wide_net() -> tuple[nn.Module, torch.Tensor, ActionSet]:
    """Build 512-2048-2048-2048-2 with random weights and rows, whose columns are continuous and of which at most five change."""
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
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    recipe = Recipe.load("recipes/adult.yaml")
    experiment = recipe.prepare(0)
    rows = experiment.columns.train[:ROWS]
    narrow = experiment.model, rows, experiment.action_set
    results: dict[str, dict[str, object]] = {method: {} for method in (*METHODS, "latency by input")}
    for name, net in (("adult 64-64", narrow), ("512-2048-2048-2048-2", wide_net())):
        for method in METHODS:
            results[method][name] = measure(*net, method, arguments.runs)
            write_text(arguments.out, json.dumps(results, indent=1) + "\n")
        results["latency by input"][name] = latency_by_input(*net)
        write_text(arguments.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
