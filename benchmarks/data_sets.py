"""Data sets and action sets as the code has them: Tables 3 and 4 of the paper, with the paper's figures beside ours.

Nothing is trained. german's counts are the same for every split.

    CFPTQ_DATA_DIR=... python benchmarks/data_sets.py     # some seconds
    python benchmarks/data_sets.py --show
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import reporting

from cfptq import datasets
from cfptq.actions import ActionSet
from cfptq.actions.features import Categorical, Continuous, Ordinal

OUT = reporting.RESULTS / "data_sets.json"

#: The paper's Table 3: training rows, test rows, columns d, categorical groups, share of the favourable class, target.
PAPER_DATA: Mapping[str, tuple[Any, ...]] = {
    "adult": (32_561, 16_281, 104, 8, 0.24, "income ≥ 50K"),
    "german": (700, 300, 58, 10, 0.70, "good credit"),
    "compas": (4_500, 2_000, 12, 3, 0.45, "low risk"),
    "bank": (36_168, 9_043, 51, 7, 0.12, "subscribe"),
    "bank-with-duration": (36_168, 9_043, 51, 7, 0.12, "subscribe"),
    "default": (24_000, 6_000, 23, 3, 0.78, "no default"),
}
#: The paper's Table 4: immutable and actionable dimensions, bounds, sparsity k, cost.
PAPER_ACTIONS: Mapping[str, tuple[Any, ...]] = {
    "adult": (6, 98, "per-feature", 5, "ℓ1"),
    "german": (5, 53, "per-feature", 4, "ℓ1"),
    "compas": (3, 9, "per-feature", 3, "ℓ1"),
    "bank": (1, 50, "per-feature", 5, "ℓ1"),
    "bank-with-duration": (1, 50, "per-feature", 5, "ℓ1"),
    "default": (1, 22, "box + nonnegativity", 4, "ℓ2"),
}


def describe_data(dataset: datasets.Dataset, columns: datasets.Columns) -> dict[str, Any]:
    """Return a data set's row of Table 3."""
    return {
        "train": len(dataset.train),
        "test": len(dataset.test),
        "features": dataset.train.shape[1],
        "columns": columns.train.shape[1],
        "categorical": len(dataset.categorical),
        "ordinal": len(dataset.ordinal),
        "favourable_share": round(dataset.favourable_share, 4),
        "target": dataset.label_names[dataset.favourable],
    }


def describe_actions(action_set: ActionSet) -> dict[str, Any]:
    """Return an action set's row of Table 4."""
    mutable = int(action_set.mutable_columns.sum())
    free = [feature for feature in action_set if not feature.is_immutable]
    return {
        "immutable": [feature.name for feature in action_set if feature.is_immutable],
        "one_way": {feature.name: feature.mutability.value for feature in free if feature.mutability.value != "free"},
        "immutable_columns": len(action_set.mutable_columns) - mutable,
        "actionable_columns": mutable,
        "actionable_features": len(free),
        "bounds": {
            feature.name: [None if side is None else float(side) for side in feature.bounds]
            for feature in free
            if isinstance(feature, Continuous) and feature.bounds != (None, None)
        },
        "projection": dict(Counter(_name_projection(feature) for feature in free)),
        "max_changes": action_set.max_changes,
        "norm": action_set.norm,
        "weights": action_set.weights,
    }


def _name_projection(feature: object) -> str:
    if isinstance(feature, Categorical):
        return "one-hot"
    return "ordinal" if isinstance(feature, Ordinal) else "box"


def measure() -> dict[str, Any]:
    """Describe every data set and its action set."""
    content: dict[str, Any] = {}
    for name in reporting.DATASETS:
        recipe = reporting.load_recipe(name)
        dataset = recipe.dataset(reporting.REPORTING_SEEDS[name][0])
        columns = datasets.encode(dataset)
        action_set = recipe.action_set(dataset, columns.encoder)
        content[name] = {"data": describe_data(dataset, columns), "actions": describe_actions(action_set)}
    return content


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Write both tables, with the paper's figures in brackets."""
    yield "**Data sets** (Table 3; the paper's figures in brackets)\n"
    yield "| data set | training rows | test rows | features | columns d | categorical features | favourable share | target |"
    yield "|" + "---|" * 8
    for name, entry in results["datasets"].items():
        data, paper = entry["data"], PAPER_DATA[name]
        cells = [
            f"{data['train']:,} ({paper[0]:,})", f"{data['test']:,} ({paper[1]:,})", str(data["features"]),
            f"{data['columns']} ({paper[2]})", f"{data['categorical']} ({paper[3]})",
            f"{data['favourable_share']:.2f} ({paper[4]:.2f})", f"{data['target']} ({paper[5]})",
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"
    yield "\n**Action sets** (Table 4; the paper's figures in brackets)\n"
    yield "| data set | immutable features | one-way | immutable columns | actionable columns | bounds declared | k | projection | cost |"
    yield "|" + "---|" * 9
    for name, entry in results["datasets"].items():
        actions, paper = entry["actions"], PAPER_ACTIONS[name]
        bounds = [f"{feature} {_format_bounds(low, high)}" for feature, (low, high) in actions["bounds"].items()]
        cells = [
            ", ".join(actions["immutable"]), ", ".join(f"{name} ({way})" for name, way in actions["one_way"].items()) or "–",
            f"{actions['immutable_columns']} ({paper[0]})", f"{actions['actionable_columns']} ({paper[1]})",
            f"{', '.join(bounds) or 'observed ranges'} ({paper[2]})", f"{actions['max_changes']} ({paper[3]})",
            ", ".join(f"{kind} {count}" for kind, count in actions["projection"].items()),
            f"{actions['norm'].replace('l', 'ℓ')}, weights {actions['weights']} (weighted {paper[4]})",
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"
    yield "\nk counts features. Where no bound is declared, an action stays within the range of the training rows."


def _format_bounds(low: float | None, high: float | None) -> str:
    if high is None:
        return f"≥ {low:g}"
    return f"≤ {high:g}" if low is None else f"{low:g} to {high:g}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Describe and write, or show what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", action="store_true", help="print the tables of the results file and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.show:
        reporting.write_results(chosen.out, {"schema": 1, "datasets": measure()})
    print("\n".join(markdown(json.loads(chosen.out.read_text()))))


if __name__ == "__main__":
    main()
