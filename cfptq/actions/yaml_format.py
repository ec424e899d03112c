"""The action set as a YAML document: versioned, read with the safe loader, and complete, encoding and statistics included."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from cfptq.actions.action_set import ActionSet
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Ordinal, Statistics
from cfptq.actions.suggestions import did_you_mean
from cfptq.errors import ActionSetError, FileError
from cfptq.io.yaml import RepeatedKeyError, UniqueKeyLoader

FORMAT = "cfptq-action-set"
VERSION = 1

_KINDS: dict[str, type[AnyFeature]] = {"continuous": Continuous, "integer": Integer, "ordinal": Ordinal, "categorical": Categorical}
_SEQUENCES = ("bounds", "bounds_share", "domain", "levels", "reachable", "frequencies", "codes", "columns", "off", "on")


def to_text(action_set: ActionSet) -> str:
    """YAML that :func:`from_text` reads back to an equal action set."""
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for field in dataclasses.fields(action_set):
        value = getattr(action_set, field.name)
        if field.name != "features" and value != field.default:
            document[field.name] = _plain(value)
    document["features"] = [_feature(feature) for feature in action_set.features]
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def from_file(path: str | os.PathLike[str]) -> ActionSet:
    """Read an action set's file; see :meth:`cfptq.ActionSet.load`."""
    where = Path(path)
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"no action-set file {where}; ActionSet.save writes one") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{where} is not a text file; give the YAML that ActionSet.save wrote") from error
    except OSError as error:
        raise FileError(f"cannot read {where}: {error.strerror}") from error
    return from_text(text, str(where))


def from_text(text: str, where: str = "the document") -> ActionSet:
    """The action set of a YAML document; ``where`` is for messages.

    Raises:
        FileError: not YAML, not an action set, unknown or repeated keys, or from a newer cfptq.
        ActionSetError: it contradicts itself.
    """
    try:
        document = yaml.load(text, Loader=UniqueKeyLoader)
    except RepeatedKeyError as error:
        raise FileError(f"{where}: {error}; keep one of them") from error
    except yaml.YAMLError as error:
        raise FileError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise FileError(f"{where} is not an action set: its first line should be `format: {FORMAT}`")
    version = document.get("version")
    if version != VERSION:
        raise FileError(f"{where} is version {version!r}; this cfptq reads version {VERSION}. Update cfptq, or save the action set again")
    given = {key: value for key, value in document.items() if key not in ("format", "version")}
    known = [field.name for field in dataclasses.fields(ActionSet)]
    _refuse_unknown(given, known, where)
    rows = given.pop("features", None)
    if not isinstance(rows, list):
        raise FileError(f"{where}: features is a list, one entry for each feature")
    features = tuple(_read_feature(row, where) for row in rows)
    for key in ("column_names", "unseen", "norm"):
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
    return _built(ActionSet, {"features": features, **given}, where)  # type: ignore[no-any-return]


def _feature(feature: AnyFeature) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
    for field in dataclasses.fields(feature):
        value = getattr(feature, field.name)
        if field.name != "name" and (value != field.default or isinstance(value, bool) != isinstance(field.default, bool)):
            entry[field.name] = _plain(value)
    return entry


def _read_feature(entry: Any, where: str) -> AnyFeature:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise FileError(f"{where}: each feature is a mapping with a name, not {entry!r}")
    name = entry["name"]
    kind = entry.get("kind")
    if kind not in _KINDS:
        raise FileError(f"{where}: {name}: kind is one of {', '.join(_KINDS)}, not {kind!r}{did_you_mean(kind, _KINDS)}")
    given = {key: value for key, value in entry.items() if key not in ("name", "kind")}
    _refuse_unknown(given, [field.name for field in dataclasses.fields(_KINDS[kind]) if field.name != "name"], f"{where}: {name}")
    for key in _SEQUENCES:
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
    if isinstance(given.get("statistics"), Mapping):
        given["statistics"] = _built(Statistics, dict(given["statistics"]), f"{where}: {name}")
    return _built(_KINDS[kind], {"name": name, **given}, where)  # type: ignore[no-any-return]


def _built(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    try:
        return kind(**values)
    except ActionSetError as error:
        raise ActionSetError(f"{where}: {error}") from error
    except TypeError as error:
        raise FileError(f"{where}: {str(error).replace('__init__() ', '')}") from error


def _refuse_unknown(given: Mapping[Any, Any], known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise FileError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, so that a person can read and edit the file."""


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


_Dumper.add_representer(list, _list)
