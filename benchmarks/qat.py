"""CFQ and the baselines that train, on the public data sets: Tables 1, 2, 5, 6, 11, 17, 18 and 20 of the paper, measured.

All methods share one trained model, its training rows, their activation formats (float input where it is narrow, 8-bit hidden tensors)
and the people they are judged on under the standard protocol; every number about a quantized model comes from running its ONNX file.
``faithful`` needs no training and stands beside them. Three seeds; german has ten splits, pooled. What is measured is added to the
results file after every seed; what it holds of other methods and data sets stays.

    CFPTQ_DATA_DIR=... python benchmarks/qat.py --out benchmarks/results/qat.json
    python benchmarks/qat.py --datasets adult --tables ablation overhead
    python benchmarks/qat.py --datasets adult compas --methods cfq-qat lsq-qat
    python benchmarks/qat.py --show benchmarks/results/qat.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import cfptq
from cfptq.auditing import Protocol, TeacherRecourse, evaluate, teacher_recourse
from cfptq.files import write_text
from cfptq.network import Predictor, as_predictor
from cfptq.recipe import Backbone, Experiment, Recipe
from cfptq.recourse import ProjectedGradient
from cfptq.training import QAT_METHODS, QatMethod, TeacherSettings

SEEDS: dict[str, Sequence[int]] = {"adult": range(3), "german": range(10), "compas": range(3), "bank": range(3), "default": range(3)}
BUDGET = 4.0
CURVE = (2.5, 3.0, 4.0, 6.0, 8.0)

#: The paper's Table 5: accuracy, VD, CRG at 4 average bits.
PAPER: dict[str, dict[str, tuple[float, float, float]]] = {
    "adult": {
        "lsq-qat": (0.856, 0.163, 0.218), "pact-qat": (0.857, 0.149, 0.201), "mixed-qat": (0.857, 0.121, 0.162),
        "cfq-qat": (0.857, 0.061, 0.071), "r-margin": (0.857, 0.102, 0.136), "r-consistency": (0.857, 0.097, 0.131),
    },
    "german": {
        "lsq-qat": (0.770, 0.141, 0.191), "pact-qat": (0.771, 0.128, 0.173), "mixed-qat": (0.771, 0.110, 0.151),
        "cfq-qat": (0.771, 0.052, 0.064), "r-margin": (0.771, 0.094, 0.128), "r-consistency": (0.771, 0.090, 0.124),
    },
    "compas": {
        "lsq-qat": (0.685, 0.176, 0.233), "pact-qat": (0.686, 0.160, 0.216), "mixed-qat": (0.686, 0.136, 0.178),
        "cfq-qat": (0.687, 0.074, 0.083), "r-margin": (0.686, 0.117, 0.154), "r-consistency": (0.686, 0.112, 0.149),
    },
    "bank": {
        "lsq-qat": (0.904, 0.182, 0.241), "pact-qat": (0.904, 0.166, 0.222), "mixed-qat": (0.904, 0.138, 0.182),
        "cfq-qat": (0.904, 0.071, 0.082),
    },
    "default": {
        "lsq-qat": (0.820, 0.167, 0.221), "pact-qat": (0.820, 0.153, 0.206), "mixed-qat": (0.820, 0.126, 0.171),
        "cfq-qat": (0.820, 0.064, 0.079),
    },
}  # fmt: skip

CFQ, LITERAL = QAT_METHODS["cfq-qat"], QAT_METHODS["cfq-paper"]


def _low_step(steps: int, noise: float = 0.0, cached: bool = True) -> TeacherSettings:
    solver = ProjectedGradient(steps=steps, early_stop=False)
    return TeacherSettings(solvers=(solver,), reached_only=False, noise=noise, cached=cached)


def _named(method: QatMethod, name: str, **changes: Any) -> QatMethod:
    return replace(method, name=name, **changes)


#: Table -> its methods. The paper's own objective is judged by its own ablations, ours by ours.
TABLES: dict[str, tuple[str | QatMethod, ...]] = {
    "main": tuple(QAT_METHODS),
    "ablation": (
        _named(CFQ, "cfq-qat, eta=0", objective=replace(CFQ.objective, eta=0.0)),
        _named(CFQ, "cfq-qat, one teacher, one side", teacher=TeacherSettings()),
        _named(CFQ, "cfq-qat, nothing held", schedule=replace(CFQ.schedule, settle=0.0)),
        _named(CFQ, "cfq-qat, from plain rounding", start="ptq"),
        _named(CFQ, "cfq-qat, learned clips", learned_clips=True),
        _named(LITERAL, "cfq-paper, eta=0", objective=replace(LITERAL.objective, eta=0.0)),
        _named(LITERAL, "cfq-paper, uniform bits", bits="start"),
    ),
    "teacher": (
        _named(LITERAL, "cfq-paper, K=1", teacher=_low_step(1)),
        _named(LITERAL, "cfq-paper, K=3", teacher=_low_step(3)),
        *(_named(LITERAL, f"cfq-paper, sigma={noise:g}", teacher=_low_step(3, noise)) for noise in (0.01, 0.05, 0.1)),
        *(_named(CFQ, f"cfq-qat, sigma={noise:g}", teacher=replace(CFQ.teacher, noise=noise)) for noise in (0.01, 0.05, 0.1)),
    ),
    # The same trainer and policy with η = 0 is what times are set against.
    "overhead": (
        _named(LITERAL, "qat", objective=replace(LITERAL.objective, eta=0.0)),
        *(_named(LITERAL, f"cfq, K={steps}", teacher=_low_step(steps, cached=False)) for steps in (1, 2, 3)),
        _named(LITERAL, "cfq, cached"),
        _named(LITERAL, "cfq, cached, a third of the actions", teacher=replace(_low_step(3), share=1 / 3)),
    ),
}

#: Metrics of the tables.
SUMMARIZED = ("accuracy", "validity_drop", "recourse_gap", "recourse_gap_of_sums", "direction_similarity", "favourable_rate_drift")

#: Table 6: the backbones, by name.
BACKBONES = {
    "logistic": Backbone(kind="logistic-regression"),
    "mlp": Backbone(),
    "mlp-4": Backbone(hidden=(64, 64, 64, 64)),
}

#: What a results file keeps of each evaluation.
KEPT = (
    "accuracy", "validity_drop", "validity_drop_at", "recourse_gap", "recourse_gap_of_sums", "recourse_gap_abs_median",
    "direction_similarity", "action_overlap", "favourable_rate_drift", "factual_flip_rate", "counts",
)  # fmt: skip


def judged(result: cfptq.Result, f: Predictor, people: TeacherRecourse, experiment: Experiment) -> dict[str, Any]:
    """One method's entry, from its ONNX file."""
    columns = experiment.columns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result.to_onnx(path)
        metrics = evaluate(f, result.predictor(path), people, columns.test, columns.test_labels, experiment.action_set, progress=False)
    content = metrics.to_dict()
    entry = {key: content[key] for key in KEPT}
    return {**entry, "average_bits": result.plan.average_bits, "bits": result.bits}


def measure(name: str, seed: int, tables: Sequence[str], only: Sequence[str] = (), backbone: str | None = None) -> dict[str, Any]:
    """Train the model, quantize it by every method of the tables (or by ``only`` some), judge: one data set, one seed."""
    recipe = Recipe.load(Path(__file__).parent.parent / "recipes" / f"{name}.yaml")
    if backbone is not None:
        recipe = recipe.model_copy(update={"backbone": BACKBONES[backbone]})
    experiment = recipe.prepare(seed, progress=False)
    columns, space = experiment.columns, experiment.action_set
    loader = [(columns.train, columns.train_labels)]
    given: dict[str, Any] = {"budget": BUDGET, "seed": seed, "progress": False}

    def reference(network: torch.nn.Module) -> tuple[Predictor, TeacherRecourse]:
        f = as_predictor(network, example=columns.train[:256], name="fp32")
        return f, teacher_recourse(f, columns.test, space, experiment.dataset.favourable, Protocol(), seed, progress=False)

    f, people = reference(experiment.model)
    started = time.perf_counter()
    faithful = cfptq.calibrate(experiment.model, loader, space, max_rows=recipe.calibration.rows, **given)
    seconds = {"faithful": time.perf_counter() - started}
    methods = {"faithful": judged(faithful, f, people, experiment)}
    for table in tables:
        for entry in TABLES[table]:
            label = entry if isinstance(entry, str) else entry.name
            if only and label not in only:
                continue
            started = time.perf_counter()
            result = cfptq.qat(experiment.model, loader, space, method=entry, calibration_rows=recipe.calibration.rows, **given)
            seconds[label] = time.perf_counter() - started
            # A robustly trained model is the reference of its own quantization (E.1).
            own = reference(result.network.module()) if label.startswith("r-") else (f, people)
            methods[label] = judged(result, *own, experiment)
            history = result.training
            assert history is not None
            eligible = sum(entry["eligible"] is True for entry in history.epochs)
            methods[label] |= {
                "best_epoch": history.best_epoch, "epochs": len(history.epochs), "eligible_epochs": eligible, "overshot": history.overshot
            }  # fmt: skip
    curve: dict[str, dict[str, Any]] = {}
    if "curve" in tables:
        for budget in CURVE:
            for label in ("lsq-qat", "mixed-qat", "cfq-qat", "cfq-learned"):
                result = cfptq.qat(
                    experiment.model, loader, space, method=label, calibration_rows=recipe.calibration.rows, **{**given, "budget": budget}
                )
                curve.setdefault(f"{budget:g}", {})[label] = judged(result, f, people, experiment)
    return {"seed": seed, "fp32": people.to_dict(columns.test_labels), "methods": methods, "curve": curve, "seconds": seconds}


def summary(runs: list[dict[str, Any]], pooled: bool) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over runs; ``pooled`` weighs a run's recourse by its number of people. Drift and CRG: largest |·| too."""
    table: dict[str, dict[str, list[float]]] = {}
    for method in (name for name in runs[0]["methods"] if all(name in run["methods"] for run in runs)):
        entries = [run["methods"][method] for run in runs]
        table[method] = {}
        for metric in SUMMARIZED:
            pairs = [(entry[metric], entry["counts"]["with_recourse"] if pooled else 1) for entry in entries if entry[metric] is not None]
            if pairs and sum(people for _, people in pairs):
                figures: list[float] = [figure for figure, _ in pairs]
                mean = sum(figure * people for figure, people in pairs) / sum(people for _, people in pairs)
                spread = statistics.stdev(figures) if len(figures) > 1 else 0.0
                farthest: float = max(figures, key=abs)
                table[method][metric] = [round(figure, 5) for figure in (mean, spread, farthest)]
    return table


def merged(runs: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[dict[str, Any]]:
    """``runs`` with one more: a seed's earlier methods stay beside its new ones."""
    before = next((each for each in runs if each["seed"] == run["seed"]), {})
    whole = run | {key: before.get(key, {}) | run[key] for key in ("methods", "curve", "seconds")}
    return sorted([*(each for each in runs if each["seed"] != run["seed"]), whole], key=lambda each: int(each["seed"]))


def markdown(results: dict[str, Any]) -> str:
    """Our tables with the paper's figures beside them."""
    lines: list[str] = []
    for name, content in results["datasets"].items():
        accuracy = statistics.mean(run["fp32"]["accuracy"] for run in content["runs"])
        lines += ["", f"**{name}**, {BUDGET:g} average bits, {len(content['runs'])} seeds (full precision {accuracy:.3f})", ""]
        lines.append("| method | accuracy | VD | CRG | CRG of sums | DirSim | drift, worst seed | seconds | paper: acc / VD / CRG |")
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for method, row in content["summary"].items():
            cells = [
                f"{row[metric][0]:.{digits}f} ± {row[metric][1]:.{digits}f}" if metric in row else "–"
                for metric, digits in (
                    ("accuracy", 3), ("validity_drop", 4), ("recourse_gap", 3), ("recourse_gap_of_sums", 3), ("direction_similarity", 3),
                )
            ]  # fmt: skip
            drift = f"{100 * row['favourable_rate_drift'][2]:+.2f} points" if "favourable_rate_drift" in row else "–"
            taken = statistics.mean(run["seconds"][method] for run in content["runs"])
            paper = PAPER.get(name, {}).get(method)
            told = " / ".join(f"{figure:.3f}" for figure in paper) if paper else "–"
            lines.append(f"| {method} | {' | '.join(cells)} | {drift} | {taken:.0f} | {told} |")
    return "\n".join(lines)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/qat.json"))
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--tables", nargs="+", default=["main"], choices=[*TABLES, "curve"])
    parser.add_argument("--methods", nargs="+", default=[], help="these methods of the tables only; faithful always runs")
    parser.add_argument("--seeds", nargs="+", type=int, help="these seeds only")
    parser.add_argument("--backbone", choices=list(BACKBONES), help="in place of the recipe's; give another --out as well")
    parser.add_argument("--show", type=Path, help="print the tables of a results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.show:
        print(markdown(json.loads(chosen.show.read_text())))
        return
    warnings.filterwarnings("ignore")
    results: dict[str, Any] = {"schema": 1, "budget": BUDGET, "datasets": {}}
    if chosen.out.exists():
        results = json.loads(chosen.out.read_text())
    for name in chosen.datasets:
        for seed in chosen.seeds or SEEDS[name]:
            run = measure(name, seed, chosen.tables, chosen.methods, chosen.backbone)
            print(f"{name} seed {seed}: {sum(run['seconds'].values()):.0f} s", flush=True)
            runs = merged(results["datasets"].get(name, {"runs": []})["runs"], run)
            results["datasets"][name] = {"runs": runs, "summary": summary(runs, pooled=name == "german")}
            write_text(chosen.out, json.dumps(results, sort_keys=True, separators=(",", ":")) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
