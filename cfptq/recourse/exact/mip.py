"""The mixed-integer program of one row, with big-M constants from ``bounds`` and the cost as objective.

Without nonlinearities, integers, levels and a limit on changes no variable is integer, and HiGHS solves a linear program (appendix A.6).
The l2 part of a cost is approximated by tangents. The tangent at each solution is added until the program's bound meets the true cost.
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

from cfptq.recourse.exact.action_model import ActionModel, Coupling, LevelChange
from cfptq.recourse.exact.bounds import Bounds
from cfptq.recourse.exact.relu_encoding import Affine, PiecewiseLinearNetwork

Array: TypeAlias = npt.NDArray[np.float64]

#: Half a rounding step, plus a tolerance for float32 values that lie between two integers.
_HALF_STEP = 0.5 + 1e-5
#: Share of a continuous change that counts as a change where any change shifts other columns.
_SMALLEST_CHANGE = 1e-4
#: Tangents added at most. Then the best action found is returned as not proven optimal.
_MAX_TANGENTS = 60


@dataclass(frozen=True)
class SearchResult:
    """Result of an exact search.

    Attributes:
        delta: Best action found, (d,), ``None`` if there is none.
        bound: Lower bound of the cost of any action, infinite if there is none.
        is_complete: True if the search reached the gap or proved that there is no action.
    """

    delta: Array | None
    bound: float
    is_complete: bool


@dataclass
class _Program:
    """Builder of a mixed-integer program, with its variables and constraints."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    is_integer: list[bool] = field(default_factory=list)
    parts: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def add_variable(self, low: float, high: float, is_integer: bool = False) -> int:
        """Add a variable, integer if ``is_integer``, and return its index."""
        self.lower.append(low)
        self.upper.append(high)
        self.is_integer.append(is_integer)
        return len(self.lower) - 1

    def add_constraint(self, low: float, terms: dict[int, float], high: float) -> None:
        """Add the constraint low ≤ Σ terms ≤ high."""
        keys = np.fromiter(terms.keys(), dtype=np.intp, count=len(terms))
        values = np.fromiter(terms.values(), dtype=np.float64, count=len(terms))
        self.add_dense_constraint(low, keys, values, high)

    def add_dense_constraint(self, low: float, keys: npt.NDArray[np.intp], values: Array, high: float) -> None:
        """Add the constraint low ≤ values · variables[keys] ≤ high."""
        used = values != 0
        self.parts.append((np.full(int(used.sum()), len(self.least), dtype=np.intp), keys[used], values[used]))
        self.least.append(low)
        self.most.append(high)

    def solve(self, objective: dict[int, float], time_limit: float, gap: float) -> Any:
        """Minimize ``objective`` with HiGHS and return SciPy's result."""
        count = len(self.lower)
        coefficients = np.zeros(count)
        coefficients[list(objective)] = list(objective.values())
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        matrix = sparse.csr_matrix((values, (rows, columns)), shape=(len(self.least), count))
        # Presolve gains little given the bounds. Without it programs are solved 1.5 to 4 times as fast. It also prevents solution repair,
        # which HiGHS reports on standard output regardless of its settings.
        return milp(
            coefficients,
            integrality=np.array(self.is_integer, dtype=np.uint8),
            bounds=Box(np.array(self.lower), np.array(self.upper)),
            constraints=LinearConstraint(matrix, np.array(self.least), np.array(self.most)),
            options={"time_limit": max(time_limit, 0.01), "mip_rel_gap": gap, "presolve": False},
        )


@dataclass(frozen=True)
class _RowProgram:
    """A program with the variables that make up its action and cost.

    Attributes:
        program: The program.
        variables: Variables of the changes, (V,). The action is ``steps @ values[variables]``.
        steps: Change of the columns by one unit of each variable, (d, V).
        absolute: Terms of the l1 norm of the weighted action.
        lengths: Terms of each feature's weighted length.
    """

    program: _Program
    variables: npt.NDArray[np.intp]
    steps: Array
    absolute: dict[int, float]
    lengths: tuple[dict[int, float], ...]


def solve_program(
    network: PiecewiseLinearNetwork,
    actions: ActionModel,
    bounds: Bounds,
    target: int,
    required_margin: float,
    budget: float,
    *,
    time_limit: float,
    gap: float,
    relaxed: bool = False,
) -> SearchResult:
    """Find the cheapest action with the required target margin and a cost of at most ``budget``.

    Args:
        network: Network to change the decision of.
        actions: Admissible actions of one row.
        bounds: Bounds that hold for all these actions.
        target: Target class.
        required_margin: Required target margin, in logits.
        budget: Maximal cost, may be infinite.
        time_limit: Seconds.
        gap: Relative gap at which HiGHS may stop.
        relaxed: Let a rounded value lie anywhere within half a step, default False. The bound stays sound, but the action may be
            invalid.
    """
    built = _build_program(network, actions, bounds, target, required_margin, relaxed)
    program = built.program
    first, second = actions.norm_weights
    objective = {key: first * value for key, value in built.absolute.items()} if first else {}
    deadline = time.perf_counter() + time_limit
    if not second:
        if math.isfinite(budget):
            program.add_constraint(-math.inf, built.absolute, budget / first)
        return _read_result(built, program.solve(objective, time_limit, gap))
    length = program.add_variable(0.0, math.inf)
    objective[length] = second
    if math.isfinite(budget):
        program.add_constraint(-math.inf, objective, budget)
    for terms in built.lengths:
        _add_tangent(program, length, [(1.0, terms)])
    _add_tangent(program, length, [(1 / math.sqrt(max(actions.max_changes, 1)), terms) for terms in built.lengths])
    best: SearchResult | None = None
    for _ in range(_MAX_TANGENTS):
        result = program.solve(objective, deadline - time.perf_counter(), 0.2 * gap)
        found = _read_result(built, result)
        if best is None or found.delta is not None or found.bound == math.inf:
            best = SearchResult(found.delta, max(found.bound, best.bound if best else 0.0), found.is_complete)
        if found.delta is None or not found.is_complete:
            return SearchResult(best.delta, best.bound, found.is_complete and found.delta is None and found.bound == math.inf)
        sizes = np.array([sum(weight * result.x[key] for key, weight in terms.items()) for terms in built.lengths])
        true = float(np.sqrt((sizes**2).sum()))
        if true - result.x[length] <= 0.5 * gap * max(true, 1e-9):
            return best
        _add_tangent(program, length, [(size / true, terms) for size, terms in zip(sizes, built.lengths, strict=True) if size > 0])
    assert best is not None
    return SearchResult(best.delta, best.bound, False)


def _add_tangent(program: _Program, length: int, parts: list[tuple[float, dict[int, float]]]) -> None:
    """Add the constraint that ``length`` is at least the weighted sum of ``parts``."""
    terms = {length: -1.0}
    for factor, own in parts:
        for key, value in own.items():
            terms[key] = terms.get(key, 0.0) + factor * value
    program.add_constraint(-math.inf, terms, 0.0)


def _read_result(built: _RowProgram, result: Any) -> SearchResult:
    """Read the action and bound from a result of HiGHS, whose status is 0 (solved), 1 (out of time) or 2 (infeasible)."""
    if result.status == 2:
        return SearchResult(None, math.inf, True)
    bound = getattr(result, "mip_dual_bound", None)
    if bound is None:
        bound = result.fun if result.status == 0 else 0.0
    bound = float(bound) if bound is not None and math.isfinite(bound) else 0.0
    delta = None if result.x is None else built.steps @ result.x[built.variables]
    return SearchResult(delta, max(bound, 0.0), result.status == 0)


def _build_program(
    network: PiecewiseLinearNetwork, actions: ActionModel, bounds: Bounds, target: int, required_margin: float, relaxed: bool
) -> _RowProgram:
    """Build the program of one row."""
    program = _Program()
    variables: list[int] = []
    steps: list[Array] = []
    absolute: dict[int, float] = {}
    lengths: dict[int, dict[int, float]] = {feature: {} for feature in actions.features}
    coupling = actions.coupling
    is_limited = actions.max_changes < len(actions.features) or coupling is not None
    counts: dict[int, float] = {}
    level_features = {change.feature for change in actions.level_changes}
    switch: dict[int, int] = {}

    def add_move(key: int, step: Array, feature: int, l1: float, l2: float) -> None:
        variables.append(key)
        steps.append(step)
        absolute[key] = l1
        lengths[feature][key] = l2

    for feature in {change.feature for change in actions.numeric_changes}:
        if is_limited:
            switch[feature] = program.add_variable(0, 1, True)
            counts[switch[feature]] = 1.0
    for change in actions.numeric_changes:
        unit = change.get_direction(network.width)
        switch_variable = switch.get(change.feature)
        if change.shortest:
            starts = program.add_variable(0, 1, True)
            add_move(starts, unit * change.shortest, change.feature, change.weight * change.shortest, change.weight * change.shortest)
            if switch_variable is not None:
                program.add_constraint(-math.inf, {starts: 1.0, switch_variable: -1.0}, 0.0)
            switch_variable = starts
        count = round((change.longest - change.shortest) / change.step) if change.step else change.longest
        if count <= 0:
            continue
        size = change.step or 1.0
        amount = program.add_variable(0, count, change.step != 0)
        add_move(amount, unit * size, change.feature, change.weight * size, change.weight * size)
        if switch_variable is not None:
            program.add_constraint(-math.inf, {amount: 1.0, switch_variable: -float(count)}, 0.0)
    by_feature: dict[int, dict[int, float]] = {feature: {} for feature in level_features}
    level_keys: dict[LevelChange, int] = {}
    for level_change in actions.level_changes:
        key = program.add_variable(0, 1, True)
        add_move(key, level_change.get_step(network.width), level_change.feature, level_change.l1, level_change.l2)
        by_feature[level_change.feature][key] = 1.0
        level_keys[level_change] = key
        if is_limited:
            counts[key] = 1.0
    for terms in by_feature.values():
        if len(terms) > 1:
            program.add_constraint(-math.inf, terms, 1.0)
    if coupling is not None:
        for feature, shifts in coupling.switch_effects:
            if feature in switch:
                step = np.zeros(network.width)
                for column, shift in shifts:
                    step[column] += shift
                add_move(switch[feature], step, feature, 0.0, 0.0)
                _require_change(program, actions, switch[feature], feature, variables[:-1], np.array(steps[:-1]))
        _add_coupling(program, coupling, {f: {switch[f]: 1.0} for f in switch} | by_feature, level_keys)
    elif is_limited:
        program.add_constraint(-math.inf, counts, float(actions.max_changes))
    directions = np.array(steps).T if steps else np.zeros((network.width, 0))
    variable_indices = np.array(variables, dtype=np.intp)
    for row in coupling.linear if coupling is not None else ():
        terms_of_row = sum(factor * directions[column] for column, factor in row.terms)
        program.add_dense_constraint(row.low, variable_indices, np.asarray(terms_of_row), row.high)
    _add_network(program, network, actions.row, variable_indices, directions, bounds, target, required_margin, relaxed)
    return _RowProgram(program, variable_indices, directions, absolute, tuple(lengths.values()))


def _require_change(program: _Program, actions: ActionModel, switch: int, feature: int, variables: list[int], steps: Array) -> None:
    """Allow the switch of a numeric feature only where the feature changes by at least one step."""
    own = [change for change in actions.numeric_changes if change.feature == feature]
    column = own[0].column
    terms = {key: abs(float(step[column])) for key, step in zip(variables, steps, strict=True) if step[column]}
    least = min(change.shortest or change.step or _SMALLEST_CHANGE * change.longest for change in own)
    program.add_constraint(0.0, {**terms, switch: -least}, math.inf)


def _add_coupling(program: _Program, coupling: Coupling, changes: dict[int, dict[int, float]], levels: dict[LevelChange, int]) -> None:
    """Add constraints between features, whose ``changes`` are sums of binary variables."""
    for features, most in coupling.limits:
        terms = {key: value for feature in features for key, value in changes.get(feature, {}).items()}
        if terms:
            program.add_constraint(-math.inf, terms, float(most))
    if coupling.max_changes is not None:
        together = {feature for group in coupling.nested for feature in group}
        counted = {key: value for feature, own in changes.items() if feature not in together for key, value in own.items()}
        for group in coupling.nested:
            shared = program.add_variable(0, 1, True)
            counted[shared] = 1.0
            for feature in group:
                if changes.get(feature):
                    program.add_constraint(-math.inf, {**changes[feature], shared: -1.0}, 0.0)
        program.add_constraint(-math.inf, counted, float(coupling.max_changes))
    for exclusion in coupling.exclusions:
        condition, constant = changes.get(exclusion.feature, {}), 0.0
        if exclusion.leads is not None:
            condition = {levels[change]: 1.0 for change in exclusion.leads if change in levels}
        if exclusion.holds_now:
            condition, constant = dict.fromkeys(changes.get(exclusion.feature, {}), -1.0), 1.0
        for feature in exclusion.stays:
            if feature in changes and (condition or constant):
                program.add_constraint(-math.inf, {**changes[feature], **condition}, 1.0 - constant)


def _add_network(
    program: _Program,
    network: PiecewiseLinearNetwork,
    row: Array,
    variables: npt.NDArray[np.intp],
    directions: Array,
    bounds: Bounds,
    target: int,
    required_margin: float,
    relaxed: bool,
) -> None:
    """Add the network and the required target margin to the program."""
    keys = variables

    def expression(function: Affine) -> tuple[Array, Array]:
        """Return coefficients over ``keys`` and the constant."""
        inner = function.matrix[:, : network.width]
        beyond = function.matrix[:, network.width :]
        constant = function.offset + inner @ row
        padded = np.zeros((function.size, len(keys)))
        padded[:, : len(variables)] = inner @ directions
        padded[:, len(variables) : len(variables) + beyond.shape[1]] = beyond
        return padded, constant

    for layer, low, high in zip(network.nonlinearities, bounds.low, bounds.high, strict=True):
        coefficients, constant = expression(layer.preactivation)
        outputs = np.zeros(layer.size, dtype=np.intp)
        for unit in range(layer.size):
            add = _add_relu if layer.kind == "relu" else _add_rounding
            outputs[unit] = add(program, keys, coefficients[unit], constant[unit], float(low[unit]), float(high[unit]), relaxed)
        keys = np.concatenate((keys, outputs))
    coefficients, constant = expression(network.margins(target))
    for other in range(len(constant)):
        program.add_dense_constraint(required_margin - constant[other], keys, coefficients[other], math.inf)


def _add_relu(program: _Program, keys: npt.NDArray[np.intp], terms: Array, constant: float, low: float, high: float, relaxed: bool) -> int:
    """Add a ReLU with a big-M encoding and return its output variable."""
    if high <= 0:
        return program.add_variable(0.0, 0.0)
    output = program.add_variable(max(low, 0.0), high)
    keys, terms = np.append(keys, output), np.append(-terms, 1.0)
    if low >= 0:
        program.add_dense_constraint(constant, keys, terms, constant)
        return output
    is_active = program.add_variable(0, 1, True)
    program.add_dense_constraint(constant, keys, terms, math.inf)
    program.add_dense_constraint(-math.inf, np.append(keys, is_active), np.append(terms, -low), constant - low)
    program.add_constraint(-math.inf, {output: 1.0, is_active: -high}, 0.0)
    return output


def _add_rounding(
    program: _Program, keys: npt.NDArray[np.intp], terms: Array, constant: float, low: float, high: float, relaxed: bool
) -> int:
    """Add a rounding and return its output variable."""
    least, most = (low - _HALF_STEP, high + _HALF_STEP) if relaxed else (math.ceil(low - _HALF_STEP), math.floor(high + _HALF_STEP))
    output = program.add_variable(least, most, not relaxed)
    program.add_dense_constraint(constant - _HALF_STEP, np.append(keys, output), np.append(-terms, 1.0), constant + _HALF_STEP)
    return output
