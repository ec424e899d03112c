"""What the commands read: models, tables, action sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfptq.errors import ConfigurationError, DataError, FileError, ModelError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from cfptq.actions import ActionSet


def read_module(model: str, state: Path | None) -> nn.Module:
    """The user's model as a torch module: built by her function, or an ONNX file's differentiable twin."""
    from cfptq.network import OnnxModule, load_factory

    if ":" in model and not Path(model).exists():
        return load_factory(model, state)
    if state is not None:
        raise ModelError(f"--state goes with a function 'package.module:function' that builds the model, but --model is the file {model}")
    return OnnxModule(model)


def as_audited(model: str, state: Path | None) -> nn.Module | str:
    """A path for an ONNX file (it is run as it is), a module for anything else."""
    return model if state is None and (Path(model).exists() or ":" not in model) else read_module(model, state)


def read_action_set(path: Path) -> ActionSet:
    """The action set of a YAML file, with the encoding it carries."""
    from cfptq.actions import ActionSet

    return ActionSet.load(path)


def read_table(path: Path) -> pd.DataFrame:
    """Rows of a CSV or Parquet file.

    Raises:
        FileError: it is missing, of another kind, empty, or cannot be read.
    """
    import pandas as pd

    readers: dict[str, Callable[[Path], pd.DataFrame]] = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    kind = next((suffix for suffix in readers if path.name.lower().removesuffix(".gz").endswith(suffix)), None)
    if kind is None:
        raise FileError(f"{path} is neither CSV nor Parquet by its name; give a .csv, .csv.gz or .parquet file")
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    try:
        frame = readers[kind](path)
    except (ValueError, OSError) as error:
        raise FileError(f"{path} cannot be read as {kind[1:]}: {error}") from error
    if len(frame) == 0:
        raise FileError(f"{path} holds no rows")
    return frame


def column_of(frame: pd.DataFrame, name: str, path: Path) -> pd.Series[Any]:
    """A column by its name.

    Raises:
        DataError: ``path`` has no such column.
    """
    if name not in frame.columns:
        raise DataError(f"{path} has no column {name!r}; its columns are {', '.join(map(str, frame.columns))}")
    return frame[name]


def as_loader(frame: pd.DataFrame, actions: ActionSet, label: str | None) -> list[Any]:
    """The table as a loader of one batch: (columns, labels), or columns alone where ``label`` is None. A missing label is -1."""
    columns = actions.encode(frame)
    if label is None:
        return [columns]
    labels = frame[label]
    if labels.isna().any():
        labels = labels.fillna(-1)
    # A column of whole numbers with a gap in it was read as floats.
    whole = labels.dtype.kind == "f" and bool((labels % 1 == 0).all())
    return [(columns, (labels.astype("int64") if whole else labels).to_numpy(copy=True))]


def as_pins(layers: list[str]) -> dict[str, int]:
    """Layer name -> bits, from entries NAME=BITS."""
    pins: dict[str, int] = {}
    for entry in layers:
        name, _, bits = entry.rpartition("=")
        if not (name and bits.isdecimal()):
            raise ConfigurationError(f"--layer {entry!r} is not NAME=BITS, such as head=8")
        pins[name] = int(bits)
    return pins


def made_folder(path: Path) -> Path:
    """``path``, as a folder that is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {path}: {error.strerror}") from error
    return path
