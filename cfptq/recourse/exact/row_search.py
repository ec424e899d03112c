"""Exact recourse of one row by enumeration, bounds, branch and bound, or one program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cfptq.errors import DataError, ModelError
from cfptq.recourse.batch import Status
from cfptq.recourse.exact.action_model import ActionModel
from cfptq.recourse.exact.bounds import build_region, compute_bounds
from cfptq.recourse.exact.branch_and_bound import search_regions
from cfptq.recourse.exact.closed_form import count_supports, find_cheapest_l2
from cfptq.recourse.exact.enumeration import FindFirstValid, count_actions, enumerate_cheapest
from cfptq.recourse.exact.mip import SearchResult, solve_program
from cfptq.recourse.exact.relu_encoding import PiecewiseLinearNetwork

Array: TypeAlias = npt.NDArray[np.float64]

#: Factors of the slack, tried in turn where float rounding makes an optimum invalid in the artefact.
_SLACK_FACTORS = (1.0, 10.0, 100.0, 1000.0)
#: Supports that the closed form may enumerate. Beyond it a program is solved, which is faster.
_MAX_SUPPORTS = 200_000
#: Bisection steps for the largest cost at which cheap bounds exclude every action.
_BISECTION_STEPS = 12
#: Share of the time limit that branch and bound over regions may take. Then one program for all actions is solved.
_REGION_TIME_SHARE = 0.5

#: Maps an action (d,) to the nearest feasible action, its cost, and True if it reaches the target in the artefact.
Check: TypeAlias = Callable[[Array], tuple[Array, float, bool]]


@dataclass(frozen=True)
class Outcome:
    """Best action of one row, with what is proven about it.

    Attributes:
        delta: Best action found, (d,), ``None`` if there is none.
        cost: Cost of the action, infinite if there is none.
        status: Status of the row.
        bound: Lower bound of the cost of any valid action.
    """

    delta: Array | None
    cost: float
    status: Status
    bound: float


def solve_row(
    network: Callable[[], PiecewiseLinearNetwork],
    actions: ActionModel,
    target: int,
    required_margin: float,
    slack: float,
    incumbent: tuple[Array, float] | None,
    check: Check,
    find_first_valid: FindFirstValid,
    *,
    time_limit: float,
    gap: float,
    max_enumerated: int = 0,
    use_regions: bool = True,
    relaxed: bool = False,
) -> Outcome:
    """Find the cheapest action of one row that does not have its target.

    Args:
        network: Function that returns the network. It is called only if the network is needed.
        actions: Admissible actions of the row.
        target: Target class.
        required_margin: Required target margin, in logits.
        slack: Logits added to the required margin for actions, not for proofs.
        incumbent: Valid action of the heuristic and its cost, ``None`` if there is none.
        check: Function that evaluates an action in the artefact.
        find_first_valid: Function that finds the first valid of several actions.
        time_limit: Seconds.
        gap: Relative gap at which an action counts as optimal.
        max_enumerated: Up to this many actions are enumerated instead of solving a program, default 0.
        use_regions: Try branch and bound over regions first, default True.
        relaxed: Relax activation quantizers, default False.
    """
    deadline = time.perf_counter() + time_limit
    best, cost = incumbent if incumbent is not None else (None, math.inf)
    bound = 0.0
    near = actions.restrict_to(cost * (1 - gap))
    if not near.features and best is not None:
        return Outcome(best, cost, Status.OPTIMAL, cost * (1 - gap))
    if near.features and count_actions(near) <= max_enumerated:
        result = enumerate_cheapest(near, cost * (1 - gap), find_first_valid)
        if result.delta is not None:
            delta, new_cost, _ = check(result.delta)
            return Outcome(delta, new_cost, Status.OPTIMAL, min(result.bound, new_cost))
        if best is not None:
            return Outcome(best, cost, Status.OPTIMAL, cost * (1 - gap))
        if not actions.is_truncated:
            return Outcome(None, math.inf, classify_infeasibility(network, actions, target, required_margin + slack), math.inf)
    for factor in _SLACK_FACTORS:
        remaining = deadline - time.perf_counter()
        result = _search_network(
            network(),
            actions,
            target,
            required_margin + slack * factor,
            cost,
            remaining,
            gap,
            relaxed and network().has_rounding,
            use_regions,
        )
        if factor == 1.0:
            bound = min(result.bound, cost)
        if result.delta is None:
            break
        delta, new_cost, is_valid = check(result.delta)
        if is_valid:
            if new_cost < cost:
                best, cost = delta, new_cost
            break
        if (relaxed and network().has_rounding) or deadline - time.perf_counter() <= 0:
            break
    if best is None:
        if bound == math.inf and not actions.is_truncated:
            return Outcome(None, math.inf, classify_infeasibility(network, actions, target, required_margin + slack), math.inf)
        return Outcome(None, math.inf, Status.NOT_FOUND, bound if bound < math.inf else 0.0)
    bound = min(bound, cost)
    status = Status.OPTIMAL if cost - bound <= 2 * gap * cost + 1e-6 else Status.BOUNDED
    return Outcome(best, cost, status, bound)


def _search_network(
    network: PiecewiseLinearNetwork,
    actions: ActionModel,
    target: int,
    required_margin: float,
    cost: float,
    time_limit: float,
    gap: float,
    relaxed: bool,
    use_regions: bool,
) -> SearchResult:
    """Search for an action that is cheaper than ``cost`` by more than the gap.

    The bound of the result is ``cost`` at most.
    """
    budget = cost * (1 - gap) if math.isfinite(cost) else math.inf
    near = actions.restrict_to(budget)
    no_action = SearchResult(None, budget, True)
    if not near.features:
        return no_action
    if near.coupling is not None and near.coupling.reasons:
        raise DataError(
            f"Exact search enumerates at most max_enumerated actions, and cannot solve a program with {'; '.join(near.coupling.reasons)}. "
            'Use method="minimal-cost", or raise Exact(max_enumerated=...) where no feature is continuous.'
        )
    bounds = compute_bounds(network, build_region(near, budget), near.row, target)
    if bool((bounds.margin_high < required_margin).any()):
        return no_action
    closed_form = _solve_closed_form(network, near, target, required_margin) if near.coupling is None else None
    if closed_form is not None:
        return closed_form
    if time_limit <= 0:
        return SearchResult(None, _bound_cost(network, near, target, required_margin, budget) if math.isfinite(budget) else 0.0, False)
    started = time.perf_counter()
    deadline = started + _REGION_TIME_SHARE * time_limit
    by_regions = (
        search_regions(network, near, target, required_margin, budget, gap=gap, deadline=deadline)
        if use_regions and near.coupling is None
        else None
    )
    if by_regions is not None:
        return by_regions
    time_limit -= time.perf_counter() - started
    result = solve_program(network, near, bounds, target, required_margin, budget, time_limit=time_limit, gap=gap, relaxed=relaxed)
    bound = min(result.bound, budget)
    if not result.is_complete:
        bound = max(bound, _bound_cost(network, near, target, required_margin, budget))
    return SearchResult(result.delta, bound, result.is_complete)


def _bound_cost(network: PiecewiseLinearNetwork, actions: ActionModel, target: int, required_margin: float, budget: float) -> float:
    """Return the largest cost below which cheap bounds prove that no action reaches the target."""
    first, second = actions.norm_weights
    largest_cost = sum(change.weight * change.longest for change in actions.numeric_changes) + sum(
        change.l1 for change in actions.level_changes
    )
    low, high = 0.0, min(budget, (first + second) * largest_cost)
    for _ in range(_BISECTION_STEPS):
        midpoint = (low + high) / 2
        near = actions.restrict_to(midpoint)
        is_empty = not near.features
        if is_empty or bool((compute_bounds(network, build_region(near, midpoint), near.row, target).margin_high < required_margin).any()):
            low = midpoint
        else:
            high = midpoint
    return low


def _solve_closed_form(network: PiecewiseLinearNetwork, actions: ActionModel, target: int, required_margin: float) -> SearchResult | None:
    """Solve a linear two-class model with l2 cost and continuous columns in closed form, or return ``None`` for others."""
    margins = network.margins(target)
    is_covered = network.is_linear and margins.size == 1 and actions.norm == "l2" and not actions.level_changes
    if not is_covered or any(change.step or change.shortest for change in actions.numeric_changes):
        return None
    slope, room, weight = (np.zeros(network.width) for _ in range(3))
    weight[:] = 1.0
    need = required_margin - float(margins.matrix[0] @ actions.row + margins.offset[0])
    sign = np.sign(margins.matrix[0])
    for change in actions.numeric_changes:
        weight[change.column] = change.weight
        if change.sign == sign[change.column]:
            slope[change.column] = abs(margins.matrix[0][change.column])
            room[change.column] = change.longest
    if count_supports(int((slope > 0).sum()), actions.max_changes) > _MAX_SUPPORTS:
        return None
    amounts = find_cheapest_l2(slope, weight, room, need, actions.max_changes)
    if amounts is None:
        return SearchResult(None, math.inf, True)
    return SearchResult(amounts * sign, float(np.sqrt(((amounts * weight) ** 2).sum())), True)


def classify_infeasibility(
    network: Callable[[], PiecewiseLinearNetwork], actions: ActionModel, target: int, required_margin: float
) -> Status:
    """Return ``IMMUTABLE`` if even changing all mutable features at once is proven not to reach the target, else ``INFEASIBLE``.

    The row must be proven to have no valid action.
    """
    unlimited = replace(actions, max_changes=len(actions.features))
    if actions.coupling is not None and actions.coupling.max_changes is not None:
        unlimited = replace(unlimited, coupling=replace(actions.coupling, max_changes=None))
    if actions.max_changes == unlimited.max_changes:
        return Status.IMMUTABLE
    try:
        return Status.IMMUTABLE if is_unreachable(network(), unlimited, target, required_margin) else Status.INFEASIBLE
    except ModelError:  # All actions were enumerated in a model without readable weights, so the reason is unknown.
        return Status.INFEASIBLE


def is_unreachable(network: PiecewiseLinearNetwork, actions: ActionModel, target: int, required_margin: float) -> bool:
    """Return True if cheap bounds prove that no action reaches the required target margin."""
    if actions.is_truncated or (actions.coupling is not None and actions.coupling.reasons):
        return False
    bounds = compute_bounds(network, build_region(actions, math.inf), actions.row, target)
    return bool((bounds.margin_high < required_margin).any())
