"""Training-free quantization on the public data sets by budget. ``headline.py`` has 4 bits on the reporting seeds (Tables 13 to 15).

Every method sees the same 1,024 calibration rows, every number about a quantized model comes from running its file in ONNX
Runtime, and all are judged on the same people under the standard protocol. Three development seeds (training and calibration draw);
german has ten splits, pooled, because one holds only some 75 rejected people.

    CFPTQ_DATA_DIR=... python benchmarks/main_tables.py --out benchmarks/results/main_tables.json
    python benchmarks/main_tables.py --methods faithful     # these anew; the others' figures stay
    python benchmarks/main_tables.py --show benchmarks/results/main_tables.json     # Validity Drop by budget
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import reporting

from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text

#: Data set -> seeds.
SEEDS: dict[str, Sequence[int]] = {
    "adult": range(3),
    "german": range(10),
    "compas": range(3),
    "bank": range(3),
    "bank-with-duration": range(3),
    "default": range(3),
}
METHODS = ("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq-calibration", "cf-ptq-allocation", "cf-ptq", "faithful")
#: Average bits, the headline first.
BUDGETS = (4.0, 3.0, 5.0, 8.0)

#: Metric -> decimals, in the order of the tables.
METRICS = {
    "accuracy": 3,
    "validity_drop": 3,
    "validity_drop_at.0.50": 3,
    "validity_drop_at.0.55": 3,
    "validity_drop_at.0.60": 3,
    "recourse_gap": 3,
    "recourse_gap_of_sums": 3,
    "direction_similarity": 3,
    "favourable_rate_drift": 4,
    "factual_flip_rate": 4,
}

#: The paper's Tables 13 and 14: accuracy, VD, CRG, DirSim.
PAPER: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "adult": {
        "ort-int8": (0.856, 0.071, 0.083, 0.842),
        "ort-int4": (0.850, 0.176, 0.246, 0.691),
        "mixed-ptq": (0.854, 0.121, 0.162, 0.754),
        "cf-ptq-calibration": (0.854, 0.089, 0.118, 0.803),
        "cf-ptq-allocation": (0.855, 0.096, 0.130, 0.791),
        "cf-ptq": (0.855, 0.074, 0.101, 0.826),
    },
    "german": {
        "mixed-ptq": (0.767, 0.154, 0.211, 0.711),
        "cf-ptq-calibration": (0.768, 0.119, 0.164, 0.759),
        "cf-ptq": (0.769, 0.101, 0.142, 0.781),
    },
    "compas": {
        "mixed-ptq": (0.685, 0.138, 0.184, 0.729),
        "cf-ptq-calibration": (0.686, 0.105, 0.147, 0.771),
        "cf-ptq": (0.686, 0.092, 0.129, 0.792),
    },
}


def measure(name: str, seed: int, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Train, quantize by every method, judge: one data set, one seed."""
    recipe = Recipe.load(Path(__file__).parent.parent / "recipes" / f"{name}.yaml")
    experiment = recipe.prepare(seed)
    comparison = reporting.compare_methods(experiment, name, seed, methods, budgets=BUDGETS, max_rows=recipe.calibration.rows)
    result = comparison.to_dict()
    del result["methods"]  # the headline budget's, once more
    for budget, entries in result["budgets"].items():
        for entry in entries.values():
            del entry["groups"]
            if float(budget) != BUDGETS[0]:
                del entry["ci95"]
    return result


def value(entry: dict[str, Any], metric: str) -> float | None:
    """One figure of a method's entry; None where it is undefined."""
    key, _, inner = metric.partition(".")
    found = entry[key][inner] if inner else entry[key]
    return None if found is None else float(found)


def summary(runs: list[dict[str, Any]], budget: str, pooled: bool) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over runs, by method and metric; ``pooled`` weighs a run's recourse by its number of people."""
    table: dict[str, dict[str, list[float]]] = {}
    for method in METHODS:
        entries = [run["budgets"][budget][method] for run in runs]
        table[method] = {}
        for metric in METRICS:
            pairs = [(value(entry, metric), entry["counts"]["with_recourse"] if pooled else 1) for entry in entries]
            known = [(figure, people) for figure, people in pairs if figure is not None and people]
            if known:
                figures = [figure for figure, _ in known]
                mean = sum(figure * people for figure, people in known) / sum(people for _, people in known)
                table[method][metric] = [round(mean, 5), round(statistics.stdev(figures), 5) if len(figures) > 1 else 0.0]
    return table


def paper_figures() -> Iterator[str]:
    """The paper's Tables 13 and 14."""
    yield "| data set | method | accuracy | VD | CRG | DirSim |"
    yield "|---|---|---|---|---|---|"
    for name, methods in PAPER.items():
        for method, figures in methods.items():
            yield f"| {name} | {method} | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """Validity Drop by budget, mean ± standard deviation."""
    methods = ("ort-int4", "mixed-ptq", "cf-ptq", "faithful")
    yield f"| data set | method | {' | '.join(f'{budget:g}' for budget in sorted(BUDGETS))} |"
    yield "|---|---|---|---|---|---|"
    for name, content in results["datasets"].items():
        for method in methods:
            cells = []
            for budget in sorted(BUDGETS):
                shown = ("ort-int8" if budget == 8 else "ort-int4" if budget == 4 else None) if method == "ort-int4" else method
                cells.append(_cell(content["summary"][str(budget)][shown], "validity_drop") if shown else "–")
            yield f"| {name} | {'ORT' if method == 'ort-int4' else method} | {' | '.join(cells)} |"


def _cell(row: dict[str, list[float]], metric: str) -> str:
    if metric not in row:
        return "–"
    mean, std = row[metric]
    return f"{mean:.{METRICS[metric]}f} ± {std:.{METRICS[metric]}f}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/main_tables.json"))
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--show", type=Path, help="print the tables of a results file and leave")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="these only; needs an earlier --out")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.show:
        print("\n".join(markdown(json.loads(chosen.show.read_text()))))
        return
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {"schema": 1, "budgets": list(BUDGETS), "datasets": {}}
    if chosen.out.exists():
        results = json.loads(chosen.out.read_text())  # what is not measured anew stays as it is
    for name in chosen.datasets:
        runs = []
        for seed in SEEDS[name]:
            started = time.perf_counter()
            run = measure(name, seed, chosen.methods)
            if chosen.methods != list(METHODS):
                earlier = results["datasets"][name]["runs"][len(runs)]["budgets"]
                run["budgets"] = {budget: earlier[budget] | entries for budget, entries in run["budgets"].items()}
            runs.append(run)
            print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        summaries = {str(budget): summary(runs, str(budget), pooled=name == "german") for budget in BUDGETS}
        results["datasets"][name] = {"runs": runs, "summary": summaries}
        write_text(chosen.out, json.dumps(results, sort_keys=True, separators=(",", ":")) + "\n")
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
