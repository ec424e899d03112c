"""The heuristic search against the exact optimum, person by person, on adult, german and compas.

Each person's optimum comes from `method="exact"`, with the thorough heuristic's cost as cut-off and a proof, on one thread. People
who run into the time limit count as bounded: their cost is compared with the best action known, and the proven bound stands beside
it. One split of german holds some 50 rejected people, so that several are pooled.

    CFPTQ_DATA_DIR=... python benchmarks/recourse_optimality.py --out benchmarks/results/recourse_optimality.json
    python benchmarks/recourse_optimality.py --again benchmarks/results/recourse_optimality.json   # the heuristic anew, optima as stored
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet
from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.network import as_predictor, decide
from cfptq.recourse import Exact, MinimalCost, RecourseBatch, Status, solve

#: Data set -> seeds pooled.
SEEDS: dict[str, Sequence[int]] = {"adult": (0,), "german": range(10), "compas": (0,)}
EFFORTS = ("fast", "thorough")
Problem = tuple[nn.Module, ActionSet, Tensor]


def problems(name: str, people: int) -> list[Problem]:
    """Yield the model, the action set and the first rejected people of each seed, after a seeded shuffle."""
    result = []
    left = people
    for seed in SEEDS[name]:
        experiment = Recipe.load(Path(__file__).parents[1] / "recipes" / f"{name}.yaml").prepare(seed, progress=False)
        rows, action_set = experiment.columns.test, experiment.action_set
        logits = as_predictor(experiment.model, example=rows[:256]).logits(rows)
        rejected = (decide(logits) != action_set.favourable).nonzero()[:, 0]
        order = torch.randperm(len(rejected), generator=torch.Generator().manual_seed(seed))
        chosen = rejected[order][:left]
        left -= len(chosen)
        if len(chosen):
            result.append((experiment.model, action_set, rows[chosen]))
    return result


def solved(problem: Problem, method: MinimalCost | Exact) -> tuple[RecourseBatch, float]:
    model, action_set, rows = problem
    started = time.perf_counter()
    batch = solve(model, rows, action_set, target=action_set.favourable or 0, method=method, progress=False)
    return batch, time.perf_counter() - started


def optima(parts: list[Problem], time_limit: float) -> dict[str, Any]:
    batches = [solved(part, Exact(time_limit=time_limit)) for part in parts]
    return {
        "cost": [round(value, 6) for batch, _ in batches for value in batch.cost.tolist()],
        "bound": [None if value == float("inf") else round(value, 6) for batch, _ in batches for value in batch.bound.tolist()],
        "status": [status.name.lower() for batch, _ in batches for status in batch.statuses],
        "seconds_each": sum(seconds for _, seconds in batches) / sum(len(batch) for batch, _ in batches),
    }


def compared(parts: list[Problem], optimum: dict[str, Any], effort: str) -> dict[str, Any]:
    """Compare the heuristic's costs with the optima, for everyone who has recourse at all."""
    batches = [solved(part, MinimalCost(effort="thorough" if effort == "thorough" else "fast")) for part in parts]
    found = torch.cat([batch.found for batch, _ in batches])
    cost = torch.cat([batch.cost for batch, _ in batches])
    least = torch.tensor(optimum["cost"])
    feasible = torch.tensor([status in ("optimal", "bounded") for status in optimum["status"]])
    proven = torch.tensor([status == "optimal" for status in optimum["status"]])
    ratio = (cost / least)[feasible & found]
    ratio_proven = (cost / least)[proven & found]
    worst = torch.where(feasible & found, cost / least, 0).sort(descending=True)
    return {
        "mean_ratio": float(ratio.mean()),
        "worst_ratio": float(ratio.max()),
        "mean_ratio_where_proven": float(ratio_proven.mean()),
        "share_within_0.1_percent": float((ratio < 1.001).float().mean()),
        "missed": int((feasible & ~found).sum()),
        "seconds_each": sum(seconds for _, seconds in batches) / len(cost),
        "worst_people": [
            {"person": person, "ratio": round(value, 4), "optimum": optimum["cost"][person]}
            for value, person in zip(worst.values[:8].tolist(), worst.indices[:8].tolist(), strict=True)
            if value > 1.001
        ],
    }


def report(results: dict[str, Any]) -> str:
    lines = [f"{'':8} {'people':>6} {'optimal':>7} {'bounded':>7} {'none':>5}  effort    mean ratio  worst  missed  ms/person"]
    for name, result in results["datasets"].items():
        status = result["exact"]["status"]
        none = sum(one in (Status.INFEASIBLE.name.lower(), Status.IMMUTABLE.name.lower()) for one in status)
        for effort in EFFORTS:
            figures = result[effort]
            lines.append(
                f"{name:8} {len(status):6} {status.count('optimal'):7} {status.count('bounded'):7} {none:5}  {effort:9}"
                f" {figures['mean_ratio']:9.4f} {figures['worst_ratio']:6.3f} {figures['missed']:7} {1000 * figures['seconds_each']:9.1f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recourse_optimality.json"))
    parser.add_argument("--again", type=Path, help="a file written before: keep its optima, measure the heuristic again, and write it")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--time-limit", type=float, default=15.0, help="seconds a person")
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.again or arguments.out
    results: dict[str, Any] = {"schema": 1, "people": arguments.people, "time_limit": arguments.time_limit, "datasets": {}}
    if arguments.again:
        results = json.loads(path.read_text())
    for name in results["datasets"] if arguments.again else arguments.datasets:
        parts = problems(name, results["people"])
        exact = results["datasets"][name]["exact"] if arguments.again else optima(parts, arguments.time_limit)
        results["datasets"][name] = {"exact": exact, **{effort: compared(parts, exact, effort) for effort in EFFORTS}}
        write_text(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
        print(report(results), flush=True)


if __name__ == "__main__":
    main()
