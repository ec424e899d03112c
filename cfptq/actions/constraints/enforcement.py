"""Actions made to keep all constraints, for all rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfptq.actions.constraints.base import Array, Constraint, Mask, RawRows, compute_noise
from cfptq.actions.constraints.limits import AtMost
from cfptq.actions.constraints.orders import Thermometer
from cfptq.actions.constraints.people import KnownPeople
from cfptq.actions.constraints.relations import find_sources, sort_consequences
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Integer, Mutability, Ordinal
from cfptq.actions.raw_values import read_level_numbers
from cfptq.errors import ActionSetError

_MAX_ROUNDS = 3
"""Rounds of enforcing all constraints. Afterwards changes of the features involved are shortened."""
_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.05)
"""Shares to which changes are shortened where constraints disturb one another. Afterwards they are reverted."""


@dataclass(frozen=True)
class CompiledConstraints:
    """Constraints with what enforcing them on a model's columns needs.

    Attributes:
        constraints: the constraints.
        consequences: those with targets, in the order in which they are applied.
        features: the features by name.
        read: names of the features whose values are read.
        flags: names of further features whose changes count toward ``max_changes``.
        max_changes: largest number of features that one action changes; ``None`` for no limit.
        people: columns of the people's frame by row; ``None`` if nobody is known.
    """

    constraints: tuple[Constraint, ...]
    consequences: tuple[Constraint, ...]
    features: Mapping[str, AnyFeature]
    read: tuple[str, ...]
    flags: tuple[str, ...]
    max_changes: int | None
    people: KnownPeople | None = None

    @cached_property
    def targets(self) -> frozenset[str]:
        """Names of the features that follow from others."""
        return frozenset(name for constraint in self.consequences for name in constraint.targets)

    @cached_property
    def counted(self) -> frozenset[str]:
        """Names of the targets whose changes count and cost."""
        return frozenset(name for constraint in self.consequences if not constraint.is_free for name in constraint.targets)

    @cached_property
    def uncounted(self) -> frozenset[str]:
        """Names of the targets whose changes neither count nor cost anything."""
        return self.targets - self.counted

    def project(self, x: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
        """Return actions near ``delta`` that keep all constraints, ``(N, d)``. A feasible action stays as it is.

        Args:
            x: rows, ``(N, d)``.
            delta: actions that are feasible without constraints and leave all targets unchanged, ``(N, d)``.
            weights: cost of one unit of each column, ``(d,)``.
        """
        rows = self.read_rows(x, delta)
        self.complete(rows)
        broken = np.flatnonzero(self._find_infeasible(rows))
        result = delta.clone()
        if len(broken):
            part = rows.take(broken)
            asked = {name: values.copy() for name, values in part.after.items()}
            index = torch.from_numpy(broken)
            own = delta[index]
            sizes = (own * weights).abs().numpy()
            self._enforce(part, {name: sizes[:, self.features[name].model_columns].sum(1) for name in (*self.read, *self.flags)})
            for name in (*self.read, *self.flags):
                rows.after[name][broken] = part.after[name]
                if name not in self.targets:
                    self._write(name, x[index], part, ~part.is_close(name, part.after[name], asked[name]), own)
            result[index] = own
        values = result.numpy()
        for name in self.read:
            feature = self.features[name]
            if isinstance(feature, Continuous) and name not in self.targets:  # Changes that float32 does not show are none.
                values[:, feature.model_columns[0]] *= rows.is_changed(name)
        if self.consequences:
            self._write_targets(x, rows, result)
        return result

    def _write_targets(self, x: Tensor, rows: RawRows, result: Tensor) -> None:
        # Reading back what float32 columns hold makes consequences a function of the action alone.
        for name in self.read:
            feature = self.features[name]
            if isinstance(feature, Continuous) and not isinstance(feature, Integer) and name not in self.targets:
                moved = np.flatnonzero(result[:, feature.model_columns[0]].numpy() != 0)
                rows.after[name] = rows.before[name].copy()
                rows.after[name][moved] = self._read_end(feature, x, result, moved)
        self.complete(rows)
        for name in self.targets:
            self._write(name, x, rows, rows.is_changed(name), result)

    def _write(self, name: str, x: Tensor, rows: RawRows, chosen: Mask, result: Tensor) -> None:
        """Overwrite the columns of one feature in the ``chosen`` rows by the change to the value after the action."""
        index = np.flatnonzero(chosen)
        if not len(index):
            return
        values, after = result.numpy(), rows.after[name][index]
        is_back = rows.is_close(name, rows.before[name], rows.after[name])[index]
        if name in self.flags:
            for column in self.features[name].model_columns:
                values[index[is_back], column] = 0.0
            return
        for column, encoded in self._encode(self.features[name], after):
            step = encoded.astype(np.float32) - x[:, column].numpy()[index]  # As the projection of single features computes it.
            values[index, column] = np.where(is_back, np.float32(0.0), step)

    def snap(self, x: Tensor, delta: Tensor, point: Tensor) -> Tensor:
        """Return ``point`` with the consequences exactly at values that they can take."""
        for name in self.targets:
            feature = self.features[name]
            columns = list(feature.model_columns)
            is_moved = (delta[:, columns] != 0).any(1)
            end = (x + delta)[:, columns]
            if not isinstance(feature, Continuous) or isinstance(feature, Integer):
                values = self._read_feature(feature, x + delta, x)
                for place, (_, encoded) in enumerate(self._encode(feature, values)):
                    end[:, place] = torch.from_numpy(encoded.astype(np.float32))
            point[:, columns] = torch.where(is_moved[:, None], end, x[:, columns])
        return point

    def read_rows(self, x: Tensor, delta: Tensor) -> RawRows:
        """Read the raw values before and after an action."""
        before = {name: self._read_feature(self.features[name], x) for name in self.read}
        after = {}
        is_moved = (((delta != 0).float() @ self._incidence) > 0).T.contiguous().numpy()
        for name, moves in zip((*self.read, *self.flags), is_moved, strict=True):
            if name in self.flags:
                before[name], after[name] = np.zeros(len(x)), moves.astype(np.float64)
                continue
            after[name] = before[name].copy()
            moved = np.flatnonzero(moves)
            if len(moved):
                after[name][moved] = self._read_end(self.features[name], x, delta, moved)
        return RawRows(before, after, self.features, None if self.people is None else self.people.look_up(x), frozenset(self.flags))

    def read_change(self, x: Tensor, points: Tensor) -> RawRows:
        """Read the raw values of rows and of the points that they are led to."""
        before, after = ({name: self._read_feature(self.features[name], part) for name in self.read} for part in (x, points))
        return RawRows(before, after, self.features, None if self.people is None else self.people.look_up(x))

    def follow(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return ``delta`` with consequences as a differentiable function of what they follow from. Values are not meant to be read."""
        slopes = [slope for constraint in self.consequences for slope in constraint.list_slopes(self._read_all(x + delta.detach()))]
        if not slopes:
            return delta
        columns = {name: self.features[name].model_columns[0] for slope in slopes for name in slope[:2]}
        parts = {columns[name]: torch.zeros_like(delta[:, 0]) for name, _, _ in slopes}
        for target, source, rate in slopes:
            feature, other = self.features[target], self.features[source]
            assert isinstance(feature, Continuous) and isinstance(other, Continuous)
            factor = torch.from_numpy(np.nan_to_num(rate * other.scale / feature.scale).astype(np.float32))
            moved = parts.get(columns[source], delta[:, columns[source]])
            parts[columns[target]] = parts[columns[target]] + factor * moved
        whole = list(delta.unbind(1))
        for column, value in parts.items():
            whole[column] = value
        return torch.stack(whole, 1)

    def _read_all(self, rows: Tensor) -> dict[str, Array]:
        return {name: self._read_feature(self.features[name], rows) for name in self.read}

    def complete(self, rows: RawRows) -> None:
        """Overwrite all targets by what follows from the other features."""
        for name in self.targets:
            rows.after[name] = rows.before[name].copy()
        for constraint in self.consequences:
            constraint.complete(rows)

    def find_broken(self, rows: RawRows) -> list[tuple[Constraint, Mask]]:
        """Return the constraints that actions break or whose consequence leaves the bounds, each with the rows."""
        found = []
        for constraint in self.constraints:
            is_broken = find_broken_constraint(constraint, self.constraints, rows)
            for name in constraint.targets:
                is_broken |= self._find_outside(rows, name)
            if is_broken.any():
                found.append((constraint, is_broken))
        return found

    def _find_infeasible(self, rows: RawRows) -> Mask:
        count = len(next(iter(rows.before.values())))
        found = np.zeros(count, dtype=bool)
        for _, is_broken in [*self._find_frozen(rows), *self.find_broken(rows)]:
            found |= is_broken
        if self.max_changes is not None:
            changed = sum(np.logical_or.reduce([rows.is_changed(n) for n in group]).astype(int) for group in self._list_counted())
            found |= np.asarray(changed + self._count_consequences(rows)) > self.max_changes
        return found

    def _find_frozen(self, rows: RawRows) -> list[tuple[Constraint, Mask]]:
        """Return the constraints whose features a person keeps but the action changes."""
        found = []
        for constraint in self.constraints:
            is_frozen = constraint.find_broken_alone(rows, rows.before)
            if is_frozen.any():
                found.append((constraint, is_frozen & np.logical_or.reduce([rows.is_changed(name) for name in constraint.features])))
        return found

    def _find_outside(self, rows: RawRows, name: str) -> Mask:
        feature, before, after = self.features[name], rows.before[name], rows.after[name]
        if not isinstance(feature, Continuous):
            return np.zeros(len(after), dtype=bool)
        low, high = feature.declared_bounds
        slack = rows.compute_slack(name)
        with np.errstate(invalid="ignore"):
            is_outside = (after < np.minimum(low, before) - slack) | (after > np.maximum(high, before) + slack)
            if feature.mutability is Mutability.INCREASE:
                is_outside |= after < before - slack
            if feature.mutability is Mutability.DECREASE:
                is_outside |= after > before + slack
            if isinstance(feature, Integer):
                is_outside |= (np.abs(after - np.rint(after)) > slack) & (before == np.rint(before))
            encoded = feature.encode_numbers(after)
        return np.asarray(rows.is_changed(name) & (is_outside | ~np.isfinite(encoded)))

    def _enforce(self, rows: RawRows, sizes: Mapping[str, Array]) -> None:
        """Overwrite changes until all constraints hold. An action that cannot be mended changes nothing."""
        frozen = [(constraint, constraint.find_broken_alone(rows, rows.before)) for constraint in self.constraints]
        for _ in range(_MAX_ROUNDS):
            for constraint in self.constraints:
                constraint.enforce(rows)
            for constraint, is_frozen in frozen:
                rows.revert(is_frozen, *find_sources(constraint.features, self.constraints))
            self._enforce_counts(rows, sizes)
            self.complete(rows)
            if not self._find_infeasible(rows).any():
                return
        wanted = {name: values.copy() for name, values in rows.after.items()}
        for share in (*_SHARES, 0.0):
            broken = self.find_broken(rows)
            if not broken:
                break
            for constraint, is_broken in broken:
                for name in find_sources(constraint.features, self.constraints):
                    rows.after[name] = np.where(is_broken, self._shorten(rows, name, wanted[name], share), rows.after[name])
            self.complete(rows)
        wrong = self._find_infeasible(rows)
        if wrong.any():
            rows.revert(wrong, *rows.after)

    def _shorten(self, rows: RawRows, name: str, wanted: Array, share: float) -> Array:
        feature, before = self.features[name], rows.before[name]
        if not isinstance(feature, Continuous):
            return before if share == 0 else wanted
        step = share * (wanted - before)
        return np.asarray(before + (np.trunc(step) if isinstance(feature, Integer) else step))

    def _list_counted(self) -> list[list[str]]:
        """Return the groups of features that count as one change each, without consequences."""
        together = [list(c.names) for c in self.constraints if isinstance(c, Thermometer)]
        single = [[name] for name in (*self.read, *self.flags) if name not in self.targets and not any(name in group for group in together)]
        return [*together, *single]

    def _count_consequences(self, rows: RawRows) -> npt.NDArray[np.int_]:
        count = np.zeros(len(next(iter(rows.before.values()))), dtype=int)
        for name in self.counted:
            count += rows.is_changed(name)
        return count

    def _enforce_counts(self, rows: RawRows, sizes: Mapping[str, Array]) -> None:
        for constraint in self.constraints:
            if isinstance(constraint, AtMost):
                self._keep_largest(rows, sizes, [[name] for name in constraint.names if name not in self.targets], constraint.count)
        if self.max_changes is not None:
            self.complete(rows)
            self._keep_largest(rows, sizes, self._list_counted(), np.maximum(self.max_changes - self._count_consequences(rows), 0))

    @staticmethod
    def _keep_largest(rows: RawRows, sizes: Mapping[str, Array], groups: Sequence[Sequence[str]], most: int | npt.NDArray[np.int_]) -> None:
        if not groups:
            return
        changed = np.stack([np.logical_or.reduce([rows.is_changed(name) for name in group]) for group in groups])
        if not (changed.sum(0) > most).any():
            return
        size = np.stack([np.asarray(sum(sizes[name] for name in group)) for group in groups])
        order = np.argsort(-np.where(changed, size + 1e-30, -1.0), axis=0, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(len(groups))[:, None], axis=0)
        for group, place in zip(groups, rank, strict=True):
            rows.revert(place >= most, *group)

    @cached_property
    def _incidence(self) -> Tensor:
        """Columns of each feature that is read or counted, (d, F)."""
        width = 1 + max(column for feature in self.features.values() for column in feature.model_columns)
        result = torch.zeros(width, len(self.read) + len(self.flags))
        for place, name in enumerate((*self.read, *self.flags)):
            result[list(self.features[name].model_columns), place] = 1.0
        return result

    @staticmethod
    def _read_end(feature: AnyFeature, x: Tensor, delta: Tensor, index: npt.NDArray[np.intp]) -> Array:
        """Read raw values of the rows ``index`` after an action."""
        if not isinstance(feature, Continuous):
            rows = torch.from_numpy(index)
            return CompiledConstraints._read_feature(feature, x[rows] + delta[rows])
        column = feature.model_columns[0]
        start = x[:, column].numpy()[index]
        return _read_numbers(feature, start + delta[:, column].numpy()[index], start)

    @staticmethod
    def _read_feature(feature: AnyFeature, rows: Tensor, start: Tensor | None = None) -> Array:
        """Read raw values ``(N,)``. Sums of ``start`` and an action are rounded like the larger of both."""
        if not isinstance(feature, Continuous):
            return _read_levels(feature, rows.numpy()) if feature.is_one_hot else read_level_numbers(feature, rows).astype(np.float64)
        column = feature.model_columns[0]
        return _read_numbers(feature, rows[:, column].numpy(), None if start is None else start[:, column].numpy())

    @staticmethod
    def _encode(feature: AnyFeature, values: Array) -> list[tuple[int, Array]]:
        if isinstance(feature, Continuous):
            assert feature.column is not None
            return [(feature.column, feature.encode_numbers(values))]
        numbers = values.astype(int)
        if feature.columns is None:
            assert feature.codes is not None and feature.column is not None
            return [(feature.column, np.array(feature.codes)[numbers])]
        assert feature.off is not None and feature.on is not None
        places = [(place, column) for place, column in enumerate(feature.columns) if column is not None]
        return [(column, np.where(numbers == place, feature.on[place], feature.off[place])) for place, column in places]


def _read_numbers(feature: Continuous, columns: Array, start: Array | None) -> Array:
    raw = feature.decode_numbers(columns)
    if isinstance(feature, Integer):
        whole = np.rint(raw)
        beside = raw if start is None else feature.decode_numbers(start)
        raw = np.where(np.abs(raw - whole) <= 2 * compute_noise(feature, beside, raw), whole, raw)
    return np.asarray(raw)


def _read_levels(feature: Ordinal | Categorical, rows: Array) -> Array:
    """Read level numbers ``(N,)`` from one-hot columns of rows that the action set has checked."""
    assert feature.columns is not None and feature.off is not None and feature.on is not None
    shown = [place for place, column in enumerate(feature.columns) if column is not None]
    middle = np.array([(feature.off[place] + feature.on[place]) / 2 for place in shown], dtype=np.float32)
    is_on = rows[:, list(feature.model_columns)] > middle
    all_off = feature.columns.index(None) if None in feature.columns else -1
    return np.where(is_on.any(1), np.array(shown)[is_on.argmax(1)], all_off).astype(np.float64)


def find_broken_constraint(constraint: Constraint, every: Sequence[Constraint], rows: RawRows) -> Mask:
    """Return the rows that break a constraint, where several that move one feature are taken together."""
    shared = [other for other in every if set(other.targets) & set(constraint.targets)]
    if len(shared) < 2:
        return constraint.find_broken(rows).copy()
    wanted = RawRows(rows.before, dict(rows.after), rows.features, rows.people, rows.flags)
    for name in constraint.targets:
        wanted.after[name] = rows.before[name]
    for other in shared:
        other.complete(wanted)
    wrong = [np.abs(wanted.after[name] - rows.after[name]) > rows.compute_slack(name) for name in constraint.targets]
    return np.asarray(np.logical_or.reduce(wrong))


def compile_constraints(
    constraints: Sequence[Constraint], features: Sequence[AnyFeature], max_changes: int | None, people: KnownPeople | None = None
) -> CompiledConstraints | None:
    """Compile constraints for the model's columns, or return ``None`` if there are none.

    Raises:
        ActionSetError: a constraint names a feature that the model does not see.
    """
    if not constraints:
        return None
    involved = {name for constraint in constraints for name in constraint.features}
    unseen = [feature.name for feature in features if feature.name in involved and not feature.model_columns]
    if unseen:
        raise ActionSetError(f"Constraints must name features that the model sees, and it does not see {', '.join(unseen)}.")
    counted: set[str] = set()
    if max_changes is not None:
        counted = {feature.name for feature in features if not feature.is_immutable and feature.model_columns} - involved
    return CompiledConstraints(
        constraints=tuple(constraints),
        consequences=tuple(sort_consequences(constraints)),
        features={feature.name: feature for feature in features},
        read=tuple(feature.name for feature in features if feature.name in involved),
        flags=tuple(feature.name for feature in features if feature.name in counted),
        max_changes=max_changes,
        people=people,
    )


def list_broken(
    constraints: Sequence[Constraint],
    features: Mapping[str, AnyFeature],
    after: dict[str, Array],
    before: dict[str, Array] | None,
    people: Mapping[str, Array] | None = None,
) -> list[tuple[Constraint, npt.NDArray[np.intp]]]:
    """Return each constraint that rows break, with the numbers of the rows.

    Args:
        constraints: the constraints.
        features: the features by name.
        after: raw numbers or level numbers of the rows, by feature.
        before: the same before the action. ``None`` finds rows that break a rule by themselves.
        people: columns of the people's frame, by name.
    """
    found = []
    for constraint in constraints:
        if before is None:
            is_broken = constraint.find_broken_alone(RawRows(after, after, features, people), after)
        else:
            is_broken = find_broken_constraint(constraint, constraints, RawRows(before, after, features, people))
        if is_broken.any():
            found.append((constraint, np.flatnonzero(is_broken)))
    return found
