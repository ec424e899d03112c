"""Layer scores at factual rows and at counterfactual points (eq. 23): Figure 13 of the paper.

Both scores are the mean ℓ1 norm of a row's own gradient in the layer's weights: of the task loss at factual rows, and of the loss towards
the target at the teacher's counterfactual points. Shown is each layer's share of the sum over layers. The widths are those that the
paper's greedy rule makes of each score at 4 average bits.

    CFPTQ_DATA_DIR=... python benchmarks/layer_scores.py --reason "..."     # some minutes
    python benchmarks/layer_scores.py --show     # the table, and the plot anew
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import reporting
import torch
from subgroups import format_figure

from cfptq.pipeline.method_presets import METHODS as PRESETS
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.task import TaskSettings, build_task

OUT = reporting.RESULTS / "layer_scores.json"
DATASETS = ("adult", "bank", "compas", "default", "german")
BUDGET = 4.0
#: Score -> method that allocates by it, on the same factual rows.
SCORES = {"factual": PRESETS["mixed-ptq"], "counterfactual": PRESETS["cf-ptq-allocation"]}


def measure(name: str, seed: int) -> dict[str, Any]:
    """Score each layer of one network, and allocate by each score."""
    experiment = reporting.load_experiment(name, seed)
    loader = [(experiment.columns.train, experiment.columns.train_labels)]
    rows = reporting.load_recipe(name).calibration.rows
    task = build_task(experiment.model, loader, experiment.action_set, TaskSettings(max_rows=rows, seed=seed, progress=False))
    found: dict[str, Any] = {"network": experiment.network.sha256}
    for label, method in SCORES.items():
        scores = task.score_layers(method, progress=False)
        found["layers"], found["weights"] = list(scores.names), list(scores.parameters)
        found[label] = {"scores": list(scores.scores), "bits": list(quantize_with(task, method, BUDGET, progress=False).bits.values())}
    return found


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect scores, shares and widths of all seeds, by score and layer."""
    layers, weights = runs[0]["layers"], runs[0]["weights"]
    content: dict[str, Any] = {
        "networks": [run["network"] for run in runs], "layers": layers, "weights": weights, "scores": {},
    }  # fmt: skip
    for label in SCORES:
        content["scores"][label] = {}
        for place, layer in enumerate(layers):
            values = [run[label]["scores"][place] for run in runs]
            sums = [sum(run[label]["scores"]) for run in runs]
            shares = [value / total for value, total in zip(values, sums, strict=True)]
            per_weight = [
                (value / weights[place]) / sum(score / count for score, count in zip(run[label]["scores"], weights, strict=True))
                for value, run in zip(values, runs, strict=True)
            ]
            bits = [run[label]["bits"][place] for run in runs]
            content["scores"][label][layer] = {
                "score": {"values": [round(value, 5) for value in values], **reporting.summarize(values).to_dict()},
                "share": reporting.summarize(shares).to_dict(),
                "share_per_weight": reporting.summarize(per_weight).to_dict(),
                "bits": {str(width): bits.count(width) for width in sorted(set(bits))},
            }
    content["seeds_with_equal_widths"] = sum(run["factual"]["bits"] == run["counterfactual"]["bits"] for run in runs)
    return content


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write the table, each share as mean ± standard deviation [95 % interval] over seeds."""
    heads = [
        "data set",
        "layer",
        "weights",
        *(f"share of the {label} score" for label in SCORES),
        *(f"bits (seeds), {label}" for label in SCORES),
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for name, content in results["datasets"].items():
        for layer, weights in zip(content["layers"], content["weights"], strict=True):
            entries = [content["scores"][label][layer] for label in SCORES]
            shares = [format_figure(entry["share"], 3) for entry in entries]
            widths = [", ".join(f"{width} ({count})" for width, count in entry["bits"].items()) for entry in entries]
            yield f"| {name} | {layer} | {weights:,} | {' | '.join([*shares, *widths])} |"
    equal = ", ".join(
        f"{name} {content['seeds_with_equal_widths']} of {len(content['seeds'])}" for name, content in results["datasets"].items()
    )
    yield f"\nNetworks for which both scores lead to the same widths: {equal}."
    yield "\n![Layer scores at factual rows and at counterfactual points](results/layer_scores.svg)"


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw each layer's share of both scores with its interval, one panel a data set."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cfptq"
    from matplotlib import pyplot

    names = list(results["datasets"])
    figure, panels = pyplot.subplots(1, len(names), figsize=(2.7 * len(names), 2.8), sharey=True, squeeze=False)
    looks = {"factual": ("#999999", "s"), "counterfactual": ("#d95f02", "^")}
    for panel, name in zip(panels[0], names, strict=True):
        content = results["datasets"][name]
        for label, (colour, marker) in looks.items():
            shares = [content["scores"][label][layer]["share"] for layer in content["layers"]]
            means = [share["mean"] for share in shares]
            reach = [mean - (share["low"] if share["low"] is not None else mean) for mean, share in zip(means, shares, strict=True)]
            panel.errorbar(range(len(means)), means, yerr=reach, color=colour, marker=marker, capsize=2, linewidth=1, label=label)
        panel.set_xticks(range(len(content["layers"])), content["layers"], fontsize=8)
        panel.set_title(f"{name} ({len(content['seeds'])} networks)", fontsize=9)
        panel.grid(alpha=0.3)
    panels[0, 0].set(ylabel="share of the score", ylim=(0, None))
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, help="these instead of the reporting seeds")
    parser.add_argument("--show", action="store_true", help="print the table of the results file, draw its plot beside it, and leave")
    reporting.add_reason(parser)
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    results = {"schema": 1, "budget": BUDGET, "datasets": {}} | results
    if not chosen.show:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        seeds = {name: chosen.seeds or list(reporting.REPORTING_SEEDS[name]) for name in chosen.datasets}
        reporting.start_run(chosen.out, seeds, chosen.reason)
        for name in chosen.datasets:
            started = time.perf_counter()
            results["datasets"][name] = {"seeds": seeds[name], **summarize([measure(name, seed) for seed in seeds[name]])}
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
            reporting.write_results(chosen.out, results)
    plot(results, chosen.out.with_suffix(".svg"))
    print("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
