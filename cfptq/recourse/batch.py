"""The result of a recourse solver, with one checked action for each row."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.errors import DataError, FileError
from cfptq.io.atomic import atomic_write
from cfptq.io.tables import as_html

_FORMAT = "cfptq.recourse/1"


class Status(IntEnum):
    """Codes of ``RecourseBatch.status``, which say what is proven about the action of one row."""

    UNPROVEN = 0
    """A valid action was found. Nothing is proven about its cost."""
    OPTIMAL = 1
    """No valid action is cheaper by more than the requested gap."""
    BOUNDED = 2
    """A valid action was found, and no valid action costs less than the bound of the row."""
    INFEASIBLE = 3
    """It is proven that no admissible action reaches the target."""
    IMMUTABLE = 4
    """It is proven that even changing all mutable features at once does not reach the target, so immutable features decide."""
    NOT_FOUND = 5
    """The search found no action. Nothing is proven."""
    FAVOURABLE = 6
    """The row has its target without any action."""


_REASONS = {
    Status.UNPROVEN: "",
    Status.OPTIMAL: "",
    Status.BOUNDED: "",
    Status.INFEASIBLE: "no admissible action reaches the target (proven)",
    Status.IMMUTABLE: "immutable features alone decide, since no change of the mutable ones reaches the target (proven)",
    Status.NOT_FOUND: "{method} found no action (not proven)",
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
        factual: Factual rows, (N, ...) float32.
        points: Counterfactual points (rows with their action applied), same shape as ``factual``.
        delta: Actions, (N, ...). The action space defines their shape, which may differ from that of ``factual``.
        cost: Cost of each action in units of the action space, (N,).
        found: Rows whose point has ``target`` with at least ``confidence``, (N,) bool. A row that has the target already counts
            as found with a zero action.
        margin: Target margin of the solved artefact at ``points``, (N,), in logits.
        target: Target class of each row, (N,) int64.
        method: Name of the solver.
        confidence: Probability of the target that ``found`` requires. 0.5 is the plain decision (margin above 0).
        status: Codes of ``Status``, (N,) int8. ``None`` if the solver proves nothing.
        bound: Lower bound of the cost of any valid action, (N,), infinite where there is none. ``None`` if the solver proves nothing.
        last_refused: Last point on each row's path that the solved artefact does not give the target, same shape as ``factual``. It is the
            row itself where the first step suffices. ``None`` if the solver takes no path, or does not decide at every step.
        note: Sentences about the search, empty if there is nothing to say.
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
    last_refused: Tensor | None = None
    note: str = ""

    def __post_init__(self) -> None:
        count = len(self.factual)
        lengths = {name: len(value) for name, value in self._tensors().items()}
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise DataError(f"Every field of a recourse batch must have {count} rows, as factual has. Got {wrong}.")
        if self.points.shape != self.factual.shape:
            raise DataError(f"points must have the shape of factual, {tuple(self.factual.shape)}, got {tuple(self.points.shape)}.")
        if self.last_refused is not None and self.last_refused.shape != self.factual.shape:
            raise DataError(
                f"last_refused must have the shape of factual, {tuple(self.factual.shape)}, got {tuple(self.last_refused.shape)}."
            )
        if self.found.dtype != torch.bool or self.target.dtype != torch.int64:
            raise DataError(f"found must be bool and target int64, got {self.found.dtype} and {self.target.dtype}.")
        if self.status is not None and self.status.dtype != torch.int8:
            raise DataError(f"status must be int8 codes of cfptq.recourse.Status, got {self.status.dtype}.")

    def __len__(self) -> int:
        return len(self.factual)

    def __str__(self) -> str:
        counts = Counter(self.statuses)
        summary = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status])
        acting = self.found & (self.cost > 0)
        cost = f", median cost {float(self.cost[acting].median()):.4g}" if bool(acting.any()) else ""
        at = f" at {self.confidence:g}" if self.confidence != 0.5 else ""
        note = f" {self.note}" if self.note else ""
        return f"{self.method} recourse{at} for {len(self)} rows: {summary}{cost}. Call to_frame(action_set) for raw units.{note}"

    def __repr__(self) -> str:
        return f"<RecourseBatch {self}>"

    def _repr_html_(self) -> str:
        at = f" at {self.confidence:g}" if self.confidence != 0.5 else ""
        table = Table("status", title=Text(f"{self.method} recourse{at} for {len(self)} rows"))
        table.add_column("rows", justify="right")
        table.add_column("median cost", justify="right")
        statuses = self.statuses
        for status, word in _WORDS.items():
            chosen = torch.tensor([each == status for each in statuses], dtype=torch.bool)
            if bool(chosen.any()):
                has_cost = bool(self.found[chosen].all())
                table.add_row(word, str(int(chosen.sum())), f"{float(self.cost[chosen].median()):.4g}" if has_cost else "–")
        return as_html(table)

    def __getitem__(self, rows: Tensor | slice) -> RecourseBatch:
        """Select rows by a bool mask (N,), an int64 index (M,) or a slice."""
        if not isinstance(rows, Tensor | slice):
            raise DataError(f"The index of a recourse batch must be a mask, an index tensor or a slice, got {type(rows).__name__}.")
        if isinstance(rows, Tensor) and rows.dtype == torch.bool and len(rows) != len(self):
            raise DataError(f"The mask must have one entry for each of the {len(self)} rows, got {len(rows)}.")
        parts: dict[str, Any] = {name: value[rows] for name, value in self._tensors().items()}
        return replace(self, **parts)

    @property
    def statuses(self) -> list[Status]:
        """Status of each row.

        If the solver proves nothing, a row is ``FAVOURABLE``, ``UNPROVEN`` or ``NOT_FOUND``.
        """
        if self.status is not None:
            return [Status(code) for code in self.status.tolist()]
        is_nonzero = (self.delta.flatten(1) != 0).any(1).tolist()
        status_of_found = {True: Status.UNPROVEN, False: Status.FAVOURABLE}
        return [status_of_found[acts] if found else Status.NOT_FOUND for found, acts in zip(self.found.tolist(), is_nonzero, strict=True)]

    @property
    def reasons(self) -> list[str]:
        """Reason in words why each row has no action, empty for rows that have one."""
        return [_REASONS[status].format(method=self.method) for status in self.statuses]

    @property
    def gap(self) -> Tensor:
        """Relative gap between cost and bound, (N,), as a share of the cost. NaN where it is unknown."""
        unknown = torch.full_like(self.cost, torch.nan)
        if self.bound is None:
            return unknown
        share = torch.where(self.cost > 0, (self.cost - self.bound).clamp_min(0) / self.cost.clamp_min(1e-12), 0.0)
        return torch.where(self.found, share, unknown)

    def decode(self, action_set: ActionSet, people: pd.DataFrame | None = None) -> pd.DataFrame:
        """Decode the counterfactual points into raw rows.

        Encoding these rows again gives the same points, so they stay valid in the model.

        Args:
            action_set: Action set that the recourse was found with.
            people: Raw rows that the factual rows were encoded from. Unchanged cells keep their raw value, missing ones too.
        """
        return action_set.decode(self.points, people)

    def to_frame(self, action_set: ActionSet, people: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return a table in raw units with one row per person and columns in two levels.

        ``recourse`` holds ``found``, ``changes`` (in words), ``cost``, ``status``, ``reason`` (empty where there is an action) and
        ``target``. ``factual`` and ``counterfactual`` hold every feature in raw units. ``frame["counterfactual"]`` can be encoded
        again without loss: integers, levels, bounds and the model's decision stay the same.

        Args:
            action_set: Action set that the recourse was found with.
            people: Raw rows that the factual rows were encoded from. With them, a missing value is shown as missing, and not as the
                value that the encoder fills in. The table has their index.

        Raises:
            DataError: ``action_set`` is not an ``cfptq.actions.ActionSet``, or the batch has other columns.
        """
        if not isinstance(action_set, ActionSet):
            raise DataError(
                f"action_set must be a cfptq.ActionSet, got {type(action_set).__name__}. Give the one the recourse was found with."
            )
        if self.factual.ndim != 2 or self.factual.shape[1] != action_set.width:
            raise DataError(
                f"The action set must have the columns of the batch, whose rows have shape {tuple(self.factual.shape)}. "
                f"Got an action set of {action_set.width} columns. Give the one the recourse was found with."
            )
        answer = pd.DataFrame(
            {
                "found": self.found.tolist(),
                "changes": action_set.describe(self.factual, self.delta, people),
                "cost": self.cost.tolist(),
                "status": [status.name.lower().replace("_", " ") for status in self.statuses],
                "reason": self.reasons,
                "target": self.target.tolist(),
            }
        )
        factual, counterfactual = action_set.decode(self.factual, people), self.decode(action_set, people)
        parts = {"recourse": answer.set_axis(factual.index), "factual": factual, "counterfactual": counterfactual}
        return pd.concat(parts, axis=1)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all fields that are tensors, by name."""
        every = {name: getattr(self, name) for name in (*_TENSORS, *_OPTIONAL)}
        return {name: value for name, value in every.items() if value is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the batch to one safetensors file by an atomic write.

        Args:
            path: File to write. An existing file is replaced.

        Raises:
            FileError: The folder does not exist or cannot be written.
        """
        metadata = {"format": _FORMAT, "method": self.method, "confidence": repr(self.confidence), "note": self.note}
        with atomic_write(path) as temporary:
            save_file({name: value.contiguous() for name, value in self._tensors().items()}, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RecourseBatch:
        """Read a batch that ``save`` wrote.

        Args:
            path: File to read.

        Raises:
            FileError: The file is missing, truncated, or not a recourse batch.
        """
        if not Path(path).is_file():
            raise FileError(f"There is no file {path}. Give the path of a file that RecourseBatch.save wrote.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise FileError(f"Cannot read {path} as a recourse batch ({error}). Write it again with RecourseBatch.save.") from error
        if metadata.get("format") != _FORMAT or set(tensors) - set(_OPTIONAL) != set(_TENSORS):
            raise FileError(f"{path} must be a recourse batch in format {_FORMAT}. Give a file that RecourseBatch.save wrote.")
        try:
            return cls(**tensors, method=metadata["method"], confidence=float(metadata["confidence"]), note=metadata.get("note", ""))
        except (KeyError, ValueError) as error:
            raise FileError(f"{path} is not a whole recourse batch ({error}). Write it again with RecourseBatch.save.") from error


_OPTIONAL = ("status", "bound", "last_refused")
_TENSORS = tuple(field.name for field in fields(RecourseBatch) if field.name not in ("method", "confidence", "note", *_OPTIONAL))
