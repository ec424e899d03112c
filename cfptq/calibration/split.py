"""Parts of a calibration set: people set aside to judge by, and the recourse that is judged."""

from __future__ import annotations

import torch
from torch import Tensor

from cfptq.calibration.calibration_set import FACTUAL, CalibrationSet
from cfptq.errors import DataError
from cfptq.recourse import RecourseBatch

#: Every n-th person is set aside where rows are held out.
SET_ASIDE = 4


def set_aside(calibration: CalibrationSet, every: int = SET_ASIDE) -> tuple[CalibrationSet, CalibrationSet]:
    """The set without every ``every``-th person, and those people; a person's counterfactual rows go with her factual row.

    Raises:
        DataError: fewer than ``every`` people, so that nobody would be set aside.
    """
    people = int((calibration.origin == FACTUAL).sum())
    if people < every:
        raise DataError(f"{people} calibration rows are too few to set every {every}th person aside; give more rows")
    aside = calibration.source % every == every - 1
    return _part(calibration, ~aside), _part(calibration, aside)


def with_recourse(calibration: CalibrationSet, recourse: RecourseBatch) -> CalibrationSet:
    """The factual rows and the points of ``recourse`` alone: they stand first among the counterfactual rows of every set.

    Others that a set may hold lie on the boundary itself, where holding or failing says only which way the rounding error fell.
    """
    people = int((calibration.origin == FACTUAL).sum())
    return _part(calibration, torch.arange(len(calibration)) < people + len(recourse))


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
