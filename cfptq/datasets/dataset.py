"""What a data set is: raw features of people, the class of each, and what each column means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfptq.errors import DataError

#: An ordered, finite domain: the values an ordinal column can take, least first.
Domain = tuple[float | int | str, ...]


@dataclass(frozen=True)
class Dataset:
    """A labelled table, split into training and test people.

    ``train`` and ``test`` hold raw features in the same columns and no label; missing categories are NaN. Labels are
    class indices (int64) into ``label_names``; ``favourable`` is the class that people want. Every column has exactly
    one kind: ``continuous``, ``integer`` (whole numbers), ``ordinal`` (a number with a finite ordered domain) or
    ``categorical`` (text levels).

    Raises:
        DataError: the parts contradict one another.
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
    #: Columns whose values are the subgroups of the report (Table 9).
    groups: tuple[str, ...] = ()
    #: How missing values are kept.
    missing: str = "no value is missing"
    #: Publisher, licence, and what to know before believing a number.
    source: str = ""
    synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ordinal", MappingProxyType({name: tuple(domain) for name, domain in self.ordinal.items()}))
        kinds = [*self.continuous, *self.integer, *self.ordinal, *self.categorical]
        if sorted(kinds) != sorted(self.train.columns) or list(self.train.columns) != list(self.test.columns):
            raise DataError(
                f"data set {self.name!r}: each column of train and test needs exactly one kind; the kinds name {sorted(kinds)}, "
                f"train has {sorted(self.train.columns)} and test has {sorted(self.test.columns)}"
            )
        for part, frame, labels in (("train", self.train, self.train_labels), ("test", self.test, self.test_labels)):
            if len(frame) == 0 or len(frame) != len(labels):
                raise DataError(
                    f"data set {self.name!r}: {part} has {len(frame)} rows and {len(labels)} labels; "
                    "give one label for each, and at least one row"
                )
            if labels.min() < 0 or labels.max() >= len(self.label_names):
                raise DataError(f"data set {self.name!r}: the labels of {part} must lie in 0..{len(self.label_names) - 1}")
        if not 0 <= self.favourable < len(self.label_names):
            names = list(self.label_names)
            raise DataError(f"data set {self.name!r}: favourable is {self.favourable}; it must be the index of one of {names}")
        if unknown := [name for name in self.groups if name not in self.train.columns]:
            raise DataError(f"data set {self.name!r}: the groups {unknown} are not columns")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that a model sees as one number each, in the table's order."""
        return tuple(name for name in self.train.columns if name not in self.categorical)

    @property
    def favourable_share(self) -> float:
        """The share of all people, training and test, whose label is the favourable class."""
        labels = np.concatenate([self.train_labels, self.test_labels])
        return float((labels == self.favourable).mean())
