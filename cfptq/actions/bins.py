"""Choice of a raw value that stands for a bin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cfptq.errors import ActionSetError


def choose_within(within: tuple[float, float], *, whole: bool, edges: npt.NDArray[Any], bin_number: int, name: str) -> float | int:
    """Return a short number within a bin.

    Args:
        within: ends of the admissible part of the bin, of which the upper one may belong to the next bin.
        whole: whether the number must be whole.
        edges: inner edges of all bins.
        bin_number: index of the bin.
        name: name of the feature, for messages.

    Raises:
        ActionSetError: the bin holds no such number.
    """
    low, high = within
    if not math.isfinite(low):
        low = high - 1.0 if math.isfinite(high) else 0.0
    if not math.isfinite(high):
        high = low + 1.0

    def fits(value: float) -> bool:
        return low <= value <= high and int(np.searchsorted(edges, value, side="right")) == bin_number

    middle = (low + high) / 2
    if whole:
        for whole_number in (round(middle), math.ceil(low), math.floor(high), math.ceil(high) - 1):
            if fits(whole_number):
                return whole_number
        raise ActionSetError(f"{name}: bin {bin_number} of its encoder holds no whole number. Use fewer bins.")
    for digits in range(1, 17):
        number = float(f"{middle:.{digits}g}")
        if fits(number):
            return number
    if fits(low):
        return low
    raise ActionSetError(f"{name}: bin {bin_number} of its encoder is too narrow to hold a number. Use fewer bins.")
