"""The type of a data set, with the raw features of people, their classes and the meaning of the columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfptq.errors import DataError

#: Finite ordered domain of an ordinal column, lowest value first.
Domain = tuple[float | int | str, ...]


@dataclass(frozen=True)
class Dataset:
    """A labelled table of people, split into training and test people.

    Every column has exactly one kind: ``continuous``, ``integer``, ``ordinal`` or ``categorical``.

    Attributes:
        name: name of the data set.
        train: raw features of the training people, without the label. Missing categories are NaN.
        test: raw features of the test people, in the same columns.
        train_labels: class of each training person, an int64 index into ``label_names``.
        test_labels: class of each test person, an int64 index into ``label_names``.
        label_names: names of the classes.
        favourable: index of the class that people want.
        continuous: columns of real numbers.
        integer: columns of whole numbers.
        ordinal: columns of numbers with a finite ordered domain, with their domains.
        categorical: columns of text levels.
        groups: columns whose values are the subgroups of the report (Table 9).
        missing: representation of missing values, in words.
        source: publisher, licence and known defects.
        synthetic: true if the people are generated.

    Raises:
        DataError: the fields contradict one another.
    """

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    favourable: int
    continuous: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    ordinal: Mapping[str, Domain] = field(default_factory=dict)
    categorical: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    missing: str = "no value is missing"
    source: str = ""
    synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ordinal", MappingProxyType({name: tuple(domain) for name, domain in self.ordinal.items()}))
        kinds = [*self.continuous, *self.integer, *self.ordinal, *self.categorical]
        if sorted(kinds) != sorted(self.train.columns) or list(self.train.columns) != list(self.test.columns):
            raise DataError(
                f"Data set {self.name!r}: each column of train and test must have exactly one kind. The kinds name {sorted(kinds)}, "
                f"train has {sorted(self.train.columns)} and test has {sorted(self.test.columns)}."
            )
        for part, frame, labels in (("train", self.train, self.train_labels), ("test", self.test, self.test_labels)):
            if len(frame) == 0 or len(frame) != len(labels):
                raise DataError(
                    f"Data set {self.name!r}: {part} must have one label for each row and at least one row, "
                    f"got {len(frame)} rows and {len(labels)} labels."
                )
            if labels.min() < 0 or labels.max() >= len(self.label_names):
                raise DataError(f"Data set {self.name!r}: the labels of {part} must lie between 0 and {len(self.label_names) - 1}.")
        if not 0 <= self.favourable < len(self.label_names):
            names = list(self.label_names)
            raise DataError(f"Data set {self.name!r}: favourable must be the index of one of {names}, got {self.favourable}.")
        if unknown := [name for name in self.groups if name not in self.train.columns]:
            raise DataError(f"Data set {self.name!r}: groups must be columns, unlike {unknown}.")

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns that a model sees as one number each, in the order of the table."""
        return tuple(name for name in self.train.columns if name not in self.categorical)

    @property
    def favourable_share(self) -> float:
        """Share of all training and test people whose label is the favourable class."""
        labels = np.concatenate([self.train_labels, self.test_labels])
        return float((labels == self.favourable).mean())
