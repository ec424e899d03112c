"""Constraints as entries of a YAML file."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from cfptq.actions.constraints.base import Constraint
from cfptq.actions.constraints.consequences import Changes, Computed, Implies, Is, Linked, Stays, Was
from cfptq.actions.constraints.limits import AtMost, SpecialCodes, StepLimit, Transitions
from cfptq.actions.constraints.orders import Ordered, Thermometer
from cfptq.actions.constraints.people import PerPerson
from cfptq.errors import ActionSetError, FileError
from cfptq.io.suggestions import did_you_mean

KINDS: tuple[type[Constraint], ...] = (
    StepLimit, AtMost, Transitions, SpecialCodes, Ordered, Thermometer, Linked, Implies, Computed, PerPerson,
)  # fmt: skip
MAX_CONSTRAINTS = 1000
"""More constraints in one file are refused."""

_RENAMED = {"linked": {"to": "targets"}, "ordered": {"names": "features"}, "thermometer": {"names": "features"},
            "at_most": {"names": "features"}}  # fmt: skip


def _name(kind: type[Any]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


_BY_NAME = {_name(kind): kind for kind in KINDS}
_PARTS: dict[str, type[Any]] = {"changes": Changes, "is": Is, "was": Was, "stays": Stays}


def to_entry(constraint: Constraint) -> dict[str, Any]:
    """Return a constraint as plain values for YAML."""
    name = _name(type(constraint))
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(constraint):
        value = getattr(constraint, field.name)
        if value == field.default:
            continue
        fields[_RENAMED.get(name, {}).get(field.name, field.name)] = _to_plain(value)
    if isinstance(constraint, Linked):
        fields["targets"] = dict(constraint.to)
    if isinstance(constraint, Transitions):
        if isinstance(constraint.feature, str):
            fields["to"] = {start: list(ends) for start, ends in constraint.to}
        else:
            fields["to"] = [{"from": list(start), "to": [list(end) for end in ends]} for start, ends in constraint.to]
    return {name: fields}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        own = {name: _to_plain(getattr(value, name)) for name in names[1:] if getattr(value, name) is not None}
        return {_name(type(value)): getattr(value, names[0]), **own}
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value


def parse_entries(entries: Any, source: str) -> tuple[Constraint, ...]:
    """Parse the list of constraints of a file.

    Raises:
        FileError: an entry is no constraint, or there are too many.
        ActionSetError: a constraint contradicts itself.
    """
    if not isinstance(entries, list) or len(entries) > MAX_CONSTRAINTS:
        raise FileError(f"{source}: constraints must be a list of at most {MAX_CONSTRAINTS} entries, got {reprlib.repr(entries)}.")
    return tuple(_parse_entry(entry, source) for entry in entries)


def _parse_entry(entry: Any, source: str) -> Constraint:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise FileError(f"{source}: each constraint must be one name with its fields, got {reprlib.repr(entry)}.")
    (name, fields), *_ = entry.items()
    if name not in _BY_NAME:
        raise FileError(f"{source}: unknown constraint {name!r}{did_you_mean(name, _BY_NAME)}. There are {', '.join(_BY_NAME)}.")
    if not isinstance(fields, Mapping):
        raise FileError(f"{source}: {name} must be a mapping of fields, got {reprlib.repr(fields)}.")
    back = {shown: field for field, shown in _RENAMED.get(name, {}).items()}
    values: dict[str, Any] = {back.get(str(key), str(key)): value for key, value in fields.items()}
    try:
        if name == "ordered":
            return Ordered(*values.pop("names"), **values)
        if name == "implies":
            values |= {side: _parse_part(values[side], source) for side in ("when", "then")}
        if name == "transitions" and isinstance(values.get("to"), list):
            values["to"] = [(step["from"], step["to"]) for step in values["to"]]
        if name == "transitions" and isinstance(values.get("feature"), list):
            values["feature"] = tuple(values["feature"])
        return _BY_NAME[name](**values)
    except ActionSetError as error:
        raise ActionSetError(f"{source}: {error}") from error
    except (TypeError, KeyError) as error:
        raise FileError(f"{source}: {name} has a missing or unknown field ({str(error).replace('__init__() ', '')}).") from error


def _parse_part(part: Any, source: str) -> Any:
    found = [key for key in _PARTS if isinstance(part, Mapping) and key in part]
    if len(found) != 1:
        raise FileError(f"{source}: when and then must have one of {', '.join(_PARTS)}, got {reprlib.repr(part)}.")
    return _PARTS[found[0]](part[found[0]], **{str(key): value for key, value in part.items() if key != found[0]})
