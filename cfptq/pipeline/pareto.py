"""The curve of boundary disagreement and Validity Drop against average bits, from one set of layer scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cfptq.allocation import BitAllocation, LayerScores, allocation_path, predict_damage
from cfptq.errors import DataError, MissingDependencyError
from cfptq.io.atomic import atomic_write
from cfptq.io.progress import track
from cfptq.metrics import (
    Interval,
    Proportion,
    bootstrap_intervals,
    boundary_disagreements,
    evaluate_statistic,
    premature_acceptances,
    target_failures,
    wilson_interval,
)
from cfptq.network import DecisionRule, Network
from cfptq.pipeline.method import Method
from cfptq.quantize import Bits, QuantizationPlan, average_bits, fake_quantize_network
from cfptq.quantize.calibration_set import COUNTERFACTUAL, CalibrationSet, find_held_out, hold_out_people


@dataclass(frozen=True)
class ParetoPoint:
    """One allocation on the curve.

    Attributes:
        average_bits: average bits per weight.
        bits: layer name -> bits, or the bits of each output channel.
        stored_bytes: bytes of weights, scales and biases in a file.
        predicted_damage: loss against every layer at its widest that the layer scores predict, in their own unit.
        boundary_disagreement: BD of the fake-quantized module, or None where the recourse has no last refused points.
        boundary_disagreement_interval: its 95 % bootstrap interval over people, or None.
        validity_drop: Validity Drop of the fake-quantized module at the curve's recourse points.
        interval: Wilson's 95 % confidence interval of ``validity_drop``.
        chosen: True for the allocation of the result that the curve was drawn for.
    """

    average_bits: float
    bits: Mapping[str, Bits]
    stored_bytes: int
    predicted_damage: float
    boundary_disagreement: float | None
    boundary_disagreement_interval: Interval | None
    validity_drop: float
    interval: Interval
    chosen: bool


@dataclass(frozen=True)
class Pareto:
    """Boundary disagreement and Validity Drop against average bits, estimates on calibration people.

    Attributes:
        points: the allocator's best allocation for each budget, by ascending average bits.
        people: number of recourse points that they were measured at.
        held_out: True where those people were left out of every rounding; False where the model was calibrated on them.
        method: the method's name.
        scores: name of the layer scores.
    """

    points: tuple[ParetoPoint, ...]
    people: int
    held_out: bool
    method: str
    scores: str

    @property
    def chosen(self) -> ParetoPoint:
        """Point of the result's own allocation."""
        return next(point for point in self.points if point.chosen)

    @property
    def has_disagreement(self) -> bool:
        """True where boundary disagreement could be measured. Recourse without early stopping has no last refused points."""
        return self.chosen.boundary_disagreement is not None

    @property
    def measured_on(self) -> str:
        """Description of the people that the estimates are about."""
        return f"{self.people} {'held-out ' if self.held_out else ''}calibration people" + (
            "" if self.held_out else ", seen by the rounding"
        )

    def __str__(self) -> str:
        frame = self.to_frame().drop(columns="predicted_damage")
        frame["chosen"] = frame["chosen"].map({True: "this result", False: ""})
        table = frame.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        measures = "Boundary disagreement and Validity Drop" if self.has_disagreement else "Validity Drop"
        return f"{self.method}: {measures} by average bits, estimated on {self.measured_on}\n{table}"

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each point.

        Layers' bits are columns ``bits: NAME``, their mean where channels have widths of their own. The interval of boundary disagreement
        is ``bd low`` and ``bd high``, and that of Validity Drop ``low`` and ``high``.
        """
        rows = []
        for point in self.points:
            row: dict[str, Any] = {
                "average_bits": point.average_bits,
                "stored_bytes": point.stored_bytes,
                "predicted_damage": point.predicted_damage,
            }
            if point.boundary_disagreement_interval is not None:
                low, high = point.boundary_disagreement_interval
                row |= {"boundary_disagreement": point.boundary_disagreement, "bd low": low, "bd high": high}
            row |= {"validity_drop": point.validity_drop, "low": point.interval[0], "high": point.interval[1], "chosen": point.chosen}
            rows.append({**row, **{f"bits: {name}": average_bits(width) for name, width in point.bits.items()}})
        return pd.DataFrame(rows)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw boundary disagreement, or Validity Drop where that is all there is, as an SVG, PNG or PDF file.

        The bytes are the same each time on the same machine with the same versions.

        Args:
            path: file to write; its ending chooses the format.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            DataError: the path has another ending.
            FileError: the file cannot be written.
        """
        kind = choose_plot_format(path)
        import matplotlib
        from matplotlib.figure import Figure

        bits = [point.average_bits for point in self.points]
        if self.has_disagreement:
            name, shown = (
                "Boundary disagreement",
                [(each.boundary_disagreement, each.boundary_disagreement_interval) for each in self.points],
            )
        else:
            name, shown = "Validity Drop", [(each.validity_drop, each.interval) for each in self.points]
        known = [(value, *interval) for value, interval in shown if value is not None and interval is not None]
        values = [value for value, _, _ in known]
        spread = [[value - low for value, low, _ in known], [high - value for value, _, high in known]]
        own = values[self.points.index(self.chosen)]
        # By default, element ids and dates differ from run to run.
        with matplotlib.rc_context({"svg.hashsalt": "cfptq"}), atomic_write(path) as aside:
            figure = Figure(figsize=(6.4, 4.0), layout="constrained")
            axes = figure.add_subplot()
            axes.errorbar(bits, values, yerr=spread, marker="o", markersize=4, linewidth=1.2, elinewidth=0.8, capsize=2, color="#1f5a8c")
            axes.plot(
                self.chosen.average_bits,
                own,
                "o",
                markersize=10,
                fillstyle="none",
                color="#b3261e",
                label="this result",
            )
            axes.set(xlabel="average bits per weight", ylabel=f"{name} (estimate)", title=f"{self.method}: {self.measured_on}")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            figure.savefig(
                aside, format=kind, metadata={"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
            )


def choose_plot_format(path: str | os.PathLike[str]) -> str:
    """Return the format of a plot, svg, png or pdf, by its file's ending.

    Raises:
        DataError: another ending.
        MissingDependencyError: Matplotlib is not installed.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise DataError(f"a plot must be a .svg, .png or .pdf file, got {os.fspath(path)}. Change the ending.")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("A plot needs Matplotlib. Install it with: pip install 'cfptq[plot]'")
    return kind


def trace_pareto_curve(
    network: Network,
    calibration: CalibrationSet,
    people: CalibrationSet,
    scores: LayerScores,
    method: Method,
    chosen: BitAllocation,
    plan: QuantizationPlan,
    *,
    decision: DecisionRule,
    last_refused: torch.Tensor | None = None,
    pinned: Mapping[str, int] | None = None,
    held_out: bool = False,
    progress: bool = True,
) -> Pareto:
    """Round ``network`` at the allocation of every budget from 2 to 8 average bits and measure boundary disagreement and Validity Drop.

    Args:
        network: the full-precision network.
        calibration: rows that the method calibrates on.
        people: the same factual rows, and the recourse points to measure at.
        scores: the layer scores, one set for all budgets.
        method: the method, whose allocator and rounding are used. Its repair is not.
        chosen: the result's own allocation, marked on the curve.
        plan: the result's own plan, used as it is without ``held_out``.
        decision: head of the network's raw output and decision threshold.
        last_refused: the last point on the way to each recourse point of ``people`` that the network refuses, in their order. None leaves
            out boundary disagreement.
        pinned: layer name -> bits that it must have.
        held_out: measure on every fourth person, and leave those people out of the rounding. False measures on all.
        progress: whether a progress bar may be shown.

    Raises:
        DataError: there are no recourse points to measure at.
    """
    if held_out:
        if last_refused is not None:
            last_refused = last_refused[find_held_out(people)[people.origin == COUNTERFACTUAL]]
        calibration, people = hold_out_people(calibration)[0], hold_out_people(people)[1]
    with torch.no_grad():
        wanted = decision.decide(network(people.rows))
    at = (people.origin == COUNTERFACTUAL) & (wanted == people.target)
    rows, target = people.rows[at], people.target[at]
    refused = None if last_refused is None else last_refused[at[people.origin == COUNTERFACTUAL]]
    if len(rows) == 0:
        raise DataError(
            "the curve needs recourse points among the calibration rows, and there are none. Either nobody was rejected, or the rows are "
            "factual only."
        )
    widths = method.restrict_widths(plan.candidate_widths)
    allocations = {allocation.bits: allocation for allocation in (*allocation_path(method.allocate, scores, pinned, widths), chosen)}
    points = []
    for allocation in track(sorted(allocations.values(), key=lambda one: one.total_bits), "tracing the curve", enabled=progress):
        own = allocation.bits == chosen.bits
        kept = plan if own and not held_out else None
        rounded = kept or method.plan(
            network, calibration, allocation, decision=decision, seed=plan.seed, portable=plan.portable, progress=False
        )
        module = fake_quantize_network(network, rounded)
        with torch.no_grad():
            given = decision.decide(module(rows))
            early = None if refused is None else decision.decide(module(refused))
        broken = int((given != target).sum())
        disagreement = None
        if early is not None:
            disagreement = Proportion(boundary_disagreements(target_failures(given, target), premature_acceptances(early, target)))
        points.append(
            ParetoPoint(
                average_bits=allocation.average_bits,
                bits=allocation.by_layer(),
                stored_bytes=rounded.stored_bytes,
                predicted_damage=predict_damage(scores, allocation, widths),
                boundary_disagreement=None if disagreement is None else evaluate_statistic(disagreement),
                boundary_disagreement_interval=None if disagreement is None else bootstrap_intervals({"": disagreement})[""],
                validity_drop=broken / len(rows),
                interval=wilson_interval(broken, len(rows)),
                chosen=own,
            )
        )
    return Pareto(tuple(points), len(rows), held_out, method.name, scores.kind)
