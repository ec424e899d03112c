"""The rate of minimal-cost answers with and without constraints, on the network and the people of ``recourse_peers.py``.

A thousand refused people on a 104-64-64-2 network, at most three changes, one thread. Five constraints of five kinds are added. Runs with
and without them alternate, and the ratio is that of processor time within each pair.

    python benchmarks/constraints.py --out benchmarks/results/constraints.json
    python benchmarks/constraints.py --against ../earlier --out ...    # also without constraints, beside another checkout
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from recourse_peers import Problem, problem

from cfptq.actions import ActionSet
from cfptq.io.atomic import write_text
from cfptq.recourse import MinimalCost, RecourseBatch, solve

PEOPLE = 1000
PAIRS = 5


def constrain(action_set: ActionSet) -> ActionSet:
    """Return the action set with a constraint of each of five kinds."""
    from cfptq.actions import AtMost, Implies, Is, Linked, Ordered, Stays, StepLimit

    rules = (
        StepLimit("number-2", up=0.2, down=0.2),
        Linked("number-3", {"number-0": 0.5}),
        Implies(Is("category-03", "level-0"), Stays("number-4")),
        Ordered("number-5", "number-6"),
        AtMost(1, ["category-02", "category-03", "category-04"]),
    )
    return action_set.replace(constraints=rules)


def timed(case: Problem, action_set: ActionSet) -> tuple[float, float, RecourseBatch]:
    """Return wall and processor seconds of one call, and its answers."""
    x = action_set.encode(case.refused)
    started, worked = time.perf_counter(), time.process_time()
    batch = solve(case.network, x, action_set, target=1, method=MinimalCost(), progress=False)
    return time.perf_counter() - started, time.process_time() - worked, batch


def summarized(runs: list[tuple[float, float, RecourseBatch]], action_set: ActionSet) -> dict[str, Any]:
    """Return rates and answers of several runs of one action set."""
    batch = runs[0][2]
    found = batch.found
    rows, points = batch.factual[found], batch.points[found]
    return {
        "answered": round(float(found.float().mean()), 4),
        "mean cost": round(float(batch.cost[found].mean()), 4),
        "people a processor second": round(PEOPLE / statistics.median(worked for _, worked, _ in runs)),
        "people a second": round(PEOPLE / statistics.median(seconds for seconds, _, _ in runs)),
        "answers that break a rule": len(action_set.validate(points, before=rows)) if action_set.constraints else 0,
    }


def ordered_problem() -> Problem:
    """Return the problem with people who keep the order of two numbers, as the constraint asks."""
    case = problem(PEOPLE)
    pair = ["number-5", "number-6"]
    case.refused[pair] = case.refused[pair].apply(sorted, axis=1, result_type="broadcast")
    return case


def compared(case: Problem) -> dict[str, Any]:
    """Return both rates and the ratio of processor time within pairs."""
    sets = {"without constraints": case.action_set, "with five constraints": constrain(case.action_set)}
    for action_set in sets.values():
        timed(case, action_set)
    runs: dict[str, list[tuple[float, float, RecourseBatch]]] = {name: [] for name in sets}
    for _ in range(PAIRS):
        for name, action_set in sets.items():
            runs[name].append(timed(case, action_set))
    plain, bound = runs.values()
    ratios = [first[1] / second[1] for first, second in zip(plain, bound, strict=True)]
    table: dict[str, Any] = {name: summarized(runs[name], action_set) for name, action_set in sets.items()}
    return {**table, "rate with constraints over rate without": round(statistics.median(ratios), 3)}


def alone(folder: Path) -> float:
    """Return processor seconds of one call without constraints in a process of its own, with the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, __file__, "--alone"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("constraints.json"))
    parser.add_argument("--against", type=Path, help="another checkout, which is measured without constraints in turns with this one")
    parser.add_argument("--alone", action="store_true", help="measure once without constraints in this process and print it")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if arguments.alone:
        case = ordered_problem()
        timed(case, case.action_set)
        print(statistics.median(timed(case, case.action_set)[1] for _ in range(PAIRS)))
        return
    results: dict[str, Any] = {"network": "104-64-64-2", "people": PEOPLE, "max_changes": 3, **compared(ordered_problem())}
    if arguments.against:
        own = Path(__file__).parents[1]
        pairs = [(alone(own), alone(arguments.against)) for _ in range(3)]
        results["processor time without constraints, this checkout over the other"] = [round(a / b, 3) for a, b in pairs]
    write_text(arguments.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
