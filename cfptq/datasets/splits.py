"""Stratified splits of a table into training and test people."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray


class SplitTable(TypedDict):
    """The four fields of a ``cfptq.datasets.Dataset`` that a split gives."""

    train: pd.DataFrame
    test: pd.DataFrame
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]


def split_table(frame: pd.DataFrame, labels: NDArray[np.int64], n_train: int, seed: int) -> SplitTable:
    """Split a table and its labels by ``split_stratified``, with rows numbered from 0 in each part."""
    train, test = split_stratified(labels, n_train, seed)
    return SplitTable(
        train=frame.iloc[train].reset_index(drop=True),
        test=frame.iloc[test].reset_index(drop=True),
        train_labels=labels[train],
        test_labels=labels[test],
    )


def split_stratified(labels: NDArray[np.int64], n_train: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into a training and a test part that each have the class shares of the whole.

    Classes get their share of ``n_train`` by largest remainder, so that the sizes are exact.

    Args:
        labels: class indices, ``(N,)``.
        n_train: number of training rows, between 1 and N - 1.
        seed: seed of the draw. The same seed gives the same split with the same version of NumPy.

    Returns:
        Indices of the training rows and of the test rows, in the order of the table.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n_train / len(labels))
    sizes = np.floor(exact).astype(np.int64)
    for index in np.argsort(sizes - exact, kind="stable")[: n_train - int(sizes.sum())]:
        sizes[index] += 1
    drawn = [rng.permutation(np.flatnonzero(labels == value))[:size] for value, size in zip(classes, sizes, strict=True)]
    is_train = np.zeros(len(labels), dtype=bool)
    is_train[np.concatenate(drawn)] = True
    return np.flatnonzero(is_train).astype(np.int64), np.flatnonzero(~is_train).astype(np.int64)
