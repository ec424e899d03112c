"""From raw features to the columns that a model sees: numbers standardized, categories one-hot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from cfptq.datasets.dataset import Dataset


def encoder(dataset: Dataset) -> ColumnTransformer:
    """A transformer fitted on the training rows: numbers by their mean and σ, each category one-hot over the levels seen in training.

    A missing category, or a level that training never saw, is all zero: no level is invented for it, so nobody can be
    advised to move there.
    """
    categories = list(dataset.categorical)
    levels = [sorted(dataset.train[name].dropna().unique()) for name in categories]
    one_hot = OneHotEncoder(categories=levels, handle_unknown="ignore", sparse_output=False)
    parts = [("numbers", StandardScaler(), list(dataset.numbers)), ("categories", one_hot, categories)]
    transformer = ColumnTransformer([part for part in parts if part[2]], verbose_feature_names_out=False)
    return transformer.fit(dataset.train)


@dataclass(frozen=True)
class Columns:
    """A data set as a model sees it: rows (N, d) float32, labels (N,) int64, and the transformer that made them."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    classes: int
    encoder: ColumnTransformer


def encode(dataset: Dataset, fitted: ColumnTransformer | None = None) -> Columns:
    """Both parts of ``dataset`` in columns, by ``fitted`` or by a new :func:`encoder`."""
    transformer = fitted if fitted is not None else encoder(dataset)
    return Columns(
        train=_rows(transformer, dataset.train),
        test=_rows(transformer, dataset.test),
        train_labels=torch.from_numpy(dataset.train_labels.copy()),
        test_labels=torch.from_numpy(dataset.test_labels.copy()),
        classes=len(dataset.label_names),
        encoder=transformer,
    )


def _rows(transformer: ColumnTransformer, frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(transformer.transform(frame), dtype=np.float32))
