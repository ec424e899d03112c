"""Write the parts of a result into a folder, and read them back without the original model.

``result.json`` holds the size and the SHA-256 of every other file in the folder, and a digest of itself. A file that was changed, exchanged
or added is refused before it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cfptq.allocation import BitAllocation, Budget, ChannelScores, LayerScores, MeasuredScores
from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.io.atomic import atomic_folder, check_replaceable, clear_killed_writes
from cfptq.io.files import as_path, check_regular_file, describe_os_error, read_file, read_json
from cfptq.network import INPUT, OUTPUT, DecisionRule, Head, Network
from cfptq.network.onnx.interface import OnnxInterface
from cfptq.network.serialize import NETWORK_FILES, deserialize_network, digest, serialize_network
from cfptq.network.several_inputs import InputPart
from cfptq.pipeline.fewest_bits import FewestBits
from cfptq.pipeline.group_weighting import WorstGroup
from cfptq.pipeline.method import Method
from cfptq.quantize import CalibrationSet, QuantizationPlan
from cfptq.quantize.plan import PLAN_FILES
from cfptq.quantize.repair import Repair
from cfptq.recourse import RecourseBatch
from cfptq.training import History

#: Version of the saved form that is written. Version 1 has no digests, and 1 and 2 have no widths of channels. All are read.
SCHEMA = 3

#: Files that a saved result may hold, relative to its folder.
RESULT_FILES = (
    "result.json",
    *PLAN_FILES,
    "network/network.json",
    "network/network.safetensors",
    "calibration.safetensors",
    "teacher.safetensors",
)

#: Keys of result.json that tell a saved result from other people's files.
RESULT_KEYS = ("allocation", "sensitivity")

#: Key of result.json -> what reads its value. A key may be null or absent.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "method": Method.from_dict,
    "budget": lambda content: Budget(**content),
    "repair": Repair.from_dict,
    "fewest_bits": FewestBits.from_dict,
    "worst_group": WorstGroup.from_dict,
    "training": History.from_dict,
    "interface": OnnxInterface.from_dict,
    "inputs": lambda content: tuple(map(InputPart.from_dict, content)),
}

Size = Annotated[int, Field(ge=0)]
Content = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _SavedFile(_Strict):
    """Size and SHA-256 of one file of a saved result."""

    bytes: Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Description(_Strict):
    """Content of ``result.json``. The parts in it are checked by their own classes."""

    schema_version: Literal[1, 2, 3] = Field(alias="schema")
    digest: str
    files: Annotated[dict[str, _SavedFile], Field(max_length=len(RESULT_FILES))]
    head: str
    threshold: float | None
    allocation: Content
    sensitivity: Content
    tensor_names: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2, max_length=2)] = [INPUT, OUTPUT]
    pinned: Annotated[dict[str, int], Field(max_length=2**16)] = {}
    remarks: Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=10000)] = []
    interface: Content | None = None
    inputs: Annotated[list[Content], Field(min_length=1, max_length=2**16)] | None = None
    classes: Annotated[list[str | int | float | bool], Field(min_length=2, max_length=2**16)] | None = None
    method: Content | None = None
    budget: Content | None = None
    repair: Content | None = None
    fewest_bits: Content | None = None
    worst_group: Content | None = None
    training: Content | None = None


def check_save_folder(folder: str | os.PathLike[str]) -> None:
    """Check, before the work, that a result can be saved in ``folder``.

    Args:
        folder: new, empty, or an earlier saved result.

    Raises:
        FileError: ``folder`` is a file, the working folder, or holds other files.
    """
    check_replaceable(folder, RESULT_FILES, RESULT_KEYS)


def write_result(
    folder: str | os.PathLike[str],
    description: Mapping[str, Any],
    network: Network,
    plan: QuantizationPlan,
    calibration: CalibrationSet | None,
    recourse: RecourseBatch | None,
) -> None:
    """Write the parts of a result into a folder of their own, whole or not at all.

    Args:
        folder: new, empty, or an earlier saved result, which is replaced.
        description: plain values for result.json.
        network: the full-precision network.
        plan: the quantization plan.
        calibration: the calibration rows; None leaves them out.
        recourse: the full-precision model's recourse; None leaves it out.

    Raises:
        FileError: ``folder`` is a file, the working folder, or holds other files, or it cannot be written.
    """
    with atomic_folder(folder, RESULT_FILES, RESULT_KEYS) as aside:
        plan.write_into(aside)
        (aside / "network").mkdir()
        for name, data in serialize_network(network).items():
            (aside / "network" / name).write_bytes(data)
        if calibration is not None:
            calibration.save(aside / "calibration.safetensors")
        if recourse is not None:
            recourse.save(aside / "teacher.safetensors")
        files = {name: _measure_file(aside / name) for name in RESULT_FILES[1:] if (aside / name).exists()}
        content = {"schema": SCHEMA, **description, "files": files}
        (aside / "result.json").write_bytes(_to_json({**content, "digest": _compute_digest(content)}))


def read_result(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the parts of a saved result, by the names of the result's fields. Nothing is unpickled.

    Args:
        folder: a folder that ``write_result`` wrote.

    Raises:
        FileError: a file is missing, cut off, altered, or not what it should be.
    """
    place = as_path(folder, "folder")
    clear_killed_writes(place)
    if not (place / "result.json").exists():
        raise FileError(f"Cannot read a saved result in {place}: it holds no result.json. Give a folder that Result.save wrote.")
    description = _read_description(place)
    for name in RESULT_FILES[1:]:
        _check_file(place, name, description.files.get(name))
    try:
        fields = _read_fields(place, description)
    except OSError as error:
        reason = describe_os_error(error)
        raise FileError(f"Cannot read a saved result in {place}: {reason}. Give a folder that Result.save wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise FileError(f"{place}/result.json is not a whole saved result ({error}). Save it again.") from error
    except FileError:
        raise
    except CfptqError as error:
        raise FileError(f"{place} is not a whole saved result ({error}). Save it again.") from error
    try:
        DecisionRule(fields["head"], fields["threshold"])
    except ModelError as error:
        raise FileError(f"{place}/result.json was changed ({error}). Save the result again.") from error
    if fields["allocation"].by_layer() != fields["plan"].bits:
        raise FileError(f"{place}/result.json and {place}/plan.json allocate different bits. One was changed. Save the result again.")
    if fields["plan"].network != digest(fields["network"]):
        raise FileError(f"{place} holds a plan and a network that do not belong together. Save the result again.")
    return fields


def _read_description(place: Path) -> _Description:
    """Read and check ``result.json`` in the folder ``place``."""
    path = place / "result.json"
    content = read_json(path)
    if content.get("schema") not in range(1, SCHEMA + 1):
        raise FileError(f"{path} must have schema 1 to {SCHEMA}, got {content.get('schema')!r}. Upgrade cfptq, or save it again.")
    if content["schema"] == 1:
        # The first version recorded no digests. The plan's own digest and the network's are still compared.
        present = {name: _measure_file(place / name) for name in RESULT_FILES[1:] if (place / name).exists()}
        content = {**content, "files": present}
        content["digest"] = _compute_digest(content)
    if content.get("digest") != _compute_digest({key: value for key, value in content.items() if key != "digest"}):
        raise FileError(f"{path} was changed after it was saved, as its digest differs. Save the result again.")
    try:
        return _Description.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise FileError(f"{path} is not a whole saved result ({_describe_problem(error)}). Save it again.") from error


def _describe_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _check_file(place: Path, name: str, saved: _SavedFile | None) -> None:
    """Check that the file ``name`` has the bytes that were saved, and is absent where none was."""
    path = place / name
    if saved is None:
        if os.path.lexists(path):
            raise FileError(f"{path} does not belong to this saved result, which was saved without it. Remove it.")
        return
    check_regular_file(path)
    if path.stat().st_size != saved.bytes or _measure_file(path)["sha256"] != saved.sha256:
        raise FileError(f"{path} was changed after it was saved, as its digest differs. Save the result again.")


def _measure_file(path: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise FileError(f"This process cannot read {path}: {describe_os_error(error)}.") from error


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _compute_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_to_json(content)).hexdigest()


def _read_fields(place: Path, description: _Description) -> dict[str, Any]:
    """Read every part of the result in the folder ``place``, not yet compared with one another."""
    network = {name: read_file(place / "network" / name, description.files[f"network/{name}"].bytes) for name in NETWORK_FILES}
    return {
        "network": deserialize_network(network, f"{place}/network"),
        "plan": QuantizationPlan.load(place),
        "allocation": BitAllocation(**description.allocation),
        "sensitivity": _read_scores(description.sensitivity),
        "head": Head(description.head),
        "threshold": description.threshold,
        "calibration": CalibrationSet.load(place / "calibration.safetensors") if "calibration.safetensors" in description.files else None,
        "teacher": RecourseBatch.load(place / "teacher.safetensors") if "teacher.safetensors" in description.files else None,
        "pinned": description.pinned,
        "tensor_names": (description.tensor_names[0], description.tensor_names[1]),
        "remarks": tuple(description.remarks),
        "classes": None if description.classes is None else tuple(description.classes),
        **{name: read(content) for name, read in _READERS.items() if (content := getattr(description, name)) is not None},
    }


def _read_scores(content: dict[str, Any]) -> LayerScores:
    """Build layer scores of the kind that ``content`` holds."""
    if "channels" in content:
        return ChannelScores(**content)
    return MeasuredScores(**content) if "damage" in content else LayerScores(**content)
