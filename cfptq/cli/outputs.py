"""Printed output of the commands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from cfptq.io.atomic import atomic_write
from cfptq.io.printable import escape_unprintable

if TYPE_CHECKING:
    from cfptq.auditing import AuditReport, Gate
    from cfptq.experiments import QuickstartResult
    from cfptq.pipeline.comparison import Comparison
    from cfptq.pipeline.result import Result

#: Width of a table in a file or a pipe. A terminal has its own width.
PIPE_WIDTH_CHARACTERS = 150


class ReportFormat(StrEnum):
    """Forms of an audit's report on standard output."""

    TEXT = "text"
    MARKDOWN = "md"
    JSON = "json"


def show(renderable: RenderableType) -> None:
    """Print a table, a report or a sentence, with square brackets and colons as they are."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH_CHARACTERS)
    console.print(escape_unprintable(renderable) if isinstance(renderable, str) else renderable)


def say(*lines: str) -> None:
    """Print lines as they are, without markup and without line breaks."""
    console = Console(markup=False, emoji=False, highlight=False)
    for line in lines:
        console.print(escape_unprintable(line), soft_wrap=True)


def show_comparison(folder: Path, comparison: Comparison) -> None:
    """Print the comparison of one run, and name the files in its folder."""
    show(comparison)
    say(f"Written to {folder}: results.json, timings.json and the ONNX files compared.")


def show_quickstart(result: QuickstartResult) -> None:
    """Print the result of the quickstart in two sentences and a table, then the files and the next command."""
    say(f"Data set: {result.source}.")
    show(" ".join(result.sentences))
    show(result.table())
    show("VD: share of advice that fails. BD: mean of VD and of advice that holds a step too early. drift: change of the favourable rate.")
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


def show_audit(judged: Sequence[tuple[AuditReport, Gate]], form: ReportFormat, include_people: bool) -> None:
    """Print the reports of an audit, those of several models after a line for each.

    Output that is kept, such as a log, names nobody unless it is asked for. A terminal shows a few keys where letters need a look.

    Args:
        judged: Each report with its outcome against limits.
        form: Form of the reports.
        include_people: Show each person affected, keys, and groups of any size.
    """
    if form is ReportFormat.JSON:
        from cfptq.io.json import to_canonical_json

        print(to_canonical_json(_collect(judged, include_people)), end="")
        return
    if form is ReportFormat.MARKDOWN:
        print("\n".join(report.to_markdown(gate, include_people=include_people) for report, gate in judged))
        return
    if len(judged) > 1:
        say(*(f"{report.title}: {gate.outcome if gate.rulings else 'no limit'}. {report.verdict(gate)[1]}" for report, gate in judged))
    for report, gate in judged:
        names_people = include_people or Console().is_terminal
        show(report.render(gate, include_people=include_people, names_people=names_people, include_small_groups=include_people))
        say(str(gate))


def write_audit_files(
    judged: Sequence[tuple[AuditReport, Gate]],
    *,
    json: Path | None,
    junit: Path | None,
    csv: Path | None,
    html: Path | None,
    plots: Path | None,
    include_people: bool,
) -> None:
    """Write the files that an audit was asked for.

    With several models, JSON holds a list, and the other files' names end in the model's name.

    Args:
        judged: Each report with its outcome against limits.
        json: File of the reports.
        junit: File of the outcomes.
        csv: File of the people affected.
        html: File of the page.
        plots: Folder of the plots.
        include_people: Show each person affected, keys, and groups of any size.
    """
    from cfptq.auditing.gate import format_junit
    from cfptq.io.atomic import make_folder, write_text
    from cfptq.io.json import to_canonical_json

    if json is not None:
        write_text(json, to_canonical_json(_collect(judged, include_people)))
    if junit is not None:
        write_text(junit, format_junit([(report.title, gate) for report, gate in judged]))
    endings = choose_endings([report.quantized.name for report, _ in judged])
    for (report, gate), ending in zip(judged, endings, strict=True):
        if csv is not None:
            report.to_csv(name_file(csv, ending))
        if html is not None:
            report.to_html(name_file(html, ending), gate, include_people=include_people)
        for plot in report.plots(include_people=include_people) if plots is not None else ():
            assert plots is not None
            write_text(name_file(make_folder(plots) / f"{plot.name}.svg", ending), plot.svg)


def choose_endings(models: Sequence[str]) -> list[str]:
    """Return what the file names of several models end in, all different, and "" for one model alone."""
    if len(models) == 1:
        return [""]
    stems = [Path(model).stem for model in models]
    return [f"-{stem}" if stems.count(stem) == 1 else f"-{number}-{stem}" for number, stem in enumerate(stems, start=1)]


def name_file(path: Path, ending: str) -> Path:
    """Return the path with an ending before its suffix."""
    return path.with_name(f"{path.stem}{ending}{path.suffix}")


def _collect(judged: Sequence[tuple[AuditReport, Gate]], include_people: bool) -> object:
    reports = [report.to_dict(gate, include_people=include_people) for report, gate in judged]
    return reports[0] if len(reports) == 1 else {"schema": reports[0]["schema"], "reports": reports}
