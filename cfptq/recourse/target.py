"""Target classes of rows, given as one class, one class per row, or a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import DataError, name_rows

#: A rule maps rows (N, ...) and the model's class logits on them (N, C) to the target class of each row, (N,).
TargetRule = Callable[[Tensor, Tensor], Tensor]
Target = int | Tensor | TargetRule


def opposite_class(rows: Tensor, logits: Tensor) -> Tensor:
    """Return the class that a two-class model does not predict now (section 4.2), (N,) int64.

    Args:
        rows: Rows (N, ...), unused.
        logits: Class logits on ``rows``, (N, 2).
    """
    if logits.shape[1] != 2:
        raise DataError(f"opposite_class needs a model of 2 classes, got {logits.shape[1]}. Use runner_up_class or give a class.")
    return 1 - logits.argmax(1)


def runner_up_class(rows: Tensor, logits: Tensor) -> Tensor:
    """Return the second most likely class of each row, (N,) int64.

    Args:
        rows: Rows (N, ...), unused.
        logits: Class logits on ``rows``, (N, C).
    """
    return logits.topk(2, dim=1).indices[:, 1]


def resolve_target(target: Target, rows: Tensor, logits: Tensor) -> Tensor:
    """Return the target class of each row, (N,) int64.

    Args:
        target: One class for all rows, a tensor of one class per row (N,), or a ``TargetRule``.
        rows: Rows (N, ...).
        logits: Class logits of the model on ``rows``, (N, C).

    Raises:
        DataError: ``target`` does not give one integer class per row, or gives a class that the model does not have.
    """
    count, n_classes = logits.shape
    if isinstance(target, bool) or not (isinstance(target, int | Tensor) or callable(target)):
        raise DataError(
            f"target must be a class from 0 to {n_classes - 1}, a tensor of one class per row, or a rule (rows, logits) -> classes. "
            f"Got {target!r}."
        )
    if isinstance(target, int):
        if not 0 <= target < n_classes:
            raise DataError(f"target must be one of the model's {n_classes} classes, 0 to {n_classes - 1}, got {target}.")
        return torch.full((count,), target, dtype=torch.int64)
    given = target if isinstance(target, Tensor) else _as_tensor(target(rows, logits), count)
    source = "target" if isinstance(target, Tensor) else "the target rule"
    if given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool:
        raise DataError(f"Classes must be integers (int64), but {source} gives {given.dtype}.")
    if tuple(given.shape) != (count,):
        raise DataError(f"{source[0].upper()}{source[1:]} must give one class per row, shape ({count},). Got shape {tuple(given.shape)}.")
    given = given.to(device=rows.device, dtype=torch.int64).clone()
    outside = ((given < 0) | (given >= n_classes)).nonzero()[:, 0].tolist()
    if outside:
        raise DataError(f"Classes must lie from 0 to {n_classes - 1}, but {source} gives others in rows {name_rows(outside)}.")
    return given


def _as_tensor(answer: Any, count: int) -> Tensor:
    """Return the answer of a target rule as a tensor, or raise DataError."""
    try:
        return torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"The target rule must give a tensor of one class per row, shape ({count},). Got {answer!r}.") from error
