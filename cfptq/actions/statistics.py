"""Statistics of one feature over the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cfptq.actions.features import Statistics
from cfptq.actions.validation import Level


def compute_statistics(values: npt.NDArray[Any]) -> Statistics | None:
    """Return statistics of raw ``values`` ``(N,)`` with NaN where missing, or ``None`` if all are missing."""
    numbers = np.asarray(values, dtype=np.float64)
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return None
    return Statistics(
        mean=float(present.mean()),
        std=float(present.std()),
        mad=float(np.median(np.abs(present - np.median(present)))),
        minimum=float(present.min()),
        maximum=float(present.max()),
        missing=float(1 - len(present) / len(numbers)),
    )


def compute_level_shares(level_numbers: npt.NDArray[Any], levels: Sequence[Level]) -> tuple[float, ...]:
    """Return the share of rows at each level, from each row's level number ``(N,)``, -1 for a row at none."""
    counts = np.bincount(level_numbers[level_numbers >= 0], minlength=len(levels))
    return tuple(float(count) / max(len(level_numbers), 1) for count in counts)
