"""What the metrics accept: NumPy arrays, tensors and sequences of numbers, brought to float64 and checked for length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cfptq.errors import DataError

#: One number, or one row of numbers, per person.
Values: TypeAlias = NDArray[Any] | torch.Tensor | Sequence[Any]
Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]


def vector(values: Values, name: str) -> Floats:
    """``values`` as a float64 array (N,).

    Raises:
        DataError: not one number per row.
    """
    array = _array(values, name)
    if array.ndim != 1:
        raise DataError(f"{name} must hold one number per row, shape (N,), but its shape is {array.shape}")
    return array


def matrix(values: Values, name: str) -> Floats:
    """``values`` as a float64 array (N, k); whatever follows the first dimension is flattened.

    Raises:
        DataError: fewer than two dimensions.
    """
    array = _array(values, name)
    if array.ndim < 2:
        raise DataError(f"{name} must hold one row of numbers per person, shape (N, k), but its shape is {array.shape}")
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def mask(values: Values, name: str) -> Booleans:
    """``values`` as a boolean array (N,).

    Raises:
        DataError: not one truth value per row.
    """
    array = vector(values, name)
    if not np.isin(array, (0.0, 1.0)).all():
        raise DataError(f"{name} must hold True or False for each row")
    return array.astype(np.bool_)


def check_lengths(**arrays: NDArray[Any]) -> None:
    """Refuse arrays that do not speak of the same people.

    Raises:
        DataError: lengths differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"the arrays must have one entry per person, but {listed}")


def defined_mean(values: Floats) -> float:
    """Mean of the entries that are not NaN; NaN where there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _array(values: Values, name: str) -> Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}") from error
