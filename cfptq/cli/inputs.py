"""Readers of the models and action sets that commands are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfptq.cli.image_files import LoadedImages, holds_images, load_images
from cfptq.cli.table_files import read_table
from cfptq.errors import ConfigurationError, DataError, ModelError
from cfptq.io.suggestions import did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cfptq.actions import ActionSet, ActionSpace, LatentActionSet, SemanticActionSet


def read_module(model: str, state: Path | None, output: str | None = None) -> nn.Module:
    """Build the module of a user's function, or of an ONNX file.

    Args:
        model: ``package.module:function``, or the path of an ONNX file.
        state: ``.safetensors`` state of a module that a function builds, or None.
        output: Output of an ONNX file with the class scores. None finds it.

    Raises:
        ModelError: ``state`` is given for an ONNX file, ``output`` for a function, or the model cannot be built.
    """
    from cfptq.network import OnnxModule, load_factory

    if ":" in model and not Path(model).exists():
        if output is not None:
            raise ModelError(f"--output needs an ONNX file, got the function {model}. Leave --output out.")
        return load_factory(model, state)
    if state is not None:
        raise ModelError(f"--state needs a model 'package.module:function', got the file {model}. Leave --state out.")
    return OnnxModule(model, output=output)


def as_audited(model: str, state: Path | None) -> nn.Module | str:
    """Return the path of an ONNX file as it is, and anything else as a module."""
    return model if state is None and (Path(model).exists() or ":" not in model) else read_module(model, state)


def read_action_set(path: Path) -> ActionSet | LatentActionSet | SemanticActionSet:
    """Read an action set of any kind from a YAML file, with its encoding or its networks."""
    from cfptq.actions import load_action_space

    return load_action_space(path)


def read_loader(path: Path, actions: ActionSpace, label: str | None, *, may_lack_label: bool = False) -> list[Any]:
    """Read a table of people or images as a loader of one batch.

    Args:
        path: a CSV or Parquet file, an .npz file, or a folder of images.
        actions: action set that encodes the features, or says the shape of an image.
        label: column or array with the true class. None gives a batch without labels.
        may_lack_label: whether a table without the column gives a batch without labels.

    Raises:
        DataError: the table has no such column, or the images have another shape.
        FileError: a file cannot be read.
    """
    if holds_images(path):
        import numpy as np

        images = read_images(path, actions, None if may_lack_label else label)
        return [images.rows] if images.labels is None else [(images.rows, np.array(images.labels))]
    frame = read_table(path)
    if may_lack_label and label not in frame.columns:
        label = None
    if label is not None:
        get_column(frame, label, path)
    return as_loader(frame, actions, label)


def read_images(path: Path, actions: ActionSpace, label: str | None) -> LoadedImages:
    """Read images for an action set that speaks of images.

    Raises:
        DataError: the action set does not, or the images have another shape.
        FileError: a file cannot be read.
    """
    row_shape = getattr(actions, "row_shape", None)
    if row_shape is None:
        raise DataError(f"{path} holds images, and the action set speaks of a table. Give a CSV or Parquet file.")
    return load_images(path, row_shape, label)


def get_column(frame: pd.DataFrame, name: str, path: Path) -> pd.Series[Any]:
    """Return a column of the table in ``path`` by its name.

    Raises:
        DataError: The table has no such column.
    """
    if name not in frame.columns:
        known = [str(column) for column in frame.columns]
        raise DataError(f"{path} has no column {name!r}{did_you_mean(name, known)}. Its columns are {', '.join(known)}.")
    return frame[name]


def as_loader(frame: pd.DataFrame, actions: ActionSpace, label: str | None) -> list[Any]:
    """Return the table as a loader of one batch.

    Args:
        frame: Raw features, and the label if there is one.
        actions: Action set that encodes the features.
        label: Column with the true class. None gives a batch without labels. A missing label becomes -1.
    """
    encode = getattr(actions, "encode", None)
    if encode is None:
        raise DataError("The action set speaks of images, and the data are a table. Give an .npz file or a folder of images.")
    columns = encode(frame)
    if label is None:
        return [columns]
    labels = frame[label]
    if labels.isna().any():
        labels = labels.fillna(-1)
    # pandas reads a column of whole numbers with a gap as floats.
    whole = labels.dtype.kind == "f" and bool((labels % 1 == 0).all())
    return [(columns, (labels.astype("int64") if whole else labels).to_numpy(copy=True))]


def as_pins(layers: list[str]) -> dict[str, int]:
    """Return the bits by the name of the layer, from entries NAME=BITS."""
    pins: dict[str, int] = {}
    for entry in layers:
        name, _, bits = entry.rpartition("=")
        if not (name and bits.isdecimal()):
            raise ConfigurationError(f"--layer must be NAME=BITS, such as head=8, got {entry!r}.")
        pins[name] = int(bits)
    return pins
