"""Conversion of NumPy arrays, tensors and sequences to checked float64 arrays."""

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


def as_vector(values: Values, name: str) -> Floats:
    """Convert ``values`` to a float64 array (N,).

    Raises:
        DataError: the values are not one number per row.
    """
    array = _as_array(values, name)
    if array.ndim != 1:
        raise DataError(f"{name} must hold one number per row, shape (N,), got shape {array.shape}.")
    return array


def as_matrix(values: Values, name: str) -> Floats:
    """Convert ``values`` to a float64 array (N, k), with all dimensions after the first flattened.

    Raises:
        DataError: the values have fewer than two dimensions.
    """
    array = _as_array(values, name)
    if array.ndim < 2:
        raise DataError(f"{name} must hold one row of numbers per person, shape (N, k), got shape {array.shape}.")
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def as_mask(values: Values, name: str) -> Booleans:
    """Convert ``values`` to a boolean array (N,).

    Raises:
        DataError: the values are not one truth value per row.
    """
    array = as_vector(values, name)
    if not np.isin(array, (0.0, 1.0)).all():
        raise DataError(f"{name} must hold True or False for each row.")
    return array.astype(np.bool_)


def check_lengths(**arrays: NDArray[Any]) -> None:
    """Check that all arrays have one entry per person.

    Raises:
        DataError: the lengths differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"The arrays must have one entry per person, but {listed}.")


def leave_out_missing(values: Floats, found: Values | None) -> Floats:
    """Return ``values`` (N,) with NaN for the people who have no recourse.

    Args:
        values: (N,) one number per person.
        found: (N,) True where a person has recourse. None leaves nobody out.

    Raises:
        DataError: the lengths differ, or ``found`` does not hold truth values.
    """
    if found is None:
        return values
    had = as_mask(found, "found")
    check_lengths(values=values, found=had)
    return np.where(had, values, np.nan)


def nan_mean(values: Floats) -> float:
    """Return the mean of the entries that are not NaN, or NaN if there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def nan_median(values: Floats) -> float:
    """Return the median of the entries that are not NaN, or NaN if there are none."""
    kept = values[~np.isnan(values)]
    return float(np.median(kept)) if len(kept) else float("nan")


def _as_array(values: Values, name: str) -> Floats:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}.") from error
