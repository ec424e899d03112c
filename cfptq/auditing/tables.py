"""Audit results as Rich tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cfptq.auditing.evaluation import Grouping, RecourseMetrics
from cfptq.auditing.issued import IssuedAdvice
from cfptq.metrics import Interval

#: Metric, its name in the table, whether its sign is shown, and what it says.
ROWS = (
    ("validity_drop", "Validity Drop", False, "recourse that the quantized model refuses"),
    ("validity_mismatch", "Validity Drop, mismatch", False, "models differ at the solver's last point"),
    ("recourse_gap", "Recourse gap (CRG)", True, "mean relative change of cost"),
    ("recourse_gap_median", "  median", True, ""),
    ("recourse_gap_abs_median", "  median of its size", False, ""),
    ("recourse_gap_of_sums", "  of summed costs", True, ""),
    ("recourse_lost_rate", "Recourse lost", False, "no recourse left on the quantized model"),
    ("direction_similarity", "Direction similarity", False, "cosine between the two actions"),
    ("action_overlap", "Action overlap", False, "columns changed by both"),
    ("feasible_recourse_rate", "Feasible recourse (FRR)", False, "rejected people with recourse before"),
    ("favourable_rate_drift", "Drift of the favourable rate", True, "share of all rows, signed"),
    ("factual_flip_rate", "Factual flips", False, "rows decided differently as they are"),
    ("accuracy", "Accuracy", False, ""),
)


def metrics_table(metrics: RecourseMetrics, fp32: Mapping[str, Any], issued: IssuedAdvice | None, level: float, title: str) -> Table:
    """All metrics with their intervals; advice already issued comes first."""
    table = Table(title=Text(title), title_justify="left", caption_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    table.add_column(f"{100 * level:g} % interval", justify="right")
    table.add_column("Meaning")
    if issued is not None:
        kept, drop = issued.ci95["kept_rate"], issued.ci95["validity_drop"]
        table.add_row("Issued advice kept", number(issued.kept_rate), interval(kept), f"{issued.kept} of {issued.promised} promises")
        meaning = f"{len(issued.broken)} of {issued.kept_before} that held before"
        table.add_row("  broken by quantization", number(issued.validity_drop), interval(drop), meaning, end_section=True)
    for name, label, signed, meaning in ROWS:
        if name == "accuracy" and fp32.get("accuracy") is not None:
            meaning = f"full precision {number(fp32['accuracy'])}"
        table.add_row(label, number(getattr(metrics, name), signed), interval(metrics.ci95[name], signed), meaning)
        if name == "validity_mismatch":
            for key, drop_at in metrics.validity_drop_at.items():
                table.add_row(f"  minimal cost at {key}", number(drop_at), interval(metrics.ci95[f"validity_drop_at_{key}"]), "")
    counts = metrics.counts
    table.caption = (
        f"{counts['rows']} rows, {counts['rejected']} rejected, {counts['people']} measured, {counts['with_recourse']} with recourse; "
        f"direction undefined for {counts['direction_undefined']}"
    )
    return table


def groups_table(attribute: str, grouping: Grouping) -> Table:
    """Validity Drop and recourse gap by group; the worst group and the gaps below (Tables 8 and 9)."""
    table = Table(title=Text(f"By {attribute}"), title_justify="left", caption_justify="left")
    table.add_column("Group", overflow="fold")
    for column in ("Rows", "Measured", "Recourse", "VD", "Interval", "CRG", "Drift", "Accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, group in grouping.groups.items():
        counts = (str(group.rows), str(group.people), str(group.with_recourse))
        drop = (number(group.validity_drop), interval(group.ci95["validity_drop"]))
        rest = (number(group.recourse_gap, True), number(group.values["favourable_rate_drift"], True), number(group.values["accuracy"]))
        table.add_row(Text(name), *counts, *drop, *rest)
    worst = grouping.validity_drop
    if worst.worst_group is None:
        caption = "No group has enough people with recourse to name the worst."
    else:
        caption = f"Worst Validity Drop: {worst.worst_group}, {number(worst.worst)}. "
        caption += f"Gap between groups: Validity Drop {number(worst.gap)}, CRG {number(grouping.recourse_gap.gap)}."
        if grouping.too_small:
            caption += f" Not counted, too few people: {', '.join(grouping.too_small)}."
    table.caption = Text(caption)
    return table


def number(value: float | None, signed: bool = False) -> str:
    """Four decimals, with a sign where it matters; a dash for what is undefined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value + 0.0:+.4f}" if signed else f"{value:.4f}"


def interval(ends: Interval, signed: bool = False) -> str:
    """Both ends of an interval; a dash for what is undefined."""
    low, high = ends
    return "-" if math.isnan(low) else f"{number(low, signed)} to {number(high, signed)}"
