"""Rich tables of audit results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cfptq.auditing.issued import IssuedAdvice
from cfptq.auditing.recourse_metrics import RecourseMetrics
from cfptq.auditing.wording import format_interval, format_number
from cfptq.metrics import Interval

#: Metric, its label in the table, a bool that shows its sign, and its meaning in words.
ROWS = (
    ("boundary_disagreement", "Boundary disagreement (BD)", False, "mean of the next two: the models disagree where refusal ends"),
    ("validity_drop", "Validity Drop (VD)", False, "the first model accepts after the change, the second refuses"),
    ("premature_validity", "Premature validity (PV)", False, "the second model accepts one step before the first does"),
    ("validity_drop_at_equal_rate", "VD at equal rate", False, "VD, if both models accepted equally many people"),
    ("validity_mismatch", "Validity Drop, mismatch", False, "the models differ where the search ended, found or not"),
    ("recourse_gap", "Recourse gap (CRG)", True, "cost of the cheapest change, second model less first, over the first"),
    ("recourse_gap_median", "  median", True, "half of the people have a smaller change of cost"),
    ("recourse_gap_abs_median", "  median absolute", False, "the same without its sign"),
    ("recourse_gap_of_sums", "  of summed costs", True, "the same for everybody's costs together"),
    ("recourse_lost_rate", "Recourse lost", False, "a change was found on the first model, none on the second"),
    ("direction_similarity", "Direction similarity", False, "1 where both models ask for changes of the same proportions"),
    ("action_overlap", "Action overlap", False, "of the columns changed on either model, the share changed on both"),
    ("feasible_recourse_rate", "Feasible recourse (FRR)", False, "refused people for whom a change was found on the first model"),
    ("favourable_rate_drift", "Drift of the favourable rate", True, "change of the share of people accepted as they are"),
    ("factual_flip_rate", "Factual flips", False, "people decided otherwise as they are"),
    ("accuracy", "Accuracy", False, "labelled people decided rightly"),
)


#: Key of ``crossing_shift``, its label in the table and its meaning in words.
CROSSING_SHIFT = {
    "mean_abs": ("Crossing shift", "distance between the two boundaries, in steps of the search"),
    "mean": ("  signed", "positive where the second model asks for more"),
    "p95": ("  95th percentile", "for 19 of 20 people the boundaries are nearer"),
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
        add("Letters kept", issued.kept_rate, issued.ci95["kept_rate"], f"{issued.kept} of {issued.promised} people with letters")
        meaning = f"{len(issued.broken)} of {issued.kept_before} people whose letter holds on the first model"
        add("  broken by the second model", issued.validity_drop, issued.ci95["validity_drop"], meaning)
        meaning = "on the straight way there, the second model accepts before the first"
        add("  accepted early", issued.premature_validity, issued.ci95["premature_validity"], meaning, ends_block=True)
    for name, label, signed, meaning in ROWS:
        if name == "validity_mismatch":
            for key, words in CROSSING_SHIFT.items():
                add(words[0], metrics.crossing_shift[key], metrics.ci95[f"crossing_shift_{key}"], words[1], key == "mean")
        if name == "accuracy" and fp32.get("accuracy") is None:
            meaning = f"{meaning}; no labels were given"
        elif name == "accuracy":
            meaning = f"{meaning}; first model {format_number(fp32['accuracy'])}"
        add(label, getattr(metrics, name), metrics.ci95[name], meaning, signed)
        if name == "validity_mismatch":
            for key, drop_at in metrics.validity_drop_at.items():
                meaning = f"VD of the cheapest change that reaches a probability of {key}"
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
