"""The mixed-integer program of one row: moves, kinks with big-M from :mod:`bounds`, the target margin, the cost as objective.

Without kinks, whole numbers, levels and a cap on changes no variable is integer and HiGHS solves a linear program (appendix A.6).
The l2 part of a cost enters through tangents: each solution's own is added until the program's bound meets the solution's true cost.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp

from cfptq.recourse.exact.action_model import Moves
from cfptq.recourse.exact.bounds import Bounds
from cfptq.recourse.exact.relu_encoding import Affine, PiecewiseLinear

Array: TypeAlias = npt.NDArray[np.float64]

#: Half a step of a rounding, and as much more as float32 may be off where a value lies between two integers.
_HALF = 0.5 + 1e-5
#: Tangents added at most.
_TANGENTS = 60


@dataclass(frozen=True)
class Answer:
    """What HiGHS says about one program.

    Attributes:
        delta: the best action found, (d,); ``None`` where there is none.
        bound: no action of the program costs less; infinite where it has none at all.
        finished: the program was solved to the gap, or shown to have no solution.
    """

    delta: Array | None
    bound: float
    finished: bool


@dataclass
class _Program:
    """Variables and rows while they are put together."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    parts: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def variable(self, low: float, high: float, whole: bool = False) -> int:
        self.lower.append(low)
        self.upper.append(high)
        self.whole.append(whole)
        return len(self.lower) - 1

    def require(self, low: float, terms: dict[int, float], high: float) -> None:
        keys = np.fromiter(terms.keys(), dtype=np.intp, count=len(terms))
        values = np.fromiter(terms.values(), dtype=np.float64, count=len(terms))
        self.dense(low, keys, values, high)

    def dense(self, low: float, keys: npt.NDArray[np.intp], values: Array, high: float) -> None:
        used = values != 0
        self.parts.append((np.full(int(used.sum()), len(self.least), dtype=np.intp), keys[used], values[used]))
        self.least.append(low)
        self.most.append(high)

    def solve(self, objective: dict[int, float], time_limit: float, gap: float) -> Any:
        count = len(self.lower)
        price = np.zeros(count)
        price[list(objective)] = list(objective.values())
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(self.least), count))
        # The bounds leave HiGHS's presolve little to find: without it programs are solved half again to four times as fast, and no answer
        # has to be carried back through it and repaired, which HiGHS reports on standard output whatever it is told.
        return milp(
            price,
            integrality=np.array(self.whole, dtype=np.uint8),
            bounds=Box(np.array(self.lower), np.array(self.upper)),
            constraints=LinearConstraint(matrix, np.array(self.least), np.array(self.most)),
            options={"time_limit": max(time_limit, 0.01), "mip_rel_gap": gap, "presolve": False},
        )


@dataclass(frozen=True)
class _Built:
    program: _Program
    #: Each move variable's column of δ = ``steps @ values[moved]``.
    moved: npt.NDArray[np.intp]
    steps: Array
    #: Terms of the l1 part of the cost, and of each feature's weighted length.
    absolute: dict[int, float]
    lengths: tuple[dict[int, float], ...]


def solve_program(
    network: PiecewiseLinear,
    moves: Moves,
    bounds: Bounds,
    target: int,
    level: float,
    budget: float,
    *,
    time_limit: float,
    gap: float,
    relaxed: bool = False,
) -> Answer:
    """The cheapest action of ``moves`` with a target margin of at least ``level`` and a cost of at most ``budget``.

    Args:
        bounds: valid for all these actions.
        time_limit: seconds.
        gap: relative gap at which HiGHS may stop.
        relaxed: let a rounded value lie anywhere within half a step: the bound stays sound, the action need not hold.
    """
    built = _build(network, moves, bounds, target, level, relaxed)
    program = built.program
    first, second = moves.shares
    objective = {key: first * value for key, value in built.absolute.items()} if first else {}
    deadline = time.perf_counter() + time_limit
    if not second:
        if math.isfinite(budget):
            program.require(-math.inf, built.absolute, budget / first)
        return _answer(built, program.solve(objective, time_limit, gap))
    length = program.variable(0.0, math.inf)
    objective[length] = second
    if math.isfinite(budget):
        program.require(-math.inf, objective, budget)
    for terms in built.lengths:
        _tangent(program, length, [(1.0, terms)])
    _tangent(program, length, [(1 / math.sqrt(max(moves.most, 1)), terms) for terms in built.lengths])
    best: Answer | None = None
    for _ in range(_TANGENTS):
        result = program.solve(objective, deadline - time.perf_counter(), 0.2 * gap)
        found = _answer(built, result)
        if best is None or found.delta is not None or found.bound == math.inf:
            best = Answer(found.delta, max(found.bound, best.bound if best else 0.0), found.finished)
        if found.delta is None or not found.finished:
            return Answer(best.delta, best.bound, found.finished and found.delta is None and found.bound == math.inf)
        sizes = np.array([sum(weight * result.x[key] for key, weight in terms.items()) for terms in built.lengths])
        true = float(np.sqrt((sizes**2).sum()))
        if true - result.x[length] <= 0.5 * gap * max(true, 1e-9):
            return best
        _tangent(program, length, [(size / true, terms) for size, terms in zip(sizes, built.lengths, strict=True) if size > 0])
    assert best is not None
    return Answer(best.delta, best.bound, False)


def _tangent(program: _Program, length: int, parts: list[tuple[float, dict[int, float]]]) -> None:
    terms = {length: -1.0}
    for factor, own in parts:
        for key, value in own.items():
            terms[key] = terms.get(key, 0.0) + factor * value
    program.require(-math.inf, terms, 0.0)


def _answer(built: _Built, result: Any) -> Answer:
    """HiGHS: status 0 solved, 1 out of time, 2 infeasible."""
    if result.status == 2:
        return Answer(None, math.inf, True)
    bound = getattr(result, "mip_dual_bound", None)
    if bound is None:
        bound = result.fun if result.status == 0 else 0.0
    bound = float(bound) if bound is not None and math.isfinite(bound) else 0.0
    delta = None if result.x is None else built.steps @ result.x[built.moved]
    return Answer(delta, max(bound, 0.0), result.status == 0)


def _build(network: PiecewiseLinear, moves: Moves, bounds: Bounds, target: int, level: float, relaxed: bool) -> _Built:
    program = _Program()
    moved: list[int] = []
    steps: list[Array] = []
    absolute: dict[int, float] = {}
    lengths: dict[int, dict[int, float]] = {feature: {} for feature in moves.features}
    capped = moves.most < len(moves.features)
    counts: dict[int, float] = {}
    jumping = {jump.feature for jump in moves.jumps}
    switch: dict[int, int] = {}

    def add_move(key: int, step: Array, feature: int, l1: float, l2: float) -> None:
        moved.append(key)
        steps.append(step)
        absolute[key] = l1
        lengths[feature][key] = l2

    for feature in {slide.feature for slide in moves.slides}:
        if capped:
            switch[feature] = program.variable(0, 1, True)
            counts[switch[feature]] = 1.0
    for slide in moves.slides:
        unit = np.zeros(network.width)
        unit[slide.column] = slide.sign
        gate = switch.get(slide.feature)
        if slide.first:
            starts = program.variable(0, 1, True)
            add_move(starts, unit * slide.first, slide.feature, slide.weight * slide.first, slide.weight * slide.first)
            if gate is not None:
                program.require(-math.inf, {starts: 1.0, gate: -1.0}, 0.0)
            gate = starts
        count = round((slide.most - slide.first) / slide.step) if slide.step else slide.most
        if count <= 0:
            continue
        size = slide.step or 1.0
        amount = program.variable(0, count, slide.step != 0)
        add_move(amount, unit * size, slide.feature, slide.weight * size, slide.weight * size)
        if gate is not None:
            program.require(-math.inf, {amount: 1.0, gate: -float(count)}, 0.0)
    by_feature: dict[int, dict[int, float]] = {feature: {} for feature in jumping}
    for jump in moves.jumps:
        key = program.variable(0, 1, True)
        step = np.zeros(network.width)
        step[list(jump.columns)] = jump.delta
        add_move(key, step, jump.feature, jump.absolute, jump.length)
        by_feature[jump.feature][key] = 1.0
        if capped:
            counts[key] = 1.0
    for terms in by_feature.values():
        if len(terms) > 1:
            program.require(-math.inf, terms, 1.0)
    if capped:
        program.require(-math.inf, counts, float(moves.most))
    directions = np.array(steps).T if steps else np.zeros((network.width, 0))
    where = np.array(moved, dtype=np.intp)
    _add_network(program, network, moves.row, where, directions, bounds, target, level, relaxed)
    return _Built(program, where, directions, absolute, tuple(lengths.values()))


def _add_network(
    program: _Program,
    network: PiecewiseLinear,
    row: Array,
    moved: npt.NDArray[np.intp],
    directions: Array,
    bounds: Bounds,
    target: int,
    level: float,
    relaxed: bool,
) -> None:
    keys = moved

    def expression(function: Affine) -> tuple[Array, Array]:
        """Coefficients over ``keys`` and the constant."""
        inner = function.matrix[:, : network.width]
        beyond = function.matrix[:, network.width :]
        constant = function.offset + inner @ row
        padded = np.zeros((function.size, len(keys)))
        padded[:, : len(moved)] = inner @ directions
        padded[:, len(moved) : len(moved) + beyond.shape[1]] = beyond
        return padded, constant

    for kink, low, high in zip(network.kinks, bounds.low, bounds.high, strict=True):
        coefficients, constant = expression(kink.before)
        outputs = np.zeros(kink.size, dtype=np.intp)
        for unit in range(kink.size):
            add = _add_relu if kink.kind == "relu" else _add_rounding
            outputs[unit] = add(program, keys, coefficients[unit], constant[unit], float(low[unit]), float(high[unit]), relaxed)
        keys = np.concatenate((keys, outputs))
    coefficients, constant = expression(network.margins(target))
    for other in range(len(constant)):
        program.dense(level - constant[other], keys, coefficients[other], math.inf)


def _add_relu(program: _Program, keys: npt.NDArray[np.intp], terms: Array, constant: float, low: float, high: float, relaxed: bool) -> int:
    if high <= 0:
        return program.variable(0.0, 0.0)
    out = program.variable(max(low, 0.0), high)
    keys, terms = np.append(keys, out), np.append(-terms, 1.0)
    if low >= 0:
        program.dense(constant, keys, terms, constant)
        return out
    on = program.variable(0, 1, True)
    program.dense(constant, keys, terms, math.inf)
    program.dense(-math.inf, np.append(keys, on), np.append(terms, -low), constant - low)
    program.require(-math.inf, {out: 1.0, on: -high}, 0.0)
    return out


def _add_rounding(
    program: _Program, keys: npt.NDArray[np.intp], terms: Array, constant: float, low: float, high: float, relaxed: bool
) -> int:
    least, most = (low - _HALF, high + _HALF) if relaxed else (math.ceil(low - _HALF), math.floor(high + _HALF))
    out = program.variable(least, most, not relaxed)
    program.dense(constant - _HALF, np.append(keys, out), np.append(-terms, 1.0), constant + _HALF)
    return out
