"""Calibration rows that alone set the range of a column or of a hidden tensor.

A slip of the decimal point in one row stretches the ranges that everybody's values are rounded in. Ordinary heavy tails do not,
because many rows share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.network import Network

#: Factor by which a few rows must stretch a range to be named. Among 1,024 rows of the public data sets, hardly any draw has such a row.
MIN_STRETCH = 10.0

#: One row in so many may be extreme, and at least one. More rows share a tail.
ROWS_PER_EXTREME_ROW = 1000

#: Rows from which on a range is judged. Fewer say nothing about a tail.
MIN_JUDGED_ROWS = 20


@dataclass(frozen=True)
class ExtremeRow:
    """A calibration row that alone sets a range.

    Attributes:
        row: its number among the calibration rows, from 0.
        column: the column that is most extreme in it.
        value: its value there, as the model sees it.
        stretch: factor by which the range is narrower without it.
        tensor: name of the node whose range it sets, or "" for the column's own.
    """

    row: int
    column: int
    value: float
    stretch: float
    tensor: str = ""

    def describe(self, columns: Sequence[str] | None = None) -> str:
        """Return a sentence about the row.

        Args:
            columns: names of the columns, or None for their numbers.
        """
        name = repr(columns[self.column]) if columns is not None else str(self.column)
        subject = f"the range of hidden tensor {self.tensor!r}" if self.tensor else "the range of its column"
        return (
            f"calibration row {self.row} has {self.value:.6g} in column {name} and alone sets {subject}, which is {self.stretch:.0f} times "
            "narrower without it"
        )


def find_extreme_rows(network: Network, rows: Tensor) -> tuple[ExtremeRow, ...]:
    """Find the rows that alone set the range of a column, or of a hidden tensor that feeds a quantized layer.

    Args:
        network: the captured full-precision network.
        rows: factual calibration rows, (N, ...).

    Returns:
        One entry a row, in the rows' order. Rows of images have no columns, and only their tensors are judged.
    """
    if len(rows) < MIN_JUDGED_ROWS:
        return ()
    flat = rows.flatten(1)
    distance = (flat - flat.median(dim=0).values).abs()
    found: dict[int, ExtremeRow] = {}
    if rows.dim() == 2:
        for column in range(flat.shape[1]):
            for row, stretch in _find_stretching_rows(distance[:, column]):
                found.setdefault(row, ExtremeRow(row, column, float(flat[row, column]), stretch))
    for tensor in dict.fromkeys(layer.input for layer in network.layers):
        for row, stretch in _find_stretching_rows(_measure_extents(network, tensor, rows)):
            column = int((distance[row] / _spread(distance)).argmax())
            found.setdefault(row, ExtremeRow(row, column, float(flat[row, column]), stretch, tensor))
    return tuple(found[row] for row in sorted(found))


def _measure_extents(network: Network, tensor: str, rows: Tensor) -> Tensor:
    """Return each row's largest magnitude in a tensor, (N,)."""
    values = network.observe(rows, {tensor})[tensor]
    return values.reshape(len(rows), -1).abs().amax(dim=1)


def _spread(distance: Tensor) -> Tensor:
    """Return each column's mean distance from its median, positive."""
    return distance.mean(dim=0).clamp_min(torch.finfo(torch.float32).tiny)


def _find_stretching_rows(extent: Tensor) -> list[tuple[int, float]]:
    """Find the few rows whose extent exceeds that of all others by ``MIN_STRETCH``, and their factor. Others must not all be 0."""
    most = max(1, len(extent) // ROWS_PER_EXTREME_ROW)
    top = extent.topk(most + 1)
    for count in range(1, most + 1):
        rest = float(top.values[count])
        if rest > 0 and float(top.values[count - 1]) > MIN_STRETCH * rest:
            return [(int(row), float(value) / rest) for row, value in zip(top.indices[:count], top.values[:count], strict=True)]
    return []
