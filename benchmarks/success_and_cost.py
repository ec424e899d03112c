"""Success of recourse in deployments that vary, against its cost: Figure 9 of the paper.

A deployment varies in rounding near ties, steps and clipping around its plan (Appendix E.2). Success is the share of 32 variants, which no
solver has seen, in which an action reaches the target, averaged over people. Cost is that of the standard solver on ``ptq``'s model at
confidence 0.50, over the same people, those whom all models refuse. Each curve is the standard solver on one method's model at growing
confidence; the robust solver on ``ptq``'s model has a point for each number M of variants that it solves against.

    CFPTQ_DATA_DIR=... python benchmarks/success_and_cost.py --reason "..."
    python benchmarks/success_and_cost.py --methods ptq faithful --reason "..."     # without training, some five minutes
    python benchmarks/success_and_cost.py --show     # the table, and the plot anew
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting
import torch
from subgroups import format_figure

import cfptq
from cfptq.experiments.recipe import Experiment
from cfptq.network import Predictor, as_predictor, decide
from cfptq.network.onnx.session import describe_runtime
from cfptq.quantize import sample_variants
from cfptq.recourse import RecourseBatch, check_validity, robust, solve
from cfptq.training import QAT_METHODS

OUT = reporting.RESULTS / "success_and_cost.json"
DATASET = "adult"
BUDGET = 4.0
METHODS = ("ptq", "faithful", "cfq-qat")
CONFIDENCES = (0.5, 0.525, 0.55, 0.575, 0.6, 0.65)
MEMBERS = (2, 4, 8)
FRESH = 32
PEOPLE = 300


@dataclass(frozen=True)
class Deployment:
    """A quantized model with the variants that a robust solver sees, and others that no solver sees."""

    nominal: Predictor
    seen: list[Predictor]
    fresh: list[Predictor]


def deploy(experiment: Experiment, method: str, path: Path) -> Deployment:
    """Quantize by one method into a file and sample variants around its plan."""
    columns, seed = experiment.columns, experiment.seed
    given: dict[str, Any] = {"method": method, "budget": BUDGET, "seed": seed, "progress": False}
    loader = [(columns.train, columns.train_labels)]
    if method in QAT_METHODS:
        result = cfptq.qat(experiment.model, loader, experiment.action_set, **given)
    else:
        rows = reporting.load_recipe(DATASET).calibration.rows
        result = cfptq.calibrate(experiment.model, loader, experiment.action_set, max_rows=rows, **given)
    result.to_onnx(path)
    models = sample_variants(result.network, result.plan, max(MEMBERS) + FRESH, seed)
    variants = [as_predictor(model, example=columns.train[:256]) for model in models]
    return Deployment(result.predictor(path), variants[: max(MEMBERS)], variants[max(MEMBERS) :])


def measure(seed: int, methods: Sequence[str], folder: Path) -> dict[str, Any]:
    """Solve on each method's model at each confidence, and robustly on the first one's, for one seed."""
    experiment = reporting.load_experiment(DATASET, seed)
    space, test, target = experiment.action_set, experiment.columns.test, experiment.dataset.favourable
    deployments = {method: deploy(experiment, method, folder / f"{method}-{seed}.onnx") for method in methods}
    refused = torch.stack([decide(deployment.nominal.logits(test)) != target for deployment in deployments.values()]).all(0)
    rows = test[refused][:PEOPLE]
    batches: dict[str, tuple[Deployment, RecourseBatch]] = {}
    for method, deployment in deployments.items():
        for confidence in CONFIDENCES:
            solver = cfptq.recourse.MinimalCost(confidence=confidence)
            batch = solve(deployment.nominal, rows, space, target=target, method=solver, progress=False)
            batches[f"{method}, {confidence:g}"] = (deployment, batch)
    plain = deployments[methods[0]]
    for members in MEMBERS:
        batch = robust([plain.nominal, *plain.seen[:members]], rows, space, target, progress=False)
        batches[f"{methods[0]}, robust M = {members}"] = (plain, batch)
    everyone = torch.stack([batch.found for _, batch in batches.values()]).all(0)
    base = float(next(iter(batches.values()))[1].cost[everyone].mean())
    points = {
        label: {
            "relative_cost": float(batch.cost[everyone].mean()) / base,
            "success": float(check_validity(deployment.fresh, batch)[:, everyone].double().mean()),
            "nominal_success": float(check_validity([deployment.nominal], batch)[:, everyone].double().mean()),
        }
        for label, (deployment, batch) in batches.items()
    }
    return {"network": experiment.network.sha256, "people": int(everyone.sum()), "points": points}


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize each point over seeds."""
    return {
        label: {figure: reporting.summarize([run["points"][label][figure] for run in runs]).to_dict() for figure in figures}
        for label, figures in runs[0]["points"].items()
    }


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the table, each figure as mean ± standard deviation [95 % interval] over seeds."""
    people = sum(run["people"] for run in results["runs"])
    yield f"{DATASET}, {len(results['runs'])} networks, {people:,} people\n"
    yield "| model, confidence or robust solver | cost | success in unseen variants | success in the model itself |"
    yield "|" + "---|" * 4
    for label in sorted(results["summary"], key=lambda label: METHODS.index(label.partition(",")[0])):
        figures = results["summary"][label]
        cells = [format_figure(figures[figure], 3) for figure in ("relative_cost", "success")]
        yield f"| {label} | {' | '.join(cells)} | {figures['nominal_success']['mean']:.3f} |"
    yield "\n![Success in variants of the deployed model against the cost of recourse](results/success_and_cost.svg)"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw success against cost."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cfptq"
    from matplotlib import pyplot

    looks = {"ptq": ("#999999", "s"), "faithful": ("#1b6ca8", "o"), "cfq-qat": ("#7b3294", "v")}
    figure, panel = pyplot.subplots(figsize=(5.0, 3.6))
    spread = f"{CONFIDENCES[0]:g} to {CONFIDENCES[-1]:g}"
    curves: dict[str, list[str]] = {}
    for label in results["summary"]:
        method, _, solver = label.partition(", ")
        curves.setdefault(f"{method}, robust" if solver.startswith("robust") else method, []).append(label)
    for name, labels in curves.items():
        colour, marker = looks[name.partition(",")[0]]
        points = [results["summary"][label] for label in labels]
        if robustly := name.endswith("robust"):
            colour, marker = "#d95f02", "^"
        panel.plot(
            [point["relative_cost"]["mean"] for point in points], [point["success"]["mean"] for point in points],
            color=colour, marker=marker, markersize=4, linewidth=1, linestyle="--" if robustly else "-",
            label=f"{name} solver, M = {', '.join(map(str, MEMBERS))}" if robustly else f"{name}, confidence {spread}",
        )  # fmt: skip
    panel.set(xlabel="cost over that of the standard solver on ptq", ylabel="success in unseen variants", ylim=(0, 1.02))
    panel.set_title(f"{DATASET} ({len(results['runs'])} networks)", fontsize=9)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, help="these instead of the reporting seeds")
    parser.add_argument("--show", action="store_true", help="print the table of the results file, draw its plot beside it, and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        seeds = chosen.seeds or list(reporting.REPORTING_SEEDS[DATASET])
        reporting.start_run(chosen.out, {DATASET: seeds}, chosen.reason)
        runs = []
        for seed in seeds:
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(seed, chosen.methods, Path(folder)))
            print(f"{DATASET} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
            content = {"schema": 1, "dataset": DATASET, "budget": BUDGET, "seeds": seeds[: len(runs)], "runtime": describe_runtime()}
            reporting.write_results(chosen.out, {**content, "runs": runs, "summary": summarize(runs)})
    results = json.loads(chosen.out.read_text())
    plot(results, chosen.out.with_suffix(".svg"))
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
