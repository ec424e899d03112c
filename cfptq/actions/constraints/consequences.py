"""Constraints by which one change entails another."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from cfptq.actions.constraints.base import (
    Array,
    Constraint,
    Mask,
    RawRows,
    get_ends,
    require_feature,
    require_level,
    require_number,
)
from cfptq.actions.features import AnyFeature, Continuous, Integer, Mutability
from cfptq.errors import ActionSetError

_MAX_FORMULA_LENGTH = 1000
_MAX_FORMULA_DEPTH = 50
_OPERATORS: dict[type[ast.AST], Callable[[Array, Array], Array]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Changes:
    """A change of one feature, as a condition or as a consequence.

    Attributes:
        feature: name of the feature.
        to: level or number that it changes to. As a condition also an interval ``(lowest, highest)``, or ``None`` for any value.
        by: amount by which a number changes, as a consequence.
    """

    feature: str
    to: Any = None
    by: float | None = None


@dataclass(frozen=True)
class Is:
    """The condition or requirement that a feature has a value after the action.

    Attributes:
        feature: name of the feature.
        value: level, number, or interval ``(lowest, highest)`` with ``None`` for an open side.
    """

    feature: str
    value: Any


@dataclass(frozen=True)
class Was:
    """The condition that a feature had a value before the action.

    Attributes:
        feature: name of the feature.
        value: level, number, or interval ``(lowest, highest)`` with ``None`` for an open side.
    """

    feature: str
    value: Any


@dataclass(frozen=True)
class Stays:
    """The consequence that a feature does not change.

    Attributes:
        feature: name of the feature.
    """

    feature: str


Condition: TypeAlias = Changes | Is | Was
Consequence: TypeAlias = Changes | Is | Stays


def _parse_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Implies(Constraint):
    """A rule by which a condition entails a change, requires a value or forbids a change.

    Attributes:
        when: ``Changes``, ``Is`` or ``Was``.
        then: ``Changes`` with ``by`` or ``to`` moves a feature, which moves for nothing else. ``Is`` requires a value, which the person
            reaches by an action of its own. ``Stays`` forbids a change.
        counts: true if the change that is entailed counts and costs. Default: false.
    """

    when: Condition
    then: Consequence
    counts: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.when, Changes | Is | Was):
            raise ActionSetError(f"Implies: when must be Changes, Is or Was, got {self.when!r}.")
        if not isinstance(self.then, Changes | Is | Stays):
            raise ActionSetError(f"Implies: then must be Changes, Is or Stays, got {self.then!r}.")
        for name in ("when", "then"):
            part = getattr(self, name)
            if isinstance(part, Changes):
                object.__setattr__(self, name, Changes(part.feature, _parse_value(part.to), part.by))
            elif isinstance(part, Is | Was):
                object.__setattr__(self, name, type(part)(part.feature, _parse_value(part.value)))
        if isinstance(self.when, Changes) and self.when.by is not None:
            raise ActionSetError("Implies: when must be a change of any amount, got one with by. Use Is for a value.")
        if isinstance(self.then, Changes):
            if (self.then.by is None) == (self.then.to is None) or isinstance(self.then.to, tuple):
                raise ActionSetError(f"Implies: then must be Stays, Is, or Changes with by or with to, got {self.then!r}.")
            if self.then.by is not None and (isinstance(self.then.by, bool) or not isinstance(self.then.by, int | float)):
                raise ActionSetError(f"Implies: by must be a number, got {self.then.by!r}.")
            if not isinstance(self.when, Changes):
                raise ActionSetError(
                    f"Implies: only a change must entail a change, because {self.when.feature} may be so without any action. "
                    "Use Changes(...) as the condition, or Is(...) as the consequence."
                )
        if self.when.feature == self.then.feature and not isinstance(self.when, Was):
            raise ActionSetError(f"Implies: {self.then.feature} must not follow from itself. Name two features.")

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.when.feature, self.then.feature)))

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.then.feature,) if isinstance(self.then, Changes) else ()

    @property
    def is_free(self) -> bool:
        return not self.counts

    @property
    def is_shift(self) -> bool:
        """True if a number moves by an amount, which adds to that of other rules."""
        return isinstance(self.then, Changes) and self.then.by is not None

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        self._check_value(self.when, features)
        self._check_value(self.then, features)

    def _check_value(self, part: Condition | Consequence, features: Mapping[str, AnyFeature]) -> None:
        feature = require_feature(self, part.feature, features)
        if isinstance(part, Changes) and part.by is not None:
            require_number(self, part.feature, features)
        if isinstance(part, Stays):
            return
        value = part.to if isinstance(part, Changes) else part.value
        if isinstance(feature, Continuous):
            sides = value if isinstance(value, tuple) and len(value) == 2 else (value,)
            if not all(side is None or (isinstance(side, int | float) and not isinstance(side, bool)) for side in sides):
                raise ActionSetError(f"Implies: {feature.name} must be compared with a number or (lowest, highest), got {value!r}.")
            if not isinstance(part, Changes) and all(side is None for side in sides):
                raise ActionSetError(f"Implies: {feature.name} must be compared with a number or (lowest, highest), got {value!r}.")
        elif value is not None or not isinstance(part, Changes):
            require_level(self, feature.name, value, features)

    def describe(self) -> str:
        when, then = self.when, self.then
        if isinstance(when, Changes):
            condition = f"{when.feature} changes" + ("" if when.to is None else f" to {_show(when.to)}")
        else:
            condition = f"{when.feature} {'is' if isinstance(when, Is) else 'was'} {_show(when.value)}"
        if isinstance(then, Stays):
            return f"where {condition}, {then.feature} stays"
        if isinstance(then, Is):
            return f"where {condition}, {then.feature} is {_show(then.value)}"
        return f"where {condition}, {then.feature} changes " + (f"to {then.to}" if then.by is None else f"by {then.by:g}")

    def find_condition(self, rows: RawRows) -> Mask:
        """Return the rows whose action meets the condition."""
        when = self.when
        if isinstance(when, Was):
            return rows.is_at(rows.before, when.feature, when.value)
        if isinstance(when, Is):
            return rows.is_at(rows.after, when.feature, when.value)
        changed = rows.is_changed(when.feature)
        return changed if when.to is None else changed & rows.is_at(rows.after, when.feature, when.to)

    def _compute_target(self, rows: RawRows) -> Array:
        assert isinstance(self.then, Changes)
        before = rows.before[self.then.feature]
        feature = rows.features[self.then.feature]
        if self.then.by is not None:
            end = before + self.then.by
        elif isinstance(feature, Continuous):
            end = np.full_like(before, self.then.to)
        else:
            end = np.full_like(before, feature.states.index(self.then.to))
        return np.where(self.find_condition(rows), end, before)

    def find_broken_alone(self, rows: RawRows, values: Mapping[str, Array]) -> Mask:
        if not isinstance(self.when, Is) or not isinstance(self.then, Is):
            return np.zeros(len(values[self.then.feature]), dtype=bool)
        return rows.is_at(values, self.when.feature, self.when.value) & ~rows.is_at(values, self.then.feature, self.then.value)

    def find_broken(self, rows: RawRows) -> Mask:
        name = self.then.feature
        if isinstance(self.then, Stays):
            return self.find_condition(rows) & rows.is_changed(name)
        if isinstance(self.then, Is):
            is_acting = np.logical_or.reduce([rows.is_changed(one) for one in self.features])
            return np.asarray(is_acting & self.find_condition(rows) & ~rows.is_at(rows.after, name, self.then.value))
        wanted = self._compute_target(rows)
        if not isinstance(rows.features[name], Continuous):
            return np.asarray(rows.after[name] != wanted)
        return np.asarray(np.abs(rows.after[name] - wanted) > rows.compute_slack(name))

    def enforce(self, rows: RawRows) -> None:
        if isinstance(self.then, Stays):
            rows.revert(self.find_broken(rows), self.then.feature)
        elif isinstance(self.then, Is):
            broken = self.find_broken(rows)
            if broken.any():
                self._move_to_requirement(rows, broken)
                broken = self.find_broken(rows)
                rows.revert(broken, *((self.then.feature,) if isinstance(self.when, Was) else self.features))

    def _move_to_requirement(self, rows: RawRows, broken: Mask) -> None:
        assert isinstance(self.then, Is)
        name, feature, before = self.then.feature, rows.features[self.then.feature], rows.before[self.then.feature]
        if feature.is_immutable:
            return
        if isinstance(feature, Continuous):
            low, high = get_ends(self.then.value)
            lowest, highest = feature.reachable_bounds
            if isinstance(feature, Integer):
                low, high = np.ceil(low), np.floor(high)
            wanted = np.clip(rows.after[name], low, high)
            possible = (wanted >= np.minimum(lowest, before)) & (wanted <= np.maximum(highest, before))
            possible &= (wanted >= before) if feature.mutability is Mutability.INCREASE else True
            possible &= (wanted <= before) if feature.mutability is Mutability.DECREASE else True
        else:
            number = feature.states.index(self.then.value)
            wanted = np.full_like(before, number)
            possible = np.full(len(before), feature.destinations[number])
            if feature.mutability is not Mutability.FREE:
                possible &= rows.is_at(rows.after, name, self.then.value)
        rows.after[name] = np.where(broken & possible, wanted, rows.after[name])

    def complete(self, rows: RawRows) -> None:
        if isinstance(self.then, Changes):
            moved = self._compute_target(rows) - rows.before[self.then.feature]
            rows.after[self.then.feature] = rows.after[self.then.feature] + moved


def _show(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    low, high = value
    if low is None or high is None:
        return f"at most {high}" if low is None else f"at least {low}"
    return f"{low} to {high}"


@dataclass(frozen=True)
class Linked(Constraint):
    """A change of one number that moves others in proportion.

    Attributes:
        source: name of the number that is asked for.
        to: units by which each other number moves for one unit of the source, by name.
        counts: true if the changes of the others count and cost. Default: false.
    """

    source: str
    to: Any
    counts: bool = False

    def __post_init__(self) -> None:
        entries = tuple(self.to.items()) if isinstance(self.to, Mapping) else tuple(self.to)
        if not entries or any(isinstance(rate, bool) or not isinstance(rate, int | float) or not np.isfinite(rate) for _, rate in entries):
            raise ActionSetError(f"Linked: targets must map names to finite numbers, got {self.to!r}.")
        if self.source in dict(entries):
            raise ActionSetError(f"Linked: {self.source} must not follow from itself. Name another feature.")
        object.__setattr__(self, "to", entries)

    @property
    def features(self) -> tuple[str, ...]:
        return (self.source, *self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.to)

    @property
    def is_free(self) -> bool:
        return not self.counts

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        for name in self.features:
            require_number(self, name, features)

    def describe(self) -> str:
        return f"each unit of {self.source} moves {', '.join(f'{name} by {rate:g}' for name, rate in self.to)}"

    def find_broken(self, rows: RawRows) -> Mask:
        step = rows.after[self.source] - rows.before[self.source]
        wrong = [np.abs(rows.after[n] - rows.before[n] - rate * step) > self._compute_slack(rows, n, rate) for n, rate in self.to]
        return np.asarray(np.logical_or.reduce(wrong))

    def _compute_slack(self, rows: RawRows, name: str, rate: float) -> Array:
        return rows.compute_slack(name) + abs(rate) * rows.compute_slack(self.source)

    def enforce(self, rows: RawRows) -> None:
        # The source goes only as far as the bounds of its targets allow.
        before = rows.before[self.source]
        low, high = np.full_like(before, -np.inf), np.full_like(before, np.inf)
        for name, rate in self.to:
            feature, own = rows.features[name], rows.before[name]
            assert isinstance(feature, Continuous)
            if rate == 0:
                continue
            lowest, highest = feature.declared_bounds
            falls = np.minimum(lowest, own) - own if feature.mutability is not Mutability.INCREASE else np.zeros_like(own)
            rises = np.maximum(highest, own) - own if feature.mutability is not Mutability.DECREASE else np.zeros_like(own)
            first, last = (falls / rate, rises / rate) if rate > 0 else (rises / rate, falls / rate)
            low, high = np.maximum(low, first), np.minimum(high, last)
        if isinstance(rows.features[self.source], Integer):
            low, high = np.ceil(low - 1e-9), np.floor(high + 1e-9)
        rows.after[self.source] = np.clip(rows.after[self.source], before + low, before + high)

    def list_slopes(self, values: Mapping[str, Array]) -> list[tuple[str, str, Array]]:
        return [(name, self.source, np.full_like(values[self.source], rate)) for name, rate in self.to]

    def complete(self, rows: RawRows) -> None:
        step = rows.after[self.source] - rows.before[self.source]
        for name, rate in self.to:
            rows.after[name] = rows.after[name] + rate * step


@dataclass(frozen=True)
class Computed(Constraint):
    """A number that follows from other numbers by arithmetic.

    Attributes:
        feature: name of the number.
        by: formula of names, numbers, ``+``, ``-``, ``*``, ``/`` and parentheses.
        counts: true if its changes count and cost. Default: false.
    """

    feature: str
    by: str
    counts: bool = False

    def __post_init__(self) -> None:
        if self.feature in self._names:
            raise ActionSetError(f"Computed: {self.feature} must not follow from itself. Take it out of the formula.")

    @cached_property
    def _tree(self) -> ast.expr:
        if not isinstance(self.by, str) or len(self.by) > _MAX_FORMULA_LENGTH:
            raise ActionSetError(f"Computed: the formula must be text of at most {_MAX_FORMULA_LENGTH} characters.")
        try:
            tree = ast.parse(self.by.strip(), mode="eval").body
            _require_arithmetic(tree, 0)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ActionSetError(
                f"Computed: the formula must be names, numbers, + - * / and parentheses, got {self.by!r}. Rename features with other signs."
            ) from None
        return tree

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature, *self._names)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.feature,)

    @property
    def is_free(self) -> bool:
        return not self.counts

    def check(self, features: Mapping[str, AnyFeature]) -> None:
        for name in self.features:
            require_number(self, name, features)

    def describe(self) -> str:
        return f"{self.feature} = {self.by}"

    def compute(self, values: Mapping[str, Array]) -> Array:
        """Return the formula's value, NaN where it is not finite."""
        with np.errstate(all="ignore"):
            result = np.broadcast_to(_evaluate(self._tree, values), values[self.feature].shape)
        return np.where(np.isfinite(result), result, np.nan)

    def find_broken_alone(self, rows: RawRows, values: Mapping[str, Array]) -> Mask:
        wanted = self.compute(values)
        slack = rows.compute_slack(self.feature, 1e-4) + 1e-4 * np.abs(np.nan_to_num(wanted))
        return np.asarray(~(np.abs(values[self.feature] - wanted) <= slack))

    def find_broken(self, rows: RawRows) -> Mask:
        changed = np.logical_or.reduce([rows.is_changed(name) for name in self.features])
        return np.asarray(changed & self.find_broken_alone(rows, rows.after))

    def enforce(self, rows: RawRows) -> None:
        """Do nothing, because ``complete`` computes the feature."""

    def list_slopes(self, values: Mapping[str, Array]) -> list[tuple[str, str, Array]]:
        return [(self.feature, name, _differentiate(self._tree, values, name)) for name in self._names]

    def complete(self, rows: RawRows) -> None:
        changed = np.logical_or.reduce([rows.is_changed(name) for name in self._names])
        rows.after[self.feature] = np.where(changed, self.compute(rows.after), rows.before[self.feature])


def _require_arithmetic(node: ast.AST, depth: int) -> None:
    if depth > _MAX_FORMULA_DEPTH:
        raise ValueError
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _require_arithmetic(node.left, depth + 1)
        _require_arithmetic(node.right, depth + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _require_arithmetic(node.operand, depth + 1)
    elif not isinstance(node, ast.Name) and not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ValueError


def _evaluate(node: ast.AST, values: Mapping[str, Array]) -> Array:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, values)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Name):
        return values[node.id]
    assert isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return np.float64(node.value)  # type: ignore[return-value]


def _differentiate(node: ast.AST, values: Mapping[str, Array], name: str) -> Array:
    """Return the derivative of a formula with respect to one of its names, ``(N,)``."""
    zero = np.zeros_like(values[name])
    with np.errstate(all="ignore"):
        if isinstance(node, ast.BinOp):
            left, right = _differentiate(node.left, values, name), _differentiate(node.right, values, name)
            if isinstance(node.op, ast.Add | ast.Sub):
                return np.asarray(left + right if isinstance(node.op, ast.Add) else left - right)
            first, second = _evaluate(node.left, values), _evaluate(node.right, values)
            if isinstance(node.op, ast.Mult):
                return np.asarray(left * second + first * right)
            return np.asarray((left * second - first * right) / (second * second))
        if isinstance(node, ast.UnaryOp):
            inner = _differentiate(node.operand, values, name)
            return np.asarray(-inner) if isinstance(node.op, ast.USub) else inner
    return zero + 1.0 if isinstance(node, ast.Name) and node.id == name else zero
