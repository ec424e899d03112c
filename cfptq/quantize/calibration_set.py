"""Calibration set of a quantizer, with factual rows and the teacher's counterfactual points (eq. 21), and parts of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cfptq.errors import DataError, FileError
from cfptq.io.atomic import atomic_write
from cfptq.io.files import as_path

_FORMAT = "cfptq.calibration/1"

#: Values of ``origin``: a factual row, a counterfactual point, and a row that was generated near the boundary.
FACTUAL, COUNTERFACTUAL, GENERATED = 0, 1, 2

#: Every fourth person is held out where rows are held out.
HOLD_OUT_EVERY = 4


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration set U_cal, which joins X_cal and counterfactual points of the people whom the teacher rejects. Factual rows come first.

    Attributes:
        rows: (N, ...) float32.
        origin: 0 for a factual row, 1 for a counterfactual point, 2 for a row generated near the boundary, (N,) uint8.
        weights: weight of each row, (N,) float32. All are 1 in eq. 21. Nothing is fitted on rows of weight 0.
        source: position, among the factual rows, of the person that each row is about, (N,) int64.
        target: the class wanted for that person, (N,) int64.
        labels: class of each factual row and -1 in other rows, (N,) int64. None if no labels are known.
        labels_are_teacher: the labels are the teacher's own decisions, because the data had none.

    Raises:
        DataError: shapes or dtypes differ from these, no row is factual, or weights are negative, not finite, or all 0.
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
            raise DataError(f"Each part of a calibration set of {count} rows must have shape ({count},), got {wrong}.")
        kinds = {"origin": torch.uint8, "source": torch.int64, "target": torch.int64, "labels": torch.int64}
        for name, kind in kinds.items():
            part = parts[name]
            if part is not None and part.dtype != kind:
                raise DataError(f"{name} of a calibration set must be {kind}, got {part.dtype}.")
        if count == 0 or not bool((self.origin == FACTUAL).any()):
            raise DataError("A calibration set must have at least one factual row, got none.")
        if not bool(torch.isfinite(self.weights).all() & (self.weights >= 0).all() & (self.weights.sum() > 0)):
            raise DataError("The weights of a calibration set must be finite, at least 0, and not all 0.")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def factual(self) -> Tensor:
        """The factual rows, (N_f, ...)."""
        return self.rows[self.origin == FACTUAL]

    @property
    def counterfactual(self) -> Tensor:
        """The counterfactual rows, (N_c, ...)."""
        return self.rows[self.origin == COUNTERFACTUAL]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set as one safetensors file. An error leaves no file behind.

        Args:
            path: the file to write.

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
        """Read a file that ``save`` wrote.

        Args:
            path: the file to read.

        Raises:
            FileError: the file is missing, incomplete, or no calibration set.
        """
        if not as_path(path).is_file():
            raise FileError(f"There is no file {path}. Give a file that CalibrationSet.save wrote.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path} cannot be read as a calibration set ({error}). Write it again with CalibrationSet.save.") from error
        if metadata.get("format") != _FORMAT or set(tensors) - {"labels"} != set(_TENSORS):
            raise FileError(f"{path} is no calibration set of format {_FORMAT}. Give a file that CalibrationSet.save wrote.")
        return cls(**tensors, labels_are_teacher=metadata.get("labels_are_teacher") == "True")


_TENSORS = ("rows", "origin", "weights", "source", "target")


def hold_out_people(calibration: CalibrationSet, every: int = HOLD_OUT_EVERY) -> tuple[CalibrationSet, CalibrationSet]:
    """Split a set into the people to keep and every ``every``-th person, held out.

    A person's counterfactual points go with their factual row.

    Args:
        calibration: the set to split.
        every: one person in so many is held out.

    Returns:
        The set without the held-out people, and theirs.

    Raises:
        DataError: there are fewer than ``every`` people, so that nobody would be held out.
    """
    people = int((calibration.origin == FACTUAL).sum())
    if people < every:
        raise DataError(f"{people} factual calibration rows are too few to hold out every {every}th person. Give at least {every}.")
    held_out = find_held_out(calibration, every)
    return _take(calibration, ~held_out), _take(calibration, held_out)


def find_held_out(calibration: CalibrationSet, every: int = HOLD_OUT_EVERY) -> Tensor:
    """Find the rows of every ``every``-th person, (N,) bool.

    Args:
        calibration: the set.
        every: one person in so many is held out.
    """
    return calibration.source % every == every - 1


def keep_first_points(calibration: CalibrationSet, count: int) -> CalibrationSet:
    """Keep the factual rows and the first ``count`` counterfactual points.

    The points of the teacher's recourse come first in every set. Others may lie on the boundary itself, where validity says only which way
    the rounding error went.

    Args:
        calibration: the set.
        count: number of counterfactual points to keep.
    """
    people = int((calibration.origin == FACTUAL).sum())
    return _take(calibration, torch.arange(len(calibration)) < people + count)


def _take(calibration: CalibrationSet, chosen: Tensor) -> CalibrationSet:
    """Return the chosen rows as a set. The factual row of each must be among them. Where none of them has a weight, all count alike."""
    factual = calibration.origin == FACTUAL
    # The position of each chosen person among the chosen factual rows.
    place = (chosen & factual)[factual].long().cumsum(0) - 1
    weights = calibration.weights[chosen]
    return CalibrationSet(
        rows=calibration.rows[chosen],
        origin=calibration.origin[chosen],
        weights=weights if bool((weights > 0).any()) else torch.ones_like(weights),
        source=place[calibration.source[chosen]],
        target=calibration.target[chosen],
        labels=None if calibration.labels is None else calibration.labels[chosen],
        labels_are_teacher=calibration.labels_are_teacher,
    )
