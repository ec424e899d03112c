"""Measure each part of ``faithful`` by leaving it out, at 4 average bits.

All methods see the same calibration rows, and their files are judged on the same people under the standard protocol. Figures are of the
first five reporting seeds (german: twenty splits, pooled). Ratios are of the mean without a part to the mean of the whole method, as the
geometric mean over data sets, with 95 % intervals from drawing networks anew in pairs. A ratio above 1 means that the part pays.

    CFPTQ_DATA_DIR=... python benchmarks/rounding.py --reason "..."                # 40 minutes on two cores
    CFPTQ_DATA_DIR=... python benchmarks/rounding.py --development --out trial.json
    python benchmarks/rounding.py --show
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import headline
import numpy as np
import reporting
import torch

from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import FAITHFUL
from cfptq.quantize import Activations

OUT = Path(__file__).parent / "results" / "rounding.json"
DATASETS = ("adult", "bank", "default", "compas", "german")
BUDGET = 4.0
WHOLE = "faithful"

#: Name -> method without one part.
WITHOUT: Mapping[str, Method] = {
    "widths of channels": replace(FAITHFUL, granularity="layer", drops_channels=False, split_inputs=False),
    "dropped channels": replace(FAITHFUL, drops_channels=False),
    "split input columns": replace(FAITHFUL, split_inputs=False),
    "rows on both sides": replace(FAITHFUL, both_sides=False),
    "ranges by margins": replace(FAITHFUL, activations=Activations(input_bits=None, clip=False)),
    "the second sweep": replace(FAITHFUL, sweeps=1),
    "both sweeps": replace(FAITHFUL, sweeps=0),
    "the exponent 0.75": replace(FAITHFUL, equalization_exponent=0.5),
    "leaving out minimal-cost points": replace(FAITHFUL, minimal_cost_points=True),
    "structure (keep nothing)": replace(FAITHFUL, keep=()),
}
#: Figures of the table. Ratios are formed of the first ones, and the others are means.
RATIOS = ("boundary_disagreement", "crossing_shift.mean_abs")
MEANS = ("premature_validity", "recourse_gap", "direction_similarity", "validity_drop_at.0.55", "favourable_rate_drift")


def measure(network: tuple[str, int]) -> dict[str, Any]:
    """Quantize one network by every method and judge the files."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    name, seed = network
    started = time.perf_counter()
    experiment = reporting.load_experiment(name, seed)
    methods = [FAITHFUL, *(replace(method, name=part) for part, method in WITHOUT.items())]
    settings = {"budgets": [BUDGET], "max_rows": headline.CALIBRATION_ROWS, "progress": False}
    comparison = reporting.compare_methods(experiment, name, seed, methods, **settings)
    figures = {
        method: {figure: headline.get_figure(entry, figure) for figure in (*RATIOS, *MEANS)} for method, entry in comparison.methods.items()
    }
    people = comparison.methods[WHOLE]["counts"]["with_recourse"]
    return {"dataset": name, "seed": seed, "people": people, "figures": figures, "seconds": round(time.perf_counter() - started, 1)}


def list_networks(is_development: bool) -> list[tuple[str, int]]:
    """List the data sets and seeds to measure."""
    if is_development:
        return [(name, seed) for name in DATASETS for seed in ((0, 1, 2) if name in reporting.POOLED else (100, 101))]
    return [(name, seed) for name in DATASETS for seed in list(reporting.REPORTING_SEEDS[name])[: 20 if name in reporting.POOLED else 5]]


def compute_ratio(runs: Sequence[Mapping[str, Any]], part: str, figure: str) -> tuple[float, float, float]:
    """Compute the geometric mean over data sets of the ratio without a part to the whole, and its 95 % interval."""
    by_name = [[run for run in runs if run["dataset"] == name] for name in DATASETS]
    by_name = [own for own in by_name if own]

    def compute(chosen: Sequence[Sequence[Mapping[str, Any]]]) -> float:
        logs = []
        for own in chosen:
            without, whole = (sum(run["figures"][method][figure] * run["people"] for run in own) for method in (part, WHOLE))
            if without > 0 and whole > 0:
                logs.append(np.log(without / whole))
        return float(np.exp(np.mean(logs))) if logs else float("nan")

    generator = np.random.default_rng(0)
    drawn = [compute([[own[place] for place in generator.integers(len(own), size=len(own))] for own in by_name]) for _ in range(1000)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return compute(by_name), float(low), float(high)


def compute_mean(runs: Sequence[Mapping[str, Any]], method: str, figure: str) -> float | None:
    """Compute the mean over data sets of the mean over networks, each weighed by its people where splits are pooled."""
    means = []
    for name in DATASETS:
        own = [(run["figures"][method][figure], run["people"]) for run in runs if run["dataset"] == name]
        own = [(value, people) for value, people in own if value is not None]
        if own:
            weights = [people if name in reporting.POOLED else 1 for _, people in own]
            means.append(float(np.average([value for value, _ in own], weights=weights)))
    return float(np.mean(means)) if means else None


def markdown(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of parts."""
    runs = content["runs"]
    yield f"\n**Parts of `faithful`, {BUDGET:g} bits, {len(runs)} networks.** Ratios are without the part to the whole.\n"
    headings = [headline.FIGURES[figure][0] for figure in MEANS]
    yield f"| without | BD | shift | {' | '.join(headings)} |"
    yield "|---" * (3 + len(MEANS)) + "|"
    for method in (WHOLE, *WITHOUT):
        ratios = ["1", "1"]
        if method != WHOLE:
            ratios = ["{:.2f} [{:.2f}, {:.2f}]".format(*compute_ratio(runs, method, figure)) for figure in RATIOS]
        means = [compute_mean(runs, method, figure) for figure in MEANS]
        cells = ["–" if mean is None else f"{mean:.4f}" for mean in means]
        yield f"| {'nothing' if method == WHOLE else method} | {' | '.join((*ratios, *cells))} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--development", action="store_true", help="measure networks of development seeds")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the table of the results file and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(arguments)
    if chosen.show:
        print("\n".join(markdown(json.loads(chosen.out.read_text()))))
        return
    networks = list_networks(chosen.development)
    seeds = {name: [seed for own, seed in networks if own == name] for name in DATASETS}
    reporting.start_run(chosen.out, seeds, chosen.reason)
    runs = []
    with ProcessPoolExecutor(chosen.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for run in pool.map(measure, networks):
            runs.append(run)
            print(f"{run['dataset']} {run['seed']}: {run['seconds']:.0f} s", flush=True)
    content = {"schema": 1, "budget": BUDGET, "runtime": describe_runtime(), "runs": runs}
    reporting.write_results(chosen.out, content)
    print("\n".join(markdown(content)))


if __name__ == "__main__":
    main()
