"""Checks of the model's columns, which each show one feature."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature
from cfptq.errors import ActionSetError, DataError

_MAX_SHOWN_COLUMNS = 12  # A message lists this many columns and then an ellipsis.


def as_matrix(rows: Any, label: str) -> Tensor:
    """Return a dense tensor or array, or a DataFrame of numbers, as a detached tensor on the CPU. ``label`` begins the error message.

    Raises:
        DataError: ``rows`` is sparse, or holds something else than numbers.
    """
    if isinstance(rows, pd.DataFrame):
        if any(isinstance(dtype, pd.SparseDtype) for dtype in rows.dtypes):
            raise DataError(f"{label} must be dense, got a DataFrame with sparse columns. Call frame.sparse.to_dense() first.")
        words = [str(name) for name, dtype in rows.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
        if words:
            raise DataError(f"{label} must be numbers, but column {words[0]!r} of the DataFrame holds others. Encode it first.")
        rows = rows.to_numpy(dtype=np.float64, na_value=np.nan)
    if is_sparse(rows):
        raise DataError(f"{label} must be dense, got sparse rows ({type(rows).__name__}). Call .toarray() or .to_dense() first.")
    try:
        tensor = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{label} must be a tensor, an array or a DataFrame of numbers, got {type(rows).__name__}.") from error
    return tensor.detach().cpu()


def is_sparse(rows: Any) -> bool:
    """Return true for sparse tensors, and for SciPy's sparse matrices and arrays."""
    return (isinstance(rows, Tensor) and rows.layout is not torch.strided) or type(rows).__module__.startswith("scipy.sparse")


def resolve_column_names(width: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return one name for each of ``width`` columns, the given ones or ``column_0``, ``column_1``, and so on.

    Raises:
        ActionSetError: the number of names differs from ``width``.
    """
    if names is None:
        return tuple(f"column_{column}" for column in range(width))
    if isinstance(names, str) or not hasattr(names, "__len__"):
        raise ActionSetError(f"column_names must be a list of names, got {names!r}.")
    if len(names) != width:
        raise ActionSetError(f"column_names must hold one name for each of the {width} columns, got {len(names)}.")
    return tuple(str(name) for name in names)


def require_one_feature_per_column(features: Sequence[AnyFeature], width: int) -> None:
    """Raise ``ActionSetError`` unless each of ``width`` columns shows exactly one feature and each feature has a column."""
    feature_of: dict[int, str] = {}
    for feature in features:
        if not feature.model_columns:
            raise ActionSetError(f"{feature.name}: its column is missing. Give column=…, or columns=(…) for a one-hot group.")
        for column in feature.all_columns:
            if column >= width:
                raise ActionSetError(f"{feature.name}: column must be below {width}, the number of columns, got {column}.")
            if column in feature_of:
                raise ActionSetError(f"Column {column} belongs to both {feature_of[column]} and {feature.name}. Give it to one of them.")
            feature_of[column] = feature.name
    if len(feature_of) < width:
        free = list(itertools.islice((column for column in range(width) if column not in feature_of), _MAX_SHOWN_COLUMNS + 1))
        shown = ", ".join(map(str, free[:_MAX_SHOWN_COLUMNS])) + (", …" if len(free) > _MAX_SHOWN_COLUMNS else "")
        raise ActionSetError(f"Columns [{shown}] belong to no feature. Declare them, as immutable if an action may not change them.")


def require_shape(width: int, x: Tensor, delta: Tensor | None = None) -> None:
    """Raise ``DataError`` unless ``x`` is ``(N, width)`` and ``delta``, if given, has the same shape."""
    if x.ndim != 2 or x.shape[1] != width:
        raise DataError(f"Rows must have shape (N, {width}), one column for each input of the model, got {tuple(x.shape)}.")
    if delta is not None and delta.shape != x.shape:
        raise DataError(f"Actions must have the shape of the rows, {tuple(x.shape)}, got {tuple(delta.shape)}.")


def to_columns(width: int, rows: Any) -> Tensor:
    """Return ``rows`` as a detached float32 tensor ``(N, width)``.

    Raises:
        DataError: ``rows`` is no tensor or array, or has another shape or dtype.
    """
    if is_sparse(rows):
        raise DataError(f"Rows must be dense, got sparse rows ({type(rows).__name__}). Call .toarray() or .to_dense() first.")
    if not isinstance(rows, Tensor):
        try:
            rows = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"Rows must be a float32 tensor or array of shape (N, {width}), got {type(rows).__name__}.") from error
    require_shape(width, rows)
    if rows.dtype != torch.float32:
        raise DataError(f"Rows must be float32, got {str(rows.dtype).removeprefix('torch.')}. Convert them with rows.float().")
    columns: Tensor = rows.detach()
    return columns
