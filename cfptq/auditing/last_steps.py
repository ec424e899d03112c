"""The last step of each person's recourse, and where on its line a model's decision changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.metrics import (
    Mean,
    Proportion,
    Quantile,
    Statistic,
    boundary_disagreements,
    crossing_shifts,
    find_nearest_crossings,
    premature_acceptances,
)
from cfptq.metrics.arrays import Floats
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor
from cfptq.recourse import RecourseBatch

#: Position of the middle of the last step, from which the full-precision model's crossing is searched.
MIDDLE = 0.5
#: Keys of ``crossing_shift``, which are also the ends of the names of its intervals.
CROSSING_SHIFT_KEYS = ("mean_abs", "mean", "p95")


@dataclass(frozen=True, eq=False)
class LastSteps:
    """Lines through the last steps of M people's paths.

    Position 0 on a line is the last iterate that the full-precision model refuses, and position 1 the recourse point. Between them
    and beyond, all columns are interpolated linearly, one-hot columns too, so that points on the line need not be people.

    Attributes:
        start: Last iterates that the full-precision model refuses, (M, ...).
        end: Recourse points, (M, ...).
        target: Target classes, (M,) int64.
        found: People whose path ends at a point with the target, (M,) bool. The others have no last step.
    """

    start: Tensor
    end: Tensor
    target: Tensor
    found: Tensor

    @classmethod
    def from_batch(cls, batch: RecourseBatch) -> LastSteps | None:
        """Return the last steps of projected-gradient recourse, or None for recourse without a path."""
        if batch.last_refused is None:
            return None
        return cls(batch.last_refused, batch.points, batch.target, batch.found)

    def find_crossings(self, model: Predictor, near: Floats | None = None) -> Floats:
        """Find the crossing of each person's line that is nearest to a position.

        Args:
            model: Model whose decision changes there.
            near: (M,) positions, NaN for people who are left out. The middle of the last step by default.

        Returns:
            Positions (M,), see ``cfptq.metrics.find_nearest_crossings``.
        """

        def accepts_at(people: NDArray[np.int64], positions: Floats) -> NDArray[np.bool_]:
            chosen = torch.from_numpy(people)
            weight = torch.from_numpy(positions).to(self.start.dtype).reshape(-1, *[1] * (self.start.dim() - 1))
            points = torch.lerp(self.start[chosen], self.end[chosen], weight)
            accepted: NDArray[np.bool_] = (target_margin(model.logits(points), self.target[chosen]) > 0).numpy()
            return accepted

        if near is None:
            near = np.where(self.found.numpy(), MIDDLE, np.nan)
        return find_nearest_crossings(accepts_at, near)


def build_boundary_statistics(
    steps: LastSteps | None, crossings: Floats, model: Predictor, failures: Floats
) -> tuple[dict[str, Statistic], int]:
    """Compare a quantized model with the full-precision model on people's last steps.

    Args:
        steps: Last steps of M people. None leaves the statistics undefined.
        crossings: (M,) positions at which the full-precision model's decision changes.
        model: Quantized model.
        failures: (M,) 1 where the quantized model refuses the recourse point, NaN where there is none.

    Returns:
        Premature validity, boundary disagreement and the crossing shift, by name, and the number of people whose line the quantized
        model does not cross.
    """
    premature = np.full(len(failures), np.nan)
    shifts = np.full(len(failures), np.nan)
    missing = 0
    if steps is not None and len(failures):
        at_start = model.logits(steps.start).argmax(dim=1)
        premature = premature_acceptances(at_start, steps.target, steps.found)
        near = np.where(np.isfinite(crossings), crossings, np.nan)
        own = steps.find_crossings(model, near)
        shifts = crossing_shifts(near, own)
        missing = int(np.isinf(own).sum())
    statistics: dict[str, Statistic] = {
        "premature_validity": Proportion(premature),
        "boundary_disagreement": Proportion(boundary_disagreements(failures, premature)),
        "crossing_shift_mean_abs": Mean(np.abs(shifts)),
        "crossing_shift_mean": Mean(shifts),
        "crossing_shift_p95": Quantile(np.abs(shifts), 0.95),
    }
    return statistics, missing


def collect_crossing_shift(values: Mapping[str, float]) -> dict[str, float]:
    """Return the crossing shift's values by the keys of results.json."""
    return {key: values[f"crossing_shift_{key}"] for key in CROSSING_SHIFT_KEYS}
