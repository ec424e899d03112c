"""The record of one training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cfptq.quantize import Bits, read_bits


@dataclass(frozen=True)
class History:
    """Training history, with one record per epoch and the epoch that was kept.

    Attributes:
        epochs: one record per epoch. It holds the mean loss terms on training rows, the validation metrics on held-out rows (None while
            widths are searched), ``eligible`` (whether its drift is within ``Schedule.max_drift``), and the widths.
        best_epoch: number of the epoch that was kept, from 0. -1 is the training-free start.
        bits: final widths, one per layer, or a tuple with one for each of its output channels.
        start: validation metrics of the start under the final widths.
        overshot: whether the learned policy's most likely widths were over the budget. The knapsack then chose the widths.
        policy: the learned π, (L, widths), or a row for each output channel. It is empty where widths were not learned.
        max_drift: the limit on the drift of an epoch that is kept, as a share of all rows. None is no limit.
    """

    epochs: tuple[dict[str, Any], ...]
    best_epoch: int
    bits: tuple[Bits, ...]
    start: dict[str, Any]
    overshot: bool = False
    policy: tuple[tuple[float, ...], ...] = ()
    max_drift: float | None = None

    @property
    def note(self) -> str:
        """Warning that no epoch kept the favourable rate, or "" where one did."""
        validated = [record for record in self.epochs if record["validation"] is not None]
        if not validated or self.max_drift is None or any(record["eligible"] for record in validated):
            return ""
        limit, smallest = 100 * self.max_drift, 100 * min(abs(record["drift"]) for record in validated)
        return (
            f"No epoch kept the favourable rate within max_drift ({limit:.1f} points; the smallest drift was {smallest:.1f}). "
            "The training-free start was kept"
        )

    def __str__(self) -> str:
        is_start = self.best_epoch < 0
        kept = self.start if is_start else self.epochs[self.best_epoch]
        sentences = [
            self.note or ("The training-free start was kept" if is_start else f"Epoch {self.best_epoch + 1} of {len(self.epochs)} was kept")
        ]
        sentences.append(f"The favourable rate changes by {100 * kept['drift']:+.1f} points")
        if kept["validity_drop"] is not None:
            sentences.append(f"Validity Drop on held-out rows is {kept['validity_drop']:.3f} (start: {self.start['validity_drop']:.3f})")
        return ". ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Return the history as plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> History:
        """Return the history that ``to_dict`` described."""
        limit = content.get("max_drift")
        return History(
            tuple({**record, "bits": list(map(read_bits, record["bits"]))} for record in content["epochs"]),
            int(content["best_epoch"]),
            tuple(map(read_bits, content["bits"])),
            dict(content["start"]),
            bool(content["overshot"]),
            tuple(tuple(float(share) for share in row) for row in content["policy"]),
            None if limit is None else float(limit),
        )
