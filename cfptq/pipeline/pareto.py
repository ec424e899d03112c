"""The whole curve: Validity Drop against average bits, from one set of layer scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from cfptq.allocation import BitAllocation, LayerScores, allocation_path, predict_damage
from cfptq.errors import DataError, MissingDependencyError
from cfptq.io.atomic import atomic_write
from cfptq.io.progress import track
from cfptq.metrics import Interval, wilson_interval
from cfptq.network import Head, Network, class_logits
from cfptq.pipeline.method import Method
from cfptq.quantize import QuantizationPlan, fake_quantize_network
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet, hold_out_people


@dataclass(frozen=True)
class ParetoPoint:
    """One allocation.

    Attributes:
        average_bits: its average bits.
        bits: layer name -> width.
        stored_bytes: weights, scales and biases as a file holds them.
        predicted_damage: what the layer scores say is lost against every layer at its widest, in their own unit.
        validity_drop: measured on the fake-quantized twin at the curve's recourse points.
        interval: Wilson's 95 % interval of it.
        chosen: the allocation of the result that the curve was drawn for.
    """

    average_bits: float
    bits: Mapping[str, int]
    stored_bytes: int
    predicted_damage: float
    validity_drop: float
    interval: Interval
    chosen: bool


@dataclass(frozen=True)
class Pareto:
    """Validity Drop against average bits, an estimate on calibration people.

    Attributes:
        points: by average bits, ascending; the best allocation that the method's allocator finds for each budget.
        people: recourse points that Validity Drop was measured at.
        held_out: those people were left out of every rounding; False means that the model was calibrated on them.
        method: the method's name.
        scores: what the layers were scored by.
    """

    points: tuple[ParetoPoint, ...]
    people: int
    held_out: bool
    method: str
    scores: str

    @property
    def chosen(self) -> ParetoPoint:
        """The result's own allocation."""
        return next(point for point in self.points if point.chosen)

    @property
    def measured_on(self) -> str:
        """Whom the estimates are about, in words."""
        return f"{self.people} {'held-out ' if self.held_out else ''}calibration people" + (
            "" if self.held_out else ", seen by the rounding"
        )

    def __str__(self) -> str:
        frame = self.to_frame().drop(columns="predicted_damage")
        frame["chosen"] = frame["chosen"].map({True: "this result", False: ""})
        table = frame.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        return f"{self.method}: Validity Drop by average bits, estimated on {self.measured_on}\n{table}"

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """One row for each point; the widths of layers as columns ``bits: NAME``, the interval as ``low`` and ``high``."""
        rows = []
        for point in self.points:
            row = asdict(point)
            bits, (low, high) = row.pop("bits"), row.pop("interval")
            rows.append({**row, "low": low, "high": high, **{f"bits: {name}": width for name, width in bits.items()}})
        return pd.DataFrame(rows)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the curve to ``path``, as SVG, PNG or PDF by its name; the same bytes each time.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            FileError: the place cannot be written.
        """
        kind = plot_kind(path)
        import matplotlib
        from matplotlib.figure import Figure

        bits = [point.average_bits for point in self.points]
        drops = [point.validity_drop for point in self.points]
        spread = [[drop - point.interval[0] for drop, point in zip(drops, self.points, strict=True)]]
        spread.append([point.interval[1] - drop for drop, point in zip(drops, self.points, strict=True)])
        # Element ids and dates would differ from run to run.
        with matplotlib.rc_context({"svg.hashsalt": "cfptq"}), atomic_write(path) as aside:
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = figure.add_subplot()
            axes.errorbar(bits, drops, yerr=spread, marker="o", markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2, color="#1f5a8c")
            axes.plot(
                self.chosen.average_bits,
                self.chosen.validity_drop,
                "o",
                markersize=10,
                fillstyle="none",
                color="#b3261e",
                label="this result",
            )
            axes.set(xlabel="average bits per weight", ylabel="Validity Drop (estimate)", title=f"{self.method}: {self.measured_on}")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            figure.savefig(
                aside, format=kind, metadata={"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
            )


def plot_kind(path: str | os.PathLike[str]) -> str:
    """Format of a plot by the file's name: svg, png or pdf.

    Raises:
        DataError: another ending.
        MissingDependencyError: Matplotlib is not installed.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise DataError(f"{os.fspath(path)} is no .svg, .png or .pdf file by its name; name it so")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("a plot needs Matplotlib; install it with: pip install 'cfptq[plot]'")
    return kind


def pareto_curve(
    network: Network,
    calibration: CalibrationSet,
    people: CalibrationSet,
    scores: LayerScores,
    method: Method,
    chosen: BitAllocation,
    plan: QuantizationPlan,
    *,
    head: Head,
    threshold: float | None,
    pinned: Mapping[str, int] | None = None,
    held_out: bool = False,
    progress: bool = True,
) -> Pareto:
    """Round ``network`` at the allocation of every budget from 2 to 8 average bits and measure Validity Drop on the twin.

    Args:
        network: the full-precision network.
        calibration: rows that the method calibrates on.
        people: the same factual rows, and the recourse points to measure at.
        scores: one set of scores for all budgets.
        method: its allocator and its rounding are used; a repair is not, but for ``plan`` itself.
        chosen, plan: the result's own; marked on the curve. With ``held_out``, ``chosen`` is rounded anew like the others.
        head, threshold: what the network puts out and where it decides.
        pinned: layer name -> width it keeps.
        held_out: measure on every fourth person, and leave these people out of the rounding.

    Raises:
        DataError: there are no recourse points to measure at.
    """
    if held_out:
        calibration, people = hold_out_people(calibration)[0], hold_out_people(people)[1]
    with torch.no_grad():
        wanted = class_logits(network(people.rows), head, threshold).argmax(dim=1)
    at = (people.origin == COUNTERFACTUAL) & (wanted == people.target)
    rows, target = people.rows[at], people.target[at]
    if len(rows) == 0:
        raise DataError(
            "the calibration rows hold no recourse points to measure Validity Drop at: nobody was rejected, or they are factual only"
        )
    allocations = {
        allocation.bits: allocation for allocation in (*allocation_path(method.allocate, scores, pinned, plan.candidate_widths), chosen)
    }
    points = []
    for allocation in track(sorted(allocations.values(), key=lambda one: one.total_bits), "tracing the curve", enabled=progress):
        own = allocation.bits == chosen.bits
        kept = plan if own and not held_out else None
        rounded = kept or method.plan(
            network, calibration, allocation, head=head, threshold=threshold, seed=plan.seed, portable=plan.portable, progress=False
        )
        with torch.no_grad():
            given = class_logits(fake_quantize_network(network, rounded)(rows), head, threshold).argmax(dim=1)
        broken = int((given != target).sum())
        points.append(
            ParetoPoint(
                average_bits=allocation.average_bits,
                bits=allocation.by_layer(),
                stored_bytes=rounded.stored_bytes,
                predicted_damage=predict_damage(scores, allocation, plan.candidate_widths),
                validity_drop=broken / len(rows),
                interval=wilson_interval(broken, len(rows)),
                chosen=own,
            )
        )
    return Pareto(tuple(points), len(rows), held_out, method.name, scores.kind)
