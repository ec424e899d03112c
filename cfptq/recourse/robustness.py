"""Recourse that is valid in each of several models (Appendix E.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError, ModelError
from cfptq.network.head import target_margin
from cfptq.network.predictor import Model, Predictor, as_predictor
from cfptq.network.state import preserved_state
from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.solver import EXAMPLE_ROWS, Method, solve
from cfptq.recourse.target import Target, resolve_target


@dataclass(frozen=True, eq=False)
class WorstCasePredictor:
    """A predictor whose target margin is the smallest of several predictors.

    The logit of ``target`` is the smallest target margin of all members, and every other logit is zero. So the decision is ``target``
    exactly where all members decide ``target``. Logits are meaningful for that one target only.

    Attributes:
        members: Predictors with the same number of classes.
        target: Target class.
    """

    members: tuple[Predictor, ...]
    target: int

    def __post_init__(self) -> None:
        if not self.members:
            raise ModelError("Robust recourse needs at least one predictor, got none.")
        classes = sorted({member.n_classes for member in self.members})
        if len(classes) > 1:
            raise ModelError(f"All predictors must have the same number of classes, got {' and '.join(map(str, classes))}.")
        if not 0 <= self.target < classes[0]:
            raise DataError(f"target must be a class from 0 to {classes[0] - 1}, got {self.target}.")

    @property
    def name(self) -> str:
        """Names of all members."""
        return f"worst of {len(self.members)}: {', '.join(dict.fromkeys(member.name for member in self.members))}"

    @property
    def n_classes(self) -> int:
        """Number of classes C of every member."""
        return self.members[0].n_classes

    @property
    def is_differentiable(self) -> bool:
        """True if all members are differentiable."""
        return all(member.is_differentiable for member in self.members)

    @property
    def reason(self) -> str:
        """Reason why it is not differentiable, empty if it is."""
        return "; ".join(getattr(member, "reason", "") or member.name for member in self.members if not member.is_differentiable)

    def logits(self, x: Tensor) -> Tensor:
        """Compute class logits (N, C) of the artefacts, without gradient."""
        return self._margin_to_logits(self.compute_margins(x).amin(0))

    def compute_margins(self, x: Tensor) -> Tensor:
        """Compute the target margin of every member's artefact, (M, N)."""
        return self._stack_margins([member.logits(x) for member in self.members])

    def surrogate(self, x: Tensor) -> Tensor:
        """Compute differentiable class logits (N, C).

        The gradient of each row is that of the member with its smallest margin.
        """
        with torch.no_grad():
            worst = self._stack_margins([member.surrogate(x.detach()) for member in self.members]).argmin(0)
        owned = [(member, (worst == place).nonzero()[:, 0]) for place, member in enumerate(self.members)]
        owned = [(member, rows) for member, rows in owned if len(rows)]
        margin = self._stack_margins([torch.cat([member.surrogate(x[rows]) for member, rows in owned])])[0]
        return self._margin_to_logits(margin[torch.cat([rows for _, rows in owned]).argsort()])

    def _stack_margins(self, logits: list[Tensor]) -> Tensor:
        """Compute target margins (M, N) of M logits (N, C) in one call, which is faster for few rows."""
        every = torch.cat(logits)
        return target_margin(every, torch.full((len(every),), self.target)).reshape(len(logits), -1)

    def _margin_to_logits(self, margin: Tensor) -> Tensor:
        """Return logits (N, C) that are the margin for the target and zero for other classes."""
        column = nn.functional.one_hot(torch.tensor(self.target), self.n_classes).to(margin.dtype)
        return margin[:, None] * column


def robust(
    predictors: Sequence[Model],
    rows: Tensor | np.ndarray,
    space: ActionSpace,
    target: Target,
    *,
    method: str | Method = "minimal-cost",
    seed: int = 0,
    chunk_rows: int = 4096,
    threads: int | None = 1,
    progress: bool = True,
) -> RecourseBatch:
    """Find recourse that reaches its target in all of ``predictors`` at the lowest cost found.

    ``found`` and ``margin`` refer to the smallest margin of all predictors. A row that has its target in all of them gets a zero action.

    Args:
        predictors: Nominal model first, then its variants (see ``cfptq.quantize.sample_variants``). Each is a model as
            ``solve`` takes it. A target rule sees the logits of the nominal model.
        rows: Columns as floats, (N, d) or (N, ...).
        space: Admissible actions of each person and their costs.
        target: One class for all rows, one class per row (N,), or a rule ``(rows, logits) -> (N,)``.
        method: Name or settings of a method of ``solve``, default ``"minimal-cost"``.
        seed: Seed of the random restarts, default 0.
        chunk_rows: Rows solved at a time, default 4096.
        threads: PyTorch threads, default 1. ``None`` keeps the current number.
        progress: Show a progress bar for long runs if standard error is a terminal, default True.

    Raises:
        ModelError: ``predictors`` is not a list of at least one model, or their numbers of classes differ.
        DataError: As ``solve``.
        ActionSetError: As ``solve``.
    """
    x = torch.as_tensor(np.asarray(rows), dtype=torch.float32) if isinstance(rows, np.ndarray) else rows
    if not isinstance(x, Tensor) or x.dim() < 2 or len(x) == 0:
        raise DataError("rows must be a float tensor or array of columns, (N, d), with at least one row.")
    modules = _check_predictors(predictors)
    with preserved_state(*modules, threads=threads):
        members = tuple(as_predictor(model, example=x[:EXAMPLE_ROWS]) for model in predictors)
        wanted = resolve_target(target, x, members[0].logits(x))
        parts: list[tuple[Tensor, RecourseBatch]] = []
        for one in torch.unique(wanted).tolist():
            own = (wanted == one).nonzero()[:, 0]
            ensemble = WorstCasePredictor(members, int(one))
            settings: dict[str, Any] = {"method": method, "seed": seed, "chunk_rows": chunk_rows, "progress": progress}
            parts.append((own, solve(ensemble, x[own], space, target=int(one), threads=threads, **settings)))
    order = torch.cat([own for own, _ in parts]).argsort()
    first = parts[0][1]
    joined: dict[str, Any] = {
        field.name: torch.cat([getattr(batch, field.name) for _, batch in parts])[order]
        for field in fields(RecourseBatch)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **joined, method=f"{first.method}, robust over {len(members)}")


def check_validity(predictors: Sequence[Model], batch: RecourseBatch, threads: int | None = 1) -> Tensor:
    """Check in which predictors the actions of ``batch`` reach their target, (M, N) bool.

    Nominal and robust success of Table 12 are means of the result.

    Args:
        predictors: M models as ``solve`` takes them.
        batch: Recourse for N rows.
        threads: PyTorch threads, default 1. ``None`` keeps the current number.

    Raises:
        ModelError: ``predictors`` is not a list of at least one model.
    """
    modules = _check_predictors(predictors)
    with preserved_state(*modules, threads=threads):
        members = [as_predictor(model, example=batch.factual[:EXAMPLE_ROWS]) for model in predictors]
        return torch.stack([target_margin(member.logits(batch.points), batch.target) > 0 for member in members])


def _check_predictors(predictors: Sequence[Model]) -> list[nn.Module]:
    """Return the predictors that are modules, after checking that ``predictors`` is a list of models.

    A single nn.Sequential is iterable too, so the check cannot rely on iteration.
    """
    if isinstance(predictors, str) or not isinstance(predictors, Sequence):
        raise ModelError(f"predictors must be a list of models, such as [model, *variants], got a {type(predictors).__name__}.")
    if not predictors:
        raise ModelError("Robust recourse needs at least one predictor, got none.")
    return [model for model in predictors if isinstance(model, nn.Module)]
