"""What a recourse solver hands back: one action per row, priced and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.errors import DataError, FileError
from cfptq.files import written_aside

_FORMAT = "cfptq.recourse/1"


@dataclass(frozen=True)
class RecourseBatch:
    """Recourse for N rows.

    Attributes:
        factual: the rows as they are, (N, ...) float32.
        points: the rows with the action taken, what the model is asked about, same shape as ``factual``.
        delta: the actions, (N, ...); their shape is the action space's own and need not be that of ``factual``.
        cost: price of each action in the action space's units, (N,).
        found: the model gives ``target`` at ``points`` with at least the asked-for confidence, (N,) bool. A row that had the target
            from the start is found with a zero action.
        margin: target margin of the solved model's artefact at ``points``, in logits, (N,).
        target: the class wanted for each row, (N,) int64.
        method: the solver's name.
        confidence: the probability of the target that ``found`` asks for; 0.5 is a plain decision (margin above 0).
    """

    factual: Tensor
    points: Tensor
    delta: Tensor
    cost: Tensor
    found: Tensor
    margin: Tensor
    target: Tensor
    method: str
    confidence: float

    def __post_init__(self) -> None:
        count = len(self.factual)
        lengths = {name: len(getattr(self, name)) for name in _TENSORS}
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise DataError(f"a recourse batch of {count} rows has fields of another length: {wrong}")
        if self.points.shape != self.factual.shape:
            raise DataError(f"points {tuple(self.points.shape)} and factual rows {tuple(self.factual.shape)} must have one shape")
        if self.found.dtype != torch.bool or self.target.dtype != torch.int64:
            raise DataError(f"found must be bool and target int64, got {self.found.dtype} and {self.target.dtype}")

    def __len__(self) -> int:
        return len(self.factual)

    def __getitem__(self, rows: Tensor | slice) -> RecourseBatch:
        """The batch of some rows: a bool mask (N,), an int64 index (M,), or a slice."""
        if not isinstance(rows, Tensor | slice):
            raise DataError(f"a recourse batch is indexed by a mask, an index tensor or a slice, not by {type(rows).__name__}")
        if isinstance(rows, Tensor) and rows.dtype == torch.bool and len(rows) != len(self):
            raise DataError(f"a mask of {len(rows)} entries does not fit a batch of {len(self)} rows")
        parts = {name: getattr(self, name)[rows] for name in _TENSORS}
        return RecourseBatch(**parts, method=self.method, confidence=self.confidence)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the batch as one safetensors file, whole or not at all.

        Raises:
            FileError: the folder does not exist or cannot be written.
        """
        metadata = {"format": _FORMAT, "method": self.method, "confidence": repr(self.confidence)}
        with written_aside(path) as aside:
            save_file({name: getattr(self, name).contiguous() for name in _TENSORS}, aside, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RecourseBatch:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: the file is missing, cut off, or not a recourse batch.
        """
        if not Path(path).is_file():
            raise FileError(f"no recourse batch at {path}; give the path of a file written by RecourseBatch.save")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} cannot be read as a recourse batch ({error}); write it again with RecourseBatch.save") from error
        if metadata.get("format") != _FORMAT or set(tensors) != set(_TENSORS):
            raise FileError(f"{path} is no recourse batch ({_FORMAT}); give a file written by RecourseBatch.save")
        return cls(**tensors, method=metadata["method"], confidence=float(metadata["confidence"]))


_TENSORS = tuple(field.name for field in fields(RecourseBatch) if field.name not in ("method", "confidence"))
