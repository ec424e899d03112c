"""Recourse that holds over sampled deployments of a quantized model, beside the standard solver on it (Appendix E.2, Table 12).

The uncertainty set is sampled around the plan: rounding near ties, perturbed steps and clipping, and plans of other calibration draws.
Every model of the set is written as an ONNX file and decides in ONNX Runtime; gradients are those of its fake-quantized module.
Robust success is told on the sampled set itself and on a fresh one that the solver never saw. Cost and time are relative to the
standard solver on the same people, time as the least of several runs. Beside it, the standard solver on models whose quantization
looks after recourse: ``faithful``, and CFQ, each with an uncertainty set of its own.

    CFPTQ_DATA_DIR=... python benchmarks/robust_recourse.py --out benchmarks/results/robust_recourse.json     # most of an hour
    python benchmarks/robust_recourse.py --summarize     # mean and deviation of the figures that are there
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import cfptq
from cfptq.experiments.recipe import Experiment, Recipe
from cfptq.io.atomic import write_text
from cfptq.network import Predictor
from cfptq.quantize import QuantizationPlan, Variability
from cfptq.quantize.variants import perturb_plan
from cfptq.recourse import RecourseBatch, check_validity, robust, solve
from cfptq.training import QAT_METHODS

MEMBERS = 8
DRAWS = 2  # plans of other calibration draws
RUNS = 3
#: Quantization that looks after recourse.
FAITHFUL = ("faithful", "cfq-qat")

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Deployed:
    """The file of a quantized model with those of the variants it is solved against, and others that no solver sees."""

    nominal: Predictor
    seen: list[Predictor]
    fresh: list[Predictor]


def write_file(result: cfptq.Result, plan: QuantizationPlan, path: Path) -> Predictor:
    """Write the ONNX file of one plan of the result's network, and return it as it runs in ONNX Runtime."""
    varied = replace(result, plan=plan)
    varied.to_onnx(path)
    return varied.predictor(path)


def deployed(experiment: Experiment, method: str, seed: int, folder: Path) -> Deployed:
    """Quantize by ``method`` on several calibration draws (by training, with several seeds), and sample variants around the plans."""
    columns, action_set = experiment.columns, experiment.action_set
    results = []
    for draw in range(DRAWS + 1):
        if method in QAT_METHODS:
            loader = [(columns.train, columns.train_labels)]
            results.append(cfptq.qat(experiment.model, loader, action_set, method=method, seed=seed + 1000 * draw, progress=False))
        else:
            order = torch.randperm(len(columns.train), generator=torch.Generator().manual_seed(draw))
            share = columns.train[order[: min(1024, len(order) * 3 // 4)]]
            results.append(cfptq.calibrate(experiment.model, [share], action_set, method=method, seed=seed, progress=False))
    plans = [result.plan for result in results if result.plan.network == results[0].plan.network]

    def sample(name: str, count: int, seed: int) -> list[Predictor]:
        generator = torch.Generator().manual_seed(seed)
        varied = [perturb_plan(results[0].network, plans[number % len(plans)], Variability(), generator) for number in range(count)]
        return [write_file(results[0], plan, folder / f"{method}-{name}-{number}.onnx") for number, plan in enumerate(varied)]

    nominal = write_file(results[0], plans[0], folder / f"{method}-nominal.onnx")
    return Deployed(nominal, sample("seen", MEMBERS, seed), sample("fresh", 4 * MEMBERS, seed + 1000))


def measure(name: str, seed: int, people: int) -> Table:
    """Run both solvers on a quantized model, and the standard one on models that look after recourse, for one data set and seed."""
    with TemporaryDirectory() as folder:
        return measure_in(Path(folder), name, seed, people)


def measure_in(folder: Path, name: str, seed: int, people: int) -> Table:
    """As ``measure``, with the files in ``folder``."""
    experiment = Recipe.load(Path(__file__).parent.parent / "recipes" / f"{name}.yaml").prepare(seed)
    action_set, test = experiment.action_set, experiment.columns.test
    target = int(action_set.favourable or 0)
    plain = deployed(experiment, "ptq", seed, folder)
    others = {f"standard, on {method}": deployed(experiment, method, seed, folder) for method in FAITHFUL}
    refused = torch.stack([each.nominal.logits(test).argmax(1) != target for each in (plain, *others.values())]).all(0)
    rows = test[refused][:people]

    def standard(model: Deployed, confidence: float = 0.5) -> Callable[[], RecourseBatch]:
        method = cfptq.recourse.MinimalCost(confidence=confidence)
        return lambda: solve(model.nominal, rows, action_set, target=target, method=method, progress=False)

    solvers: dict[str, tuple[Deployed, Callable[[], RecourseBatch]]] = {
        "standard": (plain, standard(plain)),
        "standard, confidence 0.55": (plain, standard(plain, 0.55)),
        f"robust, M = {MEMBERS}": (plain, lambda: robust([plain.nominal, *plain.seen], rows, action_set, target, progress=False)),
        **{label: (model, standard(model)) for label, model in others.items()},
    }
    solvers["standard"][1]()
    table: Table = {}
    batches: dict[str, RecourseBatch] = {}
    for solver, (_, run) in solvers.items():
        seconds = []
        for _ in range(RUNS):
            started = time.process_time()
            batches[solver] = run()
            seconds.append(time.process_time() - started)
        table[solver] = {"processor seconds": round(min(seconds), 3)}
    everyone = torch.stack([batch.found for batch in batches.values()]).all(0)
    for solver, batch in batches.items():
        model = solvers[solver][0]
        table[solver] |= {
            "rows": len(rows),
            "found": round(float(batch.found.float().mean()), 4),
            "nominal success": round(float(check_validity([model.nominal], batch).float().mean()), 4),
            "robust success": round(float(check_validity(model.seen, batch).float().mean()), 4),
            "robust success, fresh variants": round(float(check_validity(model.fresh, batch).float().mean()), 4),
            "held by every fresh variant": round(float(check_validity(model.fresh, batch).all(0).float().mean()), 4),
            "relative cost": round(float(batch.cost[everyone].mean() / batches["standard"].cost[everyone].mean()), 4),
            "relative time": round(table[solver]["processor seconds"] / table["standard"]["processor seconds"], 2),
        }
    return table


def over_seeds(tables: list[Table]) -> dict[str, dict[str, list[float]]]:
    """Compute the mean and the sample standard deviation (divisor n - 1) of every figure."""
    return {
        solver: {
            figure: [round(statistics.fmean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0]
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
    parser.add_argument("--summarize", action="store_true", help="compute mean and deviation of a results file anew, and leave")
    arguments = parser.parse_args()
    if arguments.summarize:
        content = json.loads(arguments.out.read_text())
        for entry in content.values():
            if isinstance(entry, dict):
                entry["mean and deviation"] = over_seeds([table for seed, table in entry.items() if seed.isdecimal()])
        write_text(arguments.out, json.dumps(content, indent=1) + "\n")
        return
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results: dict[str, object] = {"members": MEMBERS, "method": "ptq", "budget": 4.0, "judged by": "files"}
    for name in arguments.datasets:
        tables = {str(seed): measure(name, seed, arguments.people) for seed in arguments.seeds}
        results[name] = {**tables, "mean and deviation": over_seeds(list(tables.values()))}
        print(name, json.dumps(over_seeds(list(tables.values())), indent=1), flush=True)
    write_text(arguments.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
