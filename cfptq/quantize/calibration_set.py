"""The rows a quantizer is calibrated on: factual ones, and counterfactual ones of the teacher (eq. 21); and parts of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.errors import DataError, FileError
from cfptq.io.atomic import atomic_write

_FORMAT = "cfptq.calibration/1"

#: Values of ``origin``.
FACTUAL, COUNTERFACTUAL = 0, 1

#: Every n-th person is set aside where rows are held out.
HOLD_OUT_EVERY = 4


@dataclass(frozen=True)
class CalibrationSet:
    """U_cal = X_cal and the counterfactual points of those whom the teacher rejects, factual rows first.

    Attributes:
        rows: (N, ...) float32.
        origin: 0 factual, 1 counterfactual, (N,) uint8.
        weights: how much each row counts, (N,) float32, all 1 in eq. 21.
        source: position among the factual rows of the person each row is about, (N,) int64.
        target: the class wanted for that person, (N,) int64.
        labels: class of each factual row, (N,) int64, -1 in counterfactual rows, or ``None``.
        labels_are_teacher: the labels are the teacher's own decisions, since the data had none.
    """

    rows: Tensor
    origin: Tensor
    weights: Tensor
    source: Tensor
    target: Tensor
    labels: Tensor | None = None
    labels_are_teacher: bool = False

    def __post_init__(self) -> None:
        count = len(self.rows)
        parts = {"origin": self.origin, "weights": self.weights, "source": self.source, "target": self.target, "labels": self.labels}
        wrong = {name: tuple(part.shape) for name, part in parts.items() if part is not None and tuple(part.shape) != (count,)}
        if wrong:
            raise DataError(f"a calibration set of {count} rows has parts of another shape: {wrong}")
        kinds = {"origin": torch.uint8, "source": torch.int64, "target": torch.int64, "labels": torch.int64}
        for name, kind in kinds.items():
            part = parts[name]
            if part is not None and part.dtype != kind:
                raise DataError(f"{name} of a calibration set must be {kind}, got {part.dtype}")
        if count == 0 or not bool((self.origin == FACTUAL).any()):
            raise DataError("a calibration set needs at least one factual row")
        if not bool(torch.isfinite(self.weights).all() & (self.weights >= 0).all() & (self.weights.sum() > 0)):
            raise DataError("weights of a calibration set must be finite, not negative, and not all zero")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def factual(self) -> Tensor:
        """Factual rows, (N_f, ...)."""
        return self.rows[self.origin == FACTUAL]

    @property
    def counterfactual(self) -> Tensor:
        """Counterfactual rows, (N_c, ...)."""
        return self.rows[self.origin == COUNTERFACTUAL]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set as one safetensors file, whole or not at all.

        Raises:
            FileError: the folder does not exist or cannot be written.
        """
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        if self.labels is not None:
            tensors["labels"] = self.labels.contiguous()
        metadata = {"format": _FORMAT, "labels_are_teacher": str(self.labels_are_teacher)}
        with atomic_write(path) as aside:
            save_file(tensors, aside, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationSet:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: the file is missing, cut off, or not a calibration set.
        """
        if not Path(path).is_file():
            raise FileError(f"no calibration set at {path}; give the path of a file written by CalibrationSet.save")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} cannot be read as a calibration set ({error}); write it again with CalibrationSet.save") from error
        if metadata.get("format") != _FORMAT or set(tensors) - {"labels"} != set(_TENSORS):
            raise FileError(f"{path} is no calibration set ({_FORMAT}); give a file written by CalibrationSet.save")
        return cls(**tensors, labels_are_teacher=metadata["labels_are_teacher"] == "True")


_TENSORS = ("rows", "origin", "weights", "source", "target")


def hold_out_people(calibration: CalibrationSet, every: int = HOLD_OUT_EVERY) -> tuple[CalibrationSet, CalibrationSet]:
    """The set without every ``every``-th person, and those people; a person's counterfactual rows go with her factual row.

    Raises:
        DataError: fewer than ``every`` people, so that nobody would be set aside.
    """
    people = int((calibration.origin == FACTUAL).sum())
    if people < every:
        raise DataError(f"{people} calibration rows are too few to set every {every}th person aside; give more rows")
    aside = calibration.source % every == every - 1
    return _part(calibration, ~aside), _part(calibration, aside)


def keep_first_points(calibration: CalibrationSet, count: int) -> CalibrationSet:
    """The factual rows and the first ``count`` counterfactual rows alone: in every set the points of the teacher's recourse stand first.

    Others that a set may hold lie on the boundary itself, where holding or failing says only which way the rounding error fell.
    """
    people = int((calibration.origin == FACTUAL).sum())
    return _part(calibration, torch.arange(len(calibration)) < people + count)


def _part(calibration: CalibrationSet, chosen: Tensor) -> CalibrationSet:
    factual = calibration.origin == FACTUAL
    # Where each person of the part stands among its factual rows.
    place = (chosen & factual)[factual].long().cumsum(0) - 1
    return CalibrationSet(
        rows=calibration.rows[chosen],
        origin=calibration.origin[chosen],
        weights=calibration.weights[chosen],
        source=place[calibration.source[chosen]],
        target=calibration.target[chosen],
        labels=None if calibration.labels is None else calibration.labels[chosen],
        labels_are_teacher=calibration.labels_are_teacher,
    )
