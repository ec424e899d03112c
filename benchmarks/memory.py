"""Peak memory of ``cfptq.calibrate`` when the loader is a hundred times longer.

Each length runs in a process of its own that streams random rows; the figure is the process's peak resident memory.

    python benchmarks/memory.py --out benchmarks/results/memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.io.atomic import write_text

COLUMNS = 88
BATCH = 1000


def stream(rows: int) -> Iterator[torch.Tensor]:
    """Yield ``rows`` random rows in batches that exist one at a time."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(rows // BATCH):
        yield torch.randn(BATCH, COLUMNS, generator=generator)


def peak(rows: int) -> float:
    """Calibrate on a stream of ``rows`` and return this process's peak resident memory in MB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    features = [Continuous(f"x{column}", column=column) for column in range(COLUMNS)]
    action_set = ActionSet.from_columns(next(stream(BATCH)), features, max_changes=5, favourable=1)
    cfptq.calibrate(model, stream(rows), action_set, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run both lengths in fresh processes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--rows", type=int, help="measure one length in this process and print it")
    arguments = parser.parse_args()
    if arguments.rows:
        print(peak(arguments.rows))
        return
    measured = {}
    for rows in (10_000, 1_000_000):
        command = [sys.executable, __file__, "--rows", str(rows)]
        measured[rows] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    results = {f"{rows} rows, peak MB": round(value) for rows, value in measured.items()}
    results["difference, MB"] = round(measured[1_000_000] - measured[10_000])
    write_text(arguments.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
