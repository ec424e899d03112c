"""Trained networks in files, so that everybody measures the same network on every processor.

A folder holds one safetensors file for each data set and seed, and ``index.json`` with the SHA-256 of every file. A file's metadata says
what the network was trained on and how. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cfptq.datasets import ColumnsDescription
from cfptq.errors import FileError
from cfptq.io.atomic import atomic_write, make_folder, write_text
from cfptq.io.files import read_file, read_json
from cfptq.models import TrainingLog

SCHEMA = 1
INDEX_FILE = "index.json"
MAX_INDEX_BYTES = 2**22  # Larger indexes are refused. One entry has some 110 bytes.
MAX_NETWORK_BYTES = 2**30  # Larger networks are refused.

#: Key of the metadata, whose value is JSON. One key has one order, so that equal networks have equal bytes.
_METADATA_KEY = "cfptq"
_FORMAT = "cfptq-stored-network"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RETRAIN = "Use the file that belongs to this data set and recipe, or train anew with --train (train=True)"


def name_file(dataset: str, seed: int) -> str:
    """Return the name of the file of a data set's network of one seed."""
    return f"{dataset}-{seed}.safetensors"


@dataclass(frozen=True)
class NetworkDescription:
    """Data, architecture and settings that a network was trained with.

    Attributes:
        dataset: Name of the data set.
        seed: Seed of the initial weights and of training, and split of german.
        backbone: Architecture, as a recipe's key ``model``.
        training: Settings of training, as a recipe's key ``training``.
        columns: Columns and training rows.
    """

    dataset: str
    seed: int
    backbone: Mapping[str, Any]
    training: Mapping[str, Any]
    columns: ColumnsDescription

    @property
    def file_name(self) -> str:
        """Name of the network's file in a folder of stored networks."""
        return name_file(self.dataset, self.seed)


@dataclass(frozen=True)
class NetworkOrigin:
    """Origin of the network of an experiment.

    Attributes:
        source: "read" from a file, or "trained" in this run.
        sha256: SHA-256 of the network's file. For a trained network, that of the file that ``write_network`` would write.
        note: Sentence for the reader where a stored network was expected and there is none.
    """

    source: Literal["read", "trained"]
    sha256: str
    note: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Return the entry of ``results.json``."""
        return {"source": self.source, "sha256": self.sha256, **({} if self.note is None else {"note": self.note})}


def serialize_network(model: nn.Module, description: NetworkDescription, training: TrainingLog) -> bytes:
    """Return the content of a network's file.

    The same weights and description give the same bytes with the same versions on the same kind of processor, which the metadata names.

    Args:
        model: Trained classifier.
        description: What it was trained on.
        training: Log of its training.
    """
    content = {
        "format": _FORMAT,
        "schema": SCHEMA,
        **_to_json(asdict(description)),
        "log": asdict(training),
        "versions": {
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "scikit-learn": version("scikit-learn"),
            "torch": torch.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors.torch.save(_collect_tensors(model), metadata={_METADATA_KEY: text})


def compute_sha256(content: bytes) -> str:
    """Compute the SHA-256 of a file's content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_network(folder: Path, model: nn.Module, description: NetworkDescription, training: TrainingLog) -> str:
    """Write a network's file and its entry in the index, and return its SHA-256.

    Args:
        folder: Folder of stored networks, which is made if it is missing.
        model: Trained classifier.
        description: What it was trained on.
        training: Log of its training.

    Raises:
        FileError: The folder cannot be written, or its index is damaged.
    """
    make_folder(folder)
    content = serialize_network(model, description, training)
    with atomic_write(folder / description.file_name) as temporary:
        temporary.write_bytes(content)
    # Another process may have added entries meanwhile. An entry that is lost all the same is a network that is trained once more.
    index = read_index(folder) if (folder / INDEX_FILE).exists() else {}
    index[description.file_name] = compute_sha256(content)
    write_text(folder / INDEX_FILE, json.dumps({"schema": SCHEMA, "sha256": index}, indent=1, sort_keys=True) + "\n")
    return index[description.file_name]


def read_index(folder: Path) -> dict[str, str]:
    """Read the index of a folder of stored networks, which maps file names to SHA-256.

    Raises:
        FileError: There is no index, or it is damaged.
    """
    path = folder / INDEX_FILE
    content = read_json(path, MAX_INDEX_BYTES)
    entries = content.get("sha256")
    if content.get("schema") != SCHEMA or not isinstance(entries, dict):
        raise FileError(f"{path} must be an index of stored networks of schema {SCHEMA}. Write it with benchmarks/networks.py.")
    for name, digest in entries.items():
        if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
            raise FileError(f"{path} must hold a SHA-256 in hexadecimal for {name!r}, got {digest!r}. Restore the file.")
    return entries


def read_network(folder: Path, description: NetworkDescription, model: nn.Module) -> tuple[TrainingLog, str] | None:
    """Load a stored network into ``model`` and set eval mode.

    Args:
        folder: Folder of stored networks.
        description: Network that is asked for.
        model: Classifier of the described architecture, whose weights are replaced.

    Returns:
        The log of its training and the SHA-256 of its file, or None if the index does not list the file. The model is unchanged then.

    Raises:
        FileError: The folder has no index, the file is missing or damaged, does not have the SHA-256 of the index, or holds a network of
            another data set, seed, architecture, training or columns.
    """
    expected = read_index(folder).get(description.file_name)
    if expected is None:
        return None
    path = folder / description.file_name
    content = read_file(path, MAX_NETWORK_BYTES)
    if (found := compute_sha256(content)) != expected:
        raise FileError(f"{path} must have the SHA-256 {expected} of {INDEX_FILE}, got {found}. Restore the file, or train it anew.")
    try:
        tensors = safetensors.torch.load(content)
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise FileError(f"{path} is not a valid safetensors file ({error}). Restore the file, or train it anew.") from error
    metadata = _read_metadata(content, path)
    _check_description(metadata, description, path)
    _check_tensors(tensors, model, path)
    log = _read_log(metadata, path)
    model.load_state_dict(tensors)
    model.eval()
    return log, found


def _to_json(value: Any) -> Any:
    """Return ``value`` as it reads back from JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


def _collect_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in sorted(model.state_dict().items())}


def _read_metadata(content: bytes, path: Path) -> dict[str, Any]:
    """Return the description in the header of a file that safetensors has accepted."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        metadata = json.loads(header["__metadata__"][_METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise FileError(f"{path} does not say what its network was trained on. {_RETRAIN}.")
    if metadata.get("schema") != SCHEMA:
        raise FileError(f"{path} has schema {metadata.get('schema')!r}. This release of cfptq reads schema {SCHEMA}.")
    return metadata


def _read_log(metadata: Mapping[str, Any], path: Path) -> TrainingLog:
    try:
        log = metadata["log"]
        return TrainingLog(int(log["best_epoch"]), int(log["epochs"]), float(log["validation_accuracy"]), float(log["validation_loss"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileError(f"{path} holds no log of its training. Restore the file, or train it anew.") from error


def _check_description(metadata: Mapping[str, Any], description: NetworkDescription, path: Path) -> None:
    """Check that a file holds the network that is asked for.

    Raises:
        FileError: It does not. The message names what differs.
    """
    for key, wanted in _to_json(asdict(description)).items():
        if key != "columns" and metadata.get(key) != wanted:
            raise FileError(f"{path} does not fit. The key {key} must be {wanted!r}, got {metadata.get(key)!r}. {_RETRAIN}.")
    try:
        columns = metadata["columns"]
        found = ColumnsDescription(
            str(columns["names"]), tuple(map(float, columns["statistics"])), tuple(map(int, columns["class_counts"]))
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FileError(f"{path} does not say which columns its network was trained on. {_RETRAIN}.") from None
    if not description.columns.fits(found):
        raise FileError(
            f"{path} does not fit. Its network was trained on other columns or training rows than those of {description.dataset} here. "
            f"{_RETRAIN}."
        )


def _check_tensors(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Check that a file's tensors are finite and have the names, shapes and types of the model's.

    Raises:
        FileError: They do not.
    """
    own = model.state_dict()
    if odd := sorted(own.keys() ^ tensors.keys()):
        raise FileError(f"{path} does not fit. Its tensors and the architecture's differ in {', '.join(odd[:5])}. {_RETRAIN}.")
    for name, tensor in tensors.items():
        wanted = own[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise FileError(
                f"{path} does not fit. {name} must be {wanted.dtype} of shape {tuple(wanted.shape)}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}. {_RETRAIN}."
            )
        if not bool(tensor.isfinite().all()):
            raise FileError(f"{path} must hold finite weights, but {name} has NaN or infinite values. Restore the file, or train it anew.")
