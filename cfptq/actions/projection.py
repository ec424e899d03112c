"""Π of Algorithm 1 (eqs. 7 to 12) and the exact counterfactual point, for all rows at once.

The steps are the paper's, in its order: immutability, box, categories, then sparsity. Where the paper is silent:

* A continuous action is clamped in δ, to ``[low - x, high - x]``, so that projecting twice changes nothing.
* Integers are whole in raw units and ordinals in their domain; a row that stands on no grid point may stay where it is.
* A one-hot group goes to its nearest vertex. All slots off is a vertex too where the encoder drops a level, or where the row stands there;
  it is the nearest exactly when every slot is below 0.5. Ties go to where the row stands, then to the earlier column.
* Sparsity counts features: a group is kept or reverted whole. Sizes are compared in cost units, ties go to the earlier feature.

While projecting, ``here`` is x and ``move`` is δ on the movable columns, ``(A, N)``, in the order of :mod:`cfptq.actions.compiled`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cfptq.actions.compiled import Array, Coded, Compiled, Groups, Scalars
from cfptq.actions.cost import Norm

_HUGE = 1e30  # where an infinite wish leads to, short of overflow


def projected(compiled: Compiled, x: Tensor, delta: Tensor, max_changes: int | None, norm: Norm) -> Tensor:
    """A feasible action near ``delta``: ``(N, d)``, both arguments float32 ``(N, d)``."""
    if not len(compiled.columns) or not len(x):
        return torch.zeros_like(delta)
    here, move = _movable(compiled, x), _movable(compiled, delta)
    _move_within(compiled, here, move)
    if max_changes is not None and max_changes < compiled.features:
        _revert_smallest(compiled, move, max_changes, norm)
    return _put_back(compiled, np.zeros(delta.shape, dtype=move.dtype), move)


def arrived(compiled: Compiled, x: Tensor, delta: Tensor) -> Tensor:
    """x′ = x + δ with every movable feature exactly on a value that it can take, ``(N, d)``."""
    if not len(compiled.columns) or not len(x):
        return x.clone(memory_format=torch.contiguous_format)
    here, move = _movable(compiled, x), _movable(compiled, delta)
    _move_within(compiled, here, move, arriving=True)
    return _put_back(compiled, x.detach().numpy().copy(), move)


def active(compiled: Compiled, x: Tensor, delta: Tensor, result: Tensor) -> Tensor:
    """Where the projection of ``delta`` to ``result`` passes a gradient straight through (Appendix B): 1 or 0, ``(N, d)``.

    Zero on immutable columns, on columns clamped at a bound, and on features that sparsity reverted.
    """
    if not len(compiled.columns) or not len(x):
        return torch.zeros_like(delta)
    here, wish, final = _movable(compiled, x), _movable(compiled, delta), _movable(compiled, result)
    before = wish.copy()
    _move_within(compiled, here, before)
    changed, kept = (_by_feature(compiled, np.abs(part)) > 0 for part in (before, final))
    passing = (kept | ~changed).astype(np.float32).take(compiled.feature, axis=0)
    count = compiled.blocks[0]
    passing[:count] *= before[:count] == wish[:count]
    return _put_back(compiled, np.zeros(delta.shape, dtype=passing.dtype), passing)


def _movable(compiled: Compiled, rows: Tensor) -> Array:
    """The movable columns of ``rows`` as ``(A, N)``; a copy. Slices are turned many times faster than scattered columns."""
    given = rows.detach().numpy()
    values = np.empty((len(compiled.columns), len(given)), dtype=given.dtype)
    for places, columns in compiled.runs:
        values[places] = given[:, columns].T
    return values


def _put_back(compiled: Compiled, rows: Array, values: Array) -> Tensor:
    """``rows`` ``(N, d)`` with the movable columns overwritten."""
    for places, columns in compiled.runs:
        rows[:, columns] = values[places].T
    return torch.from_numpy(rows)


def _move_within(compiled: Compiled, here: Array, move: Array, *, arriving: bool = False) -> None:
    """Write over ``move`` the feasible actions, sparsity aside; where ``arriving``, the points they lead to."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = math.isfinite(move.sum())
    if not finite:
        np.nan_to_num(move, copy=False, nan=0.0, posinf=_HUGE, neginf=-_HUGE)
    continuous, integer, coded, _ = compiled.blocks
    first, second, third = continuous, continuous + integer, continuous + integer + coded
    if compiled.continuous is not None:
        _clamp(compiled.continuous, here[:first], move[:first], arriving)
    if compiled.integer is not None:
        _round(compiled.integer, here[first:second], move[first:second], arriving)
    if compiled.coded is not None:
        _to_domain(compiled.coded, here[second:third], move[second:third], arriving)
    if compiled.groups is not None:
        _to_vertex(compiled.groups, here[third:], move[third:], arriving)


def _clamp(scalars: Scalars, here: Array, move: Array, arriving: bool) -> None:
    """Eq. 9; a row always lies within its own bounds."""
    low, high = np.minimum(scalars.low, here), np.maximum(scalars.high, here)
    np.maximum(move, low - here, out=move)
    np.minimum(move, high - here, out=move)
    point = here + move
    if arriving:
        np.clip(point, low, high, out=move)
    else:
        # A step too small for float32 leads nowhere, so it is no change and takes no place among the k features.
        move[point == here] = 0.0


def _round(scalars: Scalars, here: Array, move: Array, arriving: bool) -> None:
    """Eq. 9 and 11 on raw whole numbers, in float64: a whole number then gets the same float32 as encoding a frame gives it."""
    inner = here * scalars.scale
    stand = inner + scalars.offset
    wish = stand + move * scalars.scale
    whole = np.rint(stand)
    # A whole number that float32 stored comes back a little beside itself; it is that number all the same.
    off_grid = np.abs(stand - whole) > np.abs(inner) * 2.0**-22 + np.abs(scalars.offset) * 2.0**-48 + 1e-9
    if off_grid.any():
        np.copyto(whole, stand, where=off_grid)
    low, high = np.ceil(np.minimum(scalars.low, whole)), np.floor(np.maximum(scalars.high, whole))
    goal = np.minimum(np.maximum(np.rint(wish), low), high)
    stays = goal == whole
    if off_grid.any():
        # Between the nearest whole number and where the row stands the nearer wins; a tie changes nothing.
        wish = np.clip(wish, np.minimum(low, whole), np.maximum(high, whole))
        stays |= (np.abs(wish - whole) <= np.abs(wish - goal)) | (low > high)
    point = ((goal - scalars.offset) / scalars.scale).astype(np.float32)
    np.copyto(point, here, where=stays)
    move[:] = point if arriving else point - here


def _to_domain(coded: Coded, here: Array, move: Array, arriving: bool) -> None:
    """Eq. 11: the nearest value that may be reached; a row off its domain may stay."""
    wish = here + move
    allowed = coded.allowed
    if coded.directed:
        apart = np.abs(here[:, None] - coded.values)
        at_value = (apart == apart.min(1, keepdims=True)) & (apart <= 1e-5 * (1 + np.abs(here[:, None])))
        # A row off the domain has no rank: nothing can be shown to lie in the allowed direction.
        rank = np.where(at_value, coded.ranks, -np.inf).max(1, keepdims=True)
        allowed = allowed & ((coded.sign == 0) | (np.isfinite(rank) & ((coded.ranks - rank) * coded.sign >= 0)))
    distance = np.where(allowed, np.abs(wish[:, None] - coded.values), np.inf)
    least = distance.min(1)
    point = np.where(distance == least[:, None], coded.values, np.inf).min(1)
    stays = np.abs(wish - here) <= least + 1e-6 * (1 + np.abs(here))
    np.copyto(point, here, where=stays)
    move[:] = point if arriving else point - here


def _to_vertex(groups: Groups, here: Array, move: Array, arriving: bool) -> None:
    """Eq. 12, one-hot groups: the nearest vertex that may be reached."""
    score, stand = here + move, here
    if groups.off is not None and groups.on is not None:
        span = groups.on - groups.off
        score = (score - groups.off) / span
        stand = np.rint((here - groups.off) / span)
    nothing = _score_of_nothing(groups, stand, score)
    if len(groups.guarded):
        score[groups.guarded] = np.where(stand[groups.guarded] > 0.5, score[groups.guarded], -np.inf)
    best = _each_group(groups, score, np.maximum)
    if nothing is not None:
        best = np.maximum(best, nothing)
    chosen = score == best.take(groups.of, axis=0)
    winners = np.count_nonzero(chosen) + (0 if nothing is None else np.count_nonzero(nothing == best))
    if winners > best.size:
        _settle_ties(groups, stand, chosen, None if nothing is None else nothing == best)
    if groups.off is not None and groups.on is not None:
        point = np.where(chosen, groups.on, groups.off)
        np.copyto(point, here, where=chosen == (stand > 0.5))
        move[:] = point if arriving else point - here
    elif arriving:
        move[:] = chosen
    else:
        np.subtract(chosen, here, out=move)


def _score_of_nothing(groups: Groups, stand: Array, score: Array) -> Array | None:
    """Score ``(G, N)`` of all slots off: 0.5 where that may be, else -inf; ``None`` where it may be nowhere.

    Where groups move one way only, ``score`` is set to -inf at the slots on the other side.
    """
    if groups.ranks is None and not groups.any_dropped and stand.sum() == groups.count * stand.shape[1]:
        return None  # as many slots are set as there are groups
    empty = _each_group(groups, stand, np.maximum) < 0.5
    may_empty = empty | groups.dropped
    if groups.ranks is not None:
        rank = np.where(empty, groups.dropped_rank, _each_group(groups, stand * groups.ranks, np.add))
        score[((groups.ranks - rank.take(groups.of, axis=0)) * groups.sign < 0) & (stand < 0.5)] = -np.inf
        may_empty &= empty | ((groups.dropped_rank - rank) * groups.group_sign >= 0)
    return np.where(may_empty, np.float32(0.5), np.float32(-np.inf))


def _each_group(groups: Groups, slots: Array, combine: np.ufunc) -> Array:
    """``combine`` over each group's slots: ``(H, N)`` → ``(G, N)``. Groups of one size lie together, so none needs padding."""
    result = np.empty((groups.count, slots.shape[1]), dtype=slots.dtype)
    for group, count, size, start in _runs(groups):
        combine.reduce(slots[start : start + count * size].reshape(count, size, -1), axis=1, out=result[group : group + count])
    return result


def _runs(groups: Groups) -> Iterator[tuple[int, int, int, int]]:
    """First group, number of groups, slots each and first slot of each run of groups of one size."""
    group = start = 0
    for count, size in groups.sizes:
        yield group, count, size, start
        group, start = group + count, start + count * size


def _settle_ties(groups: Groups, stand: Array, chosen: Array, nothing_wins: Array | None) -> None:
    """Leave one winner in each tied group: where the row stands if that is among them, else the earliest slot."""
    winners = _each_group(groups, chosen.astype(np.int32), np.add)
    if nothing_wins is not None:
        winners += nothing_wins
    rows = np.flatnonzero((winners > 1).any(0))
    tied, at = chosen[:, rows], stand[:, rows] > 0.5
    settled = _each_group(groups, tied & at, np.logical_or)
    if nothing_wins is not None:
        settled |= nothing_wins[:, rows] & ~_each_group(groups, at, np.logical_or)
    result = tied & at
    for slot, group in enumerate(groups.of.tolist()):
        wins = tied[slot] & ~settled[group]
        result[slot] |= wins
        settled[group] |= wins
    chosen[:, rows] = result


def _by_feature(compiled: Compiled, sizes: Array) -> Array:
    """Sums over each feature's columns: ``(A, N)`` → ``(F, N)``, in block order."""
    if compiled.groups is None:
        return sizes
    single = sum(compiled.blocks[:3])
    return np.concatenate([sizes[:single], _each_group(compiled.groups, sizes[single:], np.add)])


def _feature_costs(compiled: Compiled, move: Array, norm: Norm) -> Array:
    """What each feature's change would cost alone, ``(F, N)``: its size for sparsity."""
    weighted = np.abs(move)
    weighted *= compiled.moved_weights
    if norm == "l1":
        return _by_feature(compiled, weighted)
    lengths = np.sqrt(_by_feature(compiled, weighted * weighted))
    if norm == "l2":
        return lengths
    _, first, second = norm
    return np.float32(first) * _by_feature(compiled, weighted) + np.float32(second) * lengths


def _revert_smallest(compiled: Compiled, move: Array, most: int, norm: Norm) -> None:
    """Eq. 10 by feature: zero all but the ``most`` largest changed features of each row."""
    sizes = _feature_costs(compiled, move, norm)
    changed = sizes > 0
    if changed.sum(0).max() > most:
        threshold = np.partition(sizes, compiled.features - most, axis=0)[compiled.features - most]
        keep = (sizes >= threshold) & changed
        crowded = np.flatnonzero(keep.sum(0) > most)
        if len(crowded):
            order = np.argsort(-sizes[compiled.declared][:, crowded], axis=0, kind="stable")[:most]
            keep[:, crowded] = False
            keep[compiled.declared[order], crowded] = True
            keep &= changed
        move *= keep.astype(np.float32).take(compiled.feature, axis=0)
    elif not changed.all():
        move *= changed.astype(np.float32).take(compiled.feature, axis=0)
