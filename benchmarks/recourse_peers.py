"""Minimal-cost recourse beside DiCE on one network and under one set of constraints; and how cost and memory grow with the rows.

A 104-64-64-2 ReLU network over eight numbers and twelve categories of eight levels, generated people, four immutable features, at
most three changes. Every answer, whoever gave it, is read back as raw features, encoded, asked about in the network and held
against the action set: its cost, and the rules that it breaks. DiCE has no cap on the number of changes; it is told the immutables
and the ranges. All run on one thread.

    python benchmarks/recourse_peers.py --out benchmarks/results/recourse_peers.json       # needs the extra "bench"
    python benchmarks/recourse_peers.py --no-dice --longest 100000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder
from torch import Tensor, nn

from cfptq.actions import ActionSet
from cfptq.io.atomic import write_text
from cfptq.models import MLP, TrainingSettings, train
from cfptq.recourse import Exact, GradientFree, Method, MinimalCost, RecourseBatch, Status, solve

NUMBERS = tuple(f"number-{place}" for place in range(8))
CATEGORIES = tuple(f"category-{place:02d}" for place in range(12))
LEVELS = tuple(f"level-{place}" for place in range(8))
IMMUTABLE = ("number-0", "number-1", "category-00", "category-01")
MOST_CHANGES = 3
TRAINED_ON = 4000
RUNS = 5
PROOF_SECONDS = 60.0  # for each row without an answer


@dataclass(frozen=True)
class Problem:
    """The network, the action set, the people it was trained on, and the refused."""

    network: nn.Module
    action_set: ActionSet
    trained_on: pd.DataFrame
    labels: np.ndarray
    refused: pd.DataFrame


def people(count: int, seed: int) -> pd.DataFrame:
    """Draw raw rows, whose numbers lie in [0, 1] and have two decimals, as DiCE rounds them."""
    rng = np.random.default_rng(seed)
    numbers = {name: np.round(rng.beta(2, 2, count), 2) for name in NUMBERS}
    shares = 1 / np.arange(2, 2 + len(LEVELS))
    categories = {name: rng.choice(LEVELS, count, p=shares / shares.sum()) for name in CATEGORIES}
    return pd.DataFrame({**numbers, **categories})


def problem(refused: int) -> Problem:
    """Train the network on labels of a random formula with interactions, and find ``refused`` people whom it refuses."""
    trained_on = people(TRAINED_ON, seed=0)
    encoder = ColumnTransformer(
        [
            ("numbers", MinMaxScaler(), list(NUMBERS)),
            ("categories", OneHotEncoder(categories=[list(LEVELS)] * len(CATEGORIES), sparse_output=False), list(CATEGORIES)),
        ]
    ).fit(trained_on)
    action_set = ActionSet.from_frame(
        trained_on, immutable=IMMUTABLE, continuous=NUMBERS, categorical=CATEGORIES, max_changes=MOST_CHANGES, favourable=1
    ).encoded_by(encoder)
    columns = action_set.encode(trained_on)
    formula = MLP(columns.shape[1], hidden=(32,), seed=5)
    with torch.no_grad():
        for parameter in formula.parameters():
            parameter.mul_(3.0)
        formula.hidden[0].weight[:, : len(NUMBERS)] *= 5.0  # numbers range over [0, 1]: let them count
        score = formula(columns) @ torch.tensor([-1.0, 1.0])
    labels = (score > score.quantile(0.4)).to(torch.int64)
    network = MLP(columns.shape[1], hidden=(64, 64), seed=0)
    train(network, columns, labels, seed=0, settings=TrainingSettings(epochs=15), progress=False)
    pool = people(3 * refused + 100, seed=1)
    with torch.no_grad():
        turned_down = network(action_set.encode(pool)).argmax(1) == 0
    kept = pool[turned_down.numpy()].head(refused).reset_index(drop=True)
    return Problem(network, action_set, trained_on, labels.numpy(), kept)


def judged(case: Problem, factual: Tensor, points: Tensor, answered: Tensor) -> dict[str, float]:
    """Judge the answers of one solver, ``points`` (N, d), where ``answered`` (N,) bool is true."""
    delta = points - factual
    delta[~answered] = 0
    with torch.no_grad():
        valid = answered & (case.network(points).argmax(1) == 1)
    tidy = torch.where(delta.abs() > 1e-6, delta, 0.0)
    changed = torch.stack([(tidy[:, list(own)] != 0).any(1) for own in case.action_set.feature_columns], 1)
    mutable = torch.tensor([not feature.is_immutable for feature in case.action_set.features])
    touched = changed[:, ~mutable].any(1)
    crowded = changed.sum(1) > MOST_CHANGES
    low, high = case.action_set.column_bounds(factual)
    outside = ((points > high + 1e-5) | (points < low - 1e-5))[:, case.action_set.mutable_columns].any(1)
    feasible = valid & ~touched & ~crowded & ~outside
    cost = case.action_set.cost(factual, tidy)
    count = len(factual)
    return {
        "rows": count,
        "answered": round(float(answered.float().mean()), 4),
        "valid": round(float(valid.float().mean()), 4),
        "valid and feasible": round(float(feasible.float().mean()), 4),
        "immutables changed": round(int((answered & touched).sum()) / count, 4),
        "out of range": round(int((answered & outside).sum()) / count, 4),
        f"more than {MOST_CHANGES} changes": round(int((answered & crowded).sum()) / count, 4),
        "mean cost of the valid": round(float(cost[valid].mean()), 4) if bool(valid.any()) else float("nan"),
    }


def ours(case: Problem, rows: int, method: Method) -> tuple[dict[str, float], RecourseBatch]:
    """Time our solver on the first ``rows``, as the median of several runs after a warm-up, in wall and processor time."""
    x = case.action_set.encode(case.refused.head(rows))

    def run() -> RecourseBatch:
        return solve(case.network, x, case.action_set, target=1, method=method, progress=False)

    batch = run()
    seconds, busy = [], []
    for _ in range(RUNS):
        started, worked = time.perf_counter(), time.process_time()
        batch = run()
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    result = judged(case, x, batch.points, batch.found)
    result["proven to have no recourse"] = round(proven_hopeless(case, x[~batch.found]) / len(x), 4)
    took = statistics.median(seconds)
    result |= {"seconds a row": round(took / len(x), 7), "rows a second": round(len(x) / took)}
    result |= {"rows a second, best run": round(len(x) / min(seconds)), "rows a processor second": round(len(x) / statistics.median(busy))}
    result |= {"processor seconds a row": round(statistics.median(busy) / len(x), 7)}
    return result, batch


def proven_hopeless(case: Problem, x: Tensor) -> int:
    """For how many of the rows the exact solver proves that no admissible action reaches the target."""
    if len(x) == 0:
        return 0
    proof = solve(case.network, x, case.action_set, target=1, method=Exact(time_limit=PROOF_SECONDS), progress=False)
    return sum(status in (Status.INFEASIBLE, Status.IMMUTABLE) for status in proof.statuses)


class _Probability(nn.Module):
    """The network as DiCE wants it: the probability of class 1, (N, 1)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.network(x), dim=-1)[..., 1:]  # DiCE also asks about single rows (d,)


def dice(case: Problem, rows: int, method: str) -> dict[str, float]:
    """DiCE on the first ``rows``, one at a time as it works, told the immutables and the ranges."""
    import dice_ml  # type: ignore[import-not-found]

    table = case.trained_on.assign(outcome=case.labels)
    data = dice_ml.Data(dataframe=table, continuous_features=list(NUMBERS), outcome_name="outcome")
    model = dice_ml.Model(model=_Probability(case.network).eval(), backend="PYT", func="ohe-min-max")
    explainer = dice_ml.Dice(data, model, method=method)
    free = [name for name in (*NUMBERS, *CATEGORIES) if name not in IMMUTABLE]
    ranges = {name: [float(case.trained_on[name].min()), float(case.trained_on[name].max())] for name in NUMBERS if name in free}
    settings: dict[str, object] = {"total_CFs": 1, "desired_class": 1, "features_to_vary": free}
    if method != "gradient":  # there permitted_range must name every number, immutable or not; the observed range is its default
        settings["permitted_range"] = ranges
    if method == "random":
        settings["random_seed"] = 0
    asked = case.refused.head(rows)
    answers, answered, seconds, busy = [], [], [], []
    for place in range(len(asked)):
        query = asked.iloc[[place]]
        started, worked = time.perf_counter(), time.process_time()
        answer = query
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                found = explainer.generate_counterfactuals(query, **settings).cf_examples_list[0]
                frame = found.final_cfs_df_sparse if found.final_cfs_df_sparse is not None else found.final_cfs_df
                if frame is not None and len(frame):
                    answer = frame[list(query.columns)].head(1)
            except Exception as error:  # what it raises where it finds nothing is its own business
                logging.debug("DiCE: %s", error)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
        answered.append(answer is not query)
        answers.append(answer)
    given = pd.concat(answers, ignore_index=True)
    given[list(NUMBERS)] = given[list(NUMBERS)].astype(float)
    points = case.action_set.encode(given.astype(dict.fromkeys(CATEGORIES, str)))
    result = judged(case, case.action_set.encode(asked), points, torch.tensor(answered))
    return result | {"seconds a row": round(statistics.fmean(seconds), 4), "processor seconds a row": round(statistics.fmean(busy), 4)}


def growth(rows: int) -> dict[str, float]:
    """Solve ``rows`` people, refused or not, in this process, and measure time and the peak memory beyond that of rows and answers."""
    case = problem(1000)
    x = case.action_set.encode(people(4000, seed=2))
    x = x[torch.arange(rows) % len(x)]
    numbers = case.action_set.mutable_columns & (torch.arange(x.shape[1]) < len(NUMBERS))
    noise = torch.rand(rows, x.shape[1], generator=torch.Generator().manual_seed(0))
    x[:, numbers] = noise[:, numbers]  # no two people are the same
    del noise
    solve(case.network, x[:1000], case.action_set, target=1, progress=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.process_time()
    batch = solve(case.network, x, case.action_set, target=1, progress=False)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answers = sum(getattr(batch, name).nbytes for name in ("factual", "points", "delta", "cost", "found", "margin", "target")) / 2**20
    return {
        "rows": rows, "refused": int((batch.cost > 0).sum() + (~batch.found).sum()), "found": round(float(batch.found.float().mean()), 4),
        "seconds": round(seconds, 2), "processor seconds": round(busy, 2), "processor seconds a row": round(busy / rows, 7),
        "threads": torch.get_num_threads(),
        "answers MB": round(answers, 1), "peak beyond the rows MB": round(peak, 1),
    }  # fmt: skip


def main() -> None:
    """Run all and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recourse_peers.json"))
    parser.add_argument("--no-dice", action="store_true", help="leave DiCE out")
    parser.add_argument("--dice-rows", type=int, default=20)
    parser.add_argument("--longest", type=int, default=1_000_000, help="the most rows of the growth table")
    parser.add_argument("--growth", type=int, help="measure one length in this process and print it")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    if arguments.growth:
        print(json.dumps(growth(arguments.growth)))
        return
    case = problem(1000)
    methods: dict[str, Method] = {
        "minimal-cost, fast": MinimalCost(), "minimal-cost, thorough": MinimalCost(effort="thorough"), "gradient-free": GradientFree(),
    }  # fmt: skip
    table: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        table[f"cfptq {name}"], _ = ours(case, 1000, method)
        print(name, table[f"cfptq {name}"], flush=True)
    small = {name: ours(case, arguments.dice_rows, method)[0] for name, method in methods.items()}
    results: dict[str, object] = {"network": "104-64-64-2", "max_changes": MOST_CHANGES, "immutable": list(IMMUTABLE), "1000 rows": table}
    if not arguments.no_dice:
        peers: dict[str, dict[str, float]] = {f"cfptq {name}": row for name, row in small.items()}
        for method in ("gradient", "random", "genetic"):
            peers[f"DiCE {method}"] = dice(case, arguments.dice_rows, method)
            print(method, peers[f"DiCE {method}"], flush=True)
        results[f"{arguments.dice_rows} rows"] = peers
        quick = table["cfptq minimal-cost, fast"]
        for clock in ("seconds a row", "processor seconds a row"):
            results[f"times faster, {clock} (fast, at 1000 rows)"] = {
                name: round(row[clock] / quick[clock]) for name, row in peers.items() if name.startswith("DiCE")
            }
    write_text(arguments.out, json.dumps(results, indent=1) + "\n")
    lengths = [rows for rows in (1_000, 10_000, 100_000, 1_000_000) if rows <= arguments.longest]
    grown: list[object] = []
    for rows in lengths:
        command = [sys.executable, __file__, "--growth", str(rows)]
        grown.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print(grown[-1], flush=True)
        results["growth (fast)"] = grown
        write_text(arguments.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
