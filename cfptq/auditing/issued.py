"""Checks of advice that people have already been given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.evaluation import decide_points
from cfptq.auditing.protocol import Protocol
from cfptq.errors import ActionSetError, DataError, DataWarning, name_rows
from cfptq.io.json import canonicalize
from cfptq.metrics import Interval, Proportion, bootstrap_intervals, evaluate_statistic, premature_acceptances, target_failures
from cfptq.metrics.arrays import Floats
from cfptq.network.predictor import Predictor

#: Equal steps from a person's row to the point that the advice leads to.
LETTER_STEPS = 50


@dataclass(frozen=True)
class IssuedAdvice:
    """Outcome of issued advice on both models.

    Row numbers count from 0 in the table of advice.

    Attributes:
        promised: Number of rows with advice.
        kept: Number of these rows that the quantized model accepts.
        kept_before: Number of these rows that the full-precision model accepts.
        refused: Row numbers that the quantized model rejects.
        broken: Row numbers that the quantized model rejects and the full-precision model accepts.
        validity_drop: Share of ``kept_before`` that is broken, the Validity Drop of the advice. NaN if ``kept_before`` is 0.
        kept_rate: Share of ``promised`` that is kept.
        premature_validity: Share of ``kept_before`` whom the quantized model accepts already at the last of ``LETTER_STEPS`` equal steps
            from row to advice that the full-precision model refuses. There is no solver's path, so it must not be compared with the
            premature validity of projected-gradient recourse. NaN where advice cannot be assigned to people.
        ci95: Intervals of ``validity_drop``, ``kept_rate`` and ``premature_validity``.
    """

    promised: int
    kept: int
    kept_before: int
    refused: tuple[int, ...]
    broken: tuple[int, ...]
    validity_drop: float
    kept_rate: float
    premature_validity: float
    ci95: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        result: dict[str, Any] = canonicalize(vars(self))
        return result

    def describe(self) -> str:
        """Describe the outcome in words."""
        sentences = [f"Of {self.promised} people with issued advice, {self.kept} still get what they were promised."]
        if self.refused:
            sentences.append(f"Quantization broke the advice of {len(self.broken)}.")
            if never := self.promised - self.kept_before:
                sentences.append(f"For {never} the advice did not hold on the full-precision model either.")
            sentences.append(f"Rows refused: {name_rows(self.refused)}.")
        return " ".join(sentences)


def check_issued(
    f: Predictor,
    f_q: Predictor,
    issued: Any,
    rows: Tensor,
    target: Tensor,
    accepted: Tensor,
    space: ActionSpace,
    protocol: Protocol,
    seed: int = 0,
) -> IssuedAdvice:
    """Check the points that people were told to reach on both models.

    If ``issued`` has as many rows as there are people, row i is the advice of person i. A row whose entries are all missing is no
    advice. Neither is an unchanged row of a person who is accepted already. With another number of rows, the target must be the same
    for everyone.

    Args:
        f: Full-precision model.
        f_q: Quantized model.
        issued: Points x' (M, ...) in columns, or a DataFrame of M rows of raw features.
        rows: Columns of everyone, (N, ...).
        target: Target classes, (N,).
        accepted: True where the full-precision model gives the target without any action, (N,).
        space: Action space that encodes a DataFrame.
        protocol: Resamples and level of the intervals.
        seed: Seed of the intervals.

    Raises:
        DataError: There is no advice, its columns do not fit, rows are partly missing, or targets cannot be assigned.
        ActionSetError: ``issued`` is a DataFrame and the action space cannot encode.
    """
    count, given, points = _read_points(issued, rows, space)
    if count == len(rows):
        wanted = target[given]
        # Advice that was kept in float32 differs from the person's own values by rounding, which is no change.
        slack = space.rounding(rows[given]) if isinstance(space, ActionSet) else torch.zeros_like(points)
        is_same = (points - rows[given]).abs() <= slack
        points = torch.where(is_same, rows[given], points)
        idle = accepted[given] & is_same.flatten(1).all(dim=1)
        given, points, wanted = given[~idle], points[~idle], wanted[~idle]
        starts = rows[given]
    elif bool((target == target[:1]).all()):
        wanted = target[:1].expand(len(given))
        starts = None
    else:
        raise DataError(f"issued must have one row per person ({len(rows)}), because targets differ between people, got {count} rows.")
    if len(points) == 0:
        raise DataError(f"issued must ask for a change, got {count} rows without any. Give the points that people were told to reach.")
    before = (decide_points(f, points) == wanted).numpy()
    after = (decide_points(f_q, points) == wanted).numpy()
    broken = Proportion(target_failures(after, np.ones(len(after)), before))
    kept = Proportion(after.astype(np.float64))
    premature = Proportion(
        np.full(len(points), np.nan) if starts is None else _find_premature_acceptances(f, f_q, starts, points, wanted, before)
    )
    return IssuedAdvice(
        promised=len(points),
        kept=int(after.sum()),
        kept_before=int(before.sum()),
        refused=tuple(given[torch.from_numpy(~after)].tolist()),
        broken=tuple(given[torch.from_numpy(before & ~after)].tolist()),
        validity_drop=evaluate_statistic(broken),
        kept_rate=evaluate_statistic(kept),
        premature_validity=evaluate_statistic(premature),
        ci95=bootstrap_intervals(
            {"validity_drop": broken, "kept_rate": kept, "premature_validity": premature},
            resamples=protocol.resamples,
            seed=seed,
            level=protocol.level,
        ),
    )


def _find_premature_acceptances(
    f: Predictor, f_q: Predictor, starts: Tensor, points: Tensor, target: Tensor, granted: NDArray[np.bool_]
) -> Floats:
    """Return 1 where f_q accepts at the last step from row to advice that f refuses, else 0, and NaN where f refuses no step or the end."""
    last_refused, refuses = starts.clone(), torch.zeros(len(starts), dtype=torch.bool)
    for step in range(LETTER_STEPS):
        between = torch.lerp(starts, points, step / LETTER_STEPS)
        refused = decide_points(f, between) != target
        last_refused[refused] = between[refused]
        refuses |= refused
    return premature_acceptances(decide_points(f_q, last_refused), target, granted & refuses.numpy())


def _read_points(issued: Any, rows: Tensor, space: ActionSpace) -> tuple[int, Tensor, Tensor]:
    """Return the number of rows, the row numbers (M,) that hold advice, and their points in columns (M, ...)."""
    if isinstance(issued, pd.DataFrame):
        encode = getattr(space, "encode", None)
        if encode is None:
            raise ActionSetError(
                "issued must be columns, because this action space cannot encode a DataFrame. Give the points in the model's columns."
            )
        given = torch.from_numpy(np.flatnonzero(~issued.isna().all(axis=1).to_numpy()))
        with warnings.catch_warnings():
            # Advice may lead beyond what was observed. The report remarks on the people themselves.
            warnings.simplefilter("ignore", DataWarning)
            points = encode(issued.iloc[given.numpy()]) if len(given) else rows[:0]
        return len(issued), given, _check_shape(points, rows)
    try:
        table = torch.as_tensor(np.asarray(issued, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"issued must be a DataFrame of features or an array of columns, got neither ({error}).") from error
    table = _check_shape(table, rows)
    missing = torch.isnan(table).flatten(1).all(dim=1)
    given = torch.nonzero(~missing).flatten()
    partly = torch.nonzero(torch.isnan(table).flatten(1).any(dim=1) & ~missing).flatten()
    if len(partly):
        raise DataError(f"issued must hold all columns of a row or none, got rows with some missing: {name_rows(partly.tolist())}.")
    return len(table), given, table[given]


def _check_shape(points: Tensor, rows: Tensor) -> Tensor:
    given, wanted = tuple(points.shape[1:]), tuple(rows.shape[1:])
    if given != wanted:
        raise DataError(f"A row of issued advice must have the shape of a person's columns, {wanted}, got {given}. Encode both alike.")
    return points
