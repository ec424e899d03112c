"""Encoding of raw features as the model's columns, with standardized numbers and one-hot categories."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from cfptq.datasets.dataset import Dataset

#: Statistics that differ by less, relative or absolute, are the same. Rounding is some 1e-12, and one row more of 100,000 some 1e-5.
STATISTICS_TOLERANCE = 1e-8


def fit_encoder(dataset: Dataset) -> ColumnTransformer:
    """Fit an encoder on the training rows.

    Numbers are standardized by their mean and σ. Categories are one-hot over the levels of the training rows. A missing category or
    another level is all zero. It has no level of its own, so that no recourse can lead there.
    """
    categories = list(dataset.categorical)
    levels = [sorted(dataset.train[name].dropna().unique()) for name in categories]
    one_hot = OneHotEncoder(categories=levels, handle_unknown="ignore", sparse_output=False)
    parts = [("numbers", StandardScaler(), list(dataset.numbers)), ("categories", one_hot, categories)]
    transformer = ColumnTransformer([part for part in parts if part[2]], verbose_feature_names_out=False)
    return transformer.fit(dataset.train)


@dataclass(frozen=True)
class ColumnsDescription:
    """Description of columns and training rows, by which a network is kept from columns that it was not trained on.

    Attributes:
        names: SHA-256 of the columns' names, in their order.
        statistics: mean and σ of each standardized feature, means first.
        class_counts: number of training rows of each class.
    """

    names: str
    statistics: tuple[float, ...]
    class_counts: tuple[int, ...]

    def fits(self, other: ColumnsDescription) -> bool:
        """Tell whether ``other`` describes the same columns. Statistics may differ by rounding, since processors sum in another order."""
        return (
            self.names == other.names
            and self.class_counts == other.class_counts
            and len(self.statistics) == len(other.statistics)
            and all(
                math.isclose(own, others, rel_tol=STATISTICS_TOLERANCE, abs_tol=STATISTICS_TOLERANCE)
                for own, others in zip(self.statistics, other.statistics, strict=True)
            )
        )


@dataclass(frozen=True)
class Columns:
    """A data set as a model sees it.

    Attributes:
        train: training rows, float32 ``(N, d)``.
        test: test rows, float32 ``(M, d)``.
        train_labels: classes of the training rows, int64 ``(N,)``.
        test_labels: classes of the test rows, int64 ``(M,)``.
        classes: number of classes.
        encoder: the fitted encoder.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    classes: int
    encoder: ColumnTransformer

    def describe(self) -> ColumnsDescription:
        """Describe what a network that is trained on these columns depends on."""
        names = "\n".join(str(name) for name in self.encoder.get_feature_names_out())
        fitted = [transformer for _, transformer, _ in self.encoder.transformers_]
        values = [value for transformer in fitted for name in ("mean_", "scale_") for value in getattr(transformer, name, ())]
        return ColumnsDescription(
            names=hashlib.sha256(names.encode()).hexdigest(),
            statistics=tuple(float(value) for value in values),
            class_counts=tuple(torch.bincount(self.train_labels, minlength=self.classes).tolist()),
        )


def encode(dataset: Dataset, fitted: ColumnTransformer | None = None) -> Columns:
    """Encode the training and test rows of a data set.

    Args:
        dataset: the data set.
        fitted: fitted encoder. Default: a new one from ``fit_encoder``.
    """
    transformer = fitted if fitted is not None else fit_encoder(dataset)
    return Columns(
        train=_encode_rows(transformer, dataset.train),
        test=_encode_rows(transformer, dataset.test),
        train_labels=torch.from_numpy(dataset.train_labels.copy()),
        test_labels=torch.from_numpy(dataset.test_labels.copy()),
        classes=len(dataset.label_names),
        encoder=transformer,
    )


def _encode_rows(transformer: ColumnTransformer, frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(transformer.transform(frame), dtype=np.float32))
