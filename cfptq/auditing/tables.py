"""Rich tables of audit results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cfptq.auditing.evaluation import Grouping, RecourseMetrics
from cfptq.auditing.issued import IssuedAdvice
from cfptq.metrics import Interval

#: Metric, its label in the table, a bool that shows its sign, and its meaning in words.
ROWS = (
    ("boundary_disagreement", "Boundary disagreement (BD)", False, "mean of the next two"),
    ("validity_drop", "Validity Drop (VD)", False, "recourse that the quantized model rejects"),
    ("premature_validity", "Premature validity (PV)", False, "accepted one step before the recourse"),
    ("validity_drop_at_equal_rate", "VD at equal rate", False, "with both favourable rates made equal"),
    ("validity_mismatch", "Validity Drop, mismatch", False, "models differ at the solver's last point"),
    ("recourse_gap", "Recourse gap (CRG)", True, "mean relative change of cost"),
    ("recourse_gap_median", "  median", True, ""),
    ("recourse_gap_abs_median", "  median absolute", False, ""),
    ("recourse_gap_of_sums", "  of summed costs", True, ""),
    ("recourse_lost_rate", "Recourse lost", False, "no recourse left on the quantized model"),
    ("direction_similarity", "Direction similarity", False, "cosine between the two actions"),
    ("action_overlap", "Action overlap", False, "columns changed by both"),
    ("feasible_recourse_rate", "Feasible recourse (FRR)", False, "rejected people with recourse before"),
    ("favourable_rate_drift", "Drift of the favourable rate", True, "share of all rows, signed"),
    ("factual_flip_rate", "Factual flips", False, "rows decided differently as they are"),
    ("accuracy", "Accuracy", False, ""),
)


#: Key of ``crossing_shift``, its label in the table and its meaning in words.
CROSSING_SHIFT = {
    "mean_abs": ("Crossing shift", "distance between the boundaries, in steps"),
    "mean": ("  signed", "positive: the quantized model asks for more"),
    "p95": ("  95th percentile", ""),
}


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
    if issued is not None:
        kept, drop = issued.ci95["kept_rate"], issued.ci95["validity_drop"]
        table.add_row(
            "Issued advice kept", format_number(issued.kept_rate), format_interval(kept), f"{issued.kept} of {issued.promised} promises"
        )
        meaning = f"{len(issued.broken)} of {issued.kept_before} that held before"
        table.add_row("  broken by quantization", format_number(issued.validity_drop), format_interval(drop), meaning)
        early = issued.ci95["premature_validity"]
        meaning = "on the straight way there, before full precision"
        table.add_row("  accepted early", format_number(issued.premature_validity), format_interval(early), meaning, end_section=True)
    for name, label, signed, meaning in ROWS:
        if name == "validity_mismatch":
            for key, words in CROSSING_SHIFT.items():
                ends = format_interval(metrics.ci95[f"crossing_shift_{key}"], key == "mean")
                table.add_row(words[0], format_number(metrics.crossing_shift[key], key == "mean"), ends, words[1])
        if name == "accuracy" and fp32.get("accuracy") is not None:
            meaning = f"full precision {format_number(fp32['accuracy'])}"
        table.add_row(label, format_number(getattr(metrics, name), signed), format_interval(metrics.ci95[name], signed), meaning)
        if name == "validity_mismatch":
            for key, drop_at in metrics.validity_drop_at.items():
                table.add_row(
                    f"  minimal cost at {key}", format_number(drop_at), format_interval(metrics.ci95[f"validity_drop_at_{key}"]), ""
                )
    counts = metrics.counts
    table.caption = (
        f"{counts['rows']} rows, {counts['rejected']} rejected, {counts['people']} measured, {counts['with_recourse']} with recourse. "
        f"Direction undefined for {counts['direction_undefined']}. "
        f"The quantized model has no boundary near the last step of {counts['without_crossing']}."
    )
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
