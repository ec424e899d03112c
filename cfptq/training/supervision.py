"""What the student is taught from: labelled rows, and the teacher's recourse as points with the teacher's own logits (eqs. 15, 25, 28)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import isfinite

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.head import target_margin
from cfptq.network.predictor import Predictor
from cfptq.recourse import ProjectedGradient, Target, solve, resolve_target


@dataclass(frozen=True)
class TeacherSettings:
    """How teacher recourse is made and used.

    Attributes:
        solvers: one or several projected-gradient teachers; every one's actions are used. Several step sizes end at several distances
            beyond the boundary.
        sides: each action is also used at another length, which ends before the boundary at a multiple, drawn from this range, of the
            distance by which the whole action ends behind it: -1 is the whole action, 0 the boundary, 1 its mirror image (distances as
            the teacher's margin has them, taken as linear along the action). None leaves it out.
        reached_only: leave out actions that do not reach the target; False keeps the last iterate, as eq. 25 does.
        cached: compute the actions once; False computes them anew in every batch, as Algorithm 2 does.
        share: share of the actions that an epoch uses (subsampled recourse batches).
        noise: σ of eq. 28: each use of an action adds σξ, ξ ~ N(0, I), and projects.
    """

    solvers: tuple[ProjectedGradient, ...] = (ProjectedGradient(),)
    sides: tuple[float, float] | None = None
    reached_only: bool = True
    cached: bool = True
    share: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not self.solvers:
            raise DataError("TeacherSettings needs at least one solver")
        if self.sides is not None and not -1 <= self.sides[0] <= self.sides[1]:
            raise DataError(
                f"TeacherSettings.sides is {self.sides}; give the least and the largest multiple, -1 (the whole action) or more"
            )
        if not 0 < self.share <= 1:
            raise DataError(f"TeacherSettings.share is {self.share}; it must lie in (0, 1]")
        if not (isfinite(self.noise) and self.noise >= 0):
            raise DataError(f"TeacherSettings.noise is {self.noise}; a standard deviation is at least 0")
        if not self.cached and len(self.solvers) > 1:
            raise DataError("a teacher that is not cached has one solver; use cached=True for several")


@dataclass(frozen=True)
class Batch:
    """What one step of training sees.

    Attributes:
        rows: (B, ...) factual rows. labels: (B,). logits: (B, C), the teacher's there. target: (B,) the class each row wants.
        people: (R, ...) factual rows of those whose recourse follows. actions: (R, k) the teacher's, detached.
        wanted: (R,) their targets. groups: (R,) the group of each, or None.
        points: (P, ...) counterfactual points; the first R are x + δ of ``people``, the rest lie beside the boundary.
        point_logits: (P, C), the teacher's there. point_target: (P,).
    """

    rows: Tensor
    labels: Tensor
    logits: Tensor
    target: Tensor
    people: Tensor
    actions: Tensor
    wanted: Tensor
    groups: Tensor | None
    points: Tensor
    point_logits: Tensor
    point_target: Tensor

    def shard(self, rank: int, size: int) -> Batch:
        """Every ``size``-th row, person and point from ``rank`` on."""
        if size == 1:
            return self
        ends = slice(rank, len(self.people), size)
        sides = slice(len(self.people) + rank, None, size)

        def pick(values: Tensor) -> Tensor:
            return torch.cat((values[ends], values[sides]))

        return Batch(
            self.rows[rank::size], self.labels[rank::size], self.logits[rank::size], self.target[rank::size],
            self.people[ends], self.actions[ends], self.wanted[ends], None if self.groups is None else self.groups[ends],
            pick(self.points), pick(self.point_logits), pick(self.point_target),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Supervision:
    """Rows, the teacher's answers on them, and its recourse for those whom it rejects.

    Attributes:
        rows: (N, ...). labels: (N,). logits: (N, C) of the teacher. target: (N,).
        groups: (N,) group numbers for eq. 33, or None.
        person: (M,) row number of each cached action. actions: (M, k).
        teacher, space, settings: to make more of them.
    """

    rows: Tensor
    labels: Tensor
    logits: Tensor
    target: Tensor
    groups: Tensor | None
    person: Tensor
    actions: Tensor
    teacher: Predictor = field(repr=False)
    space: ActionSpace = field(repr=False)
    settings: TeacherSettings

    def select(self, chosen: Tensor) -> Supervision:
        """The rows of ``chosen`` (ascending row numbers) alone, with their actions."""
        place = torch.full((len(self.rows),), -1, dtype=torch.int64)
        place[chosen] = torch.arange(len(chosen))
        kept = place[self.person] >= 0
        return replace(
            self,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            logits=self.logits[chosen],
            target=self.target[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            person=place[self.person[kept]],
            actions=self.actions[kept],
        )

    def with_actions(self, person: Tensor, actions: Tensor) -> Supervision:
        """More actions beside its own: ``actions`` (M, k) of the rows at positions ``person`` (M,)."""
        return replace(self, person=torch.cat((self.person, person)), actions=torch.cat((self.actions, actions)))

    def without_actions(self) -> Supervision:
        """The rows alone: for objectives that look at no recourse."""
        return replace(self, person=self.person[:0], actions=self.actions[:0])

    @property
    def rejected(self) -> Tensor:
        """Positions of the rows that the teacher does not give their target, ascending."""
        return (self.logits.argmax(dim=1) != self.target).nonzero()[:, 0]

    @property
    def median_margin(self) -> float:
        """Median |target margin| of the rows, above 0."""
        return max(float(target_margin(self.logits, self.target).abs().median()), torch.finfo(torch.float32).tiny)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch: every row once in random order, and with each batch an equal part of this epoch's actions."""
        order = torch.randperm(len(self.rows), generator=generator)
        used = torch.randperm(len(self.person), generator=generator)[: round(self.settings.share * len(self.person))]
        parts = torch.split(order, size)
        for rows, entries in zip(parts, used.tensor_split(len(parts)), strict=True):
            yield self._batch(rows, entries, generator)

    def whole(self, generator: torch.Generator) -> Batch:
        """All rows and all actions as one batch."""
        return self._batch(torch.arange(len(self.rows)), torch.arange(len(self.person)), generator)

    def _batch(self, rows: Tensor, entries: Tensor, generator: torch.Generator) -> Batch:
        who = self.person[entries]
        x, wanted = self.rows[who], self.target[who]
        if self.settings.cached or len(who) == 0:
            actions = self.actions[entries]
        else:
            found = solve(self.teacher, x, self.space, target=wanted, method=self.settings.solvers[0], threads=None, progress=False)
            actions = found.delta
        if self.settings.noise:
            shaken = actions + self.settings.noise * torch.randn(actions.shape, generator=generator)
            actions = self.space.project(x, shaken)
        points, logits = self._reached(x, actions)
        target = wanted
        if self.settings.sides is not None:
            beside, their_logits = self._reached(x, self._on_both_sides(x, actions, logits, self.logits[who], wanted, generator))
            points, logits, target = torch.cat((points, beside)), torch.cat((logits, their_logits)), wanted.repeat(2)
        return Batch(
            self.rows[rows], self.labels[rows], self.logits[rows], self.target[rows],
            x, actions, wanted, None if self.groups is None else self.groups[who],
            points, logits, target,
        )  # fmt: skip

    def _reached(self, x: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Where actions lead, and the teacher's logits there."""
        with torch.no_grad():
            points = self.space.apply(x, actions)
        return points, self.teacher.logits(points) if len(points) else self.logits[:0]

    def _on_both_sides(
        self, x: Tensor, actions: Tensor, reached: Tensor, before: Tensor, wanted: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The actions at lengths drawn from ``sides``; the teacher's logits are ``before`` without and ``reached`` with them."""
        assert self.settings.sides is not None
        low, high = self.settings.sides
        least, most = target_margin(before, wanted), target_margin(reached, wanted)
        behind = torch.where((least < 0) & (most > 0), most / (most - least), 0.0)
        times = low + (high - low) * torch.rand(len(x), generator=generator)
        length = (1 - behind * (1 + times)).clamp_min(0)
        return self.space.project(x, actions * length.reshape(-1, *[1] * (actions.dim() - 1)))


def supervise(
    rows: Tensor,
    labels: Tensor | None,
    teacher: Predictor,
    space: ActionSpace,
    *,
    target: Target,
    settings: TeacherSettings,
    groups: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Supervision:
    """The teacher's answers on ``rows`` and its recourse for those whom it rejects.

    Args:
        rows: (N, ...) float32. labels: (N,) int64, or None: the teacher's decisions stand in.
        target: the wanted class: one for all, one a row, or a rule.
        groups: (N,) int64 group numbers, or None.

    Raises:
        DataError, ActionSetError, ModelError: as :func:`cfptq.recourse.solve`; groups or labels that do not fit the rows.
    """
    logits = teacher.logits(rows)
    if labels is not None and (tuple(labels.shape) != (len(rows),) or bool(((labels < 0) | (labels >= logits.shape[1])).any())):
        raise DataError(f"training needs one label in 0..{logits.shape[1] - 1} for each of {len(rows)} rows")
    if groups is not None and (tuple(groups.shape) != (len(rows),) or groups.dtype != torch.int64):
        raise DataError(f"groups must be one int64 number for each of {len(rows)} rows, not {tuple(groups.shape)} {groups.dtype}")
    wanted = resolve_target(target, rows, logits)
    rejected = (logits.argmax(dim=1) != wanted).nonzero()[:, 0]
    person, actions = [rejected[:0]], [space.zero(rows[:1])[:0]]
    for settings_of_one in settings.solvers if len(rejected) else ():
        if not settings.cached:
            person, actions = [rejected], [space.zero(rows[rejected])]
            break
        found = solve(
            teacher, rows[rejected], space, target=wanted[rejected], method=settings_of_one, seed=seed, threads=None, progress=progress
        )
        kept = found.found if settings.reached_only else torch.ones_like(found.found)
        person.append(rejected[kept])
        actions.append(found.delta[kept])
    given = logits.argmax(dim=1) if labels is None else labels
    return Supervision(rows, given, logits, wanted, groups, torch.cat(person), torch.cat(actions), teacher, space, settings)
