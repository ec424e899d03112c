"""The report of an audit, with tables, JSON and a gate."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cfptq.auditing.affected import as_frame
from cfptq.auditing.findings import AuditedModel, AuditFindings
from cfptq.auditing.gate import Gate
from cfptq.auditing.html import format_html
from cfptq.auditing.plots import Plot, draw_plots
from cfptq.auditing.sections import SMALLEST_SHOWN, build_sections, describe_verdict, format_markdown
from cfptq.auditing.tables import build_grid_table, build_metrics_table
from cfptq.io.atomic import write_text
from cfptq.io.csv import write_csv
from cfptq.io.json import canonicalize, to_canonical_json
from cfptq.io.tables import as_html, as_text

__all__ = ["AuditReport", "AuditedModel"]

#: Version of the JSON form.
SCHEMA = 1


@dataclass(frozen=True, repr=False)
class AuditReport(AuditFindings):
    """Report of what replacing one model by another does to recourse.

    Its attributes are those of ``AuditFindings``.
    """

    def to_dict(self, gate: Gate | None = None, *, include_people: bool = False) -> dict[str, Any]:
        """Return the report as plain values, in the order of its other forms.

        The same inputs and seed give the same values on the same machine with the same versions.

        Args:
            gate: Outcome against limits, from ``gate``. None states no limit.
            include_people: List each person affected, keys and row numbers, and groups of any size. Otherwise they are counted.
        """
        smallest = 0 if include_people else SMALLEST_SHOWN
        measures = self.metrics.to_dict()
        groups = measures.pop("groups")
        for grouping in groups.values():
            grouping["groups"] = {name: group for name, group in grouping["groups"].items() if group["with_recourse"] >= smallest}
        features = [vars(entry) for entry in self.consequences.features if entry.told >= smallest]
        affected = self.broken if self.issued is None else self.issued.broken
        breakdown: dict[str, Any] = {"count": len(affected), "features": features}
        if include_people:
            breakdown |= {"broken": affected, "people": [vars(person) for person in self.consequences.people]}
        result: dict[str, Any] = canonicalize(
            {
                "schema": SCHEMA,
                "verdict": {"sentences": describe_verdict(self, gate), **(Gate(()) if gate is None else gate).to_dict()},
                "issued": None if self.issued is None else self.issued.to_dict(include_people, smallest),
                "affected": breakdown,
                "groups": groups,
                "fp32": self.fp32,
                "quantized": measures,
                "robustness": None if self.robustness is None else self.robustness.to_dict(),
                "models": {"fp32": vars(self.full_precision), "quantized": vars(self.quantized)},
                "digests": self.digests,
                "seed": self.seed,
                "runtime": self.runtime,
                "protocol": asdict(self.protocol),
                "readings": self.readings,
                "remarks": [remark.to_dict() for remark in self.remarks],
            }
        )
        return result

    def to_json(self, path: str | os.PathLike[str], gate: Gate | None = None, *, include_people: bool = False) -> None:
        """Write ``to_dict`` as JSON by an atomic write.

        The same inputs and seed give the same bytes on the same machine with the same versions.

        Args:
            path: File to write. An existing file is replaced.
            gate: Outcome against limits, from ``gate``. None states no limit.
            include_people: List each person affected, and keys and row numbers. These are personal data.

        Raises:
            FileError: The folder does not exist or cannot be written.
        """
        write_text(path, to_canonical_json(self.to_dict(gate, include_people=include_people)))

    def to_markdown(self, gate: Gate | None = None, *, include_people: bool = False) -> str:
        """Return the report as Markdown.

        Args:
            gate: Outcome against limits, from ``gate``. None states no limit.
            include_people: Show a row for each person affected, and groups of any size.
        """
        return format_markdown(self.title, build_sections(self, gate, include_people))

    def to_html(self, path: str | os.PathLike[str], gate: Gate | None = None, *, include_people: bool = False) -> None:
        """Write the report as one HTML file that needs no network.

        Args:
            path: File to write. An existing file is replaced.
            gate: Outcome against limits, from ``gate``. None states no limit.
            include_people: Show a row for each person affected, at most 1,000, and groups of any size. These are personal data.

        Raises:
            ConfigurationError: Jinja2 or Matplotlib is not installed, which the extra ``report`` installs.
            FileError: The folder does not exist or cannot be written.
        """
        write_text(path, format_html(self, gate, include_people))

    def plots(self, *, include_people: bool = False) -> tuple[Plot, ...]:
        """Return the report's plots, whose ``svg`` is the text of an SVG file.

        Args:
            include_people: Draw groups of any size.

        Raises:
            ConfigurationError: Matplotlib is not installed, which the extra ``report`` installs.
        """
        return draw_plots(self, 1 if include_people else SMALLEST_SHOWN)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each person affected, with what was told and what it costs now.

        Text that a spreadsheet would run as a formula begins with an apostrophe.

        Raises:
            FileError: The folder does not exist or cannot be written.
        """
        write_csv(path, as_frame(self.consequences.people))

    def verdict(self, gate: Gate | None = None) -> tuple[str, ...]:
        """Return the verdict in words and counts, one sentence a limit."""
        return describe_verdict(self, gate)

    def table(self) -> Table:
        """Return the metrics as a Rich table."""
        return build_metrics_table(self.metrics, self.fp32, self.issued, self.protocol.level, self.title)

    def render(
        self, gate: Gate | None = None, *, include_people: bool = False, names_people: bool = True, include_small_groups: bool = True
    ) -> Group:
        """Return the report for a terminal, the verdict first.

        By default it is what ``print`` shows, which holds all groups. The files of a report hold groups of at least ten people.

        Args:
            gate: Outcome against limits, from ``gate``. None states no limit.
            include_people: Show a row for each person affected.
            names_people: Name a few people by their keys or rows in sentences, as where letters name nobody.
            include_small_groups: Show groups and features of any number of people.
        """
        parts: list[RenderableType] = [Text(self.title, style="bold")]
        for section in build_sections(self, gate, include_people, names_people, include_small_groups):
            if section.name == "pointers":
                continue
            parts.append(Text(f"\n{section.title}", style="bold"))
            parts.extend(Text(sentence) for sentence in section.sentences)
            if section.name == "measures":
                parts.append(self.table())
            elif section.name != "verdict":
                parts.extend(build_grid_table(grid.headers, grid.rows, grid.numeric, grid.caption) for grid in section.grids)
        return Group(*parts)

    def __rich__(self) -> Group:
        return self.render()

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    __repr__ = __str__
