"""Bytes on disk and latency of deployed files, ours beside ONNX Runtime's own int8 and int4 and fp32.

Two nets with random weights (figures depend on shapes alone), one thread, files taken in turns, medians; ratios are to ONNX Runtime's
int8 file, and the bars are set for our 4-bit file with an 8-bit input. Every file is opened several times: where its weights come to lie
in memory makes one opening up to a tenth slower than the next, even of the same kernels on the same shapes. ``--compile`` adds PT2E
graphs compiled with freezing to the results of an earlier run; it needs torchao and a C++ compiler.

    python benchmarks/deployment.py --out benchmarks/results/deployment.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.backends.latency import BATCHES, find_slower, measure_latency
from cfptq.backends.quantize_static import quantize_onnx_by_default
from cfptq.io.atomic import write_text
from cfptq.network import to_onnx_model
from cfptq.quantize import InputBits

NETS = {"104-256-128-2": (104, 256, 128, 2), "512-2048-2048-2048-2": (512, 2048, 2048, 2048, 2)}
ROWS = 1024
#: What the ratios are to, and the file that the bars are set for: its bytes on the largest net, its time everywhere.
REFERENCE, JUDGED = "ONNX Runtime int8", "cfptq 4-bit, 8-bit input"
LARGEST, MOST_BYTES, MOST_TIME = "512-2048-2048-2048-2", 0.56, 1.05
#: Turns of each file in one opening, by batch size: what is over soonest is repeated most.
ROUNDS = {1: 100, 256: 15, 4096: 4}
#: Times that every file is opened.
OPENINGS = 7
#: Our files: average bits, the input's format, further keywords of to_onnx.
OURS: dict[str, tuple[float, InputBits, dict[str, Any]]] = {
    JUDGED: (4.0, 8, {}),
    "cfptq 4-bit, two-step input": (4.0, "two-step", {}),
    "cfptq 4-bit, float input": (4.0, 32, {}),
    "cfptq 4-bit, 8-bit input, not packed": (4.0, 8, {"storage": "plain"}),
    "cfptq 4-bit, weight-only": (4.0, 8, {"weight_only": True}),
    "cfptq 2-bit, 8-bit input": (2.0, 8, {}),
    "cfptq 8-bit, 8-bit input": (8.0, 8, {}),
}


def net(widths: tuple[int, ...]) -> nn.Module:
    """Build an MLP with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for i, o in pairwise(widths[:-1]) for part in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1])).eval()


def rows_of(net_name: str) -> torch.Tensor:
    """Random rows for a net."""
    return torch.randn(ROWS, NETS[net_name][0], generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, rows: torch.Tensor, bits: float, input_bits: InputBits) -> cfptq.Result:
    """Quantize to nearest, and return the plan."""
    columns = [Continuous(f"x{column}", column=column) for column in range(rows.shape[1])]
    action_set = ActionSet.from_columns(rows, columns, favourable=1)
    return cfptq.calibrate(model, [rows], action_set, method="ptq", budget=bits, input_bits=input_bits, progress=False)


def files(model: nn.Module, rows: torch.Tensor, folder: Path) -> dict[str, Path]:
    """Write every file to compare, and return them by name."""
    wanted = dict.fromkeys((bits, input_bits) for bits, input_bits, _ in OURS.values())
    results = {(bits, input_bits): quantized(model, rows, bits, input_bits) for bits, input_bits in wanted}
    exported = to_onnx_model(results[OURS[JUDGED][:2]].network)
    found = {"fp32": folder / "fp32.onnx", REFERENCE: folder / "int8.onnx", "ONNX Runtime int4": folder / "int4.onnx"}
    found["fp32"].write_bytes(exported.SerializeToString())
    quantize_onnx_by_default(exported, rows, 8, found[REFERENCE])
    quantize_onnx_by_default(exported, rows, 4, found["ONNX Runtime int4"])
    for number, (name, (bits, input_bits, more)) in enumerate(OURS.items()):
        found[name] = folder / f"{number}.onnx"
        results[bits, input_bits].to_onnx(found[name], **more)
    return found


def compiled(net_name: str) -> dict[str, Any]:
    """Time fp32, our plan and PT2E's own, compiled by inductor with freezing, in turns, and return their entries."""
    import torch._inductor.config as inductor

    from cfptq.backends import pt2e

    rows = rows_of(net_name)
    result = quantized(net(NETS[net_name]), rows, *OURS[JUDGED][:2])
    ours = pt2e.convert_pt2e(pt2e.prepare_pt2e(pt2e.export_with_dynamic_batch(result.prepared_model(), rows[:4]), result.pt2e_quantizer()))
    graphs = {
        "compiled fp32": result.network.graph,
        "compiled cfptq 4-bit": ours,
        "compiled PT2E int8": pt2e.quantize_by_default(result.network, rows),
    }
    times: dict[str, dict[int, float]] = {name: {} for name in graphs}
    with torch.no_grad(), inductor.patch(freezing=True):
        runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {name: torch.compile(graph) for name, graph in graphs.items()}
        for batch in BATCHES:
            fed = rows.repeat(-(-batch // len(rows)), 1)[:batch]
            taken: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(23):
                for name, run in runs.items():
                    started = time.perf_counter()
                    run(fed)
                    if turn > 2:
                        taken[name].append(1e6 * (time.perf_counter() - started))
            for name, seconds in taken.items():
                times[name][batch] = statistics.median(seconds)
    return {name: {"us": {str(batch): round(value, 1) for batch, value in taken.items()}} for name, taken in times.items()}


def measure(net_name: str, rounds: float) -> dict[str, Any]:
    """Measure one net, and return the bytes, microseconds and ratios of each file, whether the bars hold, and where fp32 is faster."""
    rows = rows_of(net_name)
    with tempfile.TemporaryDirectory() as place:
        found = files(net(NETS[net_name]), rows, Path(place))
        openings = [
            {batch: measure_latency(found, rows, [batch], max(3, round(rounds * ROUNDS[batch]))) for batch in BATCHES}
            for _ in range(OPENINGS)
        ]
        times = {
            name: {batch: statistics.median(opening[batch][name][batch] for opening in openings) for batch in BATCHES} for name in found
        }
        sizes = {name: path.stat().st_size for name, path in found.items()}
    entry: dict[str, Any] = {
        name: {
            "bytes": sizes[name],
            "bytes_ratio": round(sizes[name] / sizes[REFERENCE], 3),
            "us": {str(batch): round(taken, 1) for batch, taken in times[name].items()},
            "us_ratio": {str(batch): round(taken / times[REFERENCE][batch], 3) for batch, taken in times[name].items()},
        }
        for name in found
    }
    judged = {"bytes_ratio": entry[JUDGED]["bytes_ratio"], "largest_us_ratio": max(entry[JUDGED]["us_ratio"].values())}
    small = net_name != LARGEST or judged["bytes_ratio"] <= MOST_BYTES
    return {
        "files": entry,
        "judged": {"file": JUDGED, **judged, "holds": small and judged["largest_us_ratio"] <= MOST_TIME},
        "slower_than_fp32_at_batch": find_slower("fp32", times),
    }


def show(name: str, measured: dict[str, Any], console: Console) -> None:
    """Print the table of one net."""
    table = Table(title=f"{name}: bytes, and microseconds a call (as a multiple of {REFERENCE})")
    for heading in ("file", "KiB", *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=True)
    for file, entry in measured["files"].items():
        size = f"{entry['bytes'] / 1024:.0f} ({entry['bytes_ratio']:.2f})" if "bytes" in entry else "–"
        ratios = entry.get("us_ratio", {})
        cells = (f"{taken:.0f}" + (f" ({ratios[batch]:.2f})" if ratios else "") for batch, taken in entry["us"].items())
        table.add_row(file, size, *cells)
    console.print(table)
    for file, batches in measured["slower_than_fp32_at_batch"].items():
        console.print(f"note: {file} is slower than fp32 here at batch {', '.join(map(str, batches))}")
    judged = measured["judged"]
    console.print(
        f"{JUDGED}: {judged['bytes_ratio']:.3f} of the bytes (bar: {MOST_BYTES} on {LARGEST}) and at most {judged['largest_us_ratio']:.3f} "
        f"of the time (bar: {MOST_TIME}) of {REFERENCE}: {'holds' if judged['holds'] else 'BROKEN'}"
    )


def main() -> None:
    """Measure both nets, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deployment.json"))
    parser.add_argument("--rounds", type=float, default=1.0, help="multiply the number of turns by this")
    parser.add_argument("--net", choices=NETS, action="append", help="both by default")
    parser.add_argument("--compile", action="store_true", help="add PT2E graphs compiled with freezing to what --out holds")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console = Console(width=120)
    results: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, "nets": {}}
    if arguments.compile:
        results = json.loads(arguments.out.read_text())
    for name in arguments.net or NETS:
        if arguments.compile:
            results["nets"][name]["files"] |= compiled(name)
        else:
            results["nets"][name] = measure(name, arguments.rounds)
        show(name, results["nets"][name], console)
        write_text(arguments.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
