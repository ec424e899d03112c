"""Advice that people have already been given: does the quantized model keep the promise?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.evaluation import decided
from cfptq.auditing.protocol import Protocol
from cfptq.errors import ActionSetError, DataError, name_rows
from cfptq.io.json import canonicalize
from cfptq.metrics import Interval, Proportion, bootstrap_intervals, evaluate_statistic, target_failures
from cfptq.network.predictor import Predictor


@dataclass(frozen=True)
class IssuedAdvice:
    """What became of the promises. Row numbers count from 0 in the table of advice.

    Attributes:
        promised: rows of advice.
        kept: of them, rows that the quantized model grants.
        kept_before: of them, rows that the full-precision model grants.
        refused: rows that the quantized model refuses.
        broken: of those, rows that the full-precision model grants: quantization broke the promise.
        validity_drop: broken over kept_before (Validity Drop of the advice as issued); NaN where nothing held before.
        kept_rate: kept over promised.
        ci95: intervals of ``validity_drop`` and ``kept_rate``.
    """

    promised: int
    kept: int
    kept_before: int
    refused: tuple[int, ...]
    broken: tuple[int, ...]
    validity_drop: float
    kept_rate: float
    ci95: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        result: dict[str, Any] = canonicalize(vars(self))
        return result

    def sentence(self) -> str:
        """The outcome in one sentence."""
        sentence = f"Of {self.promised} people with issued advice, {self.kept} still get what they were promised"
        never = self.promised - self.kept_before
        if not self.refused:
            return sentence + "."
        sentence += f"; {len(self.broken)} were broken by quantization"
        if never:
            sentence += f"; for {never} the advice did not hold on the full-precision model either"
        return f"{sentence}. Rows refused: {name_rows(self.refused)}."


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
    """Ask both models about the points that people were told to reach.

    With as many rows as there are people, row i is person i's advice; a row whose entries are all missing is no advice, and so
    is an unchanged row of someone who is accepted already. With another number of rows the table stands for itself, and the
    target must be the same for everyone.

    Args:
        f, f_q: the two models.
        issued: points x' (M, ...) as array or tensor in columns, or a DataFrame of raw features.
        rows: (N, ...) everyone's columns.
        target: (N,) target classes.
        accepted: (N,) whether the full-precision model gives the target as things are.
        space: encodes a DataFrame.
        protocol: resamples and level of the intervals.
        seed: of the intervals.

    Raises:
        DataError: no advice, another number of columns, partly missing rows, or targets that cannot be assigned.
        ActionSetError: a DataFrame with an action space that cannot encode.
    """
    count, given, points = _points(issued, rows, space)
    if count == len(rows):
        wanted = target[given]
        idle = accepted[given] & (points == rows[given]).flatten(1).all(dim=1)
        given, points, wanted = given[~idle], points[~idle], wanted[~idle]
    elif bool((target == target[:1]).all()):
        wanted = target[:1].expand(len(given))
    else:
        raise DataError(f"targets differ between people, so issued advice must have one row per person ({len(rows)}), but has {count}")
    if len(points) == 0:
        raise DataError(f"none of the {count} rows of issued advice asks for a change; give the points that people were told to reach")
    before = (decided(f, points) == wanted).numpy()
    after = (decided(f_q, points) == wanted).numpy()
    broken = Proportion(target_failures(after, np.ones(len(after)), before))
    kept = Proportion(after.astype(np.float64))
    return IssuedAdvice(
        promised=len(points),
        kept=int(after.sum()),
        kept_before=int(before.sum()),
        refused=tuple(given[torch.from_numpy(~after)].tolist()),
        broken=tuple(given[torch.from_numpy(before & ~after)].tolist()),
        validity_drop=evaluate_statistic(broken),
        kept_rate=evaluate_statistic(kept),
        ci95=bootstrap_intervals(
            {"validity_drop": broken, "kept_rate": kept}, resamples=protocol.resamples, seed=seed, level=protocol.level
        ),
    )


def _points(issued: Any, rows: Tensor, space: ActionSpace) -> tuple[int, Tensor, Tensor]:
    """Rows of the table, numbers of those that hold advice, and their points in columns."""
    if isinstance(issued, pd.DataFrame):
        encode = getattr(space, "encode", None)
        if encode is None:
            raise ActionSetError("this action space cannot encode a DataFrame of issued advice; give the points in the model's columns")
        given = torch.from_numpy(np.flatnonzero(~issued.isna().all(axis=1).to_numpy()))
        points = encode(issued.iloc[given.numpy()]) if len(given) else rows[:0]
        return len(issued), given, _fitting(points, rows)
    try:
        table = torch.as_tensor(np.asarray(issued, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"issued advice must be a DataFrame of features or an array of columns: {error}") from error
    table = _fitting(table, rows)
    missing = torch.isnan(table).flatten(1).all(dim=1)
    given = torch.nonzero(~missing).flatten()
    partly = torch.nonzero(torch.isnan(table).flatten(1).any(dim=1) & ~missing).flatten()
    if len(partly):
        raise DataError(f"issued advice in rows {name_rows(partly.tolist())} is missing in some columns; leave out all of a row or nothing")
    return len(table), given, table[given]


def _fitting(points: Tensor, rows: Tensor) -> Tensor:
    given, wanted = tuple(points.shape[1:]), tuple(rows.shape[1:])
    if given != wanted:
        raise DataError(f"a row of issued advice has shape {given}, but a person's columns have {wanted}; encode both alike")
    return points
