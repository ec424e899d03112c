"""Cost of ``portable=True``: weights behind integer inputs within ±63 against the full range, at 4 and 8 average bits.

Both files of a pair come from the same model, calibration rows and recourse, and run without saturation. ``saturated`` counts test rows
that ONNX Runtime's default session decides otherwise on the processor that the results file names.

    CFPTQ_DATA_DIR=... python benchmarks/portable.py     # about ten minutes on two cores
    python benchmarks/portable.py --show                 # the table
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faithful
import torch

from cfptq.experiments.recipe import Recipe
from cfptq.io.atomic import write_text
from cfptq.network.onnx.session import describe_runtime
from cfptq.pipeline.method_presets import METHODS

OUT = Path(__file__).parent / "results" / "portable.json"

#: Data sets of the recipes, and development seeds.
DATASETS, SEEDS = ("adult", "bank", "compas", "default", "german"), (0, 1, 2)

METHODS_COMPARED, BUDGETS = ("faithful", "cf-ptq"), (4.0, 8.0)

#: Figures of the table, averaged over seeds.
COLUMNS = ("average_bits", "stored_bytes", "validity_drop", "validity_drop_without_drift", "flips", "drift")


def measured(dataset: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one entry for each method, budget and range."""
    judge = faithful.Judge(Recipe.load(Path(__file__).parent.parent / "recipes" / f"{dataset}.yaml"), seed)
    teacher = judge.teacher()
    for method in METHODS_COMPARED:
        for budget in BUDGETS:
            for portable in (True, False):
                entry = judge(teacher, METHODS[method], budget, portable)
                yield {"dataset": dataset, "seed": seed, "method": method, "budget": budget, "portable": portable, **entry}


def show() -> None:
    """Print the table: each figure with ``portable=True``, and with the full range."""
    entries = json.loads(OUT.read_text())["runs"]
    print(f"| data set | method | budget | range | {' | '.join(COLUMNS)} | saturated |")
    print("|" + "---|" * (5 + len(COLUMNS)))
    for dataset in DATASETS:
        for method in METHODS_COMPARED:
            for budget in BUDGETS:
                for portable in (True, False):
                    key = {"dataset": dataset, "method": method, "budget": budget, "portable": portable}
                    runs = [entry for entry in entries if key.items() <= entry.items()]
                    cells = [f"{statistics.mean(run[column] for run in runs):.4g}" for column in COLUMNS]
                    saturated = sum(run["decided_otherwise_by_default_session"] for run in runs)
                    print(f"| {dataset} | {method} | {budget:g} | {'±63' if portable else '±127'} | {' | '.join(cells)} | {saturated} |")


def main() -> None:
    """Run the benchmark, or show what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the table of the committed results")
    if not parser.parse_args().show:
        torch.set_num_threads(1)
        runs = [entry for dataset in DATASETS for seed in SEEDS for entry in measured(dataset, seed)]
        write_text(OUT, json.dumps({"schema": 1, "runtime": describe_runtime(), "runs": runs}, indent=1, sort_keys=True) + "\n")
    show()


if __name__ == "__main__":
    main()
