"""Training-free quantization at 4 average bits on the reporting seeds, the README's headline table.

Every method sees the same 1,024 calibration rows, every file is run in ONNX Runtime without saturation, and all are judged on the same
people under the standard protocol. Ten reporting seeds with stored networks; german has sixty splits, pooled, because one holds only
some 75 rejected people. One command for each data set:

    CFPTQ_DATA_DIR=... python benchmarks/headline.py adult --reason "..."
    CFPTQ_DATA_DIR=... python benchmarks/headline.py adult --seeds 0 1 2       # development seeds, shown and not written
    CFPTQ_DATA_DIR=... python benchmarks/headline.py adult --bytes             # sizes of files anew, after a change of storage alone
    python benchmarks/headline.py --show                                       # the tables of all results files

The paper's greedy rule leaves bits unspent where no single layer can be widened any more. Its methods have a second row, "spent", with the
allocation that spends most of the budget, and of equal ones that with the largest objective of eq. 24. With one width for each of three
layers this is mostly 4 bits everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import reporting

from cfptq.allocation import BitAllocation, Budget, LayerScores, Widths, allocate_exactly
from cfptq.allocation.budget import resolve_widths
from cfptq.backends.toolchains import TOOLCHAINS
from cfptq.errors import ConfigurationError
from cfptq.network import Predictor
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.quantize import Activations
from cfptq.quantize.formats import WIDTHS

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET = 4.0
CALIBRATION_ROWS = 1024
#: Toolchains with 8 bits, the best of which on each data set is a column of the table.
EIGHT_BITS = ("ort-int8", "pt2e-int8", "fx-int8", "inc-int8")
#: Methods with 4 bits that the best other method is chosen from, each in its better row.
FOUR_BITS = ("ort-int4", "ptq", "mixed-ptq", "cf-ptq-calibration", "cf-ptq-allocation", "cf-ptq")
SPENT = " (spent)"
OURS = "faithful"
#: The default at 3 average bits, and its form before it had widths of channels.
AT_3_BITS, FORMER = "faithful at 3 bits", "faithful with layer widths"
#: Methods whose figures by group are kept, for the tables of subgroups.
WITH_GROUPS = ("mixed-ptq", "cf-ptq", OURS)

#: Counts of each method that are kept. The others are those of the full-precision model, or follow from figures.
COUNTS = ("rows", "with_recourse", "without_crossing", "decided_otherwise_by_default_session")

#: Figures that no table reads.
UNREAD = ("recourse_gap_abs_median", "recourse_gap_median", "validity_mismatch", "action_overlap")

#: Figure -> heading and decimals, in the order of the tables.
FIGURES: Mapping[str, tuple[str, int]] = {
    "average_bits": ("bits", 2),
    "stored_bytes": ("bytes", 0),
    "boundary_disagreement": ("BD", 4),
    "crossing_shift.mean_abs": ("shift", 4),
    "validity_drop": ("VD", 4),
    "premature_validity": ("PV", 4),
    "validity_drop_at_equal_rate": ("VD at equal rate", 4),
    "favourable_rate_drift": ("drift", 4),
    "validity_drop_at.0.55": ("VD at .55", 4),
    "recourse_gap": ("CRG", 3),
    "recourse_gap_of_sums": ("CRG of sums", 3),
    "direction_similarity": ("DirSim", 3),
    "factual_flip_rate": ("flips", 4),
    "accuracy": ("accuracy", 4),
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

#: Figures whose paired differences are reported.
PAIRED = ("boundary_disagreement", "crossing_shift.mean_abs", "validity_drop", "premature_validity", "validity_drop_at_equal_rate")
#: Figures about all rows. The others weigh by people with recourse where splits are pooled.
OF_ROWS = frozenset(("average_bits", "stored_bytes", "accuracy", "favourable_rate_drift", "factual_flip_rate"))


def spend_most(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """Spend as much of the budget as one width for each layer can, and among equal allocations take the largest Σ s·b of eq. 24.

    All allocations are tried, which suits the few layers of these networks.
    """
    limit = Budget.of(budget)
    pins = pinned or {}
    candidates = [
        (pins[name],) if name in pins else own for name, own in zip(scores.names, resolve_widths(scores.names, widths), strict=True)
    ]

    def rank(bits: Sequence[int]) -> tuple[int, float]:
        return sum(map(limit.cost, scores.parameters, bits)), sum(s * b for s, b in zip(scores.scores, bits, strict=True))

    affordable = [bits for bits in itertools.product(*candidates) if rank(bits)[0] <= limit.ceiling(scores.parameters)]
    return BitAllocation(scores.names, scores.parameters, max(affordable, key=rank))


def allocate_3_bits(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """Allocate 3 average bits exactly, whatever the budget."""
    return allocate_exactly(scores, 3.0, widths, pinned)


def list_methods() -> list[str | Method]:
    """List all rows of the table, those of the paper's greedy rule twice."""
    greedy = [METHODS[name] for name in FOUR_BITS if name in METHODS and METHODS[name].allocator == "greedy"]
    spent = [replace(method, name=method.name + SPENT, allocator=spend_most) for method in greedy]
    ours = METHODS[OURS]
    former = replace(
        ours,
        name=FORMER,
        granularity="layer",
        activations=Activations(input_bits=None, clip=False),
        minimal_cost_points=True,
        both_sides=False,
        drops_channels=False,
        split_inputs=False,
        equalization_exponent=0.5,
        sweeps=0,
    )
    return [*EIGHT_BITS, *FOUR_BITS, *spent, OURS, replace(ours, name=AT_3_BITS, allocator=allocate_3_bits), former]


def measure(name: str, seed: int) -> dict[str, Any]:
    """Quantize one network by every method and judge the files."""
    experiment = reporting.load_experiment(name, seed)
    settings = {"budgets": [BUDGET], "groups": experiment.groups, "max_rows": CALIBRATION_ROWS, "progress": False}
    comparison = reporting.compare_methods(experiment, name, seed, list_methods(), **settings)
    entries = {method: _shorten(method, entry) for method, entry in comparison.methods.items()}
    run = {
        "seed": seed,
        "network": experiment.network.to_dict(),
        "fp32": dict(comparison.fp32),
        "methods": entries,
    }
    return run | ({"unavailable": dict(comparison.unavailable)} if comparison.unavailable else {})


def update_bytes(name: str, content: dict[str, Any]) -> None:
    """Write the files of all methods anew and update their sizes in ``content``. All other figures stay as they are.

    Raises:
        ConfigurationError: a method has other widths than those recorded. The headline must then be run anew.
    """
    methods = [method for method in list_methods() if not (isinstance(method, str) and method in TOOLCHAINS)]
    for run in content["runs"]:
        experiment = reporting.load_experiment(name, run["seed"])
        settings = TaskSettings(max_rows=CALIBRATION_ROWS, seed=run["seed"], progress=False)
        columns = experiment.columns
        task = build_task(experiment.model, [(columns.train, columns.train_labels)], experiment.action_set, settings)
        with tempfile.TemporaryDirectory() as folder:
            done = deploy_all(task, methods, [BUDGET], Path(folder), _measure_size, progress=False)
        for method, entry in done.budgets[str(BUDGET)].items():
            recorded = run["methods"][method]
            if json.loads(json.dumps(entry["bits"])) != recorded["bits"]:
                raise ConfigurationError(f"{method} has other widths on seed {run['seed']} of {name} than those recorded. Run it anew.")
            recorded["stored_bytes"] = entry["stored_bytes"]


def _measure_size(_: Predictor, path: Path, **formats: Any) -> dict[str, Any]:
    """Return the size of a file."""
    return {"stored_bytes": path.stat().st_size}


def _shorten(method: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out intervals over people, which the intervals over seeds replace, figures that no table reads, and most groups."""
    left_out = {"ci95", "notes", "keep", *UNREAD} | (set() if method in WITH_GROUPS else {"groups"})
    kept = {key: value for key, value in entry.items() if key not in left_out}
    kept["counts"] = {name: entry["counts"][name] for name in COUNTS}
    for grouping in kept.get("groups", {}).values():
        grouping["groups"] = {
            name: {key: value for key, value in group.items() if key != "ci95"} for name, group in grouping["groups"].items()
        }
    return kept


def get_figure(entry: Mapping[str, Any], figure: str) -> float | None:
    """Return one figure of a method's entry, None where it is undefined."""
    key, _, inner = figure.partition(".")
    value = entry[key][inner] if inner else entry[key]
    return None if value is None else float(value)


def summarize_runs(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize each figure of each method over seeds, and the differences between ours and the best others."""
    methods = [method for method in runs[0]["methods"] if all(method in run["methods"] for run in runs)]

    def list_figures(method: str, figure: str) -> list[float | None]:
        return [get_figure(run["methods"][method], figure) for run in runs]

    def weigh(figure: str) -> list[float] | None:
        if name not in reporting.POOLED:
            return None
        counts = [run["methods"][OURS]["counts"] for run in runs]
        return [float(count["rows" if figure in OF_ROWS else "with_recourse"]) for count in counts]

    summary = {
        method: {figure: reporting.summarize(list_figures(method, figure), weigh(figure)).to_dict() for figure in FIGURES}
        for method in methods
    }
    best = {"4 bits": choose_best(summary, FOUR_BITS), "8 bits": choose_best(summary, EIGHT_BITS)}
    paired = {
        other: {
            figure: reporting.summarize_difference(list_figures(OURS, figure), list_figures(other, figure), weigh(figure)).to_dict()
            for figure in PAIRED
        }
        for other in (*best.values(), AT_3_BITS, FORMER)
        if other in summary
    }
    drifts = [run["methods"][OURS]["favourable_rate_drift"] for run in runs]
    return {"methods": summary, "best": best, "paired": paired, "worst_drift": max(drifts, key=abs)}


def choose_best(summary: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Choose the method with the least mean boundary disagreement, each in its better row, and of equal ones the first of ``names``."""
    rows = [row for name in names for row in (name, name + SPENT) if row in summary]
    return min(rows, key=lambda method: float(summary[method]["boundary_disagreement"]["mean"]))


def read_results() -> dict[str, Any]:
    """Read the results files of all data sets whose run has ended."""
    paths = {name: RESULTS / f"headline-{name}.json" for name in reporting.DATASETS}
    contents = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    return {name: content for name, content in contents.items() if "summary" in content}


def format_interval(entry: Mapping[str, Any], decimals: int) -> str:
    """Format mean and 95 % interval."""
    mean = "–" if entry["mean"] is None else f"{entry['mean']:.{decimals}f}"
    return mean if entry["low"] is None else f"{mean} [{entry['low']:.{decimals}f}, {entry['high']:.{decimals}f}]"


def format_deviation(entry: Mapping[str, Any], decimals: int) -> str:
    """Format mean and standard deviation over seeds, the latter where it is not 0."""
    mean = "–" if entry["mean"] is None else f"{entry['mean']:.{decimals}f}"
    return f"{mean} ± {entry['std']:.{decimals}f}" if entry["std"] else mean


def headline(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the README's table of ours, the best other 4-bit method and the best 8-bit toolchain of each data set."""
    single = ("validity_drop", "premature_validity", "validity_drop_at_equal_rate", "favourable_rate_drift")
    headings = ("data set", "method", "bits", "bytes", "BD", "BD, faithful less", "shift", *(FIGURES[figure][0] for figure in single))
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for name, content in results.items():
        summary = content["summary"]
        for method in (OURS, *summary["best"].values()):
            row = summary["methods"][method]
            bold = "**" if method == OURS else ""
            difference = "" if method == OURS else format_interval(summary["paired"][method]["boundary_disagreement"], 4)
            cells = (
                name if method == OURS else "",
                method,
                f"{row['average_bits']['mean']:.2f}",
                f"{row['stored_bytes']['mean']:,.0f}",
                f"{bold}{format_interval(row['boundary_disagreement'], 4)}{bold}",
                difference,
                format_interval(row["crossing_shift.mean_abs"], 3),
                *(f"{row[figure]['mean']:.4f}" for figure in single),
            )
            yield f"| {' | '.join(cells)} |"


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of benchmarks/README.md."""
    for name, content in results.items():
        summary = content["summary"]
        accuracy = reporting.summarize([run["fp32"]["accuracy"] for run in content["runs"]]).mean
        pooled = "splits, pooled" if name in reporting.POOLED else "seeds"
        yield f"\n**{name}** ({len(content['runs'])} {pooled}; full precision {accuracy:.4f})\n"
        yield f"| method | {' | '.join(heading for heading, _ in FIGURES.values())} |"
        yield "|---" * (1 + len(FIGURES)) + "|"
        ordered = sorted(summary["methods"].items(), key=lambda item: item[1]["boundary_disagreement"]["mean"])
        for method, row in ordered:
            yield f"| {method} | {' | '.join(format_deviation(row[figure], decimals) for figure, (_, decimals) in FIGURES.items())} |"
        yield f"\nDrift of `{OURS}` in its worst seed: {100 * summary['worst_drift']:+.2f} points."
        yield f"\nPaired differences, `{OURS}` less the other method:\n"
        yield f"| other | {' | '.join(FIGURES[figure][0] for figure in PAIRED)} |"
        yield "|---" * (1 + len(PAIRED)) + "|"
        for other, row in summary["paired"].items():
            yield f"| {other} | {' | '.join(format_interval(row[figure], FIGURES[figure][1]) for figure in PAIRED)} |"


def paper_figures() -> Iterator[str]:
    """Yield the paper's Tables 13 and 14."""
    yield "| data set | method | accuracy | VD | CRG | DirSim |"
    yield "|---|---|---|---|---|---|"
    for name, methods in PAPER.items():
        for method, figures in methods.items():
            yield f"| {name} | {method} | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", choices=reporting.DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, help="the reporting seeds by default; others are not written")
    parser.add_argument("--bytes", action="store_true", help="update the sizes of files in the results file and leave")
    parser.add_argument("--show", action="store_true", help="print the tables of the results files and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if chosen.show or chosen.dataset is None:
        print("\n".join((*headline(read_results()), *markdown(read_results()))))
        return
    warnings.filterwarnings("ignore")
    if chosen.bytes:
        out = RESULTS / f"headline-{chosen.dataset}.json"
        content = {key: value for key, value in json.loads(out.read_text()).items() if key != reporting.RUNS_KEY}
        update_bytes(chosen.dataset, content)
        reporting.write_results(out, content | {"summary": summarize_runs(chosen.dataset, content["runs"])})
        return
    name, out = chosen.dataset, RESULTS / f"headline-{chosen.dataset}.json"
    seeds = chosen.seeds or list(reporting.REPORTING_SEEDS[name])
    reporting.start_run(out, {name: seeds}, chosen.reason)
    runs = []
    for seed in seeds:
        started = time.perf_counter()
        runs.append(measure(name, seed))
        print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    content = {
        "schema": 1, "dataset": name, "budget": BUDGET, "runtime": describe_runtime(), "runs": runs, "summary": summarize_runs(name, runs)
    }  # fmt: skip
    if chosen.seeds is None:
        reporting.write_results(out, content)
    print("\n".join((*headline({name: content}), *markdown({name: content}))))


if __name__ == "__main__":
    main()
