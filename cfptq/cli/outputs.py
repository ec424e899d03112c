"""What the commands show and write when they are done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from cfptq.pipeline.comparison import Comparison
    from cfptq.pipeline.result import Result


#: Columns of a table that goes to a file or a pipe, where there is no terminal to fit into.
PIPE_WIDTH = 150


def show(what: RenderableType) -> None:
    """Print a table or a report."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    console.print(what)


def say(*lines: str) -> None:
    """Print lines as they are: no markup, no wrapping."""
    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def finish(comparison: Comparison, out: Path) -> None:
    """Write and show what a run found."""
    comparison.to_json(out / "results.json")
    comparison.timings_to_json(out / "timings.json")
    show(comparison)
    say(f"Written to {out}: results.json, timings.json and the ONNX files compared.")


def show_layers(result: Result, path: Path) -> None:
    """Which layer got how many bits, and the size of the file."""
    table = Table(
        "layer", "weights", "bits", "sensitivity", title=f"{result.plan.method}: {result.allocation.average_bits:.2f} bits on average"
    )
    sensitivity = result.sensitivity.by_layer()
    sizes = dict(zip(result.allocation.names, result.allocation.parameters, strict=True))
    for name, bits in result.bits.items():
        table.add_row(name, f"{sizes[name]:,}", str(bits), f"{sensitivity[name]:.4g}")
    for name, reason in result.skipped.items():
        table.add_row(name, "", "float", reason)
    show(table)
    if result.sensitivity.note:
        say(f"Note: {result.sensitivity.note}.")
    if result.training is not None:
        say(f"Training: {result.training}.")
    for report in (result.worst_group, result.repair):
        if report is not None:
            say(f"{str(report)[0].upper()}{str(report)[1:]}.")
    say(f"{path}: {path.stat().st_size / 1024:.1f} KiB")
