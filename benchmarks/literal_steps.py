"""What eq. 6 to the letter does, beside normalized and accumulated steps, on development seeds.

    steps    share of rejected training people whom the steps take to the target, seed 0
    cf-ptq   CF-PTQ calibrated on either kind of step, seeds 0 to 2
    alpha    the paper's training, ``cfq-paper``, by the teacher's step size, seed 0

The paper gives no step size. Networks are trained as the recipes say, and files are run in ONNX Runtime without saturation.

    CFPTQ_DATA_DIR=... python benchmarks/literal_steps.py     # some minutes on one core
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import cfptq
from cfptq.auditing import Protocol, ReferenceRecourse, evaluate, reference_recourse
from cfptq.calibration import PAPER_TEACHER
from cfptq.experiments.recipe import Experiment, Recipe
from cfptq.io.atomic import write_text
from cfptq.network import Predictor, as_predictor
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline import task
from cfptq.recourse import ProjectedGradient, solve
from cfptq.training import QAT_METHODS, QatMethod

OUT = Path(__file__).parent / "results" / "literal_steps.json"
RECIPES = Path(__file__).parent.parent / "recipes"

#: Rejected training people whose recourse is computed, and test people by whom trained models are judged.
PEOPLE = 500

#: Kind of step -> its settings.
KINDS: Mapping[str, Mapping[str, bool]] = {
    "normalized, accumulated": {"normalize": True, "accumulate": True},
    "literal": {"normalize": False, "accumulate": False},
}
STEP_SIZES = (0.3, 1.0)

#: Part -> its data sets.
DATASETS: Mapping[str, tuple[str, ...]] = {
    "steps": ("adult", "german", "compas", "default", "bank"),
    "cf-ptq": ("adult", "german", "compas", "default"),
    "alpha": ("compas", "german"),
}
CF_PTQ_SEEDS = (0, 1, 2)
ALPHAS = (0.3, 1.0, 3.0, 10.0)
#: The paper's values of η, of which the run with the best validation accuracy is kept, and the step sizes that this is shown for.
ETAS, SWEPT_ALPHAS = (0.25, 0.5, 1.0, 2.0), (1.0, 10.0)


def prepare(name: str, seed: int, people: int | None) -> tuple[Experiment, Predictor, ReferenceRecourse]:
    """Train the network, and compute the recourse of its test people."""
    experiment = Recipe.load(RECIPES / f"{name}.yaml").prepare(seed, train=True, progress=False)
    f = as_predictor(experiment.model, example=experiment.columns.train[:256], name="fp32")
    protocol = Protocol(confidences=(0.5,), resamples=10, max_people=people)
    target = experiment.dataset.favourable
    return experiment, f, reference_recourse(f, experiment.columns.test, experiment.action_set, target, protocol, seed, progress=False)


def reach(name: str) -> dict[str, float]:
    """Compute the share of people whom each kind of step takes to the target, in three steps and in fifty with early stop."""
    experiment = Recipe.load(RECIPES / f"{name}.yaml").prepare(0, train=True, progress=False)
    f = as_predictor(experiment.model, example=experiment.columns.train[:256], name="fp32")
    target, rows = experiment.dataset.favourable, experiment.columns.train
    rejected = rows[f.logits(rows).argmax(1) != target][:PEOPLE]
    shares = {}
    for steps in (3, 50):
        for size in STEP_SIZES:
            for kind, settings in KINDS.items():
                method = ProjectedGradient(steps=steps, step_size=size, early_stop=steps > 3, **settings)
                found = solve(f, rejected, experiment.action_set, target=target, method=method, progress=False).found
                shares[f"K={steps}, α={size:g}, {kind}"] = round(float(found.float().mean()), 3)
    return shares


def judge(experiment: Experiment, f: Predictor, people: ReferenceRecourse, result: cfptq.Result) -> dict[str, float]:
    """Judge a result by its file."""
    columns = experiment.columns
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result.to_onnx(path)
        deployed = result.predictor(path)
        found = evaluate(f, deployed, people, columns.test, columns.test_labels, experiment.action_set, progress=False)
    names = ("boundary_disagreement", "validity_drop", "premature_validity", "favourable_rate_drift")
    return {name: round(float(getattr(found, name)), 4) for name in names}


def calibrate(name: str) -> dict[str, list[dict[str, float]]]:
    """Judge CF-PTQ by kind of step, one entry a seed."""
    teachers = {
        "normalized, accumulated, α=0.3": PAPER_TEACHER,
        **{f"literal, α={size:g}": replace(PAPER_TEACHER, step_size=size, **KINDS["literal"]) for size in STEP_SIZES},
    }
    entries: dict[str, list[dict[str, float]]] = {label: [] for label in teachers}
    for seed in CF_PTQ_SEEDS:
        experiment, f, people = prepare(name, seed, 2000)
        loader = [(experiment.columns.train, experiment.columns.train_labels)]
        for label, teacher in teachers.items():
            with patch.object(task, "PAPER_TEACHER", teacher):
                result = cfptq.calibrate(
                    experiment.model, loader, experiment.action_set, method="cf-ptq", max_rows=1024, seed=seed, progress=False
                )
            entries[label].append(judge(experiment, f, people, result))
    return entries


def train(name: str) -> dict[str, dict[str, float]]:
    """Judge the paper's training by kind and size of its teacher's steps, and with η chosen as the paper does."""
    literal = QAT_METHODS["cfq-paper"]

    def with_steps(solver: ProjectedGradient, etas: tuple[float, ...] = ()) -> QatMethod:
        return replace(literal, teacher=replace(literal.teacher, solvers=(solver,)), etas=etas)

    sized = {size: replace(literal.teacher.solvers[0], step_size=size) for size in ALPHAS}
    methods = {f"literal, α={size:g}": with_steps(solver) for size, solver in sized.items()}
    methods["normalized, accumulated, α=0.3"] = with_steps(PAPER_TEACHER)
    methods |= {f"literal, α={size:g}, η by validation accuracy": with_steps(sized[size], ETAS) for size in SWEPT_ALPHAS}
    experiment, f, people = prepare(name, 0, PEOPLE)
    loader = [(experiment.columns.train, experiment.columns.train_labels)]
    entries = {}
    for label, method in methods.items():
        result = cfptq.qat(experiment.model, loader, experiment.action_set, method=method, seed=0, portable=False, progress=False)
        entries[label] = judge(experiment, f, people, result)
    return entries


def markdown(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the three tables."""
    shares = content["steps"]
    yield "\nShare of rejected people whom steps take to the target (seed 0)\n"
    yield f"| steps | {' | '.join(shares)} |"
    yield "|---" * (1 + len(shares)) + "|"
    for label in next(iter(shares.values())):
        yield f"| {label} | {' | '.join(f'{each[label]:.3f}' for each in shares.values())} |"
    yield "\nBoundary disagreement of `cf-ptq` by the steps of its calibration points (seeds 0 to 2)\n"
    entries = content["cf-ptq"]
    yield f"| steps | {' | '.join(entries)} |"
    yield "|---" * (1 + len(entries)) + "|"
    for label in next(iter(entries.values())):
        values = [[entry["boundary_disagreement"] for entry in each[label]] for each in entries.values()]
        yield f"| {label} | {' | '.join(f'{statistics.mean(each):.4f} ± {statistics.stdev(each):.4f}' for each in values)} |"
    yield "\n`cfq-paper` by the steps of its teacher (seed 0): BD, and change of the favourable rate in points\n"
    entries = content["alpha"]
    yield f"| steps | {' | '.join(f'{name}, BD | {name}, drift' for name in entries)} |"
    yield "|---" * (1 + 2 * len(entries)) + "|"
    for label in next(iter(entries.values())):
        chosen = [each[label] for each in entries.values()]
        cells = [f"{each['boundary_disagreement']:.3f} | {100 * each['favourable_rate_drift']:+.1f}" for each in chosen]
        yield f"| {label} | {' | '.join(cells)} |"


def main() -> None:
    """Measure all and write the JSON, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    if not parser.parse_args().show:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        parts = {"steps": reach, "cf-ptq": calibrate, "alpha": train}
        measured = {part: {name: measure(name) for name in DATASETS[part]} for part, measure in parts.items()}
        content = {"schema": 1, "seeds": "development", "measured": date.today().isoformat(), "runtime": describe_runtime(), **measured}
        write_text(OUT, json.dumps(content, indent=1) + "\n")
    print("\n".join(markdown(json.loads(OUT.read_text()))))


if __name__ == "__main__":
    main()
