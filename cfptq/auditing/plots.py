"""Plots of a report as SVG, which needs no script, prints at any size and is read out by its title and description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from cfptq.auditing.findings import AuditFindings

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 48
#: Colours with a contrast of at least 4.5 to white.
BLUE, ORANGE, GREY = "#1f5fa8", "#a84300", "#595959"
#: Bins of the histogram of margins.
BINS = 24
#: Bars of a bar chart that are drawn. The table beside it holds all.
MOST_BARS = 15


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: Name for files.
        title: Title.
        description: What the plot shows, in words.
        svg: The drawing, one ``<svg>`` element.
    """

    name: str
    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class _Axis:
    """A linear axis from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about five round numbers within the axis."""
        width = (self.high - self.low) or 1.0
        step = 10 ** math.floor(math.log10(width / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if width / (step * factor) <= 5)
        return [round(number * step, 10) for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def draw_plots(report: AuditFindings, smallest: int) -> tuple[Plot, ...]:
    """Return the plots of a report that its data allow.

    Args:
        report: The report.
        smallest: Fewest people of a group that is drawn.
    """
    drawn = [_draw_confidence(report), _draw_margins(report)]
    for attribute, grouping in report.groups.items():
        bars = [
            (name, group.validity_drop, group.ci95["validity_drop"])
            for name, group in grouping.groups.items()
            if group.with_recourse >= smallest and not math.isnan(group.validity_drop)
        ]
        drawn.append(_draw_bars(f"groups-{len(drawn)}", f"Validity Drop by {attribute}", bars))
    features = [
        (entry.feature, entry.broken / entry.told, (math.nan, math.nan)) for entry in report.consequences.features if entry.told >= smallest
    ]
    drawn.append(_draw_bars("features", "Share refused again, by the feature that people were told to change", features))
    return tuple(plot for plot in drawn if plot is not None)


def _draw_confidence(report: AuditFindings) -> Plot | None:
    """Draw Validity Drop of minimal-cost recourse against the confidence at which it is issued."""
    points = [
        (float(key), drop, report.ci95[f"validity_drop_at_{key}"]) for key, drop in report.validity_drop_at.items() if not math.isnan(drop)
    ]
    if not points:
        return None
    top = max([high for _, _, (_, high) in points if not math.isnan(high)] + [drop for _, drop, _ in points] + [0.01])
    x = _Axis(points[0][0] - 0.01, points[-1][0] + 0.01, LEFT, WIDTH - RIGHT)
    y = _Axis(0.0, top * 1.05, HEIGHT - BOTTOM, TOP)
    parts = _draw_axes(x, y, "Probability at which recourse is issued", "Validity Drop", percent=True)
    for confidence, _, (low, high) in points:
        if not math.isnan(low):
            parts.append(_line(x.place(confidence), y.place(low), x.place(confidence), y.place(high), GREY, 2))
    path = " ".join(f"{x.place(confidence):.1f},{y.place(drop):.1f}" for confidence, drop, _ in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    for confidence, drop, _ in points:
        parts.append(
            f'<circle cx="{x.place(confidence):.1f}" cy="{y.place(drop):.1f}" r="5" fill="{BLUE}">'
            f"<title>{confidence:.2f}: {100 * drop:.1f} %</title></circle>"
        )
    words = ", ".join(f"{100 * drop:.1f} % at {confidence:.2f}" for confidence, drop, _ in points)
    return _finish("confidence", "Validity Drop against confidence", f"Validity Drop of the cheapest recourse is {words}.", parts)


def _draw_margins(report: AuditFindings) -> Plot | None:
    """Draw the margins at the points that people were told to reach on both models (Fig. 7)."""
    margins = np.array(report.consequences.margins, dtype=np.float64)
    if len(margins) < 2 or not np.isfinite(margins).all():
        return None
    low, high = np.quantile(margins, [0.01, 0.99])
    low, high = min(low, 0.0), max(high, 0.0)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = [np.histogram(np.clip(margins[:, model], edges[0], edges[-1]), edges)[0] for model in (0, 1)]
    x = _Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = _Axis(0.0, float(max(counts[0].max(), counts[1].max(), 1)) * 1.05, HEIGHT - BOTTOM, TOP)
    parts = _draw_axes(x, y, "Margin of the wanted class, in logits", "People")
    for place, (colour, dash) in enumerate(((BLUE, ""), (ORANGE, "6 3"))):
        steps = [f"{x.place(edges[0]):.1f},{y.place(0):.1f}"]
        for left, right, count in zip(edges[:-1], edges[1:], counts[place], strict=True):
            steps += [f"{x.place(left):.1f},{y.place(count):.1f}", f"{x.place(right):.1f},{y.place(count):.1f}"]
        steps.append(f"{x.place(edges[-1]):.1f},{y.place(0):.1f}")
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<polyline points="{" ".join(steps)}" fill="{colour}" fill-opacity="0.12" stroke="{colour}" stroke-width="2"{style}/>'
        )
    parts.append(_line(x.place(0), TOP, x.place(0), HEIGHT - BOTTOM, "#000", 1))
    names = report.model_names
    for place, (name, colour, dash) in enumerate(zip(names, (BLUE, ORANGE), ("", "6 3"), strict=True)):
        below = TOP + 14 + 18 * place
        parts.append(_line(WIDTH - 220, below - 4, WIDTH - 190, below - 4, colour, 2, dash))
        parts.append(_text(WIDTH - 184, below, name[:26]))
    refused = [int((margins[:, model] <= 0).sum()) for model in (0, 1)]
    description = (
        f"Of {len(margins)} people, {refused[0]} lie on the refused side of {names[0]} at the point they were told to reach, and "
        f"{refused[1]} on that of {names[1]}. The vertical line is the boundary."
    )
    return _finish("margins", "Margins at the points that people were told to reach", description, parts)


def _draw_bars(name: str, title: str, bars: Sequence[tuple[str, float, tuple[float, float]]]) -> Plot | None:
    """Draw shares as horizontal bars, the largest first."""
    if not bars:
        return None
    shown = sorted(bars, key=lambda bar: -bar[1])[:MOST_BARS]
    height = TOP + BOTTOM + 28 * len(shown)
    top = max([high for _, _, (_, high) in shown if not math.isnan(high)] + [share for _, share, _ in shown] + [0.01])
    x = _Axis(0.0, top * 1.05, 180, WIDTH - RIGHT)
    y = _Axis(0.0, 1.0, height - BOTTOM, TOP)
    parts = _draw_axes(x, y, "Share refused again", "", percent_x=True, height=height)
    for place, (label, share, (low, high)) in enumerate(shown):
        middle = TOP + 14 + 28 * place
        parts.append(
            f'<rect x="180" y="{middle - 9}" width="{max(x.place(share) - 180, 1):.1f}" height="18" fill="{BLUE}">'
            f"<title>{escape(label)}: {100 * share:.1f} %</title></rect>"
        )
        if not math.isnan(low):
            parts.append(_line(x.place(low), middle, x.place(high), middle, "#000", 2))
        parts.append(_text(172, middle + 5, label if len(label) <= 22 else f"{label[:21]}…", "end"))
    words = ", ".join(f"{label} {100 * share:.1f} %" for label, share, _ in shown)
    return _finish(name, title, f"{words}.", parts, height)


def _draw_axes(
    x: _Axis, y: _Axis, x_label: str, y_label: str, *, percent: bool = False, percent_x: bool = False, height: int = HEIGHT
) -> list[str]:
    bottom = height - BOTTOM
    parts = [_line(x.start, bottom, x.end, bottom, "#000", 1)]
    for tick in x.ticks():
        parts.append(_line(x.place(tick), bottom, x.place(tick), bottom + 5, "#000", 1))
        parts.append(_text(x.place(tick), bottom + 20, f"{100 * tick:g} %" if percent_x else f"{tick:g}", "middle"))
    parts.append(_text((x.start + x.end) / 2, bottom + 40, x_label, "middle"))
    if y_label:
        parts.append(_line(x.start, bottom, x.start, TOP, "#000", 1))
        for tick in y.ticks():
            parts.append(_line(x.start, y.place(tick), x.end, y.place(tick), "#ddd", 1))
            parts.append(_text(x.start - 6, y.place(tick) + 4, f"{100 * tick:g} %" if percent else f"{tick:g}", "end"))
        middle = (TOP + bottom) / 2
        parts.append(f'<text x="16" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 16 {middle:.0f})">{escape(y_label)}</text>')
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int, dash: str = "") -> str:
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{style}/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _finish(name: str, title: str, description: str, parts: Sequence[str], height: int = HEIGHT) -> Plot:
    body = "".join(parts)
    label = quoteattr(f"{title}. {description}")
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label={label} '
        f'font-family="sans-serif" font-size="13" fill="#1a1a1a">{body}</svg>'
    )
    return Plot(name, title, description, svg)
