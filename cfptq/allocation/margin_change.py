"""Sensitivity that is measured: what rounding one layer at one width does to the margins where decisions are near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cfptq.allocation.scores import LayerScores
from cfptq.errors import ModelError
from cfptq.io.progress import track
from cfptq.network import Head, Network, class_logits, infer_head, target_margin
from cfptq.quantize import ALL_WIDTHS, ActivationFormat, RecordedRun, build_layer_problem, round_at_widths, sample_affordable_rows
from cfptq.quantize.calibration_set import CalibrationSet

#: Multiply-adds that one pass of the network over the rows may take, and rows that are taken whatever they cost.
MEASURING_WORK, FEWEST_ROWS = 2**30, 256


@dataclass(frozen=True)
class MeasuredScores(LayerScores):
    """Scores with a figure for every width.

    Attributes:
        widths: candidate widths, ascending.
        damage: (L, widths) what a layer's own rounding does at each width, at least 0; ``scores`` holds that of the lowest.
    """

    widths: tuple[int, ...] = ()
    damage: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "damage", tuple(tuple(row) for row in self.damage))
        if len(self.damage) != len(self.names) or any(len(row) != len(self.widths) for row in self.damage):
            raise ModelError("measured scores need one figure for each layer and width")

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Damage avoided: the larger the better, as the allocators maximize."""
        at = {bits: number for number, bits in enumerate(self.widths)}
        missing = [bits for bits in widths if bits not in at]
        if missing:
            raise ModelError(f"nothing was measured at {missing[0]} bits; these scores are for {', '.join(map(str, self.widths))}")
        return tuple(tuple(-row[at[bits]] for bits in widths) for row in self.damage)


def score_by_margin_change(
    network: Network, calibration: CalibrationSet, *, head: Head | None = None, threshold: float | None = None, progress: bool = True
) -> MeasuredScores:
    """For each layer and width, the mean squared change of the target margin when that layer alone is rounded.

    Rows count by their calibration weights, so with boundary weights the figure is about the rows whose decision is near, on both
    sides of the boundary. Rounding is the compensated one, on full-precision inputs; plain in layers with too many inputs for the rows.

    Args:
        network: the full-precision model f.
        calibration: rows, weights and targets.
        head: what the network's raw output means; None infers it.
        threshold: decision threshold of a two-class model.
        progress: show a bar when it takes long.
    """
    kept, weights = sample_affordable_rows(network, calibration.weights, MEASURING_WORK, FEWEST_ROWS)
    run = RecordedRun(network, calibration.rows[kept])
    known, target = head or infer_head(run.output), calibration.target[kept]

    def margins(raw: Tensor) -> Tensor:
        return target_margin(class_logits(raw, known, threshold), target).double()

    before = margins(run.output)
    share = (weights / weights.sum()).double()
    damage: list[tuple[float, ...]] = []
    for layer in track(network.layers, "measuring layers", enabled=progress):
        inputs = run.inputs(layer)
        problem = build_layer_problem(network, layer, ALL_WIDTHS[0], inputs, inputs, ActivationFormat(layer.input, 32), weights)
        row = []
        for rounded in round_at_widths(problem, ALL_WIDTHS):
            steps = rounded.scale.reshape(-1, *[1] * (problem.weight.dim() - 1))
            change = margins(run.rerun(layer, rounded.integers * steps, rounded.bias)) - before
            row.append(float((share * change.square()).sum()))
        damage.append(tuple(row))
    return MeasuredScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple(row[0] for row in damage),
        kind="margin change",
        widths=ALL_WIDTHS,
        damage=tuple(damage),
    )
