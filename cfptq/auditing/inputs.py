"""Labels and groups of the people who are audited, checked against the rows they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cfptq.errors import DataError, name_rows
from cfptq.metrics import group_rows


def known_labels(labels: Any, rows: Any, n_classes: int | None) -> NDArray[np.float64]:
    """True classes (N,) as float64, NaN where unknown (given as NaN, None or -1).

    Args:
        labels: (N,) class indices, or truth values of a two-class problem.
        rows: anything of length N.
        n_classes: number of classes C; None does not check it.

    Raises:
        DataError: another length, no class indices, or classes that the model does not have.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if np.ndim(labels) != 1 or len(labels) != len(rows):
        raise DataError(f"labels must be one per row, shape ({len(rows)},), but their shape is {np.shape(labels)}")
    try:
        known = np.array([np.nan if pd.isna(label) else float(label) for label in labels])
    except (TypeError, ValueError) as error:
        raise DataError(f"labels must be class indices (0, 1, ...): {error}; map their names to indices first") from error
    known[known == -1] = np.nan
    wrong = ~np.isnan(known) & ((known < 0) | (known % 1 != 0) | (known >= (np.inf if n_classes is None else n_classes)))
    if wrong.any():
        classes = "whole numbers from 0" if n_classes is None else f"the model's classes 0 to {n_classes - 1}"
        raise DataError(f"labels in rows {name_rows(np.flatnonzero(wrong).tolist())} are not {classes}")
    return known


def rows_by_group(groups: Mapping[str, Any] | None, rows: Any) -> dict[str, dict[str, NDArray[np.int64]]]:
    """For each grouping, the row numbers of each of its groups.

    Raises:
        DataError: not a mapping, or a grouping that has not one label per row.
    """
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise DataError(f"groups must map a name to one label per row, such as {{'sex': labels}}, but is a {type(groups).__name__}")
    for name, labels in groups.items():
        if np.ndim(labels) == 0 or len(labels) != len(rows):
            raise DataError(f"group labels {name!r} must be one per row, {len(rows)}, but their shape is {np.shape(labels)}")
    return {str(name): group_rows(labels, str(name)) for name, labels in groups.items()}
