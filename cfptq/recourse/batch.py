"""What a recourse solver hands back: one action per row, priced and checked."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.errors import DataError, FileError
from cfptq.io.atomic import atomic_write

_FORMAT = "cfptq.recourse/1"


class Status(IntEnum):
    """What is known about one row's action; the codes of :attr:`RecourseBatch.status`."""

    UNPROVEN = 0
    """An action that holds; nothing is proven about its cost."""
    OPTIMAL = 1
    """No action that holds is cheaper (by more than the gap asked for)."""
    BOUNDED = 2
    """An action that holds; none can cost less than the row's bound."""
    INFEASIBLE = 3
    """Proven: no admissible action reaches the target."""
    IMMUTABLE = 4
    """Proven: not even all mutable features together, each wherever it may go, reach it; what cannot be changed decides."""
    NOT_FOUND = 5
    """No action was found within the effort; nothing is proven."""
    FAVOURABLE = 6
    """The row had its target from the start."""


_REASONS = {
    Status.UNPROVEN: "",
    Status.OPTIMAL: "",
    Status.BOUNDED: "",
    Status.INFEASIBLE: "no admissible action reaches the target (proven)",
    Status.IMMUTABLE: "immutable features alone decide: no change of the mutable ones reaches the target (proven)",
    Status.NOT_FOUND: "no action was found within the effort of {method} (not proven)",
    Status.FAVOURABLE: "already favourable",
}

_WORDS = {
    Status.UNPROVEN: "found",
    Status.OPTIMAL: "optimal",
    Status.BOUNDED: "found with a bound",
    Status.INFEASIBLE: "proven infeasible",
    Status.IMMUTABLE: "decided by immutable features",
    Status.NOT_FOUND: "not found",
    Status.FAVOURABLE: "already favourable",
}


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
        status: codes of :class:`Status`, (N,) int8; ``None`` where the solver proves nothing.
        bound: no action of the row costs less, (N,); infinite where there is none; ``None`` where the solver proves nothing.
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
    status: Tensor | None = None
    bound: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.factual)
        lengths = {name: len(value) for name, value in self._tensors().items()}
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise DataError(f"a recourse batch of {count} rows has fields of another length: {wrong}")
        if self.points.shape != self.factual.shape:
            raise DataError(f"points {tuple(self.points.shape)} and factual rows {tuple(self.factual.shape)} must have one shape")
        if self.found.dtype != torch.bool or self.target.dtype != torch.int64:
            raise DataError(f"found must be bool and target int64, got {self.found.dtype} and {self.target.dtype}")
        if self.status is not None and self.status.dtype != torch.int8:
            raise DataError(f"status holds codes of cfptq.recourse.Status as int8, got {self.status.dtype}")

    def __len__(self) -> int:
        return len(self.factual)

    def __str__(self) -> str:
        counts = Counter(self.statuses())
        told = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status])
        acting = self.found & (self.cost > 0)
        price = f"; median cost {float(self.cost[acting].median()):.4g}" if bool(acting.any()) else ""
        at = f" at {self.confidence:g}" if self.confidence != 0.5 else ""
        return f"{self.method} recourse{at} for {len(self)} rows: {told or 'nobody'}{price}; to_frame(action_set) shows it in raw units"

    def __repr__(self) -> str:
        return f"<RecourseBatch {self}>"

    def __getitem__(self, rows: Tensor | slice) -> RecourseBatch:
        """The batch of some rows: a bool mask (N,), an int64 index (M,), or a slice."""
        if not isinstance(rows, Tensor | slice):
            raise DataError(f"a recourse batch is indexed by a mask, an index tensor or a slice, not by {type(rows).__name__}")
        if isinstance(rows, Tensor) and rows.dtype == torch.bool and len(rows) != len(self):
            raise DataError(f"a mask of {len(rows)} entries does not fit a batch of {len(self)} rows")
        parts: dict[str, Any] = {name: value[rows] for name, value in self._tensors().items()}
        return replace(self, **parts)

    def statuses(self) -> list[Status]:
        """What is known about each row; where the solver proves nothing, whether it found an action."""
        if self.status is not None:
            return [Status(code) for code in self.status.tolist()]
        moved = (self.delta.flatten(1) != 0).any(1).tolist()
        at_once = {True: Status.UNPROVEN, False: Status.FAVOURABLE}
        return [at_once[acts] if found else Status.NOT_FOUND for found, acts in zip(self.found.tolist(), moved, strict=True)]

    def reasons(self) -> list[str]:
        """For each row why it has no action, in words; empty for those who have one."""
        return [_REASONS[status].format(method=self.method) for status in self.statuses()]

    @property
    def gap(self) -> Tensor:
        """How much cheaper than its cost a row's action might be, as a share of the cost, (N,); NaN where that is not known."""
        nothing = torch.full_like(self.cost, torch.nan)
        if self.bound is None:
            return nothing
        share = torch.where(self.cost > 0, (self.cost - self.bound).clamp_min(0) / self.cost.clamp_min(1e-12), 0.0)
        return torch.where(self.found, share, nothing)

    def counterfactuals(self, action_set: ActionSet) -> pd.DataFrame:
        """The points as raw rows. Encoded again they are the same points, so that they hold in the model as they stand there."""
        return action_set.decode(self.points)

    def to_frame(self, action_set: ActionSet) -> pd.DataFrame:
        """One row a person, columns in two levels.

        ``recourse``: ``found``, ``changes`` in words, ``cost``, ``status``, ``reason`` (why there is no action; empty where there is one),
        ``target``. ``factual`` and ``counterfactual``: every feature in raw units. ``frame["counterfactual"]`` can be encoded as it is:
        whole numbers, levels and bounds are kept exactly, and so is the model's decision.

        Raises:
            DataError: no action set, or the batch is not about this action set's columns.
        """
        if not isinstance(action_set, ActionSet):
            raise DataError(f"the table needs the cfptq.ActionSet that the recourse was found with, not {type(action_set).__name__}")
        if self.factual.ndim != 2 or self.factual.shape[1] != action_set.width:
            raise DataError(
                f"the batch's rows have shape {tuple(self.factual.shape)}, the action set {action_set.width} columns; give the action set "
                "that the recourse was found with"
            )
        answer = pd.DataFrame(
            {
                "found": self.found.tolist(),
                "changes": action_set.describe(self.factual, self.delta),
                "cost": self.cost.tolist(),
                "status": [status.name.lower().replace("_", " ") for status in self.statuses()],
                "reason": self.reasons(),
                "target": self.target.tolist(),
            }
        )
        parts = {"recourse": answer, "factual": action_set.decode(self.factual), "counterfactual": self.counterfactuals(action_set)}
        return pd.concat(parts, axis=1)

    def _tensors(self) -> dict[str, Tensor]:
        every = {name: getattr(self, name) for name in (*_TENSORS, *_PROOFS)}
        return {name: value for name, value in every.items() if value is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the batch as one safetensors file, whole or not at all.

        Raises:
            FileError: the folder does not exist or cannot be written.
        """
        metadata = {"format": _FORMAT, "method": self.method, "confidence": repr(self.confidence)}
        with atomic_write(path) as aside:
            save_file({name: value.contiguous() for name, value in self._tensors().items()}, aside, metadata=metadata)

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
        if metadata.get("format") != _FORMAT or set(tensors) - set(_PROOFS) != set(_TENSORS):
            raise FileError(f"{path} is no recourse batch ({_FORMAT}); give a file written by RecourseBatch.save")
        return cls(**tensors, method=metadata["method"], confidence=float(metadata["confidence"]))


_PROOFS = ("status", "bound")
_TENSORS = tuple(field.name for field in fields(RecourseBatch) if field.name not in ("method", "confidence", *_PROOFS))
