"""An encoded action set as index and bound arrays, so that projecting needs no loop over rows or features.

The columns that an action may change come in four blocks: continuous, integer, coded (one column with finitely many values) and one-hot.
Projecting uses arrays ``(columns, N)``. A one-hot group is then a few whole rows, and every operation runs along memory. The arrays are
NumPy's, because at these sizes an elementwise pass takes half the time of torch's, and a sort along the features a fourth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal

Array: TypeAlias = npt.NDArray[Any]

UNORDERED_RANK = 1e9
"""Rank of a state outside the order (missing, unknown). Multiplied by the direction, it lies beyond every level."""


@dataclass(frozen=True)
class ScalarColumns:
    """Continuous or integer columns, with one row for each of the S columns.

    A row's own value always counts as within bounds. An infinite bound on the near side therefore makes it the bound.

    Attributes:
        low: lower bound, ``(S, 1)``, encoded for continuous columns and raw for integers. It is +inf where a column may only rise.
        high: upper bound, ``(S, 1)``, in the same units. It is -inf where a column may only fall.
        offset: offset in raw units, ``(S, 1)``.
        scale: scale in raw units, ``(S, 1)``.
        curved: row and feature of each column that a curve encodes.
    """

    low: Array
    high: Array
    offset: Array
    scale: Array
    curved: tuple[tuple[int, Continuous], ...] = ()


@dataclass(frozen=True)
class CodedColumns:
    """Columns with finitely many values, with one row for each of the S columns and up to L values.

    Attributes:
        values: codes, ``(S, L, 1)``, padded with inf.
        ranks: rank of each code in the order, ``(S, L, 1)``.
        allowed: true for codes that an action may lead to, ``(S, L, 1)``.
        sign: 1 for columns that may only rise, -1 for those that may only fall, else 0, ``(S, 1, 1)``.
        is_directed: true if a column moves in one direction only.
    """

    values: Array
    ranks: Array
    allowed: Array
    sign: Array
    is_directed: bool


@dataclass(frozen=True)
class OneHotGroups:
    """G one-hot groups sorted by size, with H columns (*slots*) in total.

    Attributes:
        sizes: number of groups and slots of each, for each run of groups of one size.
        group_of_slot: group of each slot, ``(H,)``.
        count: G.
        off: value of a slot that is off, ``(H, 1)``; ``None`` if all slots are 0 or 1.
        on: value of a slot that is on, ``(H, 1)``; ``None`` if all slots are 0 or 1.
        may_turn_off: true if an action may turn all slots off, which shows a dropped level, ``(G, 1)``.
        any_may_turn_off: true if there is such a group.
        unreachable: slots that no action may lead to.
        ranks: rank of each slot in its group's order, ``(H, 1)``; ``None`` if no group moves in one direction only.
        off_rank: rank of all slots off, ``(G, 1)``.
        sign: 1 for slots of groups that may only rise, -1 for those that may only fall, else 0, ``(H, 1)``.
        group_sign: ``sign`` by group, ``(G, 1)``.
    """

    sizes: tuple[tuple[int, int], ...]
    group_of_slot: Array
    count: int
    off: Array | None
    on: Array | None
    may_turn_off: Array
    any_may_turn_off: bool
    unreachable: Array
    ranks: Array | None
    off_rank: Array
    sign: Array
    group_sign: Array


@dataclass(frozen=True)
class CompiledFeatures:
    """Arrays of the F mutable features and their A columns, both in block order.

    Attributes:
        width: number d of all columns.
        weights: w of eq. 4 for all columns, ``(d,)``.
        columns: the mutable columns, ``(A,)``.
        runs: contiguous runs of ``columns``, as positions in ``columns`` and as positions among all columns.
        movable_weights: w of ``columns``, ``(A, 1)``.
        feature: feature of each of ``columns``, ``(A,)``.
        declaration_order: indices of the features in the order in which they were declared, ``(F,)``.
        blocks: numbers of continuous, integer, coded and one-hot columns.
        continuous: the continuous columns; ``None`` if there are none.
        integer: the integer columns; ``None`` if there are none.
        coded: the coded columns; ``None`` if there are none.
        groups: the one-hot groups; ``None`` if there are none.
        indicators: rows of ``columns``, and column and threshold of the indicator, for each feature whose missing values stay missing.
    """

    width: int
    weights: Tensor
    columns: Tensor
    runs: tuple[tuple[slice, slice], ...]
    movable_weights: Array
    feature: Array
    declaration_order: Array
    blocks: tuple[int, int, int, int]
    continuous: ScalarColumns | None
    integer: ScalarColumns | None
    coded: CodedColumns | None
    groups: OneHotGroups | None
    indicators: tuple[tuple[list[int], int, float], ...] = ()

    @property
    def feature_count(self) -> int:
        """Number F of mutable features."""
        return len(self.declaration_order)


def compile_features(features: Sequence[AnyFeature], width: int, weights: Tensor) -> CompiledFeatures:
    """Compile the mutable features, which must be placed on columns below ``width``."""
    movable = [feature for feature in features if not feature.is_immutable]
    continuous = [f for f in movable if isinstance(f, Continuous) and not isinstance(f, Integer)]
    integer = [f for f in movable if isinstance(f, Integer)]
    with_levels = [f for f in movable if isinstance(f, Ordinal | Categorical)]
    coded = [f for f in with_levels if not f.is_one_hot]
    hot = sorted((f for f in with_levels if f.is_one_hot), key=lambda f: len(f.model_columns))
    ordered = [*continuous, *integer, *coded, *hot]
    columns = Tensor([column for f in ordered for column in f.model_columns]).long()
    position = {f.name: place for place, f in enumerate(ordered)}
    return CompiledFeatures(
        width=width,
        weights=weights,
        columns=columns,
        runs=_find_runs(columns.tolist()),
        movable_weights=_to_column(weights[columns].tolist()),
        feature=np.array([place for place, f in enumerate(ordered) for _ in f.model_columns], dtype=np.intp),
        declaration_order=np.array([position[f.name] for f in movable], dtype=np.intp),
        blocks=(len(continuous), len(integer), len(coded), sum(len(f.model_columns) for f in hot)),
        continuous=_compile_scalars(continuous, [encode_bounds(f) for f in continuous], np.float32) if continuous else None,
        integer=_compile_scalars(integer, [f.reachable_bounds for f in integer], np.float64) if integer else None,
        coded=_compile_coded(coded) if coded else None,
        groups=_compile_groups(hot) if hot else None,
        indicators=tuple(_compile_indicators(ordered, columns.tolist())),
    )


def _compile_indicators(features: Sequence[AnyFeature], columns: Sequence[int]) -> Iterator[tuple[list[int], int, float]]:
    for feature in features:
        if feature.indicator is not None:
            own = [place for place, column in enumerate(columns) if column in feature.model_columns]
            yield own, feature.indicator, sum(feature.indicator_values) / 2


def _find_runs(columns: Sequence[int]) -> tuple[tuple[slice, slice], ...]:
    starts = [place for place, column in enumerate(columns) if place == 0 or column != columns[place - 1] + 1]
    ends = [*starts[1:], len(columns)]
    return tuple((slice(start, end), slice(columns[start], columns[start] + end - start)) for start, end in zip(starts, ends, strict=False))


def encode_bounds(feature: Continuous) -> tuple[float, float]:
    """Return the bounds of an action on the feature's column, as the float32 values that encoding the raw bounds gives."""
    bounds = np.array(feature.reachable_bounds, dtype=np.float64)
    encoded = feature.encode_numbers(bounds)
    # A raw bound beyond the domain of a curve, such as minus infinity for a logarithm, leaves the column open.
    low, high = np.where(np.isnan(encoded), [-np.inf, np.inf], encoded)
    with np.errstate(over="ignore"):  # A bound beyond float32 becomes infinite.
        return float(np.float32(low)), float(np.float32(high))


def get_direction(feature: AnyFeature) -> float:
    """Return 1 if the feature may only rise, -1 if it may only fall, else 0."""
    return {Mutability.INCREASE: 1.0, Mutability.DECREASE: -1.0}.get(feature.mutability, 0.0)


def _to_column(values: Sequence[float], dtype: type[Any] = np.float32) -> Array:
    return np.array(values, dtype=dtype).reshape(-1, 1)


def _compile_scalars(features: Sequence[Continuous], bounds: Sequence[tuple[float, float]], dtype: type[Any]) -> ScalarColumns:
    return ScalarColumns(
        low=_to_column([math.inf if get_direction(f) > 0 else low for f, (low, _) in zip(features, bounds, strict=True)], dtype),
        high=_to_column([-math.inf if get_direction(f) < 0 else high for f, (_, high) in zip(features, bounds, strict=True)], dtype),
        offset=_to_column([f.offset for f in features], dtype),
        scale=_to_column([f.scale for f in features], dtype),
        curved=tuple((row, f) for row, f in enumerate(features) if f.curve),
    )


def _rank_states(feature: Ordinal | Categorical) -> list[float]:
    """Return the rank of each state. That of a missing value lies beyond every level, so that no level is reached from it."""
    if feature.ranks is None:
        return [0.0] * len(feature.states)
    return [
        get_direction(feature) * UNORDERED_RANK if s is None else float(rank) for s, rank in zip(feature.states, feature.ranks, strict=True)
    ]


def _compile_coded(features: Sequence[Ordinal | Categorical]) -> CodedColumns:
    shape = (len(features), max(len(f.states) for f in features), 1)
    values = np.full(shape, np.inf, dtype=np.float32)
    ranks = np.zeros(shape, dtype=np.float32)
    allowed = np.zeros(shape, dtype=bool)
    for row, f in enumerate(features):
        count = len(f.states)
        values[row, :count, 0] = f.codes
        ranks[row, :count, 0] = _rank_states(f)
        allowed[row, :count, 0] = f.destinations
    sign = _to_column([get_direction(f) for f in features])[:, :, None]
    return CodedColumns(values, ranks, allowed, sign, bool(sign.any()))


def _compile_groups(features: Sequence[Ordinal | Categorical]) -> OneHotGroups:
    sizes: list[tuple[int, int]] = []
    group_of_slot: list[int] = []
    off: list[float] = []
    on: list[float] = []
    unreachable: list[int] = []
    ranks: list[float] = []
    may_turn_off: list[bool] = []
    off_rank: list[float] = []
    for group, f in enumerate(features):
        assert f.columns is not None and f.off is not None and f.on is not None
        size = len(f.model_columns)
        same = bool(sizes) and sizes[-1][1] == size
        sizes[-1 if same else len(sizes) :] = [(sizes[-1][0] + 1 if same else 1, size)]
        may_be_off, rank_of_off = False, get_direction(f) * UNORDERED_RANK
        for column, is_reachable, rank, low, high in zip(f.columns, f.destinations, _rank_states(f), f.off, f.on, strict=True):
            if column is None:
                may_be_off, rank_of_off = is_reachable, rank
                continue
            if not is_reachable:
                unreachable.append(len(group_of_slot))
            group_of_slot.append(group)
            off.append(low)
            on.append(high)
            ranks.append(rank)
        may_turn_off.append(may_be_off)
        off_rank.append(rank_of_off)
    is_binary = all(value == 0 for value in off) and all(value == 1 for value in on)
    signs = [get_direction(f) for f in features]
    return OneHotGroups(
        sizes=tuple(sizes),
        group_of_slot=np.array(group_of_slot, dtype=np.intp),
        count=len(features),
        off=None if is_binary else _to_column(off),
        on=None if is_binary else _to_column(on),
        may_turn_off=_to_column(may_turn_off, bool),
        any_may_turn_off=any(may_turn_off),
        unreachable=np.array(unreachable, dtype=np.intp),
        ranks=_to_column(ranks) if any(signs) else None,
        off_rank=_to_column(off_rank),
        sign=_to_column([signs[group] for group in group_of_slot]),
        group_sign=_to_column(signs),
    )
