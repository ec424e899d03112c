"""Recourse by group, and margins at recourse points: Tables 8, 9 and 26 (eqs. 37, 38) and Figures 6, 7, 23 and 24 of the paper.

The people of each group are measured apart, on the same files and the same recourse. A gap is that between the groups with the largest
and the smallest mean over seeds. Groups with fewer than 100 people with recourse over all seeds do not count for it. german's file does
not tell sex, because single men and non-single women share a code, so its groups are these codes and age.

Figure 7 shows the target margin at the recourse points of f. Its distribution alone says little: a model that accepts more people shifts
it to the right. The table beside it gives the margin's error against f.

Groups of methods without training come from the headline's results files where these hold them, so that the same files are not measured
twice. What else is measured here: margins, ``cfq-qat``, and german's age. Figures come from running each ONNX file. What is measured is
added to the results file after each data set, and other methods and data sets in it stay. Each command takes less than 40 minutes on two
cores:

    CFPTQ_DATA_DIR=... python benchmarks/subgroups.py --reason "..."
    python benchmarks/subgroups.py --methods cfq-qat --datasets adult compas --reason "..."
    python benchmarks/subgroups.py --collect  # groups of the headline's files anew
    python benchmarks/subgroups.py --show     # the tables, and both plots anew
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t

import cfptq
from cfptq.auditing import Protocol, ReferenceRecourse, evaluate, reference_recourse
from cfptq.auditing.group_metrics import GROUP_METRICS
from cfptq.experiments.recipe import Experiment
from cfptq.network import Predictor, target_margin
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method_presets import METHODS as PRESETS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import QuantizationTask, TaskSettings, build_task

OUT = reporting.RESULTS / "subgroups.json"
BUDGET = 4.0

#: Data set -> attributes whose groups are measured.
ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "adult": ("sex",),
    "compas": ("race",),
    "german": ("personal-status-and-sex", "age"),
    "default": ("SEX",),
}
#: Methods that every data set is measured with, and the one that trains.
METHODS, TRAINED = ("mixed-ptq", "cf-ptq", "faithful"), "cfq-qat"
ORDER = (*METHODS, TRAINED)
REFERENCE = "mixed-ptq"  # The method that others are compared with, as in the paper.

OLDEST_OF_THE_YOUNG = 25  # Years. The literature on german calls people up to this age young.
MIN_PEOPLE = 100  # Groups with fewer people with recourse over all seeds count for neither the worst group nor the gap.
#: Recourse and intervals over people that the tables do not show are left out.
PROTOCOL = Protocol(confidences=(0.5,), resamples=1)
#: Metrics of the worst group and the gap.
RANKED = ("boundary_disagreement", "validity_drop", "recourse_gap")
#: Shares of people whose margins are kept.
SHARES = np.linspace(0, 1, 201)

#: The paper's Tables 8 and 26: data set -> group -> VD and CRG of MixedPrec and CFQ.
PAPER = {
    "adult": {
        "Female": "0.132 / 0.175; 0.067 / 0.080", "Male": "0.118 / 0.158; 0.058 / 0.069",
    },
    "compas": {
        "African-American": "0.151 / 0.195; 0.083 / 0.097", "Caucasian": "0.124 / 0.168; 0.069 / 0.079",
    },
}  # fmt: skip

Entry = dict[str, Any]


@dataclass(frozen=True)
class Margins:
    """Target margins of one model at the recourse points of f, and at the same points those of f."""

    own: NDArray[np.float64]
    reference: NDArray[np.float64]


def list_groups(experiment: Experiment) -> dict[str, list[str]]:
    """Return the group of each test person by attribute."""
    test, name = experiment.dataset.test, experiment.dataset.name
    groups = {}
    for attribute in ATTRIBUTES[name]:
        if attribute == "age":
            groups[attribute] = [f"{'up to' if age <= OLDEST_OF_THE_YOUNG else 'over'} {OLDEST_OF_THE_YOUNG}" for age in test[attribute]]
        else:
            groups[attribute] = experiment.groups[attribute]
    return groups


def measure(name: str, seed: int, methods: Sequence[str], judged: Sequence[str]) -> tuple[str, dict[str, tuple[Entry, Margins]]]:
    """Quantize by each method and measure margins, for one data set and seed, and the groups of the methods in ``judged``.

    Returns:
        SHA-256 of the network, and the entry and margins of each method.
    """
    experiment = reporting.load_experiment(name, seed)
    columns = experiment.columns
    settings = TaskSettings(max_rows=reporting.load_recipe(name).calibration.rows, seed=seed, progress=False)
    task = build_task(experiment.model, [(columns.train, columns.train_labels)], experiment.action_set, settings)
    reference = reference_recourse(task.predictor, columns.test, experiment.action_set, task.target, PROTOCOL, seed, progress=False)
    return experiment.network.sha256, {method: measure_method(experiment, task, reference, method, method in judged) for method in methods}


def measure_method(
    experiment: Experiment, task: QuantizationTask, reference: ReferenceRecourse, method: str, is_judged: bool
) -> tuple[Entry, Margins]:
    """Quantize by one method, run its file, and measure margins and, if ``is_judged``, each group."""
    columns, space, seed = experiment.columns, experiment.action_set, experiment.seed
    if method in PRESETS:
        result = quantize_with(task, PRESETS[method], BUDGET, progress=False)
    else:
        loader = [(columns.train, columns.train_labels)]
        result = cfptq.qat(experiment.model, loader, space, method=method, budget=BUDGET, seed=seed, progress=False)
    entry: Entry = {"average_bits": round(result.plan.average_bits, 4), "groups": {}}
    if result.training is not None:
        entry["best_epoch"] = result.training.best_epoch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result.to_onnx(path)
        deployed = result.predictor(path)
        if is_judged:
            groups = list_groups(experiment)
            metrics = evaluate(task.predictor, deployed, reference, columns.test, columns.test_labels, space, groups, progress=False)
            entry["groups"] = {attribute: grouping.to_dict()["groups"] for attribute, grouping in metrics.groups.items()}
        return entry, compute_margins(task.predictor, deployed, reference)


def read_headline(name: str) -> dict[str, list[Entry]]:
    """Return the entries of the headline's methods whose groups are kept, one for each reporting seed, or none without its file."""
    path = reporting.RESULTS / f"headline-{name}.json"
    if not path.exists():
        return {}
    runs = json.loads(path.read_text())["runs"]
    if [run["seed"] for run in runs] != list(reporting.REPORTING_SEEDS[name]):
        return {}
    return {
        method: [
            {
                "average_bits": run["methods"][method]["average_bits"],
                "groups": {
                    attribute: run["methods"][method]["groups"][attribute]["groups"]
                    for attribute in ATTRIBUTES[name]
                    if attribute in run["methods"][method]["groups"]
                },
            }
            for run in runs
        ]
        for method in METHODS
        if all("groups" in run["methods"].get(method, {}) for run in runs)
    }


def compute_margins(f: Predictor, f_q: Predictor, reference: ReferenceRecourse) -> Margins:
    """Return the target margins of both models at the recourse points of f."""
    found = reference.projected[reference.projected.found]
    own, theirs = (target_margin(model.logits(found.points), found.target).double().numpy() for model in (f_q, f))
    return Margins(own, theirs)


def summarize_margins(margins: Sequence[Margins]) -> dict[str, Entry]:
    """Return quantiles and errors of the margins of all seeds' people, of the method and of f ("fp32")."""
    own, reference = (np.concatenate([getattr(each, side) for each in margins]) for side in ("own", "reference"))
    error = own - reference
    return {
        side: {
            "people": len(values),
            "quantiles": [round(float(value), 5) for value in np.quantile(values, SHARES)],
            "share_at_most_0": round(float((values <= 0).mean()), 6),
            "mean_error": round(float(difference.mean()), 6),
            "mean_abs_error": round(float(np.abs(difference).mean()), 6),
        }
        for side, values, difference in (("own", own, error), ("fp32", reference, np.zeros_like(error)))
    }


def tabulate(name: str, entries: Sequence[Entry]) -> Entry:
    """Collect one method's entries of all seeds, with counts and values of each group as lists over seeds, and their statistics."""
    content: Entry = {key: [entry[key] for entry in entries] for key in ("average_bits", "best_epoch") if key in entries[0]}
    content["groups"] = {
        attribute: {
            group: tabulate_group(name, [entry["groups"][attribute].get(group) for entry in entries])
            for group in sorted({group for entry in entries for group in entry["groups"][attribute]})
        }
        for attribute in entries[0]["groups"]
    }
    return content


def tabulate_group(name: str, entries: Sequence[Entry | None]) -> Entry:
    """Collect one group's entries of all seeds. A seed without such people has 0 of them."""
    content: Entry = {key: [0 if entry is None else entry[key] for entry in entries] for key in ("rows", "people", "with_recourse")}
    for metric in GROUP_METRICS:
        values = [None if entry is None else entry[metric] for entry in entries]
        values = [None if value is None else round(value, 6) for value in values]
        content[metric] = {"values": values, **reporting.summarize(values, weigh(name, content, metric)).to_dict()}
    return content


def weigh(name: str, group: Entry, metric: str) -> list[int] | None:
    """Return the number of people behind a metric in each seed, for data sets whose seeds are pooled."""
    if name not in reporting.POOLED:
        return None
    if metric in ("accuracy", "factual_flip_rate", "favourable_rate_drift"):
        return list(group["rows"])
    return list(group["people" if metric == "feasible_recourse_rate" else "with_recourse"])


def compare_groups(name: str, groups: Mapping[str, Entry], metric: str) -> Entry | None:
    """Return the worst group by its mean and the paired gap to the best one, or None with fewer than two groups that count."""
    known = {
        group: entry for group, entry in groups.items() if sum(entry["with_recourse"]) >= MIN_PEOPLE and entry[metric]["mean"] is not None
    }
    if len(known) < 2:
        return None
    worst, best = (choose(known, key=lambda group: known[group][metric]["mean"]) for choose in (max, min))
    gap = summarize_gap(*((known[group][metric]["values"], weigh(name, known[group], metric)) for group in (worst, best)))
    return {"worst_group": worst, "best_group": best, "worst": known[worst][metric]["mean"], "gap": gap.to_dict()}


def summarize_gap(*groups: tuple[Sequence[float | None], Sequence[int] | None]) -> reporting.Summary:
    """Summarize the mean of one group less that of another over the same seeds.

    The groups have different people. The interval is the t-interval of the difference of two ratios by its first order, so that what
    both groups share in a seed cancels. Without numbers of people it is that of the paired difference.

    Args:
        groups: Value of each seed and number of people behind it, of the one group and of the other.
    """
    parts = []
    for values, people in groups:
        weights = np.array([0.0 if value is None else 1.0 for value in values]) * (1.0 if people is None else np.array(people))
        known = np.array([0.0 if value is None else value for value in values])
        mean = float((weights * known).sum() / weights.sum())
        parts.append((mean, weights * (known - mean) / weights.sum()))
    (first, of_first), (second, of_second) = parts
    seeds = len(of_first)
    if seeds < 2:
        return reporting.Summary(first - second, None, None, None, seeds)
    error = math.sqrt(seeds / (seeds - 1) * float(((of_first - of_second) ** 2).sum()))
    reach = float(student_t.ppf(0.5 + reporting.CONFIDENCE / 2, seeds - 1)) * error
    spread = [a - b for a, b in zip(groups[0][0], groups[1][0], strict=True) if a is not None and b is not None]
    return reporting.Summary(first - second, statistics.stdev(spread), first - second - reach, first - second + reach, seeds)


def compare_methods(name: str, first: Entry, second: Entry, metric: str) -> Entry:
    """Return the paired difference of two methods in one group, ``first`` less ``second``."""
    return reporting.summarize_difference(first[metric]["values"], second[metric]["values"], weigh(name, first, metric)).to_dict()


def add_comparisons(name: str, content: Entry) -> None:
    """Add worst groups, gaps and differences to the reference method to a data set's results."""
    for method, entry in content["methods"].items():
        entry["worst"] = {
            attribute: {metric: compare_groups(name, groups, metric) for metric in RANKED} for attribute, groups in entry["groups"].items()
        }
        reference = content["methods"].get(REFERENCE, {"groups": {}})["groups"]
        for attribute, groups in entry["groups"].items():
            if method == REFERENCE or attribute not in reference:
                continue
            for group, figures in groups.items():
                figures["difference"] = {metric: compare_methods(name, figures, reference[attribute][group], metric) for metric in RANKED}


def run(name: str, seeds: Sequence[int], methods: Sequence[str], jobs: int) -> Entry:
    """Measure all seeds of a data set, in ``jobs`` processes of one thread."""
    started = time.perf_counter()
    collected = read_headline(name) if list(seeds) == list(reporting.REPORTING_SEEDS[name]) else {}
    judged = [method for method in methods if method not in collected or set(ATTRIBUTES[name]) - set(collected[method][0]["groups"])]
    networks: list[str] = []
    found: list[dict[str, tuple[Entry, Margins]]] = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), prepare_process) as pool:
        count = len(seeds)
        measured = pool.map(measure, [name] * count, seeds, [methods] * count, [judged] * count)
        for seed, (network, one) in zip(seeds, measured, strict=True):
            networks.append(network)
            found.append(one)
            print(f"{name} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    content: Entry = {"seeds": list(seeds), "networks": networks, "runtime": describe_runtime(), "methods": {}}
    for method in methods:
        margins = summarize_margins([one[method][1] for one in found])
        content["methods"][method] = {**tabulate(name, [one[method][0] for one in found]), "margins": margins["own"]}
        content["fp32_margins"] = margins["fp32"]
    return content


def join(earlier: Entry, content: Entry) -> Entry:
    """Lay new results of a data set over earlier ones of the same seeds, method by method and attribute by attribute."""
    if earlier.get("seeds") != content["seeds"]:
        return content
    methods = dict(earlier["methods"])
    for method, entry in content["methods"].items():
        before = methods.get(method, {})
        methods[method] = {**before, **entry, "groups": {**before.get("groups", {}), **entry["groups"]}}
    return {**earlier, **content, "methods": {method: methods[method] for method in ORDER if method in methods}}


def collect(name: str) -> Entry:
    """Return the results of a data set that the headline's file holds."""
    methods = {method: tabulate(name, entries) for method, entries in read_headline(name).items()}
    return {"seeds": list(reporting.REPORTING_SEEDS[name]), "methods": methods}


def prepare_process() -> None:
    """Set up a process that has others beside it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def format_figure(figure: Mapping[str, Any], digits: int = 4, sign: str = "") -> str:
    """Format a figure's mean, standard deviation and interval."""
    if figure["mean"] is None:
        return "–"
    if figure["std"] is None:
        return f"{figure['mean']:{sign}.{digits}f}"
    mean, std, low, high = (figure[key] for key in ("mean", "std", "low", "high"))
    return f"{mean:{sign}.{digits}f} ± {std:.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the tables, each figure as mean ± standard deviation [95 % interval] over seeds."""
    yield f"Groups with fewer than {MIN_PEOPLE} people with recourse over all seeds are left out."
    for name, content in results["datasets"].items():
        how = "splits, pooled" if name in reporting.POOLED else "seeds"
        for attribute in ATTRIBUTES[name]:
            yield f"\n**{name}, {attribute}** ({len(content['seeds'])} {how}; {results['budget']:g} bits at most)\n"
            heads = ["group", "people with recourse", "FRR", "method", "bits", "BD", f"BD less that of {REFERENCE}", "VD", "PV", "CRG"]
            heads += ["drift", "accuracy", "paper: VD / CRG of MixedPrec; of CFQ"]
            yield f"| {' | '.join(heads)} |"
            yield "|" + "---|" * len(heads)
            yield from list_rows(name, content["methods"], attribute)
    yield "\n**Worst group and gap to the best** (Table 9)\n"
    yield "| data set | method | worst group by BD | its BD | gap of BD | worst group by VD | its VD | gap of VD | gap of CRG |"
    yield "|" + "---|" * 9
    for name, content in results["datasets"].items():
        for attribute in ATTRIBUTES[name]:
            for method in (method for method in ORDER if method in content["methods"]):
                worst = content["methods"][method]["worst"].get(attribute, {})
                if found := [worst[metric] for metric in RANKED if worst.get(metric)]:
                    cells = [cell for one in found[:2] for cell in (one["worst_group"], f"{one['worst']:.4f}", format_figure(one["gap"]))]
                    yield f"| {name}, {attribute} | {method} | {' | '.join([*cells, format_figure(found[2]['gap'], 3)])} |"
    yield "\n![Boundary disagreement, Validity Drop and CRG by group](results/subgroups.svg)"
    yield "\n**Target margin at the recourse points of f** (Figure 7; people of all seeds together)\n"
    yield "| data set | model | people | 5 % | 25 % | median | 75 % | 95 % | at most 0 (VD) | mean error | mean absolute error |"
    yield "|" + "---|" * 11
    for name, content in results["datasets"].items():
        for label, margins in list_margins(content).items():
            quantiles = [margins["quantiles"][round(200 * share)] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
            cells = [f"{margins['people']:,}", *(f"{value:+.3f}" for value in quantiles), f"{margins['share_at_most_0']:.4f}"]
            yield f"| {name} | {label} | {' | '.join(cells)} | {margins['mean_error']:+.4f} | {margins['mean_abs_error']:.4f} |"
    yield "\n![Cumulative distribution of the target margin at recourse points](results/margins.svg)"


def list_rows(name: str, methods: Mapping[str, Entry], attribute: str) -> Iterator[str]:
    """Write the rows of one attribute's table."""
    known = {method: methods[method] for method in ORDER if method in methods and attribute in methods[method]["groups"]}
    counts = next(iter(known.values()))["groups"][attribute] if known else {}
    for group in (group for group, entry in counts.items() if sum(entry["with_recourse"]) >= MIN_PEOPLE):
        for method, entry in known.items():
            figures = entry["groups"][attribute][group]
            cells = [
                group, f"{sum(figures['with_recourse']):,}", f"{figures['feasible_recourse_rate']['mean']:.3f}", method,
                f"{np.mean(entry['average_bits']):.2f}", format_figure(figures["boundary_disagreement"]),
                format_figure(figures["difference"]["boundary_disagreement"], sign="+") if "difference" in figures else "–",
                format_figure(figures["validity_drop"]), format_figure(figures["premature_validity"]),
                format_figure(figures["recourse_gap"], 3), f"{figures['favourable_rate_drift']['mean']:+.4f}",
                f"{figures['accuracy']['mean']:.3f}", PAPER.get(name, {}).get(group, "–"),
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"


def list_margins(content: Entry) -> dict[str, Entry]:
    """Return the margins of f and of each method."""
    methods = content["methods"]
    measured = {method: methods[method]["margins"] for method in ORDER if "margins" in methods.get(method, {})}
    return {"f": content["fp32_margins"], **measured} if measured else {}


LOOKS = {"f": "#000000", "mixed-ptq": "#999999", "cf-ptq": "#d95f02", "faithful": "#1b6ca8", "cfq-qat": "#7b3294"}


def plot(results: Mapping[str, Any], folder: Path) -> None:
    """Draw ``subgroups.svg`` (Figures 6, 23, 24) and ``margins.svg`` (Figure 7) from what the results hold."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cfptq"
    plot_groups(results, folder / "subgroups.svg")
    plot_margins(results, folder / "margins.svg")


def plot_groups(results: Mapping[str, Any], path: Path) -> None:
    """Draw boundary disagreement, Validity Drop and CRG by group and method, with intervals."""
    from matplotlib import pyplot

    panels_of = [
        (name, attribute)
        for name, content in results["datasets"].items()
        for attribute in ATTRIBUTES[name]
        if any(attribute in entry["groups"] for entry in content["methods"].values())
    ]
    titles = {"boundary_disagreement": "boundary disagreement", "validity_drop": "Validity Drop", "recourse_gap": "CRG (mean)"}
    figure, panels = pyplot.subplots(len(titles), len(panels_of), figsize=(3.0 * len(panels_of), 7.2), sharex="col", squeeze=False)
    for column, (name, attribute) in enumerate(panels_of):
        measured = results["datasets"][name]["methods"]
        methods = {method: measured[method] for method in ORDER if method in measured and attribute in measured[method]["groups"]}
        counted = next(iter(methods.values()))["groups"][attribute]
        groups = [group for group, entry in counted.items() if sum(entry["with_recourse"]) >= MIN_PEOPLE]
        width = 0.8 / len(methods)
        for row, (metric, title) in enumerate(titles.items()):
            panel = panels[row, column]
            for number, (method, entry) in enumerate(methods.items()):
                figures = [entry["groups"][attribute][group][metric] for group in groups]
                places = [place + width * (number - (len(methods) - 1) / 2) for place in range(len(groups))]
                reach = [[each["mean"] - (each["low"] if each["low"] is not None else each["mean"]) for each in figures]] * 2
                panel.bar(places, [each["mean"] for each in figures], width, color=LOOKS[method], label=method,
                          yerr=reach, error_kw={"linewidth": 0.8, "capsize": 1.5})  # fmt: skip
            panel.grid(alpha=0.3, axis="y")
            if column == 0:
                panel.set_ylabel(title)
        panels[0, column].set_title(f"{name}, {attribute}", fontsize=9)
        panels[-1, column].set_xticks(range(len(groups)), [group.replace("-", "-\n") for group in groups], fontsize=7)
    handles = {label: bar for panel in panels[0] for bar, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def plot_margins(results: Mapping[str, Any], path: Path) -> None:
    """Draw the cumulative distribution of the target margin at recourse points, one panel a data set."""
    from matplotlib import pyplot

    names = [name for name, content in results["datasets"].items() if list_margins(content)]
    if not names:
        return
    figure, panels = pyplot.subplots(2, len(names), figsize=(3.0 * len(names), 5.2), sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for column, name in enumerate(names):
        margins = list_margins(results["datasets"][name])
        quarter, most = (margins["f"]["quantiles"][place] for place in (len(SHARES) // 4, -len(SHARES) // 20))
        for panel, (low, high) in zip(panels[:, column], ((-0.5 * most, most), (-quarter, quarter)), strict=True):
            for label, entry in margins.items():
                style = "--" if label == "f" else "-"
                (handles[label],) = panel.plot(entry["quantiles"], SHARES, color=LOOKS[label], linewidth=1.2, linestyle=style)
            panel.axvline(0, color="k", linewidth=0.6)
            panel.set_xlim(low, high)
            panel.grid(alpha=0.3)
        panels[0, column].set(title=name, ylim=(0, 1))
        panels[1, column].set(xlabel="target margin at x + δ", ylim=(0, 0.35))
    panels[0, 0].set_ylabel("share of people")
    panels[1, 0].set_ylabel("share of people, at the boundary")
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    ordered = [label for label in ("f", *ORDER) if label in handles]
    figure.legend([handles[label] for label in ordered], ordered, loc="upper center", ncols=len(ordered), fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--datasets", nargs="+", default=list(ATTRIBUTES), choices=list(ATTRIBUTES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=ORDER)
    parser.add_argument("--seeds", nargs="+", type=int, help="these instead of the reporting seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--collect", action="store_true", help="take the groups of the headline's files and measure nothing")
    parser.add_argument("--show", action="store_true", help="print the tables of the results file, draw its plots beside it, and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    results = {"schema": 1, "budget": BUDGET, "datasets": {}} | results
    if chosen.show:
        names: list[str] = []
    elif chosen.collect:
        names = [name for name in chosen.datasets if read_headline(name)]
    else:
        names = chosen.datasets
        seeds = {name: chosen.seeds or list(reporting.REPORTING_SEEDS[name]) for name in names}
        reporting.start_run(chosen.out, seeds, chosen.reason)
    for name in names:
        content = collect(name) if chosen.collect else run(name, seeds[name], chosen.methods, chosen.jobs)
        content = join(results["datasets"].get(name, {}), content)
        add_comparisons(name, content)
        results["datasets"][name] = content
        reporting.write_results(chosen.out, results)
    plot(results, chosen.out.parent)
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
