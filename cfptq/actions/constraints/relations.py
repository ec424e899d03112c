"""Relations between constraints, which are consistency, order and sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, pairwise

from cfptq.actions.constraints.base import Constraint
from cfptq.actions.constraints.consequences import Changes, Computed, Implies, Linked, Stays
from cfptq.actions.constraints.limits import Transitions
from cfptq.actions.constraints.orders import Ordered, Thermometer
from cfptq.actions.features import AnyFeature
from cfptq.errors import ActionSetError


def require_consistent(constraints: Sequence[Constraint], features: Mapping[str, AnyFeature]) -> None:
    """Raise ActionSetError unless the constraints fit the features and do not contradict one another."""
    for constraint in constraints:
        constraint.check(features)
    for first, second in combinations(constraints, 2):
        reason = _find_contradiction(first, second)
        if reason:
            raise ActionSetError(
                f"Constraints must not contradict one another. {reason}, by {first.describe()!r} and {second.describe()!r}. "
                "Keep one of them."
            )
    _require_acyclic_orders(constraints)
    sort_consequences(constraints)


def _find_contradiction(first: Constraint, second: Constraint) -> str:
    """Return why two constraints contradict one another, as a clause, or ""."""
    if first == second:
        return "One rule is given twice"
    both = sorted(set(first.targets) & set(second.targets))
    sets_value = any(isinstance(one, Computed) or (isinstance(one, Implies) and not one.is_shift) for one in (first, second))
    if both and sets_value:
        return f"{both[0]} follows from two"
    for one, other in ((first, second), (second, first)):
        if set(one.targets) & {name for name in other.features if isinstance(other, Thermometer | Transitions)}:
            name = sorted(set(one.targets) & set(other.features))[0]
            return f"{name} follows from other features and belongs to a group that moves together"
        stays = isinstance(other, Implies) and isinstance(other.then, Stays)
        if stays and isinstance(other, Implies) and other.then.feature in one.targets and _covers(other, one):
            return f"{other.then.feature} must move and must stay"
    if isinstance(first, Transitions) and isinstance(second, Transitions):
        shared = sorted(set(first.features) & set(second.features))
        return f"{shared[0]} has two lists of steps" if shared else ""
    if isinstance(first, Thermometer) and isinstance(second, Thermometer):
        shared = sorted(set(first.names) & set(second.names))
        return f"{shared[0]} belongs to two groups of nested columns" if shared else ""
    return ""


def _covers(stays: Implies, moves: Constraint) -> bool:
    """Return true if the condition of ``stays`` holds wherever ``moves`` changes its target."""
    any_change = isinstance(stays.when, Changes) and stays.when.to is None
    if isinstance(moves, Linked):
        return any_change and stays.when.feature == moves.source
    if isinstance(moves, Implies):
        return moves.when == stays.when or (any_change and moves.when.feature == stays.when.feature)
    return False


def _require_acyclic_orders(constraints: Sequence[Constraint]) -> None:
    """Raise ActionSetError if one feature would have to be both above and below another."""
    above: dict[str, dict[str, Constraint]] = {}
    for constraint in constraints:
        names = constraint.names if isinstance(constraint, Ordered) else ()
        names = constraint.names[::-1] if isinstance(constraint, Thermometer) else names
        for lower, upper in pairwise(names):
            path = _find_path(above, upper, lower)
            if path is not None:
                raise ActionSetError(
                    f"Constraints must not contradict one another. {lower} and {upper} must each be at most the other, by "
                    f"{path.describe()!r} and {constraint.describe()!r}. Keep one of them."
                )
            above.setdefault(lower, {})[upper] = constraint


def _find_path(above: Mapping[str, Mapping[str, Constraint]], start: str, end: str) -> Constraint | None:
    """Return the first constraint on a way up from ``start`` to ``end``, or ``None``."""
    reached: dict[str, Constraint] = dict(above.get(start, {}))
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        if name == end:
            return reached[name]
        for upper in above.get(name, {}):
            if upper not in reached:
                reached[upper] = reached[name]
                waiting.append(upper)
    return None


def sort_consequences(constraints: Sequence[Constraint]) -> list[Constraint]:
    """Return the constraints with those that compute a feature after those that compute its terms.

    Raises:
        ActionSetError: features follow from each other.
    """
    remaining = [constraint for constraint in constraints if constraint.targets]
    ordered: list[Constraint] = []
    while remaining:
        ready = [c for c in remaining if not any(o is not c and (set(c.features) - set(c.targets)) & set(o.targets) for o in remaining)]
        if not ready:
            # Each of the remaining constraints waits for another one, so that following them ends in a circle.
            walk = [remaining[0]]
            while walk[-1] not in walk[:-1]:
                needs = set(walk[-1].features) - set(walk[-1].targets)
                walk.append(next(o for o in remaining if o is not walk[-1] and needs & set(o.targets)))
            raise ActionSetError(
                f"Constraints must not contradict one another. In {walk[-2].describe()!r} and {walk[-1].describe()!r}, "
                "features follow from each other. Keep one of them."
            )
        ordered += ready
        remaining = [constraint for constraint in remaining if constraint not in ready]
    return ordered


def find_sources(names: Iterable[str], constraints: Sequence[Constraint]) -> list[str]:
    """Return the features that move ``names``, which are themselves and all that they follow from."""
    found, waiting = [], list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.append(name)
        for constraint in constraints:
            if name in constraint.targets:
                waiting += [source for source in constraint.features if source not in constraint.targets]
    return found
