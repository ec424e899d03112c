"""Models and rows in raw form, made into a module and the model's columns before a pipeline starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.errors import DataError
from cfptq.network.scikit_learn import is_scikit_learn_model, read_classifier, split_pipeline
from cfptq.pipeline.inputs import as_module


@dataclass(frozen=True)
class RawModel:
    """A model as a module, with what turns raw rows into its columns.

    Attributes:
        module: the module that takes columns.
        encoder: the fitted preprocessing of a scikit-learn pipeline; None for other models.
        classes: classes of a scikit-learn model; None for other models.
    """

    module: nn.Module
    encoder: Any | None = None
    classes: tuple[Any, ...] | None = None

    def place(self, action_set: ActionSpace) -> ActionSpace:
        """Return the action set on the model's columns, by the pipeline's own preprocessing where it speaks of raw features."""
        if self.encoder is not None and isinstance(action_set, ActionSet) and not action_set.is_encoded:
            return action_set.encoded_by(self.encoder)
        return action_set

    def index_labels(self, loader: Any) -> Any:
        """Return a loader whose labels are indices of the classes, where it is a pair of rows and labels or a list of such pairs.

        Others, and those of a model without classes of its own, are returned as they are.

        Raises:
            DataError: a label is none of the classes.
        """
        if self.classes is None:
            return loader
        if _is_pair(loader):
            return (loader[0], self._index(loader[1]))
        if isinstance(loader, list) and loader and all(map(_is_pair, loader)):
            return [(rows, self._index(labels)) for rows, labels in loader]
        return loader

    def _index(self, labels: Any) -> torch.Tensor:
        """Return the index of each label among the classes, -1 for a missing one."""
        values = np.asarray(labels).tolist()
        place_of = {label: place for place, label in enumerate(self.classes or ())}
        known = [-1 if pd.isna(label) else place_of.get(label) for label in values]
        unknown = next((label for label, place in zip(values, known, strict=True) if place is None), None)
        if unknown is not None:
            raise DataError(f"Labels must be among the model's classes {list(self.classes or ())}, got {unknown!r}.")
        return torch.tensor(known, dtype=torch.int64)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and isinstance(value[0], pd.DataFrame | np.ndarray | torch.Tensor)
        and np.ndim(value[1]) == 1
        and len(value[1]) == len(value[0])
    )


def read_model(model: Any, output: str | None = None) -> RawModel:
    """Read a module, the path of an ONNX file, or a fitted scikit-learn classifier or pipeline.

    Raises:
        ModelError: ``model`` is of another kind, or cannot be read.
    """
    if isinstance(model, str | os.PathLike) or not is_scikit_learn_model(model):
        return RawModel(as_module(model, output))
    encoder, classifier = split_pipeline(model)
    classes = tuple(label.item() if hasattr(label, "item") else label for label in classifier.classes_)
    return RawModel(as_module(read_classifier(classifier), output), encoder, classes)
