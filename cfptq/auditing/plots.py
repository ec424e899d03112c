"""Plots of a report as SVG, which needs no script and prints at any size.

Matplotlib draws them. Plotly would put megabytes of script into every page, and its charts say nothing to a screen reader.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cfptq.auditing.findings import AuditFindings
from cfptq.auditing.wording import format_percent
from cfptq.errors import ConfigurationError
from cfptq.io.printable import escape_unprintable
from cfptq.metrics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES, BAR_INCHES = 6.0, 3.2, 0.34
#: Colours with a contrast of at least 4.5 to white.
BLUE, ORANGE, GREY = "#1f5fa8", "#a84300", "#595959"
#: Bins of the histogram of margins.
BINS = 24
#: Bars of a bar chart that are drawn. The table beside it holds all.
MOST_BARS = 15
#: Characters of a name that are drawn.
MOST_CHARACTERS = 28
#: Settings under which equal plots have equal bytes, and text stays text and is no formula.
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cfptq",
    "text.parse_math": False,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: Name for files.
        title: Title.
        description: What the plot shows, in words.
        svg: The drawing as the text of an SVG file.
    """

    name: str
    title: str
    description: str
    svg: str


def draw_plots(report: AuditFindings, smallest: int) -> tuple[Plot, ...]:
    """Return the plots of a report that its data allow.

    Args:
        report: The report.
        smallest: Fewest people of a group or feature that is drawn.

    Raises:
        ConfigurationError: Matplotlib is not installed.
    """
    drawn = [_draw_confidence(report), _draw_margins(report)]
    for number, (attribute, grouping) in enumerate(report.groups.items(), start=1):
        if report.issued is not None:
            title = f"Share of broken letters by {attribute}"
            letters = report.issued.groups[attribute].groups
            bars = [(name, group.validity_drop, group.ci95) for name, group in letters.items() if group.kept_before >= smallest]
        else:
            title = f"Validity Drop by {attribute}"
            bars = [
                (name, group.validity_drop, group.ci95["validity_drop"])
                for name, group in grouping.groups.items()
                if group.with_recourse >= smallest
            ]
        drawn.append(_draw_bars(f"groups-{number}", title, bars))
    features = [
        (entry.feature, entry.broken / entry.told, (math.nan, math.nan)) for entry in report.consequences.features if entry.told >= smallest
    ]
    drawn.append(_draw_bars("features", "Share refused again, by the feature that changes", features))
    return tuple(plot for plot in drawn if plot is not None)


def _draw_confidence(report: AuditFindings) -> Plot | None:
    """Draw Validity Drop of minimal-cost recourse against the confidence at which it is issued."""
    points = [
        (float(key), 100 * drop, 100 * np.array(report.ci95[f"validity_drop_at_{key}"]))
        for key, drop in report.validity_drop_at.items()
        if not math.isnan(drop)
    ]
    if not points:
        return None
    x, y = [point[0] for point in points], [point[1] for point in points]
    reach = np.array([[max(drop - low, 0), max(high - drop, 0)] for _, drop, (low, high) in points]).T

    def draw(axes: Axes) -> None:
        axes.errorbar(x, y, yerr=np.nan_to_num(reach), color=BLUE, ecolor=GREY, marker="o")
        axes.set(xlabel="Probability of acceptance that people are told to reach", ylabel="Refused again, %", xticks=x)
        axes.set_ylim(0, None)

    words = ", ".join(f"{drop:.1f} % at {confidence:.2f}" for confidence, drop, _ in points)
    description = (
        f"If people are told the cheapest change that reaches a probability of acceptance on {report.model_names[0]}, the share refused "
        f"again by {report.model_names[1]} is {words}. Lines show intervals."
    )
    return _finish("confidence", "Validity Drop against confidence", description, draw)


def _draw_margins(report: AuditFindings) -> Plot | None:
    """Draw the margins at the points that people were told to reach on both models (Fig. 7)."""
    margins = np.array(report.consequences.margins, dtype=np.float64)
    if len(margins) < 2 or not np.isfinite(margins).all():
        return None
    low, high = np.quantile(margins, [0.01, 0.99])
    width = max(max(high, 0.0) - min(low, 0.0), 1e-6) / BINS
    # One edge lies at 0, and 0 itself, which is a refusal, falls to the left of it.
    edges = width * np.arange(min(math.floor(low / width), -1), max(math.ceil(high / width), 1) + 1)
    shown = np.clip(np.where(margins <= 0, np.minimum(margins, -width / 2), margins), edges[0], edges[-1])
    names = report.model_names

    def draw(axes: Axes) -> None:
        axes.axvspan(edges[0], 0, color="#eeeeee")
        for model, (colour, line) in enumerate(((BLUE, "-"), (ORANGE, "--"))):
            counts = np.histogram(shown[:, model], edges)[0]
            axes.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.8, label=_shorten(names[model]))
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.12)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(xlabel="Margin in logits: refused up to 0 (grey), accepted above", ylabel="People")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)

    refused = [int((margins[:, model] <= 0).sum()) for model in (0, 1)]
    description = (
        f"How clearly each model accepts {len(margins):,} people after they changed what they were to change. {names[0]} refuses "
        f"{refused[0]:,} of them, and {names[1]} refuses {refused[1]:,}."
    )
    return _finish("margins", "Margins after the change", description, draw)


def _draw_bars(name: str, title: str, bars: Sequence[tuple[str, float, Interval]]) -> Plot | None:
    """Draw shares as horizontal bars, the largest first."""
    shown = sorted((bar for bar in bars if not math.isnan(bar[1])), key=lambda bar: -bar[1])[:MOST_BARS]
    if not shown:
        return None
    shares = [100 * share for _, share, _ in shown]
    reach = np.array([[max(share - low, 0), max(high - share, 0)] for _, share, (low, high) in shown]).T * 100

    def draw(axes: Axes) -> None:
        axes.barh(range(len(shown)), shares, color=BLUE, height=0.6, xerr=np.nan_to_num(reach), ecolor="black")
        axes.set_yticks(range(len(shown)), [_shorten(label) for label, _, _ in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, max([*shares, *(100 * high for _, _, (_, high) in shown if not math.isnan(high)), 1.0]) * 1.05)
        axes.set_xlabel("Refused again, %")

    words = ", ".join(f"{label} {format_percent(share)}" for label, share, _ in shown)
    return _finish(name, title, f"{words}.", draw, 1.0 + BAR_INCHES * len(shown))


def _shorten(label: str) -> str:
    label = " ".join(escape_unprintable(label).split())
    return label if len(label) <= MOST_CHARACTERS else f"{label[: MOST_CHARACTERS - 1]}…"


def _finish(name: str, title: str, description: str, draw: Callable[[Axes], None], height: float = HEIGHT_INCHES) -> Plot:
    """Draw on empty axes and return the plot."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("Plots need Matplotlib, which is not installed. Run pip install 'cfptq[report]'.") from error
    file = io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(name, escape_unprintable(title), escape_unprintable(description), file.getvalue())
