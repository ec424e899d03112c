"""Recourse that holds over sampled deployments of a quantized model, beside the standard solver on it (Appendix E.2, Table 12).

The uncertainty set is sampled around the plan: rounding near ties, perturbed steps and clipping, and plans of other calibration draws.
Robust success is told on the sampled set itself and on a fresh one that the solver never saw. Cost and time are relative to the
standard solver on the same people, time as the least of several runs.

    CFPTQ_DATA_DIR=... python benchmarks/robust_recourse.py --out benchmarks/results/robust_recourse.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import cfptq
from cfptq.files import write_text
from cfptq.network import as_predictor
from cfptq.quantize import sample_variants, twin
from cfptq.recipe import Recipe
from cfptq.recourse import RecourseBatch, holds, robust, solve

MEMBERS = 8
DRAWS = 2  # plans of other calibration draws
RUNS = 3

Table = dict[str, dict[str, float]]


def measure(name: str, seed: int, people: int, method: str) -> Table:
    """One data set and seed: the standard and the robust solver on the quantized model."""
    experiment = Recipe.load(Path("recipes") / f"{name}.yaml").prepare(seed)
    rows, action_set = experiment.columns.train, experiment.action_set
    orders = [torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw)) for draw in range(DRAWS + 1)]
    shares = [rows[order[: min(1024, len(rows) * 3 // 4)]] for order in orders]
    results = [
        cfptq.calibrate(experiment.model, [share], action_set, budget=4.0, method=method, seed=seed, progress=False) for share in shares
    ]
    network, plans = results[0].network, [result.plan for result in results]
    plans = [plan for plan in plans if plan.network == plans[0].network]
    nominal = as_predictor(twin(network, plans[0]), example=rows[:256], name="nominal")
    seen = [as_predictor(model, example=rows[:256]) for model in sample_variants(network, plans, MEMBERS, seed)]
    fresh = [as_predictor(model, example=rows[:256]) for model in sample_variants(network, plans, 4 * MEMBERS, seed + 1000)]
    test = experiment.columns.test
    target = int(action_set.favourable or 0)
    refused = test[nominal.logits(test).argmax(1) != target][:people]
    solvers: dict[str, Callable[[], RecourseBatch]] = {
        "standard": lambda: solve(nominal, refused, action_set, target=target, progress=False),
        "standard, confidence 0.55": lambda: solve(
            nominal, refused, action_set, target=target, method=cfptq.recourse.MinimalCost(confidence=0.55), progress=False
        ),
        f"robust, M = {MEMBERS}": lambda: robust([nominal, *seen], refused, action_set, target, progress=False),
    }
    solvers["standard"]()
    table: Table = {}
    batches: dict[str, RecourseBatch] = {}
    for solver, run in solvers.items():
        seconds = []
        for _ in range(RUNS):
            started = time.process_time()
            batches[solver] = run()
            seconds.append(time.process_time() - started)
        table[solver] = {"processor seconds": round(min(seconds), 3)}
    everyone = torch.stack([batch.found for batch in batches.values()]).all(0)
    for solver, batch in batches.items():
        table[solver] |= {
            "rows": len(refused),
            "found": round(float(batch.found.float().mean()), 4),
            "nominal success": round(float(holds([nominal], batch).float().mean()), 4),
            "robust success": round(float(holds(seen, batch).float().mean()), 4),
            "robust success, fresh variants": round(float(holds(fresh, batch).float().mean()), 4),
            "held by every fresh variant": round(float(holds(fresh, batch).all(0).float().mean()), 4),
            "relative cost": round(float(batch.cost[everyone].mean() / batches["standard"].cost[everyone].mean()), 4),
            "relative time": round(table[solver]["processor seconds"] / table["standard"]["processor seconds"], 2),
        }
    return table


def over_seeds(tables: list[Table]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation of every figure."""
    return {
        solver: {
            figure: [round(statistics.fmean(values), 4), round(statistics.pstdev(values), 4)]
            for figure in figures
            for values in [[table[solver][figure] for table in tables]]
        }
        for solver, figures in tables[0].items()
    }


def main() -> None:
    """Measure all and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/robust_recourse.json"))
    parser.add_argument("--datasets", nargs="+", default=["adult", "german", "compas"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--method", default="ptq")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results: dict[str, object] = {"members": MEMBERS, "method": arguments.method, "budget": 4.0}
    for name in arguments.datasets:
        tables = {str(seed): measure(name, seed, arguments.people, arguments.method) for seed in arguments.seeds}
        results[name] = {**tables, "mean and deviation": over_seeds(list(tables.values()))}
        print(name, json.dumps(over_seeds(list(tables.values())), indent=1), flush=True)
    write_text(arguments.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
