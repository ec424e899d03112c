"""Action sets with networks as YAML files, with the networks as ONNX files beside them."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cfptq.actions.image_coder import load_network, save_networks
from cfptq.actions.yaml_format import construct
from cfptq.errors import FileError
from cfptq.io.atomic import write_text
from cfptq.io.files import as_path, read_text
from cfptq.io.suggestions import did_you_mean
from cfptq.io.yaml import RepeatedKeyError, UniqueKeyLoader

VERSION = 1
#: Fields that hold a network.
NETWORKS = ("encoder", "decoder")

T = TypeVar("T")


def save_fields(path: str | os.PathLike[str], kind: str, space: Any, contents: Mapping[str, bytes]) -> None:
    """Write an action set as YAML.

    Args:
        path: the file. Networks are written beside it.
        kind: the format's name.
        space: the action set, a dataclass.
        contents: ONNX files of its networks by their fields.
    """
    file = as_path(path)
    document: dict[str, Any] = {"format": kind, "version": VERSION}
    for field in dataclasses.fields(space):
        value = getattr(space, field.name)
        if field.name not in NETWORKS and value != field.default:
            document[field.name] = _as_list(value)
    document.update(save_networks(file, contents))
    write_text(file, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))


def load_fields(path: str | os.PathLike[str], kind: str, cls: type[T]) -> T:
    """Read an action set that ``save_fields`` wrote.

    Args:
        path: the file.
        kind: the format's name.
        cls: class of the action set, a dataclass.

    Raises:
        FileError: the file or a network is missing, is not of this kind, or was changed.
        ActionSetError: the action set contradicts itself.
    """
    file = as_path(path)
    document = read_document(file)
    if document.get("format") != kind:
        raise FileError(f"{file} must have the first line `format: {kind}`, got the format {reprlib.repr(document.get('format'))}.")
    if document.get("version") != VERSION:
        raise FileError(f"{file}: version must be {VERSION}, got {reprlib.repr(document.get('version'))}. Update cfptq, or save it again.")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    fields: dict[str, Any] = {}
    for name, value in document.items():
        if name in ("format", "version"):
            continue
        if name not in known:
            raise FileError(f"{file}: unknown key {name!r}{did_you_mean(name, known)}. Known keys are {', '.join(known)}.")
        fields[name] = load_network(file, name, value) if name in NETWORKS else _as_tuple(value)
    return construct(cls, fields, str(file))


def read_document(path: Path) -> Mapping[str, Any]:
    """Read a YAML mapping.

    Raises:
        FileError: there is no such file, or it is no YAML mapping.
    """
    try:
        document = yaml.load(read_text(path), Loader=UniqueKeyLoader)
    except RepeatedKeyError as error:
        raise FileError(f"{path}: {error}. Keep one of them.") from error
    except yaml.YAMLError as error:
        raise FileError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping):
        raise FileError(f"{path} is not an action set. It must be a YAML mapping that begins with its format.")
    return document


def _as_list(value: Any) -> Any:
    return [_as_list(entry) for entry in value] if isinstance(value, tuple) else value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list) else value
