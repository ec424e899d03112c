"""Labels and groups of the audited people, checked against their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cfptq.errors import DataError, name_rows
from cfptq.metrics import group_rows


def parse_labels(labels: Any, rows: Any, n_classes: int | None) -> NDArray[np.float64]:
    """Convert true classes to float64 (N,), with NaN where a class is unknown.

    Args:
        labels: Class indices (N,), or bools of a two-class problem. NaN, None and -1 mean unknown.
        rows: The rows, of which only the number N is used.
        n_classes: Number of classes C. None does not check the indices against it.

    Raises:
        DataError: ``labels`` has another length, is not made of class indices, or holds classes that the model does not have.
    """
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    if np.ndim(labels) != 1 or len(labels) != len(rows):
        raise DataError(f"labels must be one per row, shape ({len(rows)},), got shape {np.shape(labels)}.")
    try:
        known = np.array([np.nan if pd.isna(label) else float(label) for label in labels])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"labels must be class indices (0, 1, ...), got other values ({error}). Map class names to indices first."
        ) from error
    known[known == -1] = np.nan
    wrong = ~np.isnan(known) & ((known < 0) | (known % 1 != 0) | (known >= (np.inf if n_classes is None else n_classes)))
    if wrong.any():
        classes = "whole numbers from 0" if n_classes is None else f"the model's classes 0 to {n_classes - 1}"
        raise DataError(
            f"labels must be {classes}, got others in rows {name_rows(np.flatnonzero(wrong).tolist())}. Use -1 for unknown labels."
        )
    return known


def split_by_group(groups: Mapping[str, Any] | None, rows: Any) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return the row numbers of each group, by attribute and by group.

    Args:
        groups: Labels (N,) by the name of the attribute. None gives no attribute.
        rows: The rows, of which only the number N is used.

    Raises:
        DataError: ``groups`` is not a mapping, or an attribute does not have one label per row.
    """
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise DataError(f"groups must map a name to one label per row, got a {type(groups).__name__}. Give {{'sex': labels}}, for example.")
    for name, labels in groups.items():
        if np.ndim(labels) == 0 or len(labels) != len(rows):
            raise DataError(f"Group labels {name!r} must be one per row, {len(rows)}, got shape {np.shape(labels)}.")
    return {str(name): group_rows(labels, str(name)) for name, labels in groups.items()}
