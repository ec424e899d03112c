"""An encoded action set as index and bound arrays, so that projecting needs no loop over rows or features.

Columns that an action may move come in four blocks, in this order: continuous, integer, coded (one column, finitely many values), one-hot.
Arrays are laid out ``(columns, N)`` while projecting: a one-hot group is then a few whole rows, and every operation runs along memory. They
are NumPy's: at these sizes its passes cost half of torch's, and its sort along the features a fourth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal

Array: TypeAlias = npt.NDArray[Any]

NOWHERE = 1e9
"""Rank of a state that is not in an order (missing, unknown): with the sign of the direction it lies beyond every level."""


@dataclass(frozen=True)
class Scalars:
    """Continuous or integer columns, one row each, ``(S, 1)``.

    ``low`` and ``high`` are encoded values for continuous columns and raw whole numbers for integers. Of a column that may only rise,
    ``low`` is +inf: a row's own value, which always counts as within bounds, is then its lower bound. Of one that may only fall, ``high``
    is -inf.
    """

    low: Array
    high: Array
    offset: Array
    scale: Array


@dataclass(frozen=True)
class Coded:
    """Columns with finitely many values: ``values``, ``ranks``, ``allowed`` ``(S, L, 1)``, padded with inf; ``sign`` ``(S, 1, 1)``."""

    values: Array
    ranks: Array
    allowed: Array
    sign: Array
    directed: bool


@dataclass(frozen=True)
class Groups:
    """One-hot groups, sorted by size; a *slot* is one of their columns.

    Attributes:
        sizes: ``((groups, slots each), ...)`` in order.
        of: group of each slot, ``(H,)``.
        count: G.
        off, on: value of an unset and of a set slot, ``(H, 1)``; ``None`` where all are 0 and 1.
        dropped: ``(G, 1)``: an action may lead to all slots off, because that is how a dropped level shows.
        any_dropped: whether there is such a group.
        guarded: slots that are never a destination.
        ranks: ``(H, 1)`` place of each slot in its group's order, and ``dropped_rank`` ``(G, 1)`` that of all slots off;
            ``None`` where no group moves one way only.
        sign, group_sign: 1 for groups that may only rise, -1 for those that may only fall, else 0; ``(H, 1)`` and ``(G, 1)``.
    """

    sizes: tuple[tuple[int, int], ...]
    of: Array
    count: int
    off: Array | None
    on: Array | None
    dropped: Array
    any_dropped: bool
    guarded: Array
    ranks: Array | None
    dropped_rank: Array
    sign: Array
    group_sign: Array


@dataclass(frozen=True)
class Compiled:
    """See the module's docstring. "Feature" is here a movable one; they come in block order too.

    Attributes:
        width: d.
        weights: w of eq. 4 for all columns, ``(d,)``.
        columns: the movable columns in block order, ``(A,)``.
        runs: ``columns`` cut where the next one is not their neighbour: places among ``columns``, and the columns there.
        moved_weights: w of ``columns``, ``(A, 1)``.
        feature: feature of each of ``columns``, ``(A,)``.
        declared: the features' numbers in the order in which they were declared, ``(F,)``.
        blocks: how many of ``columns`` are continuous, integer, coded, one-hot.
    """

    width: int
    weights: Tensor
    columns: Tensor
    runs: tuple[tuple[slice, slice], ...]
    moved_weights: Array
    feature: Array
    declared: Array
    blocks: tuple[int, int, int, int]
    continuous: Scalars | None
    integer: Scalars | None
    coded: Coded | None
    groups: Groups | None

    @property
    def features(self) -> int:
        """F, the number of features that may move."""
        return len(self.declared)


def compile_features(features: Sequence[AnyFeature], width: int, weights: Tensor) -> Compiled:
    """Arrays for the features that may move. All must be placed on columns below ``width``."""
    movable = [feature for feature in features if not feature.immutable]
    continuous = [f for f in movable if isinstance(f, Continuous) and not isinstance(f, Integer)]
    integer = [f for f in movable if isinstance(f, Integer)]
    levelled = [f for f in movable if isinstance(f, Ordinal | Categorical)]
    coded = [f for f in levelled if not f.one_hot]
    hot = sorted((f for f in levelled if f.one_hot), key=lambda f: len(f.placed))
    ordered = [*continuous, *integer, *coded, *hot]
    columns = Tensor([column for f in ordered for column in f.placed]).long()
    position = {f.name: place for place, f in enumerate(ordered)}
    return Compiled(
        width=width,
        weights=weights,
        columns=columns,
        runs=_runs(columns.tolist()),
        moved_weights=_column(weights[columns].tolist()),
        feature=np.array([place for place, f in enumerate(ordered) for _ in f.placed], dtype=np.intp),
        declared=np.array([position[f.name] for f in movable], dtype=np.intp),
        blocks=(len(continuous), len(integer), len(coded), sum(len(f.placed) for f in hot)),
        continuous=_scalars(continuous, [encoded_bounds(f) for f in continuous], np.float32) if continuous else None,
        integer=_scalars(integer, [f.reach for f in integer], np.float64) if integer else None,
        coded=_coded(coded) if coded else None,
        groups=_groups(hot) if hot else None,
    )


def _runs(columns: Sequence[int]) -> tuple[tuple[slice, slice], ...]:
    starts = [place for place, column in enumerate(columns) if place == 0 or column != columns[place - 1] + 1]
    ends = [*starts[1:], len(columns)]
    return tuple((slice(start, end), slice(columns[start], columns[start] + end - start)) for start, end in zip(starts, ends, strict=False))


def encoded_bounds(feature: Continuous) -> tuple[float, float]:
    """Where the feature may move on its column: the float32 values that encoding its raw bounds gives, so they decode to just these."""
    low, high = ((side - feature.offset) / feature.scale for side in feature.reach)
    with np.errstate(over="ignore"):  # a bound beyond float32 is no bound
        return float(np.float32(low)), float(np.float32(high))


def direction(feature: AnyFeature) -> float:
    """1 where the feature may only rise, -1 where it may only fall, else 0."""
    return {Mutability.INCREASE: 1.0, Mutability.DECREASE: -1.0}.get(feature.mutability, 0.0)


def _column(values: Sequence[float], dtype: type[Any] = np.float32) -> Array:
    return np.array(values, dtype=dtype).reshape(-1, 1)


def _scalars(features: Sequence[Continuous], bounds: Sequence[tuple[float, float]], dtype: type[Any]) -> Scalars:
    return Scalars(
        low=_column([math.inf if direction(f) > 0 else low for f, (low, _) in zip(features, bounds, strict=True)], dtype),
        high=_column([-math.inf if direction(f) < 0 else high for f, (_, high) in zip(features, bounds, strict=True)], dtype),
        offset=_column([f.offset for f in features], dtype),
        scale=_column([f.scale for f in features], dtype),
    )


def _ranks(feature: Ordinal | Categorical) -> list[float]:
    """Each state's place in the order; a missing value's lies beyond every level, so that nothing is reached from it."""
    if feature.ranks is None:
        return [0.0] * len(feature.states)
    return [direction(feature) * NOWHERE if s is None else float(rank) for s, rank in zip(feature.states, feature.ranks, strict=True)]


def _coded(features: Sequence[Ordinal | Categorical]) -> Coded:
    shape = (len(features), max(len(f.states) for f in features), 1)
    values = np.full(shape, np.inf, dtype=np.float32)
    ranks = np.zeros(shape, dtype=np.float32)
    allowed = np.zeros(shape, dtype=bool)
    for row, f in enumerate(features):
        count = len(f.states)
        values[row, :count, 0] = f.codes
        ranks[row, :count, 0] = _ranks(f)
        allowed[row, :count, 0] = f.destinations
    sign = _column([direction(f) for f in features])[:, :, None]
    return Coded(values, ranks, allowed, sign, bool(sign.any()))


def _groups(features: Sequence[Ordinal | Categorical]) -> Groups:
    sizes: list[tuple[int, int]] = []
    of: list[int] = []
    off: list[float] = []
    on: list[float] = []
    guarded: list[int] = []
    ranks: list[float] = []
    dropped: list[bool] = []
    dropped_rank: list[float] = []
    for group, f in enumerate(features):
        assert f.columns is not None and f.off is not None and f.on is not None
        size = len(f.placed)
        same = bool(sizes) and sizes[-1][1] == size
        sizes[-1 if same else len(sizes) :] = [(sizes[-1][0] + 1 if same else 1, size)]
        empty_leads, empty_rank = False, direction(f) * NOWHERE
        for column, leads, rank, low, high in zip(f.columns, f.destinations, _ranks(f), f.off, f.on, strict=True):
            if column is None:
                empty_leads, empty_rank = leads, rank
                continue
            if not leads:
                guarded.append(len(of))
            of.append(group)
            off.append(low)
            on.append(high)
            ranks.append(rank)
        dropped.append(empty_leads)
        dropped_rank.append(empty_rank)
    plain = all(value == 0 for value in off) and all(value == 1 for value in on)
    signs = [direction(f) for f in features]
    return Groups(
        sizes=tuple(sizes),
        of=np.array(of, dtype=np.intp),
        count=len(features),
        off=None if plain else _column(off),
        on=None if plain else _column(on),
        dropped=_column(dropped, bool),
        any_dropped=any(dropped),
        guarded=np.array(guarded, dtype=np.intp),
        ranks=_column(ranks) if any(signs) else None,
        dropped_rank=_column(dropped_rank),
        sign=_column([signs[group] for group in of]),
        group_sign=_column(signs),
    )
