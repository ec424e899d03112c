"""Who bears it? People by group, the worst group and the gap between groups (Appendix D.6, Table 9; Appendix J)."""

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
#: More distinct labels than this are a measurement, not groups.
MAX_GROUPS = 100


@dataclass(frozen=True)
class Disparity:
    """Worst value over the groups and max - min between them; the name is None and the numbers NaN where no group has a value."""

    worst_group: str | None
    worst: float
    gap: float


def group_rows(labels: Sequence[Any] | NDArray[Any] | torch.Tensor, name: str = "groups") -> dict[str, NDArray[np.int64]]:
    """Row numbers of each group, groups in the order of their names; missing labels form a group :data:`MISSING`.

    Args:
        labels: (N,) one label per person: text, number, truth value, pandas categorical, None or NaN.
        name: what the labels are, for messages.

    Raises:
        DataError: not one-dimensional, or more than :data:`MAX_GROUPS` groups.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if np.ndim(labels) != 1:
        raise DataError(f"group labels {name!r} must be one-dimensional, but have {np.ndim(labels)} dimensions")
    series = pd.Series(list(labels), dtype=object)
    texts = np.where(series.isna(), MISSING, [_text(label) for label in series])
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    if len(names) > MAX_GROUPS:
        raise DataError(f"{name!r} has {len(names)} distinct values, more than {MAX_GROUPS} groups; put them into ranges first")
    return {str(label): np.flatnonzero(codes == code) for code, label in enumerate(names)}


def disparity(values: Mapping[str, float]) -> Disparity:
    """Worst (largest) value over the groups and the gap max - min (Table 9); groups whose value is NaN do not count.

    Of equally bad groups the first is named.
    """
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    if not known:
        return Disparity(None, math.nan, math.nan)
    worst = max(known, key=lambda name: known[name])
    return Disparity(worst, known[worst], known[worst] - min(known.values()))


def _text(label: Any) -> str:
    # A column of whole numbers that went through floats reads "1", as it did before.
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)
