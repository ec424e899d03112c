"""One row after another: cheap bounds first, then the program; every action looked at in the artefact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.errors import ModelError
from cfptq.recourse.batch import Status
from cfptq.recourse.exact.action_model import Moves
from cfptq.recourse.exact.bounds import bounds_of, region_of
from cfptq.recourse.exact.branch_and_bound import cheapest_by_regions
from cfptq.recourse.exact.closed_form import cheapest_l2, supports_of
from cfptq.recourse.exact.enumeration import FirstThatHolds, cheapest_listed, size_of
from cfptq.recourse.exact.mip import Answer, solve_program
from cfptq.recourse.exact.relu_encoding import PiecewiseLinear

Array: TypeAlias = npt.NDArray[np.float64]

#: Slack is widened by these factors where an optimum sits a hair on the wrong side in the artefact.
_NUDGES = (1.0, 10.0, 100.0, 1000.0)
#: Supports that the closed form may go through; beyond it the program is faster.
_SUPPORTS = 200_000

#: Halvings of the interval in which the cheap bounds' own bound of the cost is looked for.
_HALVINGS = 12

#: Share of a row's time that cutting into regions may take before one program is set up for all.
_SHARE_OF_REGIONS = 0.5

#: An action (d,) as the artefact takes it: the feasible one next to it, its cost, and whether the target is reached.
Check: TypeAlias = Callable[[Array], tuple[Array, float, bool]]


@dataclass(frozen=True)
class Outcome:
    """The best action of one row, (d,) or ``None``; its cost; what is proven; the least that any action can cost."""

    delta: Array | None
    cost: float
    status: Status
    bound: float


def solve_row(
    network: Callable[[], PiecewiseLinear],
    moves: Moves,
    target: int,
    level: float,
    slack: float,
    incumbent: tuple[Array, float] | None,
    check: Check,
    first_that_holds: FirstThatHolds,
    *,
    time_limit: float,
    gap: float,
    listed: int = 0,
    regions: bool = True,
    relaxed: bool = False,
) -> Outcome:
    """The cheapest action of one row that does not have its target yet.

    Args:
        network: read when it is needed.
        level: target margin asked for, in logits; ``slack`` comes on top for actions.
        incumbent: an action that holds and its cost, from the heuristic: the cut-off.
        regions: cut the moves into regions first; else one program for all at once.
        listed: most actions that may be asked about one by one instead of setting up a program.
    """
    deadline = time.perf_counter() + time_limit
    best, cost = incumbent if incumbent is not None else (None, math.inf)
    bound = 0.0
    near = moves.within(cost * (1 - gap))
    if not near.features and best is not None:
        return Outcome(best, cost, Status.OPTIMAL, cost * (1 - gap))
    if near.features and size_of(near) <= listed:
        answer = cheapest_listed(near, cost * (1 - gap), first_that_holds)
        if answer.delta is not None:
            delta, price, _ = check(answer.delta)
            return Outcome(delta, price, Status.OPTIMAL, min(answer.bound, price))
        if best is not None:
            return Outcome(best, cost, Status.OPTIMAL, cost * (1 - gap))
        if not moves.cut:
            return Outcome(None, math.inf, proven_reason(network, moves, target, level + slack), math.inf)
    for nudge in _NUDGES:
        left = deadline - time.perf_counter()
        answer = _cheapest(network(), moves, target, level + slack * nudge, cost, left, gap, relaxed and network().rounds, regions)
        if nudge == 1.0:
            bound = min(answer.bound, cost)
        if answer.delta is None:
            break
        delta, price, holds = check(answer.delta)
        if holds:
            if price < cost:
                best, cost = delta, price
            break
        if (relaxed and network().rounds) or deadline - time.perf_counter() <= 0:
            break
    if best is None:
        if bound == math.inf and not moves.cut:
            return Outcome(None, math.inf, proven_reason(network, moves, target, level + slack), math.inf)
        return Outcome(None, math.inf, Status.NOT_FOUND, bound if bound < math.inf else 0.0)
    bound = min(bound, cost)
    status = Status.OPTIMAL if cost - bound <= 2 * gap * cost + 1e-6 else Status.BOUNDED
    return Outcome(best, cost, status, bound)


def _cheapest(
    network: PiecewiseLinear,
    moves: Moves,
    target: int,
    level: float,
    cost: float,
    time_limit: float,
    gap: float,
    relaxed: bool,
    regions: bool,
) -> Answer:
    """The cheapest action cheaper than ``cost`` by more than the gap; a bound of all actions' cost, ``cost`` at most."""
    budget = cost * (1 - gap) if math.isfinite(cost) else math.inf
    near = moves.within(budget)
    none = Answer(None, budget, True)
    if not near.features:
        return none
    bounds = bounds_of(network, region_of(near, budget), near.row, target)
    if bool((bounds.margin_high < level).any()):
        return none
    closed = _closed_form(network, near, target, level)
    if closed is not None:
        return closed
    if time_limit <= 0:
        return Answer(None, _out_of_budget(network, near, target, level, budget) if math.isfinite(budget) else 0.0, False)
    started = time.perf_counter()
    deadline = started + _SHARE_OF_REGIONS * time_limit
    cut = cheapest_by_regions(network, near, target, level, budget, gap=gap, deadline=deadline) if regions else None
    if cut is not None:
        return cut
    time_limit -= time.perf_counter() - started
    answer = solve_program(network, near, bounds, target, level, budget, time_limit=time_limit, gap=gap, relaxed=relaxed)
    bound = min(answer.bound, budget)
    if not answer.finished:
        bound = max(bound, _out_of_budget(network, near, target, level, budget))
    return Answer(answer.delta, bound, answer.finished)


def _out_of_budget(network: PiecewiseLinear, moves: Moves, target: int, level: float, budget: float) -> float:
    """The largest cost below which the cheap bounds alone prove that nothing reaches the target."""
    first, second = moves.shares
    dearest = sum(slide.weight * slide.most for slide in moves.slides) + sum(jump.absolute for jump in moves.jumps)
    low, high = 0.0, min(budget, (first + second) * dearest)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        near = moves.within(middle)
        nothing = not near.features
        if nothing or bool((bounds_of(network, region_of(near, middle), near.row, target).margin_high < level).any()):
            low = middle
        else:
            high = middle
    return low


def _closed_form(network: PiecewiseLinear, moves: Moves, target: int, level: float) -> Answer | None:
    """For a linear model of two classes, l2 cost and continuous columns; ``None`` where that is not the case."""
    margins = network.margins(target)
    plain = network.linear and margins.size == 1 and moves.norm == "l2" and not moves.jumps
    if not plain or any(slide.step or slide.first for slide in moves.slides):
        return None
    slope, room, weight = (np.zeros(network.width) for _ in range(3))
    weight[:] = 1.0
    need = level - float(margins.matrix[0] @ moves.row + margins.offset[0])
    sign = np.sign(margins.matrix[0])
    for slide in moves.slides:
        weight[slide.column] = slide.weight
        if slide.sign == sign[slide.column]:
            slope[slide.column] = abs(margins.matrix[0][slide.column])
            room[slide.column] = slide.most
    if supports_of(int((slope > 0).sum()), moves.most) > _SUPPORTS:
        return None
    amounts = cheapest_l2(slope, weight, room, need, moves.most)
    if amounts is None:
        return Answer(None, math.inf, True)
    return Answer(amounts * sign, float(np.sqrt(((amounts * weight) ** 2).sum())), True)


def proven_reason(network: Callable[[], PiecewiseLinear], moves: Moves, target: int, level: float) -> Status:
    """For a row whose actions are proven not to reach the target: whether they would not even if all her features could change at once."""
    unlimited = Moves(moves.row, moves.slides, moves.jumps, len(moves.features), moves.norm, moves.cut)
    if moves.most == unlimited.most:
        return Status.IMMUTABLE
    try:
        return Status.IMMUTABLE if out_of_reach(network(), unlimited, target, level) else Status.INFEASIBLE
    except ModelError:  # every action was listed; why they all fail cannot be seen in a model that shows no weights
        return Status.INFEASIBLE


def out_of_reach(network: PiecewiseLinear, moves: Moves, target: int, level: float) -> bool:
    """Whether the cheap bounds prove that no action, whatever its cost, reaches a target margin of ``level``."""
    if moves.cut:
        return False
    bounds = bounds_of(network, region_of(moves, math.inf), moves.row, target)
    return bool((bounds.margin_high < level).any())
