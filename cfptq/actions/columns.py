"""Checks of the model's columns, which each show one feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature
from cfptq.errors import ActionSetError, DataError


def resolve_column_names(width: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return one name for each of ``width`` columns, the given ones or ``column_0``, ``column_1``, and so on.

    Raises:
        ActionSetError: the number of names differs from ``width``.
    """
    if names is None:
        return tuple(f"column_{column}" for column in range(width))
    if len(names) != width:
        raise ActionSetError(f"column_names must hold one name for each of the {width} columns, got {len(names)}.")
    return tuple(str(name) for name in names)


def require_one_feature_per_column(features: Sequence[AnyFeature], width: int) -> None:
    """Raise ``ActionSetError`` unless each of ``width`` columns shows exactly one feature and each feature has a column."""
    feature_of: dict[int, str] = {}
    for feature in features:
        if not feature.model_columns:
            raise ActionSetError(f"{feature.name}: its column is missing. Give column=…, or columns=(…) for a one-hot group.")
        for column in feature.model_columns:
            if column >= width:
                raise ActionSetError(f"{feature.name}: column must be below {width}, the number of columns, got {column}.")
            if column in feature_of:
                raise ActionSetError(f"Column {column} belongs to both {feature_of[column]} and {feature.name}. Give it to one of them.")
            feature_of[column] = feature.name
    free = [column for column in range(width) if column not in feature_of]
    if free:
        raise ActionSetError(f"Columns {free} belong to no feature. Declare them, as immutable if an action may not change them.")


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
