"""Printed output of the commands."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from cfptq.io.atomic import atomic_write

if TYPE_CHECKING:
    from cfptq.experiments import QuickstartResult
    from cfptq.pipeline.comparison import Comparison
    from cfptq.pipeline.result import Result

#: Width of a table in a file or a pipe. A terminal has its own width.
PIPE_WIDTH_CHARACTERS = 150


def show(renderable: RenderableType) -> None:
    """Print a table, a report or a sentence, with square brackets and colons as they are."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH_CHARACTERS)
    console.print(renderable)


def say(*lines: str) -> None:
    """Print lines as they are, without markup and without line breaks."""
    console = Console(markup=False, emoji=False, highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def show_comparison(folder: Path, comparison: Comparison) -> None:
    """Print the comparison of one run, and name the files in its folder."""
    show(comparison)
    say(f"Written to {folder}: results.json, timings.json and the ONNX files compared.")


def show_quickstart(result: QuickstartResult) -> None:
    """Print the result of the quickstart in two sentences and a table, then the files and the next command."""
    say(f"Data set: {result.source}.")
    show(" ".join(result.sentences))
    show(result.table())
    show("VD: share of advice that fails. drift: change of the favourable rate. 0 is best for both.")
    show(f"Details in {result.folder}: {', '.join(result.files)}, and the quantized models.")
    say("Next, judge a file as an auditor would:", f"  {result.audit_command()}")


def write_model_and_plan(result: Result, path: Path, folder: Path | None, plot: Path | None = None) -> None:
    """Write the ONNX file, the plan and the plot of the Pareto curve, all or none.

    Args:
        result: The quantized model.
        path: ONNX file to write.
        folder: Folder of the plan, or None for no plan.
        plot: File of the plot, or None for no plot.
    """
    content = result.onnx_model().SerializeToString(deterministic=True)
    with ExitStack() as stack:
        # The files take their places after the plan has, by renames that need no space.
        if plot is not None:
            result.pareto().plot(stack.enter_context(atomic_write(plot)))
        stack.enter_context(atomic_write(path)).write_bytes(content)
        if folder is not None:
            result.save(folder, rows=False)


def show_result(result: Result, path: Path) -> None:
    """Print the layers of a quantized model, the notes about it and the size of its file."""
    show(result.table())
    say(*result.notes, f"{path}: {path.stat().st_size / 1024:.1f} KiB")
