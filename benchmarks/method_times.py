"""Time of every method over that of ``ptq``: Table 16 of the paper.

From a model in memory to a quantized file on disk. All methods take turns in one process of one thread, and a warm-up goes ahead. Ratios
are of medians: CPU time of the process, which other work on the machine disturbs less, and wall time. Methods that train take every third
turn. ``lsq-qat`` stands for quantization-aware training without recourse.

    CFPTQ_DATA_DIR=... python benchmarks/method_times.py     # some ten minutes
    python benchmarks/method_times.py --show
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import reporting
import torch

import cfptq
from cfptq.experiments.recipe import Experiment
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method_presets import METHODS as PRESETS
from cfptq.training import QAT_METHODS

OUT = reporting.RESULTS / "method_times.json"
DATASET, SEED = "adult", 0  # A development seed, because nothing but time is measured.
BUDGET = 4.0
TURNS = 9
TRAINING_EVERY = 3  # Turns between two of a method that trains.

REFERENCE = "ptq"
CALIBRATED = ("ptq", "mixed-ptq", "cf-ptq-calibration", "cf-ptq", "faithful")
TRAINED = ("lsq-qat", "cfq-qat")

#: The paper's Table 16. It calls ``cf-ptq`` "CF-PTQ + sensitivity".
PAPER = {"ptq": 1.00, "mixed-ptq": 1.08, "cf-ptq-calibration": 1.17, "cf-ptq": 1.29, "cfq-qat": 1.42}


def list_runs(experiment: Experiment, rows: int, path: Path) -> dict[str, Callable[[], object]]:
    """Return a function for each method that quantizes the model into a file."""
    loader = [(experiment.columns.train, experiment.columns.train_labels)]
    given: dict[str, Any] = {"budget": BUDGET, "seed": experiment.seed, "progress": False}

    def calibrate(method: str) -> None:
        cfptq.calibrate(experiment.model, loader, experiment.action_set, method=method, max_rows=rows, **given).to_onnx(path)

    def train(method: str) -> None:
        cfptq.qat(experiment.model, loader, experiment.action_set, method=method, **given).to_onnx(path)

    return {
        **{method: lambda method=method: calibrate(method) for method in CALIBRATED},
        **{method: lambda method=method: train(method) for method in TRAINED},
    }


def take_turns(runs: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[tuple[float, float]]]:
    """Return CPU and wall seconds of each run, all of which take turns after a warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for name in CALIBRATED:
        runs[name]()
    for turn in range(turns):
        for name, run in runs.items():
            if name in TRAINED and turn % TRAINING_EVERY:
                continue
            started = time.process_time(), time.perf_counter()
            run()
            taken[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    return taken


def describe(method: str) -> dict[str, str]:
    """Return the facts of Table 16 about one method."""
    if method in PRESETS:
        preset = PRESETS[method]
        score = "none" if preset.allocator == "uniform" else str(preset.score)
        return {"trains": "no", "recourse while training": "no", "rows": str(preset.rows), "score": score}
    preset = QAT_METHODS[method]
    own = preset.schedule.student_recourse > 0
    teacher = preset.objective.eta > 0
    recourse = ", ".join(
        part for part, has in (("the teacher's, " + ("kept" if preset.teacher.cached else "anew"), teacher), ("its own", own)) if has
    )
    return {"trains": "yes", "recourse while training": recourse or "no", "rows": "training rows", "score": str(preset.bits)}


def measure(turns: int) -> dict[str, Any]:
    """Time all methods."""
    experiment = reporting.load_experiment(DATASET, SEED)
    rows = reporting.load_recipe(DATASET).calibration.rows
    with tempfile.TemporaryDirectory() as folder:
        taken = take_turns(list_runs(experiment, rows, Path(folder) / "model.onnx"), turns)
    medians = {name: [statistics.median(each) for each in zip(*seconds, strict=True)] for name, seconds in taken.items()}
    methods = {}
    for name, (cpu, wall) in medians.items():
        ratios = [each[0] / medians[REFERENCE][0] for each in taken[name]]
        methods[name] = {
            **describe(name),
            "cpu_ratio": round(cpu / medians[REFERENCE][0], 3),
            "cpu_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "wall_ratio": round(wall / medians[REFERENCE][1], 3),
            "cpu_seconds": round(cpu, 3),
            "turns": len(taken[name]),
        }
    return {"schema": 1, "dataset": DATASET, "seed": SEED, "budget": BUDGET, "runtime": describe_runtime(), "methods": methods}


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the table, with the paper's figures."""
    yield f"{results['dataset']}, {results['methods'][REFERENCE]['cpu_seconds']:.2f} processor seconds for `{REFERENCE}`.\n"
    heads = [
        "method",
        "trains",
        "recourse while training",
        "rows",
        "score of the layers",
        "processor",
        "from, to",
        "wall",
        "turns",
        "paper",
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for name in (*CALIBRATED, *TRAINED):
        entry = results["methods"][name]
        low, high = entry["cpu_ratio_range"]
        cells = [
            name, entry["trains"], entry["recourse while training"], entry["rows"], entry["score"], f"{entry['cpu_ratio']:.2f}",
            f"{low:.2f}, {high:.2f}", f"{entry['wall_ratio']:.2f}", str(entry["turns"]), f"{PAPER[name]:.2f}" if name in PAPER else "–",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--show", action="store_true", help="print the table of the results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        reporting.write_results(chosen.out, measure(chosen.turns))
    print("\n".join(markdown(json.loads(chosen.out.read_text()))))


if __name__ == "__main__":
    main()
