"""Measure options of rounding for the boundary against ``faithful``, at 4 and 3 bits, on networks of development seeds.

Each variant is ``faithful`` with one option, or with all of them. Files are run in ONNX Runtime on the standard protocol's people. Ratios
are of each data set's mean to that of ``faithful``, as the geometric mean over data sets, with 95 % intervals from drawing networks anew in
pairs. Runs that the output holds already are not repeated, so that seeds can be added.

The committed runs are of an earlier state, in which the bound on combined moves held for tables too: their ``faithful`` differs a little
from today's on bank, default and german. They hold five variants on seven networks.

    CFPTQ_DATA_DIR=... python benchmarks/rounding.py --seeds 100 101
    python benchmarks/rounding.py --show
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch

from cfptq.auditing import Protocol, evaluate, reference_recourse
from cfptq.io.atomic import write_text
from cfptq.network import as_predictor
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import BOUNDARY_ROUNDING, METHODS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import TaskSettings, build_task

OUT = Path(__file__).parent / "results" / "rounding.json"
DATASETS = ("adult", "bank", "default", "compas", "german")
#: A split of german has few people, so that each of the others' seeds goes with several splits.
GERMAN_SPLITS = 3
BUDGETS = (4.0, 3.0)
FAITHFUL = METHODS["faithful"]
RANGES = replace(FAITHFUL.activations, margin_ranges=True)

#: Name -> method. The first one is what the others are compared with.
VARIANTS: Mapping[str, Method] = {
    "faithful": FAITHFUL,
    "rows on both sides": replace(FAITHFUL, both_sides=True),
    "without minimal-cost points": replace(FAITHFUL, minimal_cost_points=False),
    "ranges by margins": replace(FAITHFUL, activations=RANGES),
    "one sweep": replace(FAITHFUL, sweeps=1),
    "exponent 0.75": replace(FAITHFUL, equalization_exponent=0.75),
    "all but the exponent": BOUNDARY_ROUNDING,
    "all": replace(BOUNDARY_ROUNDING, equalization_exponent=0.75),
    "all but the exponent, with minimal-cost points": replace(BOUNDARY_ROUNDING, minimal_cost_points=True),
    "channel widths": replace(FAITHFUL, granularity="channel"),
    "channel widths, all but the exponent": replace(BOUNDARY_ROUNDING, granularity="channel"),
    "channel widths, all": replace(BOUNDARY_ROUNDING, granularity="channel", equalization_exponent=0.75),
}
METRICS = ("boundary_disagreement", "crossing_shift", "validity_drop_at_0.55", "seconds")


def measure(name: str, seed: int, variants: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each variant and budget on one network."""
    experiment = reporting.load_experiment(name, seed)
    columns, space = experiment.columns, experiment.action_set
    settings = TaskSettings(max_rows=reporting.load_recipe(name).calibration.rows, seed=seed, progress=False)

    def fresh() -> Any:
        return build_task(experiment.model, [(columns.train, columns.train_labels)], space, settings)

    task = fresh()
    protocol = Protocol(confidences=(0.5, 0.55), resamples=1)
    people = reference_recourse(task.predictor, columns.test, space, task.target, protocol, seed, progress=False)
    for variant in variants:
        task, method = fresh(), VARIANTS[variant]
        for budget in BUDGETS:
            started = time.process_time()
            result = quantize_with(task, method, budget, progress=False)
            seconds = time.process_time() - started
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                result.to_onnx(path)
                # Without the fake-quantized module the file has no gradient, and its own recourse is not searched.
                deployed = as_predictor(path, example=columns.test[:2], head=result.head, threshold=result.threshold)
                found = evaluate(task.predictor, deployed, people, columns.test, columns.test_labels, space, progress=False)
            yield {
                "dataset": name, "seed": seed, "variant": variant, "budget": budget,
                "boundary_disagreement": round(found.boundary_disagreement, 6),
                "premature_validity": round(found.premature_validity, 6),
                "validity_drop": round(found.validity_drop, 6),
                "crossing_shift": round(found.crossing_shift["mean_abs"], 6),
                "validity_drop_at_0.55": round(found.validity_drop_at["0.55"], 6),
                "drift": round(found.favourable_rate_drift, 6),
                "flips": round(found.factual_flip_rate, 6),
                "average_bits": round(result.plan.average_bits, 4),
                "people": found.counts["with_recourse"],
                # The first budget pays for the recourse too.
                "seconds": round(seconds, 3),
            }  # fmt: skip


def ratio_of(runs: Mapping[tuple[str, int], Mapping[str, Any]], base: Mapping[tuple[str, int], Mapping[str, Any]], metric: str) -> str:
    """Compute the geometric mean over data sets of the ratio of means, with its interval."""
    keys = sorted(set(runs) & set(base))

    def ratio(chosen: Sequence[tuple[str, int]]) -> float:
        logs = []
        for name in DATASETS:
            own = [key for key in chosen if key[0] == name]
            above, below = (sum(each[key][metric] * each[key]["people"] for key in own) for each in (runs, base))
            if above > 0 and below > 0:
                logs.append(np.log(above / below))
        return float(np.exp(np.mean(logs))) if logs else float("nan")

    generator = np.random.default_rng(0)
    by_name = [[key for key in keys if key[0] == name] for name in DATASETS]
    drawn = [ratio([own[i] for own in by_name if own for i in generator.integers(len(own), size=len(own))]) for _ in range(1000)]
    return "{:.2f} [{:.2f}, {:.2f}]".format(ratio(keys), *np.nanquantile(drawn, [0.025, 0.975]))


def markdown(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield ratios to ``faithful``, and the means by data set."""
    networks = len({(run["dataset"], run["seed"]) for run in runs})
    for budget in BUDGETS:
        table = {
            variant: {(run["dataset"], run["seed"]): run for run in runs if run["variant"] == variant and run["budget"] == budget}
            for variant in VARIANTS
        }
        yield f"\n**{budget:g} bits**, ratios to `faithful`, {networks} networks\n"
        yield "| variant | BD | crossing shift | VD at 0.55 | largest drift |"
        yield "|---" * 5 + "|"
        for variant, own in table.items():
            if own:
                cells = [ratio_of(own, table["faithful"], metric) for metric in METRICS[:3]]
                yield f"| {variant} | {' | '.join(cells)} | {max(abs(run['drift']) for run in own.values()):.4f} |"
        yield f"\n**{budget:g} bits**, BD / crossing shift / VD at 0.55 / seconds\n"
        yield f"| variant | {' | '.join(DATASETS)} |"
        yield "|---" * (len(DATASETS) + 1) + "|"
        for variant, own in table.items():
            cells = []
            for name in DATASETS:
                chosen = [run for key, run in own.items() if key[0] == name]
                means = (
                    [np.average([run[metric] for run in chosen], weights=[run["people"] for run in chosen]) for metric in METRICS]
                    if chosen
                    else []
                )
                cells.append(" / ".join(f"{mean:.4f}" if place < 3 else f"{mean:.2f}" for place, mean in enumerate(means)))
            yield f"| {variant} | {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names of variants to run")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", action="store_true", help="print the tables")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    if arguments.show:
        print("\n".join(markdown(runs)))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for seed in arguments.seeds:
        for name in arguments.datasets:
            splits = range(GERMAN_SPLITS * (seed % 20), GERMAN_SPLITS * (seed % 20 + 1)) if name == "german" else [seed]
            for split in splits:
                known = {run["variant"] for run in runs if (run["dataset"], run["seed"]) == (name, split)}
                missing = [variant for variant in arguments.variants if variant not in known]
                if missing:
                    runs.extend(measure(name, split, missing))
                    write_text(arguments.out, json.dumps({"schema": 1, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
