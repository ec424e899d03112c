"""Several different actions for each person, to choose from."""

from __future__ import annotations

from dataclasses import fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.errors import DataError
from cfptq.network.predictor import Model
from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.solver import Method, solve
from cfptq.recourse.target import Target


def diverse(
    model: Model,
    rows: Tensor | np.ndarray,
    action_set: ActionSet,
    *,
    target: Target,
    actions: int = 3,
    method: str | Method = "minimal-cost",
    seed: int = 0,
    progress: bool = True,
) -> list[RecourseBatch]:
    """Up to ``actions`` different actions for each row, cheapest kind first.

    Each action does without the feature that each earlier one spent most on, so that no two change the same features. Where nothing
    more is found the row's entry has ``found`` false; rows that have their target from the start have a zero action in every batch.

    Args:
        actions: m, at least 1.
        model, rows, action_set, target, method, seed, progress: as for :func:`~cfptq.recourse.solve`.

    Returns:
        m batches of all rows, in their order.

    Raises:
        DataError: as ``solve``; or the action space is no :class:`~cfptq.actions.ActionSet`.
    """
    if not isinstance(actions, Integral) or actions < 1:
        raise DataError(f"actions is {actions!r}; ask for a whole number of them, at least one for each person")
    if not isinstance(action_set, ActionSet):
        raise DataError(f"diverse actions need a cfptq.ActionSet, whose features can be forbidden by name, not {type(action_set).__name__}")
    first = solve(model, rows, action_set, target=target, method=method, seed=seed, progress=progress)
    batches = [first]
    forbidden: list[frozenset[str]] = [frozenset()] * len(first)
    for _ in range(1, actions):
        spent = _dearest(batches[-1], action_set)
        forbidden = [names | {name} if name else names for names, name in zip(forbidden, spent, strict=True)]
        batches.append(_next(model, batches[-1], action_set, forbidden, spent, method, seed, progress))
    return batches


def _dearest(batch: RecourseBatch, action_set: ActionSet) -> list[str | None]:
    """The feature that each action spends most on; ``None`` where there is no action."""
    weighted = (batch.delta * action_set.column_weights).abs()
    spent = torch.stack([weighted[:, list(columns)].sum(1) for columns in action_set.feature_columns], 1)
    names = action_set.names
    most, feature = spent.max(1)
    return [names[place] if size > 0 else None for size, place in zip(most.tolist(), feature.tolist(), strict=True)]


def _next(
    model: Model,
    last: RecourseBatch,
    action_set: ActionSet,
    forbidden: list[frozenset[str]],
    spent: list[str | None],
    method: str | Method,
    seed: int,
    progress: bool,
) -> RecourseBatch:
    """Rows that had an action last time get another one, those with the same forbidden features together; the others stay as they are."""
    tensors = {field.name: value.clone() for field in fields(last) if isinstance(value := getattr(last, field.name), Tensor)}
    groups: dict[frozenset[str], list[int]] = {}
    for row, (names, name) in enumerate(zip(forbidden, spent, strict=True)):
        if name is not None:
            groups.setdefault(names, []).append(row)
    for names in sorted(groups, key=sorted):
        allowed = action_set
        for name in sorted(names):
            allowed = allowed.refine(name, mutability="immutable")
        index = torch.tensor(groups[names])
        batch = solve(model, last.factual[index], allowed, target=last.target[index], method=method, seed=seed, progress=progress)
        for name, value in tensors.items():
            value[index] = getattr(batch, name)
    parts: dict[str, Any] = tensors
    return replace(last, **parts)
