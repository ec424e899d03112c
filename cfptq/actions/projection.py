"""Projection Π of Algorithm 1 (eqs. 7 to 12) and the exact counterfactual point, for all rows at once.

The steps follow the paper's order: immutability, box, categories, sparsity. Where the paper is silent:

* A continuous action is clamped in δ, to ``[low - x, high - x]``, so that projecting twice changes nothing.
* Integers are whole in raw units and ordinals in their domain. A row beside these values may keep its own.
* A one-hot group goes to its nearest vertex. All slots off is a vertex too if the encoder drops a level, or if the row is there. It is
  the nearest exactly if every slot is below 0.5. Ties go to the row's own vertex, then to the earlier column.
* A missing value that an indicator shows stays missing.
* Sparsity counts features, so that a group is kept or reverted as a whole. Sizes are compared in cost units. Ties go to the earlier
  feature.

While projecting, ``current`` is x and ``move`` is δ on the movable columns, ``(A, N)``, in the order of ``cfptq.actions.compiled``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cfptq.actions.compiled import Array, CodedColumns, CompiledFeatures, OneHotGroups, ScalarColumns
from cfptq.actions.cost import Norm

_MAX_STEP = 1e30  # Infinite changes are cut to this size, which does not overflow in float32.


def project_rows(compiled: CompiledFeatures, x: Tensor, delta: Tensor, max_changes: int | None, norm: Norm) -> Tensor:
    """Return a feasible action near ``delta`` for each row of ``x``, all float32 ``(N, d)``."""
    if not len(compiled.columns) or not len(x):
        return torch.zeros_like(delta)
    current, move = _take_movable(compiled, x), _take_movable(compiled, delta)
    _hold_missing(compiled, x, move)
    _project_moves(compiled, current, move)
    if max_changes is not None and max_changes < compiled.feature_count:
        _revert_smallest(compiled, move, max_changes, norm)
    return _write_movable(compiled, np.zeros(delta.shape, dtype=move.dtype), move)


def compute_counterfactual_points(compiled: CompiledFeatures, x: Tensor, delta: Tensor) -> Tensor:
    """Return x′ = x + δ ``(N, d)`` with every movable feature exactly at a value that it can take."""
    if not len(compiled.columns) or not len(x):
        return x.clone(memory_format=torch.contiguous_format)
    current, move = _take_movable(compiled, x), _take_movable(compiled, delta)
    _hold_missing(compiled, x, move)
    _project_moves(compiled, current, move, to_point=True)
    return _write_movable(compiled, x.detach().numpy().copy(), move)


def compute_gradient_mask(compiled: CompiledFeatures, x: Tensor, delta: Tensor, result: Tensor) -> Tensor:
    """Return 1 where the projection of ``delta`` to ``result`` passes a gradient straight through, else 0, ``(N, d)`` (Appendix B).

    It is zero on immutable columns, on columns clamped at a bound, and on features that sparsity reverted.
    """
    if not len(compiled.columns) or not len(x):
        return torch.zeros_like(delta)
    current, requested, final = _take_movable(compiled, x), _take_movable(compiled, delta), _take_movable(compiled, result)
    before = requested.copy()
    _hold_missing(compiled, x, before)
    _project_moves(compiled, current, before)
    changed, kept = (_sum_by_feature(compiled, np.abs(part)) > 0 for part in (before, final))
    passing = (kept | ~changed).astype(np.float32).take(compiled.feature, axis=0)
    count = compiled.blocks[0]
    passing[:count] *= before[:count] == requested[:count]
    return _write_movable(compiled, np.zeros(delta.shape, dtype=passing.dtype), passing)


def _hold_missing(compiled: CompiledFeatures, x: Tensor, move: Array) -> None:
    """Set the moves of missing values with an indicator to 0, in place. No action tells what the value would be."""
    for places, column, threshold in compiled.indicators:
        is_missing = x.detach()[:, column].numpy() > threshold
        if is_missing.any():
            move[places] *= ~is_missing


def _take_movable(compiled: CompiledFeatures, rows: Tensor) -> Array:
    """Copy the movable columns of ``rows`` into an array ``(A, N)``.

    Transposing contiguous runs is many times faster than transposing scattered columns.
    """
    given = rows.detach().numpy()
    values = np.empty((len(compiled.columns), len(given)), dtype=given.dtype)
    for places, columns in compiled.runs:
        values[places] = given[:, columns].T
    return values


def _write_movable(compiled: CompiledFeatures, rows: Array, values: Array) -> Tensor:
    """Return ``rows`` ``(N, d)`` with the movable columns overwritten by ``values`` ``(A, N)``."""
    for places, columns in compiled.runs:
        rows[:, columns] = values[places].T
    return torch.from_numpy(rows)


def _project_moves(compiled: CompiledFeatures, current: Array, move: Array, *, to_point: bool = False) -> None:
    """Overwrite ``move`` by feasible actions without regard to sparsity, or by the points that they lead to if ``to_point``."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = math.isfinite(move.sum())
    if not finite:
        np.nan_to_num(move, copy=False, nan=0.0, posinf=_MAX_STEP, neginf=-_MAX_STEP)
    continuous, integer, coded, _ = compiled.blocks
    first, second, third = continuous, continuous + integer, continuous + integer + coded
    if compiled.continuous is not None:
        _clamp_continuous(compiled.continuous, current[:first], move[:first], to_point)
    if compiled.integer is not None:
        _round_integers(compiled.integer, current[first:second], move[first:second], to_point)
    if compiled.coded is not None:
        _project_to_domain(compiled.coded, current[second:third], move[second:third], to_point)
    if compiled.groups is not None:
        _project_to_vertex(compiled.groups, current[third:], move[third:], to_point)


def _clamp_continuous(scalars: ScalarColumns, current: Array, move: Array, to_point: bool) -> None:
    """Clamp continuous columns (eq. 9). A row always lies within its own bounds."""
    low, high = np.minimum(scalars.low, current), np.maximum(scalars.high, current)
    np.maximum(move, low - current, out=move)
    np.minimum(move, high - current, out=move)
    point = current + move
    if to_point:
        np.clip(point, low, high, out=move)
        for row, feature in scalars.curved:
            # A raw value must exist for the point, which a curve with jumps does not offer everywhere.
            snapped = feature.encode_numbers(feature.decode_numbers(move[row])).astype(np.float32)
            stays = (move[row] == current[row]) | ~np.isfinite(snapped)
            move[row] = np.where(stays, move[row], np.clip(snapped, low[row], high[row]))
    else:
        # A change too small for float32 does not alter x, so it must not count among the k features.
        move[point == current] = 0.0


def _round_integers(scalars: ScalarColumns, current: Array, move: Array, to_point: bool) -> None:
    """Round and clamp integers in raw units (eqs. 9 and 11).

    float64 gives a whole number the same float32 column value as encoding a frame does.
    """
    scaled = current * scalars.scale
    raw = scaled + scalars.offset
    requested = raw + move * scalars.scale
    slack = np.abs(scaled) * 2.0**-22 + np.abs(scalars.offset) * 2.0**-48 + 1e-9
    for row, feature in scalars.curved:
        raw[row] = feature.decode_numbers(current[row])
        end = feature.decode_numbers(current[row].astype(np.float64) + move[row])
        requested[row] = np.clip(np.nan_to_num(np.where(move[row] == 0, raw[row], end), nan=0.0), -_MAX_STEP, _MAX_STEP)
        beside = feature.decode_numbers(current[row] * np.float32(1 + 2.0**-21)) - feature.decode_numbers(
            current[row] * np.float32(1 - 2.0**-21)
        )
        slack[row] = np.abs(beside) + 1e-6
    whole = np.rint(raw)
    # A whole number stored as float32 decodes to a value slightly beside it, which still counts as that number.
    off_grid = np.abs(raw - whole) > slack
    if off_grid.any():
        np.copyto(whole, raw, where=off_grid)
    low, high = np.ceil(np.minimum(scalars.low, whole)), np.floor(np.maximum(scalars.high, whole))
    nearest = np.minimum(np.maximum(np.rint(requested), low), high)
    stays = nearest == whole
    if off_grid.any():
        # The nearer of the nearest whole number and the row's own value wins. A tie changes nothing.
        requested = np.clip(requested, np.minimum(low, whole), np.maximum(high, whole))
        stays |= (np.abs(requested - whole) <= np.abs(requested - nearest)) | (low > high)
    point = ((nearest - scalars.offset) / scalars.scale).astype(np.float32)
    for row, feature in scalars.curved:
        point[row] = feature.encode_numbers(nearest[row])
    np.copyto(point, current, where=stays)
    move[:] = point if to_point else point - current


def _project_to_domain(coded: CodedColumns, current: Array, move: Array, to_point: bool) -> None:
    """Move coded columns to the nearest reachable value (eq. 11). A row off its domain may keep its value."""
    requested = current + move
    allowed = coded.allowed
    if coded.is_directed:
        distance_from_current = np.abs(current[:, None] - coded.values)
        at_value = (distance_from_current == distance_from_current.min(1, keepdims=True)) & (
            distance_from_current <= 1e-5 * (1 + np.abs(current[:, None]))
        )
        # A row off the domain has no rank, so no value is known to lie in the allowed direction.
        rank = np.where(at_value, coded.ranks, -np.inf).max(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            is_ahead = (coded.ranks - rank) * coded.sign >= 0
        allowed = allowed & ((coded.sign == 0) | (np.isfinite(rank) & is_ahead))
    distance = np.where(allowed, np.abs(requested[:, None] - coded.values), np.inf)
    least = distance.min(1)
    point = np.where(distance == least[:, None], coded.values, np.inf).min(1)
    stays = np.abs(requested - current) <= least + 1e-6 * (1 + np.abs(current))
    np.copyto(point, current, where=stays)
    move[:] = point if to_point else point - current


def _project_to_vertex(groups: OneHotGroups, current: Array, move: Array, to_point: bool) -> None:
    """Move one-hot groups to the nearest reachable vertex (eq. 12)."""
    score, slots = current + move, current
    if groups.off is not None and groups.on is not None:
        span = groups.on - groups.off
        score = (score - groups.off) / span
        slots = np.rint((current - groups.off) / span)
    all_off = _score_all_off(groups, slots, score)
    if len(groups.unreachable):
        score[groups.unreachable] = np.where(slots[groups.unreachable] > 0.5, score[groups.unreachable], -np.inf)
    best = _reduce_groups(groups, score, np.maximum)
    if all_off is not None:
        best = np.maximum(best, all_off)
    chosen = score == best.take(groups.group_of_slot, axis=0)
    winners = np.count_nonzero(chosen) + (0 if all_off is None else np.count_nonzero(all_off == best))
    if winners > best.size:
        _break_ties(groups, slots, chosen, None if all_off is None else all_off == best)
    if groups.off is not None and groups.on is not None:
        point = np.where(chosen, groups.on, groups.off)
        np.copyto(point, current, where=chosen == (slots > 0.5))
        move[:] = point if to_point else point - current
    elif to_point:
        move[:] = chosen
    else:
        np.subtract(chosen, current, out=move)


def _score_all_off(groups: OneHotGroups, slots: Array, score: Array) -> Array | None:
    """Return the score ``(G, N)`` of all slots off, 0.5 where that is feasible and else -inf, or ``None`` if it is feasible nowhere.

    In groups that move in one direction, ``score`` is set to -inf at the slots in the other direction.
    """
    if groups.ranks is None and not groups.any_may_turn_off and slots.sum() == groups.count * slots.shape[1]:
        return None  # Exactly one slot of each group is on.
    is_off = _reduce_groups(groups, slots, np.maximum) < 0.5
    may_be_off = is_off | groups.may_turn_off
    if groups.ranks is not None:
        rank = np.where(is_off, groups.off_rank, _reduce_groups(groups, slots * groups.ranks, np.add))
        score[((groups.ranks - rank.take(groups.group_of_slot, axis=0)) * groups.sign < 0) & (slots < 0.5)] = -np.inf
        may_be_off &= is_off | ((groups.off_rank - rank) * groups.group_sign >= 0)
    return np.where(may_be_off, np.float32(0.5), np.float32(-np.inf))


def _reduce_groups(groups: OneHotGroups, slots: Array, combine: np.ufunc) -> Array:
    """Reduce each group's slots ``(H, N)`` by ``combine`` to ``(G, N)``. Groups of one size are adjacent, so that none needs padding."""
    result = np.empty((groups.count, slots.shape[1]), dtype=slots.dtype)
    for group, count, size, start in _iterate_group_runs(groups):
        combine.reduce(slots[start : start + count * size].reshape(count, size, -1), axis=1, out=result[group : group + count])
    return result


def _iterate_group_runs(groups: OneHotGroups) -> Iterator[tuple[int, int, int, int]]:
    """Yield the first group, the number of groups, their size and the first slot of each run of groups of one size."""
    group = start = 0
    for count, size in groups.sizes:
        yield group, count, size, start
        group, start = group + count, start + count * size


def _break_ties(groups: OneHotGroups, slots: Array, chosen: Array, all_off_wins: Array | None) -> None:
    """Leave one winner in each tied group, the row's own slot if it is among them and else the earliest."""
    winners = _reduce_groups(groups, chosen.astype(np.int32), np.add)
    if all_off_wins is not None:
        winners += all_off_wins
    rows = np.flatnonzero((winners > 1).any(0))
    tied, is_on = chosen[:, rows], slots[:, rows] > 0.5
    has_winner = _reduce_groups(groups, tied & is_on, np.logical_or)
    if all_off_wins is not None:
        has_winner |= all_off_wins[:, rows] & ~_reduce_groups(groups, is_on, np.logical_or)
    result = tied & is_on
    for slot, group in enumerate(groups.group_of_slot.tolist()):
        wins = tied[slot] & ~has_winner[group]
        result[slot] |= wins
        has_winner[group] |= wins
    chosen[:, rows] = result


def _sum_by_feature(compiled: CompiledFeatures, sizes: Array) -> Array:
    """Sum over each feature's columns, from ``(A, N)`` to ``(F, N)`` in block order."""
    if compiled.groups is None:
        return sizes
    single = sum(compiled.blocks[:3])
    return np.concatenate([sizes[:single], _reduce_groups(compiled.groups, sizes[single:], np.add)])


def _compute_feature_costs(compiled: CompiledFeatures, move: Array, norm: Norm) -> Array:
    """Return the cost of each feature's change alone, ``(F, N)``, which is its size for sparsity."""
    weighted = np.abs(move)
    weighted *= compiled.movable_weights
    if norm == "l1":
        return _sum_by_feature(compiled, weighted)
    lengths = np.sqrt(_sum_by_feature(compiled, weighted * weighted))
    if norm == "l2":
        return lengths
    _, first, second = norm
    return np.float32(first) * _sum_by_feature(compiled, weighted) + np.float32(second) * lengths


def _revert_smallest(compiled: CompiledFeatures, move: Array, max_changes: int, norm: Norm) -> None:
    """Revert all but the ``max_changes`` largest changes of features in each row (eq. 10)."""
    sizes = _compute_feature_costs(compiled, move, norm)
    changed = sizes > 0
    if changed.sum(0).max() > max_changes:
        threshold = np.partition(sizes, compiled.feature_count - max_changes, axis=0)[compiled.feature_count - max_changes]
        keep = (sizes >= threshold) & changed
        tied_rows = np.flatnonzero(keep.sum(0) > max_changes)
        if len(tied_rows):
            order = np.argsort(-sizes[compiled.declaration_order][:, tied_rows], axis=0, kind="stable")[:max_changes]
            keep[:, tied_rows] = False
            keep[compiled.declaration_order[order], tied_rows] = True
            keep &= changed
        move *= keep.astype(np.float32).take(compiled.feature, axis=0)
    elif not changed.all():
        move *= changed.astype(np.float32).take(compiled.feature, axis=0)
