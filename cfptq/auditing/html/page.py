"""The page of a report, from its sections, plots and a template."""

from __future__ import annotations

import base64
from importlib import resources

from cfptq.auditing.findings import AuditFindings
from cfptq.auditing.gate import Gate
from cfptq.auditing.plots import draw_plots
from cfptq.auditing.sections import SMALLEST_SHOWN, Grid, build_sections
from cfptq.errors import ConfigurationError

#: Most people in the page. The CSV file holds all.
MOST_PEOPLE = 1000
#: Rows from which a table can be searched.
SEARCHABLE_ROWS = 12


def format_html(report: AuditFindings, gate: Gate | None = None, include_people: bool = False) -> str:
    """Return a report as one HTML page without anything to load.

    Args:
        report: The report.
        gate: Its outcome against limits. None states no limit.
        include_people: Show a row for each person affected, and groups of any size.

    Raises:
        ConfigurationError: Jinja2 or Matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ConfigurationError("HTML reports need Jinja2, which is not installed. Run pip install 'cfptq[report]'.") from error
    folder = resources.files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    sections = build_sections(report, gate, include_people)
    text: str = template.render(
        title=report.title,
        outcome="none" if gate is None or not gate.rulings else gate.outcome,
        sections=sections,
        plots=draw_plots(report, 1 if include_people else SMALLEST_SHOWN),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        cut=_cut,
        encode=_encode,
        searchable=SEARCHABLE_ROWS,
        most=MOST_PEOPLE,
    )
    return text


def _encode(svg: str) -> str:
    return base64.b64encode(svg.encode()).decode("ascii")


def _cut(grid: Grid) -> tuple[tuple[str, ...], ...]:
    return grid.rows[:MOST_PEOPLE]
