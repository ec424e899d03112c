"""Constraints of an action set as linear constraints, switches and consequences of each row's changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfptq.actions import (
    ActionSet,
    AtMost,
    Changes,
    Computed,
    Constraint,
    Implies,
    Is,
    Linked,
    Ordered,
    PerPerson,
    SpecialCodes,
    Stays,
    StepLimit,
    Thermometer,
    Transitions,
    Was,
)
from cfptq.actions.constraints.base import RawRows
from cfptq.actions.constraints.enforcement import CompiledConstraints, compile_constraints
from cfptq.actions.constraints.relations import find_sources
from cfptq.actions.features import Categorical, Continuous, Integer, Mutability, Ordinal
from cfptq.recourse.exact.action_model import ActionModel, Coupling, Exclusion, LinearRow, NumericChange

Array = npt.NDArray[np.float64]

_EASE = 1e-6
"""Relative ease of linear constraints, which covers float32 columns. Every action found is projected and checked."""


def couple_action_models(action_set: ActionSet, x: Tensor, models: list[ActionModel]) -> list[ActionModel]:
    """Return the admissible actions of each row ``(N, d)`` with the constraints of the action set."""
    rules = compile_constraints(action_set.constraints, tuple(action_set), None, action_set.people)
    if rules is None:
        return models
    rows = rules.read_rows(x, torch.zeros_like(x))
    frozen = [(one, one.find_broken_alone(rows, rows.before)) for one in rules.constraints]
    reasons = _list_reasons(action_set, rules)
    result = []
    for place, model in enumerate(models):
        own = rows.take(np.array([place]))
        stuck = {name for one, is_frozen in frozen if is_frozen[place] for name in find_sources(one.features, rules.constraints)}
        result.append(_RowCoupling(action_set, rules, own, model, stuck, reasons).build())
    return result


def _list_reasons(action_set: ActionSet, rules: CompiledConstraints) -> tuple[str, ...]:
    """Return why constraints are not linear, as clauses that begin with their name."""
    found = []
    for constraint in rules.constraints:
        reason = _find_reason(constraint, action_set)
        if reason:
            found.append(f"{type(constraint).__name__} ({reason})")
    return tuple(dict.fromkeys(found))


def _find_reason(constraint: Constraint, action_set: ActionSet) -> str:
    if constraint.targets and not constraint.is_free:
        return "the cost of a consequence is no sum over changes"
    if constraint.targets and any(isinstance(one := action_set[name], Continuous) and one.curve for name in constraint.features):
        return "a curve encodes one of its features"
    if isinstance(constraint, Computed):
        return "" if _is_affine(constraint) else "its formula is not linear"
    if isinstance(constraint, Transitions):
        return "" if len(constraint.features) == 1 else "it is about several features together"
    if isinstance(constraint, Ordered) and any(isinstance(one := action_set[n], Continuous) and one.curve for n in constraint.names):
        return "a curve encodes one of its features"
    if isinstance(constraint, Implies):
        if isinstance(constraint.then, Is) or (isinstance(constraint.then, Changes) and constraint.then.to is not None):
            return "it leads to a value"
        is_number = isinstance(action_set[constraint.when.feature], Continuous)
        if is_number and (isinstance(constraint.when, Is) or (isinstance(constraint.when, Changes) and constraint.when.to is not None)):
            return "its condition compares a number after the action"
    known = StepLimit | PerPerson | SpecialCodes | Ordered | Thermometer | AtMost | Linked | Implies
    return "" if isinstance(constraint, known) else "it is not known to exact search"


def _is_affine(constraint: Computed) -> bool:
    generator = np.random.default_rng(0)
    values = {name: generator.uniform(1.0, 2.0, 16) for name in constraint.features}
    slopes = [slope for _, _, slope in constraint.list_slopes(values)]
    return all(bool(np.isfinite(slope).all() and np.ptp(slope) <= 1e-9 * (1 + np.abs(slope).max())) for slope in slopes)


@dataclass
class _RowCoupling:
    """Builder of one row's coupled actions.

    Attributes:
        action_set: the action set.
        rules: its compiled constraints.
        rows: the row's raw values, (1,) each.
        model: the row's actions without constraints.
        stuck: names of features that the row keeps.
        reasons: why constraints are not linear.
    """

    action_set: ActionSet
    rules: CompiledConstraints
    rows: RawRows
    model: ActionModel
    stuck: set[str]
    reasons: tuple[str, ...]

    def build(self) -> ActionModel:
        """Return the row's actions with constraints."""
        self._limit()
        linear, exclusions = self._list_target_limits(), self._list_exclusions()
        for constraint in self.rules.constraints:
            if isinstance(constraint, Ordered | Thermometer) and not self.reasons:
                names = constraint.names if isinstance(constraint, Ordered) else constraint.names[::-1]
                linear += [self._order(lower, upper) for lower, upper in pairwise(names)]
        limits = [(self._number(c.names), c.count) for c in self.rules.constraints if isinstance(c, AtMost)]
        nested = [self._number(c.names) for c in self.rules.constraints if isinstance(c, Thermometer)]
        most = self.model.max_changes
        declared = self.action_set.max_changes
        if declared is not None:
            most = min(len(self.model.features), declared + sum(len(group) - 1 for group in nested))
        coupling = Coupling(
            linear=tuple(linear),
            exclusions=tuple(exclusions),
            limits=tuple(limits),
            nested=tuple(nested),
            max_changes=declared,
            switch_effects=tuple(self._list_switch_effects()),
            reasons=self.reasons,
        )
        return replace(self.model, max_changes=most, coupling=coupling)

    def _number(self, names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.action_set.names.index(name) for name in names)

    def _before(self, name: str) -> float:
        return float(self.rows.before[name][0])

    def _limit(self) -> None:
        """Drop and shorten changes by what constraints say about the row itself, and attach consequences."""
        stuck = set(self.stuck) | set(self.rules.targets)
        ends: dict[str, tuple[float, float]] = {}
        steps: dict[str, set[int]] = {}
        for constraint in self.rules.constraints:
            name = constraint.features[0]
            if isinstance(constraint, SpecialCodes) and bool(constraint.find_codes(self.rows.before[name])[0]):
                stuck |= set(find_sources([name], self.rules.constraints))
            is_past = isinstance(constraint, Implies) and isinstance(constraint.when, Was) and isinstance(constraint.then, Stays)
            if isinstance(constraint, Implies) and is_past and bool(constraint.find_condition(self.rows)[0]):
                stuck |= set(find_sources([constraint.then.feature], self.rules.constraints))
            if isinstance(constraint, StepLimit | PerPerson):
                low, high, keeps = self._get_ends(constraint)
                if keeps:
                    stuck |= set(find_sources([name], self.rules.constraints))
                first, last = ends.get(name, (-math.inf, math.inf))
                ends[name] = max(first, low), min(last, high)
            if isinstance(constraint, Transitions) and len(constraint.features) == 1:
                feature = self.action_set[name]
                assert isinstance(feature, Ordinal | Categorical)
                steps[name] = {
                    feature.states.index(end[0])
                    for start, goals in constraint.steps
                    if feature.states.index(start[0]) == int(self._before(name))
                    for end in goals
                }
        names = self.action_set.names
        numeric = []
        for change in self.model.numeric_changes:
            name = names[change.feature]
            if name not in stuck:
                shortened = self._shorten(change, ends.get(name))
                if shortened is not None:
                    numeric.append(replace(shortened, effects=self._list_effects(name, change.sign)))
        levels = []
        for level in self.model.level_changes:
            name = names[level.feature]
            end = self._read_level(level.feature, level.columns, level.delta)
            if name not in stuck and (name not in steps or end in steps[name]):
                levels.append(replace(level, effects=self._list_level_effects(name, end)))
        self.model = replace(self.model, numeric_changes=tuple(numeric), level_changes=tuple(levels))

    def _read_level(self, number: int, columns: tuple[int, ...], delta: tuple[float, ...]) -> int:
        feature = self.action_set.features[number]
        row = torch.from_numpy(self.model.row.astype(np.float32))[None].clone()
        row[0, list(columns)] += torch.tensor(delta, dtype=torch.float32)
        return int(CompiledConstraints._read_feature(feature, row)[0])

    def _get_ends(self, constraint: StepLimit | PerPerson) -> tuple[float, float, bool]:
        if isinstance(constraint, StepLimit):
            low, high = constraint.compute_ends(self.rows.before[constraint.feature])
            return float(low[0]), float(high[0]), False
        low, high, keeps = constraint.compute_ends(self.rows)
        return float(low[0]), float(high[0]), bool(keeps[0])

    def _shorten(self, change: NumericChange, ends: tuple[float, float] | None) -> NumericChange | None:
        if ends is None:
            return change
        feature = self.action_set.features[change.feature]
        assert isinstance(feature, Continuous)
        before = self._before(feature.name)
        end = ends[1] if change.sign > 0 else ends[0]
        if math.isinf(end):
            return change
        if feature.curve:
            room = abs(float(feature.encode_numbers(np.array([end]))[0]) - float(self.model.row[change.column]))
        else:
            room = max((end - before) * change.sign, 0.0) / feature.scale
        room *= 1 + 1e-9
        if change.step:
            room = change.shortest + math.floor((room - change.shortest) / change.step + 1e-6) * change.step
        longest = min(change.longest, room)
        return replace(change, longest=longest) if longest > 0 and longest >= change.shortest else None

    def _get_rate(self, target: str, source: str) -> float:
        """Return the change of the target's column for one unit of the source's column."""
        total = 0.0
        for constraint in self.rules.consequences:
            for name, other, slope in constraint.list_slopes(self.rows.before):
                if name == target:
                    total += float(slope[0]) * (1.0 if other == source else self._get_raw_rate(other, source))
        numbers = self.action_set[target], self.action_set[source]
        assert isinstance(numbers[0], Continuous) and isinstance(numbers[1], Continuous)
        return total * numbers[1].scale / numbers[0].scale

    def _get_raw_rate(self, target: str, source: str) -> float:
        if target not in self.rules.targets:
            return 0.0
        numbers = self.action_set[target], self.action_set[source]
        assert isinstance(numbers[0], Continuous) and isinstance(numbers[1], Continuous)
        return self._get_rate(target, source) * numbers[0].scale / numbers[1].scale

    def _list_effects(self, name: str, sign: float) -> tuple[tuple[int, float], ...]:
        """Return the columns that one unit of a number's column moves by, in the direction ``sign``."""
        if self.reasons:
            return ()
        found = []
        for target in sorted(self.rules.targets):
            rate = self._get_rate(target, name)
            if rate:
                found.append((self.action_set[target].model_columns[0], sign * rate))
        return tuple(found)

    def _list_shifts(self, shift: float, target: str) -> list[tuple[int, float]]:
        """Return the columns that a shift of one target moves, those of targets that follow from it included."""
        feature = self.action_set[target]
        assert isinstance(feature, Continuous)
        found = [(feature.model_columns[0], shift / feature.scale)]
        for other in sorted(self.rules.targets - {target}):
            rate = self._get_rate(other, target)
            if rate:
                found.append((self.action_set[other].model_columns[0], rate * shift / feature.scale))
        return found

    def _list_level_effects(self, name: str, end: int) -> tuple[tuple[int, float], ...]:
        found: list[tuple[int, float]] = []
        if self.reasons:
            return ()
        feature = self.action_set[name]
        for constraint in self.rules.consequences:
            if isinstance(constraint, Implies) and constraint.when.feature == name and isinstance(constraint.then, Changes):
                assert isinstance(constraint.when, Changes) and constraint.then.by is not None and not isinstance(feature, Continuous)
                if constraint.when.to is None or feature.states.index(constraint.when.to) == end:
                    found += self._list_shifts(constraint.then.by, constraint.then.feature)
        return tuple(found)

    def _list_switch_effects(self) -> list[tuple[int, tuple[tuple[int, float], ...]]]:
        """Return numbers of features whose change of any amount shifts columns by a fixed amount."""
        found = []
        for constraint in self.rules.consequences if not self.reasons else ():
            is_number = isinstance(self.action_set[constraint.features[0]], Continuous)
            if isinstance(constraint, Implies) and is_number and isinstance(constraint.then, Changes):
                assert constraint.then.by is not None
                number = self.action_set.names.index(constraint.when.feature)
                found.append((number, tuple(self._list_shifts(constraint.then.by, constraint.then.feature))))
        return found

    def _list_target_limits(self) -> list[LinearRow]:
        """Return the bounds of features that follow from others."""
        found = []
        for name in () if self.reasons else sorted(self.rules.targets):
            feature, before = self.action_set[name], self._before(name)
            assert isinstance(feature, Continuous)
            low, high = feature.declared_bounds
            low, high = min(low, before), max(high, before)
            if feature.mutability is Mutability.INCREASE:
                low = before
            if feature.mutability is Mutability.DECREASE:
                high = before
            for constraint in self.rules.constraints:
                if isinstance(constraint, StepLimit | PerPerson) and constraint.feature == name:
                    first, last, _ = self._get_ends(constraint)
                    low, high = max(low, first), min(high, last)
            if math.isinf(low) and math.isinf(high) and not isinstance(feature, Integer):
                continue
            ease = _EASE * max(1.0, abs(before))
            terms = ((feature.model_columns[0], feature.scale),)
            found.append(LinearRow(terms, low - before - ease, high - before + ease))
        return found

    def _order(self, lower: str, upper: str) -> LinearRow:
        first, second = self.action_set[lower], self.action_set[upper]
        assert isinstance(first, Continuous) and isinstance(second, Continuous)
        terms = ((first.model_columns[0], first.scale), (second.model_columns[0], -second.scale))
        gap = self._before(upper) - self._before(lower)
        return LinearRow(terms, -math.inf, gap + _EASE * max(1.0, abs(self._before(upper))))

    def _list_exclusions(self) -> list[Exclusion]:
        """Return the features that must not change under a condition on another feature."""
        found = []
        for constraint in self.rules.constraints:
            if not isinstance(constraint, Implies) or not isinstance(constraint.then, Stays) or isinstance(constraint.when, Was):
                continue
            when, feature = constraint.when, self.action_set[constraint.when.feature]
            number = self.action_set.names.index(when.feature)
            stays = self._number(tuple(n for n in find_sources([constraint.then.feature], self.rules.constraints)))
            level = when.value if isinstance(when, Is) else when.to
            if isinstance(feature, Continuous):
                if isinstance(when, Changes):
                    found.append(Exclusion(stays, number, None, False))
                continue
            if level is None:
                found.append(Exclusion(stays, number, None, False))
                continue
            place = feature.states.index(level)
            is_now = isinstance(when, Is) and int(self._before(when.feature)) == place
            leads = tuple(
                change
                for change in self.model.level_changes
                if change.feature == number and self._read_level(number, change.columns, change.delta) == place
            )
            found.append(Exclusion(stays, number, leads, is_now))
        return found
