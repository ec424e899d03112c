"""Boundary disagreement by budget, activation format, owner of widths, range of integers, and network.

Every method of a part sees the same calibration rows, every file is run in ONNX Runtime without saturation, and all are judged on the same
people under the standard protocol. Seeds are the first three reporting seeds; german has ten splits, pooled. Widths of channels were chosen
by the part "widths" on development seeds, and it stays there. Networks of the part "networks" are trained, because only the 64-64 networks
are stored; german's 700 rows are too few for them.

    budgets    3, 4, 5 and 8 average bits
    formats    hidden tensors and input in 8 bits, input in float, both in 16 bits, at 4 average bits
    widths     layers or channels as owners of widths, each by our score and by eq. 23, at 3, 4 and 5 average bits
    range      weights within ±63 (``portable=True``) or ±127, at 8 average bits
    networks   4x64, 512-512 and a residual network with BatchNorm, at 4 average bits

    CFPTQ_DATA_DIR=... python benchmarks/settings.py --parts budgets --reason "..."          # each part some 10 to 20 minutes
    CFPTQ_DATA_DIR=... python benchmarks/settings.py --parts formats range networks --reason "..."
    CFPTQ_DATA_DIR=... python benchmarks/settings.py --parts widths
    python benchmarks/settings.py --show
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import headline
import reporting
import torch
from scipy import stats

from cfptq.auditing import Protocol
from cfptq.experiments.recipe import Experiment
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.quantize import Activations

OUT = reporting.RESULTS / "settings.json"
DATASETS = ("adult", "bank", "default", "compas", "german")
FIGURES = ("boundary_disagreement", "crossing_shift.mean_abs", "validity_drop", "favourable_rate_drift", "average_bits")
#: Recourse at other probabilities and intervals over people that no table here shows are left out.
PROTOCOL = Protocol(confidences=(0.5,), resamples=1)

FAITHFUL = METHODS["faithful"]
#: Rounding as ONNX Runtime's ``quantize_static`` does it, so that it can be had with every activation format.
PLAIN = Method("plain", rows="factual", allocator="uniform", rounding="nearest-full-range", activations=Activations(clip=False))
#: Activation format -> (hidden bits, input bits).
FORMATS = {"8 bits": (8, 8), "float input": (8, 32), "16 bits": (16, 16)}
#: Neither dropped channels nor split columns, which widths of layers cannot have.
LAYERS = replace(FAITHFUL, name="layers", granularity="layer", drops_channels=False, split_inputs=False)
PAPER = replace(LAYERS, name="layers, eq. 23", score="counterfactual", allocator="greedy")
#: Network -> the model section of the recipe.
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "4x64": {"kind": "mlp", "hidden": [64, 64, 64, 64]},
    "512-512": {"kind": "mlp", "hidden": [512, 512]},
    "residual BatchNorm 3x64": {"kind": "mlp", "hidden": [64, 64, 64], "batch_norm": True, "residual": True},
}


@dataclass(frozen=True)
class Part:
    """Methods that are compared at some budgets.

    Attributes:
        methods: presets, toolchains and methods.
        budgets: average bits.
        is_development: measured on development seeds.
        portables: values of ``portable`` to measure.
        networks: networks to train, or none for the stored ones.
    """

    methods: Sequence[str | Method]
    budgets: Sequence[float]
    is_development: bool = False
    portables: Sequence[bool] = (True,)
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


PARTS: Mapping[str, Part] = {
    "budgets": Part(("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq", FAITHFUL), (4.0, 3.0, 5.0, 8.0)),
    "formats": Part(
        [
            replace(method.with_activations(*bits), name=f"{method.name}, {name}")
            for method in (PLAIN, METHODS["cf-ptq"], FAITHFUL)
            for name, bits in FORMATS.items()
        ],
        (4.0,),
    ),
    "widths": Part(
        (
            LAYERS,
            replace(LAYERS, name="channels", granularity="channel"),
            PAPER,
            replace(PAPER, name="channels, eq. 23", granularity="channel"),
        ),
        (4.0, 3.0, 5.0),
        is_development=True,
    ),
    "range": Part(("cf-ptq", FAITHFUL), (8.0,), portables=(True, False)),
    "networks": Part(("ort-int8", "ort-int4", "mixed-ptq", "cf-ptq", FAITHFUL), (4.0,), networks=NETWORKS),
}


def list_seeds(part: Part, name: str) -> Sequence[int]:
    """List the seeds of one data set that a part is measured on, none for a data set that it leaves out."""
    if part.networks and name in reporting.POOLED:
        return ()
    if part.is_development:
        return range(4) if name in reporting.POOLED else (100, 101)
    return reporting.REPORTING_SEEDS[name][: 10 if name in reporting.POOLED else 3]


def load_experiments(part: Part, name: str, seed: int) -> Iterator[tuple[str, Experiment]]:
    """Yield each network of a part with its name, "" for the stored one."""
    if not part.networks:
        yield "", reporting.load_experiment(name, seed)
    recipe = reporting.load_recipe(name)
    for network, model in part.networks.items():
        backbone = type(recipe.backbone).model_validate(model)
        yield network, recipe.model_copy(update={"backbone": backbone}).prepare(seed, train=True, progress=False)


def measure(part: Part, name: str, seed: int) -> list[dict[str, Any]]:
    """Quantize each network of one data set and seed by every method at every budget, and return one record for each file."""
    records = []
    for network, experiment in load_experiments(part, name, seed):
        for portable in part.portables:
            comparison = reporting.compare_methods(
                experiment, name, seed, part.methods, budgets=part.budgets, max_rows=headline.CALIBRATION_ROWS, portable=portable,
                protocol=PROTOCOL, progress=False,
            )  # fmt: skip
            for budget, methods in comparison.budgets.items():
                for method, entry in methods.items():
                    if f"ort-int{float(budget):g}" != method and method.startswith("ort-"):
                        continue
                    setting = {"network": network, "portable": portable, "budget": float(budget), "method": method}
                    figures = {figure: headline.get_figure(entry, figure) for figure in FIGURES}
                    people = entry["counts"]["with_recourse"]
                    records.append({"dataset": name, "seed": seed, "people": people, **setting, **figures})
    return records


def summarize(records: Sequence[Mapping[str, Any]], name: str, figure: str) -> str:
    """Format the mean and standard deviation of one figure over the seeds of a data set."""
    own = [record for record in records if record["dataset"] == name]
    weights = [record["people"] for record in own] if name in reporting.POOLED else None
    summary = reporting.summarize([record[figure] for record in own], weights)
    return headline.format_deviation(summary.to_dict(), 4) if own else "–"


def compare_widths(records: Sequence[Mapping[str, Any]], method: str, other: str, budget: float, figure: str) -> tuple[float, float, float]:
    """Return the geometric mean of paired ratios of a figure, and its 95 % interval by Student's t over data sets and seeds."""
    values = {(record["dataset"], record["seed"], record["method"]): record[figure] for record in records if record["budget"] == budget}
    pairs = sorted({(name, seed) for name, seed, _ in values})
    logs = [math.log(values[*pair, method] / values[*pair, other]) for pair in pairs]
    mean = statistics.mean(logs)
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def markdown(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of boundary disagreement for each part."""
    for part, records in content["parts"].items():
        names = [name for name in DATASETS if any(record["dataset"] == name for record in records)]
        heads = [head for head, is_shown in (("network", part == "networks"), ("range", part == "range")) if is_shown]
        kind = "development" if PARTS[part].is_development else "reporting"
        yield f"\n**{part}** (boundary disagreement, {kind} seeds)\n"
        columns = [*heads, "method", "bits", *names]
        yield f"| {' | '.join(columns)} |"
        yield "|---" * len(columns) + "|"
        settings = dict.fromkeys((record["network"], record["portable"], record["method"], record["budget"]) for record in records)
        for network, portable, method, budget in sorted(settings, key=lambda it: (it[0], not it[1], _order(part, it[2]), it[3])):
            own = [
                record
                for record in records
                if (record["network"], record["portable"], record["method"], record["budget"]) == (network, portable, method, budget)
            ]
            first = {"network": network, "range": "±63" if portable else "±127"}
            cells = [summarize(own, name, "boundary_disagreement") for name in names]
            yield f"| {' | '.join((*(first[head] for head in heads), method, f'{budget:g}', *cells))} |"
        if part == "widths":
            for method, other in (("channels", "layers"), ("channels, eq. 23", "layers, eq. 23")):
                told = [
                    "{:.2f} [{:.2f}, {:.2f}] at {:g}".format(*compare_widths(records, method, other, budget, FIGURES[1]), budget)
                    for budget in sorted(PARTS[part].budgets)
                ]
                yield f"\nCrossing shift of `{method}` over that of `{other}`, paired: {'; '.join(told)} bits."


def _order(part: str, method: str) -> int:
    """Return the position of a method in its part."""
    names = [each if isinstance(each, str) else each.name for each in PARTS[part].methods]
    return names.index(method)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        for part in chosen.parts:
            seeds = {name: list_seeds(PARTS[part], name) for name in chosen.datasets}
            reporting.start_run(chosen.out, seeds, chosen.reason)
            for name, own in seeds.items():
                started = time.perf_counter()
                records = [record for seed in own for record in measure(PARTS[part], name, seed)]
                content = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
                parts = content.get("parts", {})
                parts[part] = [record for record in parts.get(part, []) if record["dataset"] != name] + records
                reporting.write_results(chosen.out, {"schema": 1, "runtime": describe_runtime(), "parts": parts})
                print(f"{part} {name}: {time.perf_counter() - started:.0f} s", flush=True)
    print("\n".join(markdown(json.loads(chosen.out.read_text()))))


if __name__ == "__main__":
    main()
