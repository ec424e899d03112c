"""Splits that are the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stratified(labels: NDArray[np.int64], n_train: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a training and a test part, each with the class shares of the whole, in the table's order.

    Classes get their share of ``n_train`` by largest remainder, so that the sizes are exact.

    Args:
        labels: (N,) class indices.
        n_train: rows of the training part, between 1 and N - 1.
        seed: fixes which rows are drawn.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n_train / len(labels))
    sizes = np.floor(exact).astype(np.int64)
    for index in np.argsort(sizes - exact, kind="stable")[: n_train - int(sizes.sum())]:
        sizes[index] += 1
    drawn = [rng.permutation(np.flatnonzero(labels == value))[:size] for value, size in zip(classes, sizes, strict=True)]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(drawn)] = True
    return np.flatnonzero(chosen).astype(np.int64), np.flatnonzero(~chosen).astype(np.int64)
