"""Tightness of the action set and distribution shift on adult: Tables 24 and 25 of the paper, Figures 18 to 22 as numbers.

Tightness recomputes recourse, calibration and files for each (k, γ). Shift keeps the files of the default action set and changes the test
people: noise on the numbers that people can change (eq. 35), men and women in equal shares (eq. 36), and fewer people with high income.
The paper's CFQ is trained; here `faithful` stands against `mixed-ptq` without training.

    CFPTQ_DATA_DIR=... python benchmarks/tightness_and_shift.py     # some ten minutes on one core
    python benchmarks/tightness_and_shift.py --show
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch

import cfptq
from cfptq.actions import ActionSet
from cfptq.auditing import Protocol, add_feature_noise, draw_with_shares, evaluate, reference_recourse
from cfptq.experiments.recipe import Experiment
from cfptq.network import as_predictor
from cfptq.network.onnx.session import describe_runtime

OUT = reporting.RESULTS / "tightness_and_shift.json"
DATASET, SEEDS, METHODS, BUDGET = "adult", (100, 101), ("mixed-ptq", "faithful"), 4.0
REGIMES = {"restrictive": (2, 0.5), "moderate": (4, 1.0), "permissive": (8, 1.5)}
SHIFTS = ("original", "feature noise", "group reweighting", "target imbalance")
NOISE, WOMEN, HIGH_INCOME = 0.1, 0.5, 0.12
#: One search of minimal-cost recourse a person is enough for means over people.
PROTOCOL = Protocol(max_people=300, confidences=(0.5,), resamples=200)
FIGURES = ("accuracy", "boundary_disagreement", "validity_drop", "recourse_gap", "direction_similarity", "favourable_rate_drift")


def write_files(experiment: Experiment, space: ActionSet, folder: Path) -> dict[str, Any]:
    """Quantize by each method into a file, and return their predictors."""
    columns, rows = experiment.columns, reporting.load_recipe(DATASET).calibration.rows
    found = {}
    for method in METHODS:
        result = cfptq.calibrate(
            experiment.model, [(columns.train, columns.train_labels)], space, method=method, budget=BUDGET, seed=experiment.seed,
            max_rows=rows, progress=False,
        )  # fmt: skip
        result.to_onnx(folder / f"{method}.onnx")
        found[method] = result.predictor(folder / f"{method}.onnx")
    return found


def judge(experiment: Experiment, space: ActionSet, files: Mapping[str, Any], rows: torch.Tensor, labels: Any) -> dict[str, Any]:
    """Evaluate each file on some people."""
    f = as_predictor(experiment.model, example=experiment.columns.train[:256], name="fp32")
    teacher = reference_recourse(f, rows, space, experiment.dataset.favourable, PROTOCOL, experiment.seed, progress=False)
    found: dict[str, Any] = {"fp32": teacher.to_dict(labels)}
    for method, f_q in files.items():
        metrics = evaluate(f, f_q, teacher, rows, labels, space, progress=False)
        found[method] = {figure: getattr(metrics, figure) for figure in FIGURES}
    return found


def shift(experiment: Experiment) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Yield each test distribution with its rows and true classes."""
    dataset, columns = experiment.dataset, experiment.columns
    labels = np.asarray(columns.test_labels)
    yield "original", columns.test, labels
    noisy = add_feature_noise(dataset.test, experiment.action_set, scale=NOISE, seed=experiment.seed)
    yield "feature noise", experiment.action_set.encode(noisy), labels
    rows = draw_with_shares(dataset.test["sex"], {"Female": WOMEN, "Male": 1 - WOMEN}, seed=experiment.seed)
    yield "group reweighting", columns.test[rows], labels[rows]
    rows = draw_with_shares(labels, {dataset.favourable: HIGH_INCOME, 1 - dataset.favourable: 1 - HIGH_INCOME}, seed=experiment.seed)
    yield "target imbalance", columns.test[rows], labels[rows]


def measure(seed: int) -> dict[str, Any]:
    """Measure both tables on one network."""
    experiment = reporting.load_experiment(DATASET, seed)
    columns = experiment.columns
    tightness, shifts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (changes, factor) in REGIMES.items():
            space = experiment.action_set.scale_bounds(factor).replace(max_changes=changes)
            files = write_files(experiment, space, Path(folder))
            tightness[name] = judge(experiment, space, files, columns.test, columns.test_labels)
            print(f"seed {seed}, {name}", flush=True)
        files = write_files(experiment, experiment.action_set, Path(folder))
        for name, rows, labels in shift(experiment):
            shifts[name] = judge(experiment, experiment.action_set, files, rows, labels)
            print(f"seed {seed}, {name}", flush=True)
    return {"seed": seed, "network": experiment.network.sha256, "tightness": tightness, "shift": shifts}


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write both tables, as means over networks."""
    runs = results["runs"]

    def mean(table: str, row: str, method: str, figure: str) -> float:
        return float(np.mean([run[table][row][method][figure] for run in runs]))

    def cells(table: str, row: str, method: str) -> str:
        return " | ".join(f"{mean(table, row, method, figure):.3f}" for figure in FIGURES)

    heads = "accuracy | BD | VD | CRG | DirSim | drift |"
    yield f"**Tightness** (Table 24). adult, {len(runs)} networks, up to {results['people']} refused people each\n"
    yield f"| regime | k | γ | FRR | method | {heads}"
    yield "|" + "---|" * 11
    for row, (changes, factor) in sorted(results["regimes"].items(), key=lambda entry: entry[1]):
        share = mean("tightness", row, "fp32", "feasible_recourse_rate_minimal_cost")
        for method in results["methods"]:
            yield f"| {row} | {changes} | {factor:g} | {share:.3f} | {method} | {cells('tightness', row, method)} |"
    yield "\n**Shift** (Table 25). The files stay as they are, and the test people change\n"
    yield f"| test people | method | {heads}"
    yield "|" + "---|" * 8
    for row in SHIFTS:
        for method in results["methods"]:
            yield f"| {row} | {method} | {cells('shift', row, method)} |"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        torch.set_num_threads(1)
        runs: list[dict[str, Any]] = []
        for seed in SEEDS:
            runs.append(measure(seed))
            reporting.write_results(
                chosen.out,
                {
                    "schema": 1, "methods": METHODS, "budget": BUDGET, "regimes": REGIMES, "people": PROTOCOL.max_people,
                    "noise": NOISE, "women": WOMEN, "high_income": HIGH_INCOME, "runs": runs, "runtime": describe_runtime(),
                },
            )  # fmt: skip
    print("\n".join(markdown(json.loads(chosen.out.read_text()))))


if __name__ == "__main__":
    main()
