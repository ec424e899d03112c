"""Branch and bound over the moves, with small programs at its leaves.

Near a good heuristic's cost most people have only a few numbers left to move. Cut into smaller regions, the linear relaxations of
:mod:`bounds` become exact long before a mixed-integer solver has branched on the network's kinks: hundreds of times sooner on the public
data sets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cfptq.recourse.exact.action_model import Moves, Slide
from cfptq.recourse.exact.bounds import Bounds, bounds_of, region_of
from cfptq.recourse.exact.mip import Answer, solve_program
from cfptq.recourse.exact.relu_encoding import PiecewiseLinear

#: Regions looked at before the matter is left to one program for all.
MOST_REGIONS = 5000
#: A region with no more open kinks than this is solved as a program of its own.
_FEW_KINKS = 5


@dataclass(frozen=True)
class _Part:
    """A region: what is decided stands in the moves' row and has cost ``spent``."""

    moves: Moves
    spent: float


def cheapest_by_regions(
    network: PiecewiseLinear, moves: Moves, target: int, level: float, budget: float, *, gap: float, deadline: float
) -> Answer | None:
    """The cheapest action of at most ``budget`` with a target margin of ``level``, by more than the gap; ``None`` where it stays open.

    Reads l1 costs and networks without rounding only; the others stay open.
    """
    if moves.norm != "l1" or network.rounds or any(slide.first for slide in moves.slides):
        return None
    best, limit = None, budget
    parts = [_Part(moves, 0.0)]
    for _ in range(MOST_REGIONS):
        if not parts:
            return Answer(best, limit, True)
        if time.perf_counter() > deadline:
            return None
        part = parts.pop()
        left = limit - part.spent
        if left < 0:
            continue
        near = part.moves.within(left)
        bounds = bounds_of(network, region_of(near, left), near.row, target)
        if bool((bounds.margin_high < level).any()):
            continue
        if near.features and _open_kinks(bounds) > _FEW_KINKS:
            parts.extend(_split(network, _Part(near, part.spent), bounds))
            continue
        found = Answer(np.zeros(network.width), 0.0, True)
        if near.features:
            found = solve_program(network, near, bounds, target, level, left, time_limit=deadline - time.perf_counter(), gap=gap)
        if not found.finished:
            return None
        if found.delta is None:
            continue
        delta = near.row + found.delta - moves.row
        if _changed(moves, delta) > moves.most:
            return None  # a feature moved by cutting its slide counts as unchanged within its region
        best, limit = delta, _price(moves, delta) * (1 - gap)
    return None


def _open_kinks(bounds: Bounds) -> int:
    return sum(int(((low < 0) & (high > 0)).sum()) for low, high in zip(bounds.low, bounds.high, strict=True))


def _changed(moves: Moves, delta: np.ndarray) -> int:
    """How many features an action changes."""
    columns = {slide.column: slide.feature for slide in moves.slides}
    columns.update({column: jump.feature for jump in moves.jumps for column in jump.columns})
    return len({columns[column] for column in np.flatnonzero(np.abs(delta) > 1e-9).tolist()})


def _price(moves: Moves, delta: np.ndarray) -> float:
    """The l1 cost of an action made of ``moves``."""
    price = sum(abs(delta[column]) * weight for column, weight in {slide.column: slide.weight for slide in moves.slides}.items())
    for jump in moves.jumps:
        if np.allclose(delta[list(jump.columns)], jump.delta, atol=1e-6):
            price += jump.absolute
    return float(price)


def _split(network: PiecewiseLinear, part: _Part, bounds: Bounds) -> Iterator[_Part]:
    """Cut the region in the move that blurs the first kinks most."""
    first = network.kinks[0]
    open_ = (bounds.low[0] < 0) & (bounds.high[0] > 0)
    if not open_.any():
        open_[:] = True
    blur = np.abs(first.before.matrix[open_][:, : network.width]).sum(0)
    slides = [(slide.most * float(blur[slide.column]), place) for place, slide in enumerate(part.moves.slides)]
    jumps: dict[int, float] = {}
    for jump in part.moves.jumps:
        size = float(np.abs(np.array(jump.delta)) @ blur[list(jump.columns)])
        jumps[jump.feature] = max(jumps.get(jump.feature, 0.0), size)
    largest = max(jumps, key=lambda feature: jumps[feature]) if jumps else None
    if largest is not None and (not slides or jumps[largest] >= max(slides)[0]):
        yield from _each_jump(part, largest)
    else:
        yield from _halves(part, max(slides)[1])


def _halves(part: _Part, place: int) -> Iterator[_Part]:
    """Up to the middle of a slide, and beyond it (where the feature counts as changed in any case, which k may ignore)."""
    slide = part.moves.slides[place]
    others = part.moves.slides[:place] + part.moves.slides[place + 1 :]
    if slide.step:
        below = round(slide.most / slide.step) // 2 * slide.step
        start = below + slide.step
    else:
        below = start = slide.most / 2
    shorter: tuple[Slide, ...] = (replace(slide, most=below),) if below > 0 else ()
    yield _Part(replace(part.moves, slides=others + shorter), part.spent)
    row = part.moves.row.copy()
    row[slide.column] += slide.sign * start
    left = slide.most - start
    longer: tuple[Slide, ...] = (replace(slide, most=left),) if left > 1e-12 else ()
    yield _Part(replace(part.moves, row=row, slides=others + longer), part.spent + slide.weight * start)


def _each_jump(part: _Part, feature: int) -> Iterator[_Part]:
    """One region for each level of a feature, and one without."""
    moves = part.moves
    staying = tuple(jump for jump in moves.jumps if jump.feature != feature)
    yield _Part(_limited(replace(moves, jumps=staying)), part.spent)
    for jump in moves.jumps:
        if jump.feature == feature:
            row = moves.row.copy()
            row[list(jump.columns)] += jump.delta
            slides = tuple(slide for slide in moves.slides if slide.feature != feature)
            after = replace(moves, row=row, slides=slides, jumps=staying, most=moves.most - 1)
            yield _Part(_limited(after), part.spent + jump.absolute)


def _limited(moves: Moves) -> Moves:
    """With a cap on changes that is no larger than the number of features left; without moves where it is zero."""
    if moves.most <= 0:
        return replace(moves, slides=(), jumps=(), most=0)
    return replace(moves, most=min(moves.most, len(moves.features)))
