"""Models and rows in raw form, made into a module and the model's columns before a pipeline starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.actions.features import Categorical, Ordinal
from cfptq.errors import DataError, ModelError
from cfptq.network.scikit_learn import is_scikit_learn_model, read_classifier, split_pipeline
from cfptq.network.several_inputs import join_inputs, list_needed_inputs
from cfptq.network.wrappers import unwrap
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


def read_model(
    model: Any, output: str | None = None, inputs: Mapping[str, Sequence[str | int]] | None = None, action_set: Any = None
) -> RawModel:
    """Read a module, the path of an ONNX file, or a fitted scikit-learn classifier or pipeline.

    Args:
        model: the model.
        output: name of the output with the class scores, for an ONNX file with several.
        inputs: columns of each input of a module whose forward takes several. By default two inputs are the columns that hold codes of
            categories and the others, where the module runs with one of the two orders alone.
        action_set: what people can change, which names the columns.

    Raises:
        ModelError: ``model`` is of another kind, cannot be read, or its inputs are not known.
    """
    if isinstance(model, nn.Module):
        plain = unwrap(model)
        needed = list_needed_inputs(plain)
        if inputs is not None or len(needed) > 1:
            return RawModel(_join(plain, needed, inputs, action_set))
    if inputs is not None:
        raise ModelError("inputs must be None for other models than a module whose forward takes several inputs.")
    if isinstance(model, str | os.PathLike) or not is_scikit_learn_model(model):
        return RawModel(as_module(model, output))
    encoder, classifier = split_pipeline(model)
    classes = tuple(label.item() if hasattr(label, "item") else label for label in classifier.classes_)
    return RawModel(as_module(read_classifier(classifier), output), encoder, classes)


def _join(module: nn.Module, needed: list[str], inputs: Mapping[str, Sequence[str | int]] | None, action_set: Any) -> nn.Module:
    """Return a module of all columns, or the module itself where nothing tells what its inputs are."""
    names = getattr(action_set, "column_names", None)
    if not isinstance(action_set, ActionSet) or names is None:
        return as_module(module)
    if inputs is not None:
        return join_inputs(module, inputs, names)
    codes = {f.column: f.codes for f in action_set.features if isinstance(f, Ordinal | Categorical) and f.column is not None and f.codes}
    coded = list(codes)
    others = [column for column in range(len(names)) if column not in coded]
    if len(needed) != 2 or not coded or not others:
        return as_module(module)
    # The least and the greatest codes, beside numbers that are no codes.
    example = torch.full((2, len(names)), -1.5)
    for column, values in codes.items():
        example[:, column] = torch.tensor([min(values), max(values)])
    found = []
    for first, second in ((others, coded), (coded, others)):
        try:
            found.append(join_inputs(module, {needed[0]: sorted(first), needed[1]: sorted(second)}, names, example))
        except ModelError:
            continue
    return found[0] if len(found) == 1 else as_module(module)
