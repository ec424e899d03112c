"""Widths of output channels against widths of layers, by recourse on the standard people of each data set.

Networks are those of the recipes at development seeds, and every figure comes from running the file in ONNX Runtime. Ratios are paired by
data set and seed.

    CFPTQ_DATA_DIR=... python benchmarks/channel_widths.py --seeds 0 1
    python benchmarks/channel_widths.py --show     # the table of the results file
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from cfptq.auditing.last_steps import LastSteps, build_boundary_statistics
from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.metrics import evaluate_statistic, target_failures
from cfptq.network import decide
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.recourse import ProjectedGradient, solve

ROOT = Path(__file__).parent
OUT = ROOT / "results" / "channel_widths.json"
DATASETS = ("adult", "bank", "default", "compas", "german")
BUDGETS = (3.0, 4.0, 5.0)

#: Most people of one data set and seed.
MAX_PEOPLE = 800

#: Neither dropped channels nor split columns, which widths of layers cannot have.
FAITHFUL = replace(METHODS["faithful"], granularity="layer", drops_channels=False, split_inputs=False)
PAPER = replace(FAITHFUL, name="eq. 23", score="counterfactual", allocator="greedy")
#: Name in the table -> method. The last two allocate by the paper's score.
COMPARED = {
    "layers": FAITHFUL,
    "channels": replace(FAITHFUL, granularity="channel"),
    "eq. 23, layers": PAPER,
    "eq. 23, channels": replace(PAPER, granularity="channel"),
}


def measure(dataset: str, seed: int) -> list[dict[str, Any]]:
    """Return one record for each method and budget."""
    recipe = Recipe.load(ROOT.parent / "recipes" / f"{dataset}.yaml")
    experiment = recipe.prepare(seed, progress=False)
    columns = experiment.columns
    loader = [(columns.train, columns.train_labels)]
    settings = TaskSettings(max_rows=recipe.calibration.rows, seed=seed, progress=False)
    task = build_task(experiment.model, loader, experiment.action_set, settings)
    target, decided = experiment.dataset.favourable, decide(task.predictor.logits(columns.test))
    rejected = (decided != target).nonzero()[:, 0]
    order = torch.randperm(len(rejected), generator=torch.Generator().manual_seed(seed))
    people = columns.test[rejected[order[:MAX_PEOPLE]].sort().values]
    batch = solve(task.predictor, people, experiment.action_set, target=target, method=ProjectedGradient(), seed=seed, progress=False)
    steps = LastSteps.from_batch(batch)
    assert steps is not None
    crossings, records = steps.find_crossings(task.predictor), []
    for name, method in COMPARED.items():
        for budget in BUDGETS:
            started = time.process_time()
            result = quantize_with(task, method, budget, progress=False)
            seconds = time.process_time() - started
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                result.to_onnx(path)
                deployed, file_bytes = result.predictor(path), path.stat().st_size
                failures = target_failures(decide(deployed.logits(batch.points)), batch.target, batch.found)
                found, _ = build_boundary_statistics(steps, crossings, deployed, failures)
                after = decide(deployed.logits(columns.test))
            shift, disagreement = found["crossing_shift_mean_abs"], found["boundary_disagreement"]
            records.append(
                {
                    "dataset": dataset, "seed": seed, "method": name, "budget": budget, "people": int(batch.found.sum()),
                    "average_bits": round(result.plan.average_bits, 4), "file_bytes": file_bytes,
                    "validity_drop": float(np.nanmean(failures)), "boundary_disagreement": evaluate_statistic(disagreement),
                    "crossing_shift": evaluate_statistic(shift),
                    "drift": float(((after == target).double() - (decided == target).double()).mean()), "seconds": round(seconds, 2),
                }
            )  # fmt: skip
    return records


def compare(records: list[dict[str, Any]], method: str, other: str, budget: float, key: str) -> tuple[float, float, float]:
    """Return the geometric mean of paired ratios and its 95 % interval, by Student's t over data sets and seeds."""
    values = {(r["dataset"], r["seed"], r["method"]): r[key] for r in records if r["budget"] == budget}
    pairs = sorted({(dataset, seed) for dataset, seed, _ in values})
    logs = [math.log(values[*pair, method] / values[*pair, other]) for pair in pairs]
    mean = statistics.mean(logs)
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def show(records: list[dict[str, Any]]) -> None:
    """Print the means of each data set, and the paired ratios of crossing shift."""
    seeds = sorted({r["seed"] for r in records})
    print(f"Means over seeds {', '.join(map(str, seeds))}: boundary disagreement / crossing shift / file bytes (average bits)\n")
    print("| set | bits | " + " | ".join(COMPARED) + " |\n|---|---|" + "---|" * len(COMPARED))
    for dataset in DATASETS:
        for budget in BUDGETS:
            cells = []
            for method in COMPARED:
                own = [r for r in records if (r["dataset"], r["budget"], r["method"]) == (dataset, budget, method)]
                mean = {key: statistics.mean(r[key] for r in own) for key in own[0] if key not in ("dataset", "method")}
                cells.append(
                    f"{mean['boundary_disagreement']:.4f} / {mean['crossing_shift']:.4f} / {mean['file_bytes']:,.0f} "
                    f"({mean['average_bits']:.2f})"
                )
            print(f"| {dataset} | {budget:g} | " + " | ".join(cells) + " |")
    for method, other in (("channels", "layers"), ("eq. 23, channels", "eq. 23, layers")):
        for budget in BUDGETS:
            ratio, low, high = compare(records, method, other, budget, "crossing_shift")
            print(f"\nCrossing shift of {method} relative to {other} at {budget:g} bits: {ratio:.2f} [{low:.2f}, {high:.2f}]", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--show", action="store_true", help="print the table of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.show:
        records = [record for seed in arguments.seeds for dataset in DATASETS for record in measure(dataset, seed)]
        timeless = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
        write_text(OUT, json.dumps({"schema": 1, "records": timeless}, indent=1) + "\n")
        for name in COMPARED:
            print(f"{name}: {statistics.median(r['seconds'] for r in records if r['method'] == name):.2f} s to quantize")
    show(json.loads(OUT.read_text(encoding="utf-8"))["records"])


if __name__ == "__main__":
    main()
