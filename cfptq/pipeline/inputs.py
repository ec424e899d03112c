"""Check what users pass, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import nn

from cfptq.actions import ActionSet, ActionSpace
from cfptq.errors import ActionSetError, ConfigurationError, DataError, ModelError
from cfptq.network import OnnxModule


def check_seed(seed: int) -> None:
    """Check that ``seed`` is a whole number from 0 to 2**32 - 1.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed!r}.")


def check_layers(layers: Mapping[str, int] | None) -> None:
    """Check that ``layers`` maps names to bits.

    Raises:
        ConfigurationError: it does not.
    """
    if not (layers is None or isinstance(layers, Mapping)):
        raise ConfigurationError(f"layers must map each layer's name to its bits, got {layers!r}. Pass for example {{'head': 8}}.")


def check_budget_or_limit(budget: object, max_validity_drop: object) -> None:
    """Check that not both a budget and a limit on Validity Drop are given.

    Raises:
        ConfigurationError: both are.
    """
    if budget is not None and max_validity_drop is not None:
        raise ConfigurationError("budget and max_validity_drop must not both be given. A budget fixes the bits, and a limit finds them.")


def check_action_space(action_set: ActionSpace) -> ActionSpace:
    """Return the action set, checked to speak of the model's columns.

    Raises:
        ActionSetError: it speaks of raw features, or it is no action space.
    """
    if isinstance(action_set, ActionSet) and not action_set.is_encoded:
        raise ActionSetError(
            "action_set must speak of the model's columns, and this one speaks of raw features. Call "
            "action_set.encoded_by(your fitted ColumnTransformer)."
        )
    if not isinstance(action_set, ActionSpace):
        raise ActionSetError(
            f"action_set must be a cfptq.ActionSet, or have the methods of cfptq.actions.ActionSpace, got a {type(action_set).__name__}."
        )
    return action_set


def as_module(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """Return a module as it is, and an ONNX file as a module.

    Raises:
        ModelError: ``model`` is neither, or the file cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        return OnnxModule(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module or the path of an ONNX file, got a {type(model).__name__}.")
    return model


def look_up_columns(
    people: pd.DataFrame | torch.Tensor, groups: str | Sequence[str] | Mapping[str, Sequence[Any]], label: str | Sequence[int] | None
) -> tuple[dict[str, Any], Any]:
    """Return the values of groups and labels, looked up in ``people`` where they name its columns.

    Args:
        people: raw features (a DataFrame) or columns (a tensor).
        groups: one or several columns of ``people``, or name -> one value per person.
        label: a column of ``people``, or one class per person, or None.

    Raises:
        DataError: ``people`` has no such column.
    """

    def find_column(name: str) -> Any:
        if not isinstance(people, pd.DataFrame):
            raise DataError(f"{name!r} names a column, so people must be a DataFrame, got a {type(people).__name__}. Give the values.")
        if name not in people.columns:
            raise DataError(f"people must have a column {name!r}. Its columns are {', '.join(map(str, people.columns))}.")
        return people[name].to_numpy()

    names = (groups,) if isinstance(groups, str) else groups
    found = dict(names) if isinstance(names, Mapping) else {name: find_column(name) for name in names}
    return found, find_column(label) if isinstance(label, str) else label
