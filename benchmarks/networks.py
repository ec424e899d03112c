"""Train the reference networks of the reporting seeds, which the recipes and all benchmarks read.

Each is trained as its data set's recipe says, in one thread, and written to ``benchmarks/networks/`` with its SHA-256 in ``index.json``.
Networks that are there are kept. Training gives other networks on other processors, so that ``--again`` replaces the reference.

    CFPTQ_DATA_DIR=... python benchmarks/networks.py                        # 110 networks, some minutes
    CFPTQ_DATA_DIR=... python benchmarks/networks.py --datasets german --seeds 60 61 --again
    python benchmarks/networks.py --check                                   # every file has its SHA-256
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import reporting

from cfptq.errors import FileError
from cfptq.experiments.stored_networks import MAX_NETWORK_BYTES, compute_sha256, read_index
from cfptq.io.files import read_file


def check_files(folder: Path) -> int:
    """Check that every file of the index has its SHA-256 and that there is no other, and return the number of files.

    Raises:
        FileError: A file is missing, was changed, or is not in the index.
    """
    index = read_index(folder)
    for name, expected in index.items():
        if (found := compute_sha256(read_file(folder / name, MAX_NETWORK_BYTES))) != expected:
            raise FileError(f"{folder / name} must have the SHA-256 {expected}, got {found}. Restore the file.")
    if stray := sorted(path.name for path in folder.glob("*.safetensors") if path.name not in index):
        raise FileError(f"{folder} holds files that are not in its index: {', '.join(stray)}. Remove them.")
    return len(index)


def main(arguments: Iterable[str] | None = None) -> None:
    """Train what is missing, or check what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(reporting.DATASETS), choices=reporting.DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, help="reporting seeds only; all by default")
    parser.add_argument("--again", action="store_true", help="train anew what is there, which changes the reference")
    parser.add_argument("--check", action="store_true", help="check the files' SHA-256 and leave")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.check:
        for name in chosen.datasets:
            recipe = reporting.load_recipe(name)
            seeds = [seed for seed in reporting.REPORTING_SEEDS[name] if chosen.seeds is None or seed in chosen.seeds]
            started, trained = time.perf_counter(), 0
            for number, seed in enumerate(seeds, 1):
                if reporting.store_network(recipe, seed, reporting.NETWORKS, again=chosen.again):
                    trained += 1
                    print(f"{name} seed {seed} ({number} of {len(seeds)}): {time.perf_counter() - started:.0f} s", flush=True)
            print(f"{name}: {trained} trained, {len(seeds) - trained} kept", flush=True)
    count = check_files(reporting.NETWORKS)
    size = sum(path.stat().st_size for path in reporting.NETWORKS.glob("*.safetensors"))
    print(f"{count} networks, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
