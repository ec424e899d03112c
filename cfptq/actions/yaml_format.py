"""The YAML format of action sets, which is versioned and complete with encoding and statistics."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cfptq.actions.constraints.yaml_form import parse_entries, to_entry
from cfptq.actions.curves import format_curve, parse_curve
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Ordinal, Statistics
from cfptq.errors import ActionSetError, FileError
from cfptq.io.suggestions import did_you_mean
from cfptq.io.yaml import RepeatedKeyError, UniqueKeyLoader

FORMAT = "cfptq-action-set"
VERSION = 1
MAX_FILE_BYTES = 2**26  # Larger files are refused. A feature with statistics takes about 300 bytes.

_KINDS: dict[str, type[AnyFeature]] = {"continuous": Continuous, "integer": Integer, "ordinal": Ordinal, "categorical": Categorical}
_SEQUENCES = (
    "bounds",
    "bounds_share",
    "domain",
    "levels",
    "reachable",
    "frequencies",
    "codes",
    "edges",
    "columns",
    "off",
    "on",
    "indicator_values",
    "merged",
)
_SETTING_SEQUENCES = ("column_names", "unseen", "norm")

T = TypeVar("T")


def format_yaml(features: Sequence[AnyFeature], settings: Mapping[str, Any]) -> str:
    """Format features and the settings of their action set as YAML, which ``parse_yaml`` reads back.

    Args:
        features: the features.
        settings: further fields of the action set that differ from their defaults, by name.
    """
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    document.update((name, _to_yaml_value(value)) for name, value in settings.items() if name != "constraints")
    document["features"] = [_format_feature(feature) for feature in features]
    if settings.get("constraints"):
        document["constraints"] = [to_entry(constraint) for constraint in settings["constraints"]]
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: str | os.PathLike[str], known: Iterable[str]) -> dict[str, Any]:
    """Read the fields of an action set from a file, as ``parse_yaml`` does."""
    if not isinstance(path, str | os.PathLike):
        raise FileError(f"path must be the path of an action-set file, got {path!r}.")
    source = Path(path)
    try:
        if source.exists() and not source.is_file():
            raise FileError(f"{source} must be a regular file, and it is a folder, a device or a pipe.")
        if source.is_file() and source.stat().st_size > MAX_FILE_BYTES:
            raise FileError(f"{source} must have at most {MAX_FILE_BYTES} bytes, got {source.stat().st_size}.")
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"There is no action-set file {source}. ActionSet.save writes one.") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{source} is not a text file. Give the YAML that ActionSet.save wrote.") from error
    except OSError as error:
        raise FileError(f"Cannot read {source}: {error.strerror}.") from error
    return parse_yaml(text, known, str(source))


def parse_yaml(text: str, known: Iterable[str], source: str) -> dict[str, Any]:
    """Parse the fields of an action set from YAML.

    Args:
        text: the YAML document.
        known: names of the action set's fields.
        source: where the text comes from, for messages.

    Raises:
        FileError: the text is not YAML, is not an action set, has an unknown or repeated key, or has another version.
        ActionSetError: a feature contradicts itself.
    """
    try:
        document = yaml.load(text, Loader=UniqueKeyLoader)
    except RepeatedKeyError as error:
        raise FileError(f"{source}: {error}. Keep one of them.") from error
    except yaml.YAMLError as error:
        raise FileError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise FileError(f"{source} is not an action set. Its first line must be `format: {FORMAT}`.")
    version = document.get("version")
    if version != VERSION:
        raise FileError(f"{source}: version must be {VERSION}, got {reprlib.repr(version)}. Update cfptq, or save the action set again.")
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    _require_known_keys(fields, list(known), source)
    entries = fields.pop("features", None)
    if not isinstance(entries, list):
        raise FileError(f"{source}: features must be a list with one entry for each feature, got {reprlib.repr(entries)}.")
    _lists_to_tuples(fields, _SETTING_SEQUENCES)
    if "constraints" in fields:
        fields["constraints"] = parse_entries(fields["constraints"], source)
    return {"features": tuple(_parse_feature(entry, source) for entry in entries), **fields}


def construct(kind: type[T], fields: Mapping[str, Any], source: str) -> T:
    """Construct ``kind`` from fields of a document, naming ``source`` in errors."""
    try:
        return kind(**fields)
    except ActionSetError as error:
        raise ActionSetError(f"{source}: {error}") from error
    except TypeError as error:
        raise FileError(f"{source}: {str(error).replace('__init__() ', '')}") from error


def _format_feature(feature: AnyFeature) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": feature.name, "kind": feature.kind}
    for field in dataclasses.fields(feature):
        value = getattr(feature, field.name)
        if field.name != "name" and (value != field.default or isinstance(value, bool) != isinstance(field.default, bool)):
            is_curve = field.name == "curve"
            entry[field.name] = [format_curve(part, feature.name) for part in value] if is_curve else _to_yaml_value(value)
    return entry


def _parse_feature(entry: Any, source: str) -> AnyFeature:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise FileError(f"{source}: each feature must be a mapping with a name, got {reprlib.repr(entry)}.")
    name = entry["name"]
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FileError(f"{source}: {name}: kind must be one of {', '.join(_KINDS)}, got {reprlib.repr(kind)}{did_you_mean(kind, _KINDS)}.")
    fields = {key: value for key, value in entry.items() if key not in ("name", "kind")}
    _require_known_keys(fields, [field.name for field in dataclasses.fields(_KINDS[kind]) if field.name != "name"], f"{source}: {name}")
    _lists_to_tuples(fields, _SEQUENCES)
    if "curve" in fields:
        if not isinstance(fields["curve"], list):
            raise FileError(f"{source}: {name}: curve must be a list of functions, got {reprlib.repr(fields['curve'])}.")
        fields["curve"] = tuple(parse_curve(part, f"{source}: {name}") for part in fields["curve"])
    statistics = fields.get("statistics")
    if statistics is not None:
        known = [field.name for field in dataclasses.fields(Statistics)]
        if not isinstance(statistics, Mapping):
            raise FileError(f"{source}: {name}: statistics must be a mapping of {', '.join(known)}, got {reprlib.repr(statistics)}.")
        _require_known_keys(statistics, known, f"{source}: {name}: statistics")
        fields["statistics"] = construct(Statistics, statistics, f"{source}: {name}")
    return construct(_KINDS[kind], {"name": name, **fields}, source)


def _lists_to_tuples(fields: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if isinstance(fields.get(key), list):
            fields[key] = tuple(tuple(item) if isinstance(item, list) else item for item in fields[key])


def _require_known_keys(fields: Mapping[Any, Any], known: Sequence[str], source: str) -> None:
    for key in fields:
        if key not in known:
            raise FileError(f"{source}: unknown key {key!r}{did_you_mean(key, known)}. Known keys are {', '.join(known)}.")


def _to_yaml_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: _to_yaml_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_to_yaml_value(item) for item in value] if isinstance(value, tuple) else value


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes short lists on one line, so that a person can read and edit the file."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    is_flat = all(not isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=is_flat)


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML writes U+0085 as it is, and reads it as the end of a line. In double quotes, it is escaped.
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
