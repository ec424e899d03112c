"""What ``faithful`` owes to what: activation formats, one ingredient at a time, deeper and wider networks.

``benchmarks/main_tables.py`` measures the methods as they are deployed, with all metrics; this script takes them apart. Validity
Drop, drift and accuracy come from running each file in ONNX Runtime on the standard protocol's people. Five parts, one file:

    formats    every method with 8-bit, float-input and 16-bit activations, at 4 and 8 average bits
    ablation   faithful with one ingredient removed at a time, at 3 and 4 average bits
    networks   4x64, 512-512 and a residual network with BatchNorm, at 4 average bits
    splits     sixty splits of german, pooled, at 4 average bits: Validity Drop as it is, and with the decision's threshold moved to
               where as many training rows are granted the target as by the full-precision model
    plot       Validity Drop against average bits, from main_tables.json

    CFPTQ_DATA_DIR=... python benchmarks/faithful.py --part formats ablation networks splits plot
    python benchmarks/faithful.py --show     # the tables of the README
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from cfptq.auditing import Protocol, ReferenceRecourse, reference_recourse
from cfptq.calibration import counterfactual_points
from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.metrics import RatioOfSums, bootstrap_intervals, evaluate_statistic, validity_drop
from cfptq.network import Predictor, decide, target_margin
from cfptq.network.predictor import count_saturated_decisions
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import QuantizationTask, TaskSettings, build_task
from cfptq.quantize import Activations, LayerProblem, RoundedWeight, round_by_margins

RESULTS = Path(__file__).parent / "results"
OUT = RESULTS / "faithful.json"

#: Data set -> seeds; german's splits are small, so ten are pooled.
SEEDS: Mapping[str, Sequence[int]] = {"adult": range(3), "german": range(10), "compas": range(3), "bank": range(3), "default": range(3)}

#: Splits of german that are pooled to tell methods apart that differ by a few people in each.
SPLITS = 60

#: Rounding as ONNX Runtime's ``quantize_static`` does it, so that it can be had with every activation format.
PLAIN = Method("plain", rows="factual", allocator="uniform", rounding="nearest-full-range", activations=Activations(clip=False))

#: Activation format -> (hidden bits, input bits).
FORMATS = {"8-bit": (8, 8), "float input": (8, 32), "16-bit": (16, 16)}

#: Network -> model section of the recipe.
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "4x64": {"kind": "mlp", "hidden": [64, 64, 64, 64]},
    "512-512": {"kind": "mlp", "hidden": [512, 512]},
    "residual BatchNorm 3x64": {"kind": "mlp", "hidden": [64, 64, 64], "batch_norm": True, "residual": True},
}

FAITHFUL = METHODS["faithful"]

#: Methods of all parts but the ablation.
COMPARED = {method.name: method for method in (PLAIN, METHODS["mixed-ptq"], METHODS["cf-ptq"], FAITHFUL)}


def unweighted(problem: LayerProblem) -> RoundedWeight:
    """Rounding with every row counting the same."""
    return round_by_margins(replace(problem, row_weights=torch.ones_like(problem.row_weights)))


def without(constant: str) -> Callable[[], AbstractContextManager[Any]]:
    """Calibration with one of the numbers that size it at zero."""
    return lambda: patch.object(counterfactual_points, constant, 0)


#: What is removed -> the method left, and what has to be patched meanwhile.
ABLATION: Mapping[str, tuple[Method, Callable[[], AbstractContextManager[Any]]]] = {
    "nothing": (FAITHFUL, nullcontext),
    "counterfactual points (factual rows only)": (replace(FAITHFUL, rows="factual"), nullcontext),
    "points at the boundary (the paper's U_cal)": (replace(FAITHFUL, rows="augmented"), nullcontext),
    "minimal-cost and single-feature points": (FAITHFUL, without("MAX_MINIMAL_COST_PEOPLE")),
    "single-feature points": (FAITHFUL, without("MAX_SINGLE_FEATURE_PEOPLE")),
    "recombined people": (FAITHFUL, without("WANTED_RECOURSE_PEOPLE")),
    "boundary weights": (replace(FAITHFUL, rounding=unweighted), nullcontext),
    "float input (8 bits instead)": (FAITHFUL.with_activations(None, 8), nullcontext),
    "equalized channels": (replace(FAITHFUL, equalize=False), nullcontext),
    "margins (each layer's own output instead)": (replace(FAITHFUL, rounding="compensated"), nullcontext),
    "margins and sequential inputs": (replace(FAITHFUL, rounding="compensated", sequential=False), nullcontext),
    "error compensation (eq. 22 instead)": (replace(FAITHFUL, rounding="nearest"), nullcontext),
    "measured sensitivity (eq. 23 and greedy)": (
        replace(FAITHFUL, score="counterfactual", allocator="greedy", split_inputs=False),
        nullcontext,
    ),
}


class Judge:
    """One trained model and the people that quantized versions of it are judged by."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        experiment = recipe.prepare(seed, progress=False)
        self.columns = experiment.columns
        self.loader = [(self.columns.train, self.columns.train_labels)]
        self.experiment, self.rows, self.seed = experiment, recipe.calibration.rows, seed
        teacher = self.teacher()
        self.people: ReferenceRecourse = reference_recourse(
            teacher.predictor, self.columns.test, experiment.action_set, teacher.target, Protocol(), seed, progress=False
        )
        self.accuracy = float((decide(teacher.predictor.logits(self.columns.test)) == self.columns.test_labels).double().mean())

    def teacher(self) -> QuantizationTask:
        """A teacher that has not computed anything yet."""
        return build_task(
            self.experiment.model,
            self.loader,
            self.experiment.action_set,
            TaskSettings(max_rows=self.rows, seed=self.seed, progress=False),
        )

    def __call__(self, teacher: QuantizationTask, method: Method, budget: float, portable: bool = True) -> dict[str, Any]:
        """Quantize, write the file, run it."""
        result = quantize_with(teacher, method, budget, portable=portable, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            result.to_onnx(path)
            deployed = result.predictor(path)
            after = decide(deployed.logits(self.columns.test))
            target, recourse = self.people.target, self.people.projected
            held, likely = recourse[recourse.found], self.people.minimal["0.55"]
            likely = likely[likely.found]
            margin = target_margin(deployed.logits(held.points), held.target)
            return {
                "accuracy": round(float((after == self.columns.test_labels).double().mean()) - self.accuracy, 5),
                "validity_drop": round(validity_drop(decide(deployed.logits(held.points)), held.target), 5),
                "validity_drop_at_0.55": round(validity_drop(decide(deployed.logits(likely.points)), likely.target), 5),
                "drift": round(float(((after == target).double() - (self.people.decisions == target).double()).mean()), 5),
                "flips": round(float((after != self.people.decisions).double().mean()), 5),
                "validity_drop_without_drift": round(float((margin <= self.fair_margin(teacher, deployed)).double().mean()), 5),
                "people": len(held),
                "bits": list(result.bits.values()),
                "average_bits": round(result.plan.average_bits, 4),
                "stored_bytes": result.plan.stored_bytes,
                "decided_otherwise_by_default_session": count_saturated_decisions(deployed, self.columns.test, after),
            }

    def fair_margin(self, teacher: QuantizationTask, deployed: Predictor) -> float:
        """The margin above which ``deployed`` grants as many training rows the target as the full-precision model does."""
        rows = self.columns.train
        target = torch.full((len(rows),), self.experiment.dataset.favourable)
        granted = int((decide(teacher.predictor.logits(rows)) == target).sum())
        margins = target_margin(deployed.logits(rows), target).sort(descending=True).values
        return float(margins[granted - 1 : granted + 1].mean())


def recipe_of(name: str, model: Mapping[str, Any] | None = None) -> Recipe:
    """The data set's recipe, with another network where ``model`` is given."""
    recipe = Recipe.load(RESULTS.parent.parent / "recipes" / f"{name}.yaml")
    if model is None:
        return recipe
    return recipe.model_copy(update={"backbone": type(recipe.backbone).model_validate(model)})


def formats(name: str, seed: int, methods: Sequence[Method]) -> dict[str, Any]:
    """Method -> format -> budget -> figures."""
    judge = Judge(recipe_of(name), seed)
    teacher, table = judge.teacher(), {}
    for method in methods:
        table[method.name] = {
            form: {str(budget): judge(teacher, method.with_activations(*bits), budget) for budget in (4.0, 8.0)}
            for form, bits in FORMATS.items()
        }
    return table


def ablation(name: str, seed: int, _: Sequence[Method]) -> dict[str, Any]:
    """What is removed -> budget -> figures."""
    judge, table = Judge(recipe_of(name), seed), {}
    for removed, (method, patched) in ABLATION.items():
        with patched():
            teacher = judge.teacher()
            table[removed] = {str(budget): judge(teacher, method, budget) for budget in (4.0, 3.0)}
    return table


def networks(name: str, seed: int, methods: Sequence[Method]) -> dict[str, Any]:
    """Network -> method -> figures at 4 bits."""
    table = {}
    for network, model in NETWORKS.items():
        judge = Judge(recipe_of(name, model), seed)
        teacher = judge.teacher()
        table[network] = {method.name: judge(teacher, method, 4.0) for method in methods}
    return table


def splits(name: str, seed: int, methods: Sequence[Method]) -> dict[str, Any]:
    """Method -> figures at 4 bits."""
    judge = Judge(recipe_of(name), seed)
    teacher = judge.teacher()
    return {method.name: judge(teacher, method, 4.0) for method in methods if method is not PLAIN}


PARTS: Mapping[str, Callable[[str, int, Sequence[Method]], dict[str, Any]]] = {
    "formats": formats, "ablation": ablation, "networks": networks, "splits": splits,
}  # fmt: skip


def plot(path: Path) -> None:
    """Validity Drop against average bits, one panel a data set, mean and range over seeds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cfptq"
    from matplotlib import pyplot

    content = json.loads((RESULTS / "main_tables.json").read_text())
    names = [name for name in content["datasets"] if name != "bank-with-duration"]
    figure, panels = pyplot.subplots(1, len(names), figsize=(3.1 * len(names), 3.0), sharey=True)
    looks = {"mixed-ptq": ("#999999", "s"), "cf-ptq": ("#d95f02", "^"), "faithful": ("#1b6ca8", "o")}
    for panel, name in zip(panels, names, strict=True):
        summary = content["datasets"][name]["summary"]
        budgets = sorted(map(float, summary))
        for method, (colour, marker) in looks.items():
            mean, std = zip(*(summary[str(budget)][method]["validity_drop"] for budget in budgets), strict=True)
            panel.errorbar(budgets, mean, yerr=std, color=colour, marker=marker, capsize=2, label=method)
        for bits, peer in ((4, "ort-int4"), (8, "ort-int8")):
            panel.plot(bits, summary["4.0"][peer]["validity_drop"][0], "kx", label="ONNX Runtime" if bits == 4 else None)
        panel.set(title=name, xlabel="average bits", xticks=budgets, yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Validity Drop")
    panels[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def mean_of(runs: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str) -> tuple[float, float]:
    """Mean over seeds, each weighing its number of people, and standard deviation."""
    entries = []
    for run in runs:
        entry: Any = run
        for key in keys:
            entry = entry[key]
        entries.append(entry)
    people = sum(entry["people"] for entry in entries)
    values = [entry[metric] for entry in entries]
    return sum(entry[metric] * entry["people"] for entry in entries) / people, statistics.stdev(values)


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """The README's tables: Validity Drop, mean ± std, and the largest drift of any seed."""

    def row(words: Sequence[str], runs_of: Mapping[str, Any], keys: Sequence[str]) -> str:
        cells = ["{:.4f} ± {:.4f}".format(*mean_of(runs_of[name], keys, "validity_drop")) for name in runs_of]
        return f"| {' | '.join([*words, *cells])} |"

    for part, first in (
        ("formats", ["method", "activations", "bits"]),
        ("ablation", ["removed", "bits"]),
        ("networks", ["network", "method"]),
    ):
        if part not in results:
            continue
        runs_of = results[part]
        columns = [*first, *runs_of]
        yield f"\n**{part}** (Validity Drop)\n"
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        sample = next(iter(runs_of.values()))[0]
        for one, inner in sample.items():
            for two, figures in inner.items():
                if part == "formats":
                    for bits in figures:
                        yield row([one, two, f"{float(bits):g}"], runs_of, (one, two, bits))
                else:
                    yield row([one, two if part == "networks" else f"{float(two):g}"], runs_of, (one, two))
    if "splits" in results:
        yield from pooled(results["splits"]["german"])


def pooled(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Table of the splits: figures pooled over them, and how far ``faithful`` lies below, with an interval from drawing splits anew."""
    yield f"\n**german, {len(runs)} splits** (4 average bits; differences with 95 % intervals, splits drawn anew)\n"
    yield "| method | VD | faithful's less | VD without drift | faithful's less | factual flips | drift, mean | drift, largest |"
    yield "|---" * 8 + "|"
    people = np.array([run["faithful"]["people"] for run in runs], dtype=np.float64)
    for method in runs[0]:
        cells = []
        for metric in ("validity_drop", "validity_drop_without_drift"):
            own, faithful = (np.array([run[name][metric] for run in runs]) * people for name in (method, "faithful"))
            cells.append(f"{own.sum() / people.sum():.4f}")
            change = RatioOfSums(faithful - own, people)
            low, high = bootstrap_intervals({"change": change}, seed=0)["change"]
            cells.append("–" if method == "faithful" else f"{evaluate_statistic(change):+.4f} ({low:+.4f} to {high:+.4f})")
        drifts = [run[method]["drift"] for run in runs]
        flips = statistics.mean(run[method]["flips"] for run in runs)
        yield f"| {method} | {' | '.join(cells)} | {flips:.4f} | {statistics.mean(drifts):+.4f} | {max(drifts, key=abs):+.4f} |"


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new`` laid over ``old``, table within table."""
    both = {key: joined(old[key], new[key]) for key in old.keys() & new.keys() if isinstance(old[key], dict) and "people" not in old[key]}
    return {**old, **new, **both}


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=[*PARTS, "plot"])
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(COMPARED), help="these anew; the others' figures stay")
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"schema": 1}
    warnings.filterwarnings("ignore")
    for part in () if chosen.show else chosen.part:
        if part == "plot":
            plot(RESULTS / "faithful.svg")
            continue
        for name in chosen.datasets:
            started = time.perf_counter()
            # 700 rows are too few for the networks: the deeper one rejects nobody. The others' test rows need no further splits.
            if (name == "german") == (part == "networks") and part in ("networks", "splits"):
                continue
            seeds = range(SPLITS) if part == "splits" else SEEDS[name]
            methods = [COMPARED[method] for method in chosen.methods]
            before = results.setdefault(part, {}).get(name, [{}] * len(seeds)) if len(methods) < len(COMPARED) else [{}] * len(seeds)
            results[part][name] = [joined(old, PARTS[part](name, seed, methods)) for old, seed in zip(before, seeds, strict=True)]
            print(f"{part} {name}: {time.perf_counter() - started:.0f} s", flush=True)
            write_text(OUT, json.dumps(results, sort_keys=True, separators=(",", ":")) + "\n")
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
