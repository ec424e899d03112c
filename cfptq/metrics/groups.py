"""Rows by group, the worst group and the gap between groups (Appendix D.6, Table 9, and Appendix J)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cfptq.errors import DataError

#: Name of the group of people whose label is missing.
MISSING = "(missing)"
#: More distinct labels than this are an error, since they are most likely measurements.
MAX_GROUPS = 100


@dataclass(frozen=True)
class Disparity:
    """Worst value over the groups and the gap between them.

    Attributes:
        worst_group: name of the group with the largest value; None if no group has a value.
        worst: the largest value; NaN if no group has a value.
        gap: largest minus smallest value; NaN if fewer than two groups have a value, because one group alone shows no gap.
    """

    worst_group: str | None
    worst: float
    gap: float


def group_rows(labels: Sequence[Any] | NDArray[Any] | torch.Tensor, name: str = "groups") -> dict[str, NDArray[np.int64]]:
    """Return the row numbers of each group, sorted by the group's name.

    Args:
        labels: (N,) one label per person, of any type. None and NaN form the group ``MISSING``.
        name: name of the labels, for error messages.

    Raises:
        DataError: the labels are not one-dimensional, or there are more than ``MAX_GROUPS`` groups.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if np.ndim(labels) != 1:
        raise DataError(f"Group labels {name!r} must be one-dimensional, got {np.ndim(labels)} dimensions.")
    series = pd.Series(list(labels), dtype=object)
    texts = np.where(series.isna(), MISSING, [_format_label(label) for label in series])
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    if len(names) > MAX_GROUPS:
        raise DataError(f"{name!r} must have at most {MAX_GROUPS} distinct values, got {len(names)}. Put them into ranges first.")
    return {str(label): np.flatnonzero(codes == code) for code, label in enumerate(names)}


def disparity(values: Mapping[str, float]) -> Disparity:
    """Compute the worst (largest) value over the groups and the gap max - min (Table 9).

    Of equally bad groups the first is named.

    Args:
        values: one value per group. Groups with NaN are left out.
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    if not known:
        return Disparity(None, math.nan, math.nan)
    worst = max(known, key=lambda name: known[name])
    return Disparity(worst, known[worst], known[worst] - min(known.values()) if len(known) > 1 else math.nan)


def _format_label(label: Any) -> str:
    # Whole numbers stored as floats have the same labels as integers.
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)
