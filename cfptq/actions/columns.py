"""The model's columns: each shows one feature, and rows of them have the right shape and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature
from cfptq.errors import ActionSetError, DataError


def checked_column_names(features: Sequence[AnyFeature], width: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """A name for each of ``width`` columns, given ones or ``column_0`` and so on.

    Raises:
        ActionSetError: a feature without columns, a column that shows no feature or two, a wrong number of names.
    """
    owner: dict[int, str] = {}
    for feature in features:
        if not feature.placed:
            raise ActionSetError(f"{feature.name}: no column is given for it, though the action set is encoded")
        for column in feature.placed:
            if column >= width:
                raise ActionSetError(f"{feature.name}: column {column} does not exist; the model has {width}, counted from 0")
            if column in owner:
                raise ActionSetError(f"column {column} belongs to both {owner[column]} and {feature.name}; a column shows one feature")
            owner[column] = feature.name
    free = [column for column in range(width) if column not in owner]
    if free:
        raise ActionSetError(f"columns {free} belong to no feature; declare them (immutable if nobody can act on them)")
    result = tuple(f"column_{column}" for column in range(width)) if names is None else tuple(str(name) for name in names)
    if len(result) != width:
        raise ActionSetError(f"{len(result)} column names for {width} columns; give one for each")
    return result


def require_shape(width: int, x: Tensor, delta: Tensor | None = None) -> None:
    """Raise ``DataError`` unless ``x`` is ``(N, width)`` and ``delta``, if given, is shaped like it."""
    if x.ndim != 2 or x.shape[1] != width:
        raise DataError(f"rows have shape {tuple(x.shape)}; this action set needs (N, {width}), one column for each of the model's inputs")
    if delta is not None and delta.shape != x.shape:
        raise DataError(f"actions have shape {tuple(delta.shape)}, rows {tuple(x.shape)}; they must be the same")


def as_columns(width: int, rows: Any) -> Tensor:
    """``rows`` as a float32 tensor ``(N, width)`` without history, else ``DataError``."""
    if not isinstance(rows, Tensor):
        try:
            rows = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"rows are a float32 tensor or array of shape (N, {width}), not {type(rows).__name__}") from error
    require_shape(width, rows)
    if rows.dtype != torch.float32:
        raise DataError(f"rows are {str(rows.dtype).removeprefix('torch.')}; convert them to float32 (rows.float())")
    columns: Tensor = rows.detach()
    return columns
