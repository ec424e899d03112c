"""Audited ONNX files that encode raw columns themselves, read from the model's columns on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnx
import pandas as pd
from torch import Tensor

from cfptq.actions import Remark
from cfptq.errors import ModelError
from cfptq.network.onnx.file import read_onnx
from cfptq.network.onnx.raw_inputs import (
    count_other_columns,
    cut_preprocessing,
    find_columns_tensor,
    list_inputs,
    read_columns_tensor,
    takes_raw_columns,
)
from cfptq.network.predictor import Model


def read_raw_files(models: Sequence[Model], people: Any, columns: Tensor) -> tuple[list[Model], tuple[Remark, ...]]:
    """Return models that take columns, and remarks on files whose own preprocessing encodes people otherwise than the action set does.

    A file that records no tensor of columns is run on the people, and the tensor that holds their columns is searched.

    Args:
        models: the audited models. All but ONNX files with raw inputs are returned as they are.
        people: raw rows, or columns.
        columns: the people's columns (N, d), as the action set encodes them.

    Raises:
        ModelError: a file takes raw columns, and no tensor in it holds the action set's columns for these people.
    """
    read: list[Model] = []
    remarks: list[Remark] = []
    for model in models:
        content = read_onnx(model) if isinstance(model, str | os.PathLike) else None
        if content is None or (not takes_raw_columns(content) and read_columns_tensor(content) is None):
            read.append(model)
            continue
        name = os.path.basename(os.fspath(model))  # type: ignore[arg-type]
        tensor = read_columns_tensor(content)
        if tensor is None:
            tensor = _find(content, name, people, columns)
            content.metadata_props.append(onnx.StringStringEntryProto(key="cfptq.columns", value=tensor))
            read.append(_name(cut_preprocessing(content, tensor, columns.shape[1]), name))
        else:
            read.append(model)
        if isinstance(people, pd.DataFrame) and all(value.name in people.columns for value in list_inputs(content)):
            other = count_other_columns(content, people, columns.numpy())
            if other:
                reading = "Figures are those of the action set's columns. Encode people by the encoder that the file holds."
                remarks.append(Remark(name, "other columns", other, len(columns), None, reading))
    return read, tuple(remarks)


def _find(content: onnx.ModelProto, name: str, people: Any, columns: Tensor) -> str:
    taken = ", ".join(value.name for value in list_inputs(content))
    if not isinstance(people, pd.DataFrame):
        raise ModelError(f"{name} takes raw columns ({taken}), so people must be a DataFrame that has them. Give raw people.")
    tensor = find_columns_tensor(content, people, columns.numpy())
    if tensor is None:
        raise ModelError(
            f"{name} takes raw columns ({taken}), and no tensor in it holds the columns that the action set gives for these people. "
            "Place the action set on the encoder that the file holds, or export the file by Result.to_onnx(preprocessing=…)."
        )
    return tensor


def _name(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.name = name
    return model
