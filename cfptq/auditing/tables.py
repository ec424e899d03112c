"""Rich tables of audit results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cfptq.auditing.evaluation import Grouping, RecourseMetrics
from cfptq.auditing.issued import IssuedAdvice
from cfptq.metrics import Interval

#: Metric, its label in the table, a bool that shows its sign, and its meaning in words.
ROWS = (
    ("boundary_disagreement", "Boundary disagreement (BD)", False, "mean of the next two"),
    ("validity_drop", "Validity Drop (VD)", False, "recourse that the new model rejects"),
    ("premature_validity", "Premature validity (PV)", False, "accepted one step before the recourse"),
    ("validity_drop_at_equal_rate", "VD at equal rate", False, "with both favourable rates made equal"),
    ("validity_mismatch", "Validity Drop, mismatch", False, "models differ at the solver's last point"),
    ("recourse_gap", "Recourse gap (CRG)", True, "mean relative change of cost"),
    ("recourse_gap_median", "  median", True, "half of the people's costs change by less"),
    ("recourse_gap_abs_median", "  median absolute", False, "the same, whatever the direction"),
    ("recourse_gap_of_sums", "  of summed costs", True, "relative change of everybody's costs together"),
    ("recourse_lost_rate", "Recourse lost", False, "no recourse left on the new model"),
    ("direction_similarity", "Direction similarity", False, "cosine between the two actions"),
    ("action_overlap", "Action overlap", False, "columns changed by both"),
    ("feasible_recourse_rate", "Feasible recourse (FRR)", False, "rejected people with recourse before"),
    ("favourable_rate_drift", "Drift of the favourable rate", True, "share of all rows, signed"),
    ("factual_flip_rate", "Factual flips", False, "rows decided differently as they are"),
    ("accuracy", "Accuracy", False, "share of labelled rows decided rightly"),
)


#: Key of ``crossing_shift``, its label in the table and its meaning in words.
CROSSING_SHIFT = {
    "mean_abs": ("Crossing shift", "distance between the boundaries, in steps"),
    "mean": ("  signed", "positive: the new model asks for more"),
    "p95": ("  95th percentile", "19 of 20 people are nearer"),
}


@dataclass(frozen=True)
class Measure:
    """One measure as text.

    Attributes:
        label: Its name, indented where it belongs to the one above.
        value: Its value.
        interval: Its interval.
        meaning: One line of explanation.
        ends_block: True if a line follows below.
    """

    label: str
    value: str
    interval: str
    meaning: str
    ends_block: bool = False


def list_measures(metrics: RecourseMetrics, fp32: Mapping[str, Any], issued: IssuedAdvice | None) -> list[Measure]:
    """Return all measures, those of issued advice first.

    Args:
        metrics: Metrics of the quantized model.
        fp32: Entry of the full-precision model in results.json.
        issued: Outcome of issued advice, or None.
    """
    rows: list[Measure] = []

    def add(label: str, value: float, interval: Interval, meaning: str, signed: bool = False, ends_block: bool = False) -> None:
        rows.append(Measure(label, format_number(value, signed), format_interval(interval, signed), meaning, ends_block))

    if issued is not None:
        add("Issued advice kept", issued.kept_rate, issued.ci95["kept_rate"], f"{issued.kept} of {issued.promised} promises")
        meaning = f"{len(issued.broken)} of {issued.kept_before} that held before"
        add("  broken by the new model", issued.validity_drop, issued.ci95["validity_drop"], meaning)
        meaning = "on the straight way there, before full precision"
        add("  accepted early", issued.premature_validity, issued.ci95["premature_validity"], meaning, ends_block=True)
    for name, label, signed, meaning in ROWS:
        if name == "validity_mismatch":
            for key, words in CROSSING_SHIFT.items():
                add(words[0], metrics.crossing_shift[key], metrics.ci95[f"crossing_shift_{key}"], words[1], key == "mean")
        if name == "accuracy" and fp32.get("accuracy") is not None:
            meaning = f"full precision {format_number(fp32['accuracy'])}"
        add(label, getattr(metrics, name), metrics.ci95[name], meaning, signed)
        if name == "validity_mismatch":
            for key, drop_at in metrics.validity_drop_at.items():
                meaning = f"cheapest recourse, issued at a probability of {key}"
                add(f"  minimal cost at {key}", drop_at, metrics.ci95[f"validity_drop_at_{key}"], meaning)
    return rows


def build_metrics_table(metrics: RecourseMetrics, fp32: Mapping[str, Any], issued: IssuedAdvice | None, level: float, title: str) -> Table:
    """Return a table of all metrics with their intervals, and of issued advice first.

    Args:
        metrics: Metrics of the quantized model.
        fp32: Entry of the full-precision model in results.json.
        issued: Outcome of issued advice, or None.
        level: Confidence level of the intervals, within (0, 1).
        title: Title of the table.
    """
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    table.add_column(f"{100 * level:g} % interval", justify="right")
    table.add_column("Meaning")
    for row in list_measures(metrics, fp32, issued):
        table.add_row(row.label, row.value, row.interval, row.meaning, end_section=row.ends_block)
    return table


def build_grid_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int], caption: str) -> Table:
    """Return a table of text."""
    table = Table(title=Text(caption), title_justify="left")
    for place, header in enumerate(headers):
        table.add_column(Text(header), justify="right" if place in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def build_groups_table(attribute: str, grouping: Grouping) -> Table:
    """Return a table of Validity Drop and recourse gap by group, with the worst group and the gaps below (Tables 8 and 9)."""
    table = Table(title=Text(f"By {attribute}"), title_justify="left", caption_justify="left")
    table.add_column("Group", overflow="fold")
    for column in ("Rows", "Measured", "Recourse", "BD", "VD", "Interval", "CRG", "Drift", "Accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, group in grouping.groups.items():
        counts = (str(group.rows), str(group.people), str(group.with_recourse))
        drop = (format_number(group.validity_drop), format_interval(group.ci95["validity_drop"]))
        rest = (
            format_number(group.recourse_gap, True),
            format_number(group.values["favourable_rate_drift"], True),
            format_number(group.values["accuracy"]),
        )
        table.add_row(Text(name), *counts, format_number(group.values["boundary_disagreement"]), *drop, *rest)
    worst = grouping.validity_drop
    if worst.worst_group is None:
        caption = "No group has enough people with recourse to name the worst."
    else:
        caption = f"Worst Validity Drop: {worst.worst_group}, {format_number(worst.worst)}. "
        if len(grouping.groups) - len(grouping.too_small) > 1:
            caption += f"Gap between groups: Validity Drop {format_number(worst.gap)}, CRG {format_number(grouping.recourse_gap.gap)}."
        if grouping.too_small:
            caption += f" Not counted, too few people: {', '.join(grouping.too_small)}."
    table.caption = Text(caption)
    return table


def format_number(value: float | None, signed: bool = False) -> str:
    """Return a number with four decimals, or a dash if it is undefined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value + 0.0:+.4f}" if signed else f"{value:.4f}"


def format_interval(ends: Interval, signed: bool = False) -> str:
    """Return both ends of an interval, or a dash if it is undefined."""
    low, high = ends
    return "-" if math.isnan(low) else f"{format_number(low, signed)} to {format_number(high, signed)}"
