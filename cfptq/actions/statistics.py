"""What training rows say about a feature: statistics of numbers, shares of levels, and the levels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cfptq.actions.features import Statistics
from cfptq.actions.validation import Level


def measured(values: npt.NDArray[Any]) -> Statistics | None:
    """Statistics of raw ``values`` ``(N,)``, NaN where missing; ``None`` where all are missing."""
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


def shares(places: npt.NDArray[Any], levels: Sequence[Level]) -> tuple[float, ...]:
    """Share of rows at each level; ``places`` ``(N,)`` are level numbers, -1 where a row is at none."""
    counts = np.bincount(places[places >= 0], minlength=len(levels))
    return tuple(float(count) / max(len(places), 1) for count in counts)
