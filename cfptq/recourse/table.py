"""Recourse as people read it: raw units, changes in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from cfptq.actions import ActionSet
from cfptq.errors import DataError

if TYPE_CHECKING:
    from cfptq.recourse.batch import RecourseBatch


def as_frame(batch: RecourseBatch, action_set: ActionSet) -> pd.DataFrame:
    """One row a person, columns in two levels.

    ``recourse``: ``found``, ``changes`` in words, ``cost``, ``status``, ``reason`` (why there is no action; empty where there is one),
    ``target``. ``factual`` and ``counterfactual``: every feature in raw units. ``frame["counterfactual"]`` can be encoded as it is:
    whole numbers, levels and bounds are kept exactly, and so is the model's decision.

    Raises:
        DataError: no action set, or the batch is not about this action set's columns.
    """
    if not isinstance(action_set, ActionSet):
        raise DataError(f"the table needs the cfptq.ActionSet that the recourse was found with, not {type(action_set).__name__}")
    if batch.factual.ndim != 2 or batch.factual.shape[1] != action_set.width:
        raise DataError(
            f"the batch's rows have shape {tuple(batch.factual.shape)}, the action set {action_set.width} columns; give the action set "
            "that the recourse was found with"
        )
    answer = pd.DataFrame(
        {
            "found": batch.found.tolist(),
            "changes": action_set.describe(batch.factual, batch.delta),
            "cost": batch.cost.tolist(),
            "status": [status.name.lower().replace("_", " ") for status in batch.statuses()],
            "reason": batch.reasons(),
            "target": batch.target.tolist(),
        }
    )
    parts = {"recourse": answer, "factual": action_set.decode(batch.factual), "counterfactual": batch.counterfactuals(action_set)}
    return pd.concat(parts, axis=1)
