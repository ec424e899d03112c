"""Write the parts of a result into a folder, and read them back without the original model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cfptq.allocation import BitAllocation, Budget, LayerScores, MeasuredScores
from cfptq.errors import CfptqError, FileError, ModelError
from cfptq.io.atomic import atomic_folder, check_replaceable
from cfptq.network import INPUT, OUTPUT, DecisionRule, Head, Network
from cfptq.network.serialize import NETWORK_FILES, deserialize_network, digest, serialize_network
from cfptq.pipeline.fewest_bits import FewestBits
from cfptq.pipeline.group_weighting import WorstGroup
from cfptq.pipeline.method import Method
from cfptq.quantize import CalibrationSet, QuantizationPlan
from cfptq.quantize.plan import PLAN_FILES
from cfptq.quantize.repair import Repair
from cfptq.recourse import RecourseBatch
from cfptq.training import History

#: Version of the saved form. A result of another version is refused.
SCHEMA = 1

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
}


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
    content = json.dumps({"schema": SCHEMA, **description}, indent=2, sort_keys=True) + "\n"
    with atomic_folder(folder, RESULT_FILES, RESULT_KEYS) as aside:
        (aside / "result.json").write_text(content, encoding="utf-8", newline="\n")
        plan.write_into(aside)
        (aside / "network").mkdir()
        for name, data in serialize_network(network).items():
            (aside / "network" / name).write_bytes(data)
        if calibration is not None:
            calibration.save(aside / "calibration.safetensors")
        if recourse is not None:
            recourse.save(aside / "teacher.safetensors")


def read_result(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the parts of a saved result, by the names of the result's fields. Nothing is unpickled.

    Args:
        folder: a folder that :func:`write_result` wrote.

    Raises:
        FileError: a file is missing, cut off, altered, or not what it should be.
    """
    place = Path(folder)
    try:
        fields = _read_fields(place)
    except OSError as error:
        raise FileError(f"Cannot read a saved result in {place}: {error.strerror}. Give a folder that Result.save wrote.") from error
    except (ValueError, KeyError, TypeError) as error:
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


def _read_fields(place: Path) -> dict[str, Any]:
    """Read every part of the result in the folder ``place``, not yet compared with one another."""
    description = json.loads((place / "result.json").read_bytes())
    if description["schema"] != SCHEMA:
        raise FileError(f"{place}/result.json must have schema {SCHEMA}, got {description['schema']}. Upgrade cfptq.")
    calibration, recourse = place / "calibration.safetensors", place / "teacher.safetensors"
    network = {name: (place / "network" / name).read_bytes() for name in NETWORK_FILES}
    return {
        "network": deserialize_network(network, f"{place}/network"),
        "plan": QuantizationPlan.load(place),
        "allocation": BitAllocation(**description["allocation"]),
        "sensitivity": _read_scores(description["sensitivity"]),
        "head": Head(description["head"]),
        "threshold": description["threshold"],
        "calibration": CalibrationSet.load(calibration) if calibration.exists() else None,
        "teacher": RecourseBatch.load(recourse) if recourse.exists() else None,
        "pinned": description.get("pinned", {}),
        "tensor_names": tuple(description.get("tensor_names", (INPUT, OUTPUT))),
        **{name: read(description[name]) for name, read in _READERS.items() if description.get(name) is not None},
    }


def _read_scores(content: dict[str, Any]) -> LayerScores:
    """Build layer scores of the kind that ``content`` holds."""
    return MeasuredScores(**content) if "damage" in content else LayerScores(**content)
