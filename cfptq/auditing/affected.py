"""People whose recourse a new model breaks, with what they were told and what it costs them now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.metrics import EPSILON
from cfptq.recourse import RecourseBatch


@dataclass(frozen=True)
class AffectedPerson:
    """One person who would be refused again after doing what was said.

    Attributes:
        row: Row number in the table of people.
        key: Key of the person, or None.
        told: What the person was told to change, in words.
        cost_told: Cost of that.
        cost_now: Cost of the cheapest change found that the new model accepts. NaN if none was found or searched.
    """

    row: int
    key: str | None
    told: str
    cost_told: float
    cost_now: float


@dataclass(frozen=True)
class FeatureBreakdown:
    """Number of people whose recourse that changes a feature is broken.

    Attributes:
        feature: Name of the feature.
        told: Number of people who were told to change it.
        broken: Number of them who would be refused again.
    """

    feature: str
    told: int
    broken: int


@dataclass(frozen=True)
class Consequences:
    """Findings about single people.

    Attributes:
        people: The people affected, by row.
        features: Breakdown by the features that people were told to change.
        margins: Margins of the target at the points that people were told to reach, on the full-precision and on the new model, in logits.
    """

    people: tuple[AffectedPerson, ...] = ()
    features: tuple[FeatureBreakdown, ...] = ()
    margins: tuple[tuple[float, float], ...] = field(default=(), repr=False)


def describe_consequences(
    rows: Tensor,
    points: Tensor,
    persons: Tensor,
    is_broken: Tensor,
    space: ActionSpace,
    frame: pd.DataFrame | None,
    keys: tuple[str | None, ...] | None,
    costs: Mapping[int, float],
    margins: tuple[Tensor, Tensor],
) -> Consequences:
    """Describe what people were told, and which of them are affected.

    Args:
        rows: Columns of everyone, (N, ...).
        points: Points that M people were told to reach, (M, ...).
        persons: Row numbers of these people, (M,).
        is_broken: True where the new model breaks what the full-precision model grants, (M,).
        space: Action space of the rows.
        frame: Raw features of everyone, if they were given.
        keys: Key of everyone, if there is one.
        costs: Cost of the cheapest change that the new model accepts, by row number.
        margins: Margins at the points on both models, (M,) each.
    """
    delta = (points - rows[persons]).flatten(1) if isinstance(space, ActionSet) else None
    affected = is_broken.nonzero().flatten()
    told = [""] * len(affected)
    cost_told = [math.nan] * len(affected)
    features: list[FeatureBreakdown] = []
    if isinstance(space, ActionSet) and delta is not None:
        chosen = persons[affected]
        own = None if frame is None else frame.iloc[chosen.numpy()]
        if len(affected):
            told = space.describe(rows[chosen], delta[affected], own)
            cost_told = space.cost(rows[chosen], delta[affected]).tolist()
        is_changed = delta.abs() > space.rounding(rows[persons]) + EPSILON
        for name, columns in zip(space.names, space.feature_columns, strict=True):
            changed = is_changed[:, list(columns)].any(1)
            if bool(changed.any()):
                features.append(FeatureBreakdown(name, int(changed.sum()), int((changed & is_broken).sum())))
    people = [
        AffectedPerson(
            row=int(row),
            key=None if keys is None else keys[int(row)],
            told=words,
            cost_told=cost,
            cost_now=costs.get(int(row), math.nan),
        )
        for row, words, cost in zip(persons[affected].tolist(), told, cost_told, strict=True)
    ]
    return Consequences(
        people=tuple(sorted(people, key=lambda person: person.row)),
        features=tuple(sorted(features, key=lambda entry: (-entry.broken, -entry.told, entry.feature))),
        margins=tuple(zip(*(margin.tolist() for margin in margins), strict=True)),
    )


def cost_by_person(batch: RecourseBatch | None, persons: Tensor) -> dict[int, float]:
    """Return the cost of each person's recourse by row number, without people who have none."""
    if batch is None:
        return {}
    return {int(row): float(batch.cost[place]) for place, row in enumerate(persons.tolist()) if bool(batch.found[place])}


def as_frame(people: tuple[AffectedPerson, ...]) -> pd.DataFrame:
    """Return the affected people as a table, for ``cfptq.io.tables.write_csv``."""
    columns: dict[str, list[Any]] = {
        "row": [person.row for person in people],
        "key": [person.key for person in people],
        "told": [person.told for person in people],
        "outcome": ["refused again" for _ in people],
        "cost_told": [person.cost_told for person in people],
        "cost_now": [person.cost_now for person in people],
    }
    return pd.DataFrame(columns).replace({np.nan: None}) if not people else pd.DataFrame(columns)
