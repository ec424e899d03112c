"""ONNX files that take raw columns, one input each, and encode them before the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pandas as pd
from onnx import TensorProto, helper

from cfptq.errors import DataError, ModelError
from cfptq.network.onnx.session import add_zero_points, open_session

#: Metadata key of the name of the tensor that holds the encoded columns.
COLUMNS_KEY = "cfptq.columns"
#: Metadata key of a file that was cut behind its preprocessing, in memory.
CUT_KEY = "cfptq.without_preprocessing"
#: Text that stands for a missing category in a file's input.
MISSING_TEXT = ""
#: NumPy dtype -> ONNX element type of the inputs of raw columns.
RAW_TYPES: dict[str, int] = {
    "float64": TensorProto.DOUBLE,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
#: Rows on which the tensor of columns is looked for.
_PROBED_ROWS = 256
#: Columns differ by rounding up to this share, and this much.
_SAME = 1e-5
_NUMPY_TYPES = {number: np.dtype(name) for name, number in RAW_TYPES.items()}


def read_columns_tensor(model: onnx.ModelProto) -> str | None:
    """Return the name of the tensor with the encoded columns that a file with preprocessing records, or None for other files."""
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    return recorded.get(COLUMNS_KEY) or None


def list_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph inputs that are not initializers."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initialized]


def cut_preprocessing(model: onnx.ModelProto, columns: str, width: int | None = None) -> onnx.ModelProto:
    """Return the part of a model behind the tensor ``columns``, which becomes its only input.

    Args:
        model: the model. It is not changed.
        columns: name of the tensor with the encoded columns.
        width: number of columns. By default what the model's own shapes say.

    Raises:
        ModelError: there is no such tensor, or the scores are computed from raw columns beside it.
    """
    needed = {value.name for value in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        outputs = set(node.output) - {columns}
        if outputs & needed:
            kept.append(node)
            needed |= {name for name in node.input if name}
    raw = {value.name for value in list_inputs(model)} & needed - {columns}
    if columns not in needed or raw:
        reason = f"its outputs need the raw column {sorted(raw)[0]!r} too" if raw else "no output is computed from it"
        raise ModelError(f"The ONNX model cannot be read from its tensor {columns!r} on, because {reason}. Export it again.")
    known = next((value for value in model.graph.value_info if value.name == columns), None)
    if width is None and known is not None and len(known.type.tensor_type.shape.dim) == 2:
        width = known.type.tensor_type.shape.dim[1].dim_value or None
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    constants = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in needed]
    del graph.node[:], graph.initializer[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.input.append(helper.make_tensor_value_info(columns, TensorProto.FLOAT, ["rows", width]))
    props = {entry.key: entry.value for entry in cut.metadata_props if entry.key != COLUMNS_KEY}
    helper.set_model_props(cut, {**props, CUT_KEY: columns})
    return cut


def is_cut(model: onnx.ModelProto) -> bool:
    """Return whether ``cut_preprocessing`` made this model."""
    return any(entry.key == CUT_KEY for entry in model.metadata_props)


def without_preprocessing(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the part of a model behind the preprocessing that it records, or the model itself."""
    columns = read_columns_tensor(model)
    return model if columns is None or any(value.name == columns for value in list_inputs(model)) else cut_preprocessing(model, columns)


def to_inputs(model: onnx.ModelProto, frame: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Return raw rows as the inputs of a file with preprocessing, each (N, 1).

    Args:
        model: the file's content.
        frame: raw rows with a column for each input.

    Raises:
        DataError: a column is missing, or its values do not fit the type of its input.
    """
    result: dict[str, npt.NDArray[Any]] = {}
    for value in list_inputs(model):
        name, kind = value.name, value.type.tensor_type.elem_type
        if name not in frame.columns:
            raise DataError(f"The frame has no column {name!r}, which the ONNX file takes. It has {', '.join(map(str, frame.columns))}.")
        series = frame[name]
        try:
            if kind == TensorProto.STRING:
                words = [MISSING_TEXT if missing else str(word) for word, missing in zip(series.tolist(), series.isna(), strict=True)]
                result[name] = np.array(words, dtype=object).reshape(-1, 1)
                continue
            dtype = _NUMPY_TYPES[kind]
            numbers = pd.to_numeric(series).to_numpy(dtype=np.float64, na_value=np.nan)
            if dtype.kind in "iub" and bool(np.isnan(numbers).any()):
                raise DataError(f"{name}: the ONNX file takes {dtype.name}, which holds no missing value. Impute them first.")
            result[name] = numbers.astype(dtype).reshape(-1, 1)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{name}: the values do not fit the input of the ONNX file ({error}). Correct their type.") from error
    return result


def run_raw(model: onnx.ModelProto, frame: pd.DataFrame, tensors: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Run a file with preprocessing on raw rows for some of its tensors, which need not be outputs.

    Args:
        model: the file's content.
        frame: raw rows.
        tensors: names of tensors.
    """
    listed = onnx.ModelProto()
    listed.CopyFrom(model)
    known = {value.name for value in listed.graph.output}
    listed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    listed = add_zero_points(listed) or listed
    session: onnxruntime.InferenceSession = open_session(listed.SerializeToString(), threads=1)
    answers: list[npt.NDArray[Any]] = session.run(list(tensors), to_inputs(model, frame))
    return answers


def takes_raw_columns(model: onnx.ModelProto) -> bool:
    """Return whether a model takes raw columns, several inputs or one that holds no floats."""
    inputs = list_inputs(model)
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    return len(inputs) > 1 or (len(inputs) == 1 and inputs[0].type.tensor_type.elem_type not in floats)


def find_columns_tensor(model: onnx.ModelProto, frame: pd.DataFrame, columns: npt.NDArray[np.float32]) -> str | None:
    """Return the name of the last tensor that holds the given columns when a model runs on raw rows, or None.

    Args:
        model: a model that takes raw columns, with float32 tensors inside.
        frame: raw rows.
        columns: what they are encoded as, (N, d).
    """
    head = frame.iloc[:_PROBED_ROWS]
    wanted = columns[: len(head)]
    named = [name for node in model.graph.node if node.op_type != "ZipMap" for name in node.output if name]
    found = None
    for name, values in zip(named, run_raw(model, head, named), strict=True):
        is_matrix = np.shape(values) == wanted.shape and np.asarray(values).dtype == np.float32
        if is_matrix and np.allclose(values, wanted, rtol=_SAME, atol=_SAME):
            found = name
    return found


def count_other_columns(model: onnx.ModelProto, frame: pd.DataFrame, columns: npt.NDArray[np.float32]) -> int:
    """Return in how many rows a file's own preprocessing gives other columns than ``columns`` (N, d), beyond rounding."""
    (own,) = run_raw(model, frame, [str(read_columns_tensor(model))])
    return int((~np.isclose(own, columns, rtol=_SAME, atol=_SAME)).any(axis=1).sum())
