"""Several different actions for each row."""

from __future__ import annotations

from dataclasses import fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.errors import DataError
from cfptq.network.predictor import Model
from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.solver import Method, solve
from cfptq.recourse.target import Target


def solve_diverse(
    model: Model,
    rows: Tensor | np.ndarray | pd.DataFrame,
    action_set: ActionSet,
    *,
    target: Target,
    actions: int = 3,
    method: str | Method = "minimal-cost",
    seed: int = 0,
    progress: bool = True,
) -> list[RecourseBatch]:
    """Find up to ``actions`` different actions for each row.

    Each action leaves out, for every earlier action, the feature that the earlier action spent most on. So no two actions change the
    same features. A row without a further action has ``found`` false. A row that has its target already has a zero action in
    every batch.

    Args:
        model: Model as ``cfptq.recourse.solve`` takes it.
        rows: Columns as floats, (N, d), or a DataFrame of raw features.
        action_set: Admissible actions of each person and their costs.
        target: One class for all rows, one class per row (N,), or a rule ``(rows, logits) -> (N,)``.
        actions: Number of actions m, at least 1, default 3.
        method: Name or settings of a method of ``cfptq.recourse.solve``, default ``"minimal-cost"``.
        seed: Seed of the random restarts, default 0.
        progress: Show a progress bar for long runs if standard error is a terminal, default True.

    Returns:
        m batches of all rows in their order.

    Raises:
        DataError: ``action_set`` is not an ``cfptq.actions.ActionSet``, or as ``cfptq.recourse.solve``.
        ActionSetError: As ``cfptq.recourse.solve``.
        ModelError: As ``cfptq.recourse.solve``.
    """
    if not isinstance(actions, Integral) or actions < 1:
        raise DataError(f"actions must be a whole number of at least 1, got {actions!r}.")
    if not isinstance(action_set, ActionSet):
        raise DataError(f"action_set must be a cfptq.ActionSet, got {type(action_set).__name__}.")
    if isinstance(rows, pd.DataFrame):
        action_set, rows = action_set.for_people(rows), action_set.encode(rows)
    first = solve(model, rows, action_set, target=target, method=method, seed=seed, progress=progress)
    batches = [first]
    forbidden: list[frozenset[str]] = [frozenset()] * len(first)
    for _ in range(1, actions):
        spent = _find_costliest_features(batches[-1], action_set)
        forbidden = [names | {name} if name else names for names, name in zip(forbidden, spent, strict=True)]
        batches.append(_solve_without(model, batches[-1], action_set, forbidden, spent, method, seed, progress))
    return batches


def _find_costliest_features(batch: RecourseBatch, action_set: ActionSet) -> list[str | None]:
    """Return the feature that each action spends most on, ``None`` where there is no action."""
    weighted = (batch.delta * action_set.column_weights).abs()
    spent = torch.stack([weighted[:, list(columns)].sum(1) for columns in action_set.feature_columns], 1)
    names = action_set.names
    most, feature = spent.max(1)
    return [names[place] if size > 0 else None for size, place in zip(most.tolist(), feature.tolist(), strict=True)]


def _solve_without(
    model: Model,
    last: RecourseBatch,
    action_set: ActionSet,
    forbidden: list[frozenset[str]],
    spent: list[str | None],
    method: str | Method,
    seed: int,
    progress: bool,
) -> RecourseBatch:
    """Solve the rows that had an action again without their forbidden features, and keep the other rows unchanged."""
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
