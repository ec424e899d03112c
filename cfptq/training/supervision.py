"""Training data of the student, labelled rows and the teacher's recourse with the teacher's logits (eqs. 15, 25, 28)."""

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
from cfptq.recourse import ProjectedGradient, Target, resolve_target, solve


@dataclass(frozen=True)
class TeacherSettings:
    """Settings of the teacher's recourse.

    Attributes:
        solvers: projected-gradient solvers. The actions of all are used. Solvers with several step sizes end at several distances behind
            the boundary.
        sides: range of a random multiple, which gives each action a second length. Let d be the teacher's margin behind the boundary at
            the action's end. The second point has margin −d times the multiple, if the margin is linear along the action. So -1 is the
            whole action, 0 the boundary, and 1 the mirror image before it. None adds no second point.
        reached_only: True leaves out actions that do not reach the target, False keeps the last iterate (eq. 25).
        cached: True computes the actions once, False in every batch (Algorithm 2).
        share: share of the actions that an epoch uses, in (0, 1] (subsampled recourse batches).
        noise: σ of eq. 28. Each use of an action adds σξ with ξ ~ N(0, I), and projects. 0 adds nothing.
    """

    solvers: tuple[ProjectedGradient, ...] = (ProjectedGradient(),)
    sides: tuple[float, float] | None = None
    reached_only: bool = True
    cached: bool = True
    share: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not self.solvers:
            raise DataError("TeacherSettings.solvers must hold at least one solver, got none.")
        if self.sides is not None and not -1 <= self.sides[0] <= self.sides[1]:
            raise DataError(
                f"TeacherSettings.sides must be the lowest and the highest multiple, both at least -1 and ascending, got {self.sides}."
            )
        if not 0 < self.share <= 1:
            raise DataError(f"TeacherSettings.share must lie in (0, 1], got {self.share}.")
        if not (isfinite(self.noise) and self.noise >= 0):
            raise DataError(f"TeacherSettings.noise must be a finite number of at least 0, got {self.noise}.")
        if not self.cached and len(self.solvers) > 1:
            raise DataError(
                f"TeacherSettings.cached=False requires exactly one solver, got {len(self.solvers)}. Set cached=True, or give one solver."
            )


@dataclass(frozen=True)
class Batch:
    """Data of one training step.

    Attributes:
        rows: factual rows, (B, ...).
        labels: class of each row, (B,).
        logits: the teacher's logits of ``rows``, (B, C).
        target: target class of each row, (B,).
        people: factual rows of the people with recourse, (R, ...).
        actions: their actions, (R, k), without gradient.
        wanted: their target classes, (R,).
        groups: their group numbers, (R,), or None.
        points: counterfactual points, (P, ...). The first R are x + δ of ``people``. The rest lie on both sides of the boundary.
        point_logits: the teacher's logits of ``points``, (P, C).
        point_target: target class of each point, (P,).
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
        """Return one process's share of the batch.

        Args:
            rank: position of the first row, person and point.
            size: distance between those that are taken.
        """
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
    """Rows, the teacher's logits of them, and its recourse for the people whom it rejects.

    Attributes:
        rows: factual rows, (N, ...).
        labels: class of each row, (N,).
        logits: the teacher's logits of ``rows``, (N, C).
        target: target class of each row, (N,).
        groups: group number of each row for eq. 33, (N,), or None.
        person: row position of each cached action, (M,).
        actions: cached actions, (M, k).
        teacher: the model that labels rows and points.
        space: the action space.
        settings: settings of the teacher's recourse.
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
        """Return the supervision of some rows and their actions.

        Args:
            chosen: row positions, ascending.
        """
        new_position = torch.full((len(self.rows),), -1, dtype=torch.int64)
        new_position[chosen] = torch.arange(len(chosen))
        is_kept = new_position[self.person] >= 0
        return replace(
            self,
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            logits=self.logits[chosen],
            target=self.target[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            person=new_position[self.person[is_kept]],
            actions=self.actions[is_kept],
        )

    def with_actions(self, person: Tensor, actions: Tensor) -> Supervision:
        """Return the supervision with further actions.

        Args:
            person: row position of each action, (M,).
            actions: (M, k).
        """
        return replace(self, person=torch.cat((self.person, person)), actions=torch.cat((self.actions, actions)))

    def without_actions(self) -> Supervision:
        """Return the supervision without actions, for objectives that use no recourse."""
        return replace(self, person=self.person[:0], actions=self.actions[:0])

    @property
    def rejected(self) -> Tensor:
        """Positions of the rows that the teacher rejects, ascending."""
        return (self.logits.argmax(dim=1) != self.target).nonzero()[:, 0]

    @property
    def median_margin(self) -> float:
        """Median |target margin| of the rows in logits, above 0."""
        return max(float(target_margin(self.logits, self.target).abs().median()), torch.finfo(torch.float32).tiny)

    def draw_batches(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of one epoch, with every row once in random order and an equal part of the epoch's actions in each.

        Args:
            size: rows per batch.
            generator: source of randomness. Its state advances.
        """
        order = torch.randperm(len(self.rows), generator=generator)
        used = torch.randperm(len(self.person), generator=generator)[: round(self.settings.share * len(self.person))]
        parts = torch.split(order, size)
        for rows, entries in zip(parts, used.tensor_split(len(parts)), strict=True):
            yield self._build_batch(rows, entries, generator)

    def to_batch(self, generator: torch.Generator) -> Batch:
        """Return all rows and all actions as one batch.

        Args:
            generator: source of randomness for noise and sides. Its state advances.
        """
        return self._build_batch(torch.arange(len(self.rows)), torch.arange(len(self.person)), generator)

    def _build_batch(self, rows: Tensor, entries: Tensor, generator: torch.Generator) -> Batch:
        who = self.person[entries]
        x, wanted = self.rows[who], self.target[who]
        if self.settings.cached or len(who) == 0:
            actions = self.actions[entries]
        else:
            found = solve(self.teacher, x, self.space, target=wanted, method=self.settings.solvers[0], threads=None, progress=False)
            actions = found.delta
        if self.settings.noise:
            noisy = actions + self.settings.noise * torch.randn(actions.shape, generator=generator)
            actions = self.space.project(x, noisy)
        points, logits = self._apply_actions(x, actions)
        target = wanted
        if self.settings.sides is not None:
            second, second_logits = self._apply_actions(x, self._rescale_actions(x, actions, logits, self.logits[who], wanted, generator))
            points, logits, target = torch.cat((points, second)), torch.cat((logits, second_logits)), wanted.repeat(2)
        return Batch(
            self.rows[rows], self.labels[rows], self.logits[rows], self.target[rows],
            x, actions, wanted, None if self.groups is None else self.groups[who],
            points, logits, target,
        )  # fmt: skip

    def _apply_actions(self, x: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points that actions lead to, and the teacher's logits of them."""
        with torch.no_grad():
            points = self.space.apply(x, actions)
        return points, self.teacher.logits(points) if len(points) else self.logits[:0]

    def _rescale_actions(
        self, x: Tensor, actions: Tensor, logits: Tensor, factual_logits: Tensor, wanted: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the actions rescaled to margins drawn from ``sides``, given the teacher's logits with and without the actions."""
        assert self.settings.sides is not None
        low, high = self.settings.sides
        before, after = target_margin(factual_logits, wanted), target_margin(logits, wanted)
        share_behind = torch.where((before < 0) & (after > 0), after / (after - before), 0.0)
        multiple = low + (high - low) * torch.rand(len(x), generator=generator)
        length = (1 - share_behind * (1 + multiple)).clamp_min(0)
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
    """Label rows by the teacher, and compute its recourse for the people whom it rejects.

    Args:
        rows: factual rows, (N, ...) float32.
        labels: class of each row, (N,) int64. None takes the teacher's decisions.
        teacher: the model that labels.
        space: the action space.
        target: the target class, as one class, one class per row, or a rule.
        settings: settings of the teacher's recourse.
        groups: group number of each row, (N,) int64, or None.
        seed: of the recourse solvers.
        progress: show a bar when it takes long.

    Raises:
        DataError: labels or groups do not fit the rows, or a target does not.
        ActionSetError: an action set does not fit the rows (``cfptq.recourse.solve``).
        ModelError: the teacher has no gradient (``cfptq.recourse.solve``).
    """
    logits = teacher.logits(rows)
    if labels is not None and (tuple(labels.shape) != (len(rows),) or bool(((labels < 0) | (labels >= logits.shape[1])).any())):
        raise DataError(
            f"labels must hold one class in 0..{logits.shape[1] - 1} for each of {len(rows)} rows, got {_describe_labels(labels)}."
        )
    if groups is not None and (tuple(groups.shape) != (len(rows),) or groups.dtype != torch.int64):
        raise DataError(
            f"groups must hold one int64 number for each of {len(rows)} rows, got shape {tuple(groups.shape)} of {groups.dtype}."
        )
    wanted = resolve_target(target, rows, logits)
    rejected = (logits.argmax(dim=1) != wanted).nonzero()[:, 0]
    person, actions = [rejected[:0]], [space.zero(rows[:1])[:0]]
    for solver in settings.solvers if len(rejected) else ():
        if not settings.cached:
            person, actions = [rejected], [space.zero(rows[rejected])]
            break
        found = solve(teacher, rows[rejected], space, target=wanted[rejected], method=solver, seed=seed, threads=None, progress=progress)
        is_kept = found.found if settings.reached_only else torch.ones_like(found.found)
        person.append(rejected[is_kept])
        actions.append(found.delta[is_kept])
    classes = logits.argmax(dim=1) if labels is None else labels
    return Supervision(rows, classes, logits, wanted, groups, torch.cat(person), torch.cat(actions), teacher, space, settings)


def _describe_labels(labels: Tensor) -> str:
    """Describe the shape of labels and the range of their values."""
    values = f" with values from {int(labels.min())} to {int(labels.max())}" if labels.numel() else ""
    return f"shape {tuple(labels.shape)}{values}"
