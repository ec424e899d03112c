"""Which class each row wants: one for all, one a row, or a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import DataError, name_rows

#: A rule gets the rows (N, ...) and the model's class logits on them (N, C), and gives the wanted class of each, (N,).
TargetRule = Callable[[Tensor, Tensor], Tensor]
Target = int | Tensor | TargetRule


def opposite_class(rows: Tensor, logits: Tensor) -> Tensor:
    """Rule for two classes: whatever the model does not say now (section 4.2), (N,) int64."""
    if logits.shape[1] != 2:
        raise DataError(f"of {logits.shape[1]} classes none is the opposite one; use runner_up_class or name the target")
    return 1 - logits.argmax(1)


def runner_up_class(rows: Tensor, logits: Tensor) -> Tensor:
    """Rule for any number of classes: the second most likely class, (N,) int64."""
    return logits.topk(2, dim=1).indices[:, 1]


def target_of_rows(target: Target, rows: Tensor, logits: Tensor) -> Tensor:
    """The wanted class of each row, (N,) int64.

    Args:
        target: a class index, a tensor of one class index a row, or a rule.
        rows: (N, ...).
        logits: the model's class logits on ``rows``, (N, C).

    Raises:
        DataError: not one integer class a row, or a class that the model does not have (rows are named).
    """
    count, n_classes = logits.shape
    if isinstance(target, bool) or not (isinstance(target, int | Tensor) or callable(target)):
        raise DataError(f"target is {target!r}; give a class (0 to {n_classes - 1}), one a row, or a rule (rows, logits) -> classes")
    if isinstance(target, int):
        if not 0 <= target < n_classes:
            raise DataError(f"target class {target} is not one of the model's {n_classes} classes (0 to {n_classes - 1})")
        return torch.full((count,), target, dtype=torch.int64)
    given = target if isinstance(target, Tensor) else _as_tensor(target(rows, logits), count)
    source = "target" if isinstance(target, Tensor) else "the target rule"
    if given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool:
        raise DataError(f"{source} gives {given.dtype}; classes are integers (int64)")
    if tuple(given.shape) != (count,):
        raise DataError(f"{source} has shape {tuple(given.shape)} for {count} rows; give one class a row, shape ({count},)")
    given = given.to(device=rows.device, dtype=torch.int64).clone()
    outside = ((given < 0) | (given >= n_classes)).nonzero()[:, 0].tolist()
    if outside:
        raise DataError(f"{source} names classes outside 0 to {n_classes - 1} in rows {name_rows(outside)}")
    return given


def _as_tensor(answer: Any, count: int) -> Tensor:
    try:
        return torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the target rule gives {answer!r}; it must give a tensor of one class a row, shape ({count},)") from error
