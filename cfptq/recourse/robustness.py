"""Recourse that holds in every one of several models (Appendix E.2): the worst margin decides."""

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
from cfptq.recourse.solver import Method, solve
from cfptq.recourse.target import Target, target_of_rows

#: Rows that show an unknown model's output format.
_EXAMPLE_ROWS = 256


@dataclass(frozen=True, eq=False)
class WorstOf:
    """Several predictors as one that is as reluctant to say ``target`` as the most reluctant of them.

    The logit of ``target`` is the least target margin of all members, every other is zero; so the target margin is the worst one, and the
    decision is ``target`` exactly where all members say so. It answers for that one target only.
    """

    members: tuple[Predictor, ...]
    target: int

    def __post_init__(self) -> None:
        if not self.members:
            raise ModelError("robust recourse needs at least one predictor")
        classes = sorted({member.n_classes for member in self.members})
        if len(classes) > 1:
            raise ModelError(f"the predictors have {' and '.join(map(str, classes))} classes; they must be variants of one model")
        if not 0 <= self.target < classes[0]:
            raise DataError(f"target is {self.target}; the predictors have classes 0 to {classes[0] - 1}")

    @property
    def name(self) -> str:
        """Names of the members."""
        return f"worst of {len(self.members)}: {', '.join(dict.fromkeys(member.name for member in self.members))}"

    @property
    def n_classes(self) -> int:
        """C, as of every member."""
        return self.members[0].n_classes

    @property
    def differentiable(self) -> bool:
        """Whether all members are."""
        return all(member.differentiable for member in self.members)

    @property
    def reason(self) -> str:
        """Why it is not differentiable; empty where it is."""
        return "; ".join(getattr(member, "reason", "") or member.name for member in self.members if not member.differentiable)

    def logits(self, x: Tensor) -> Tensor:
        """Class logits (N, C) by the artefacts, no gradient."""
        return self._as_logits(self.margins(x).amin(0))

    def margins(self, x: Tensor) -> Tensor:
        """Target margin of every member's artefact, (M, N)."""
        return self._margins([member.logits(x) for member in self.members])

    def surrogate(self, x: Tensor) -> Tensor:
        """Class logits (N, C), differentiable with respect to ``x``: each row's gradient is that of its most reluctant member."""
        with torch.no_grad():
            worst = self._margins([member.surrogate(x.detach()) for member in self.members]).argmin(0)
        owned = [(member, (worst == place).nonzero()[:, 0]) for place, member in enumerate(self.members)]
        owned = [(member, rows) for member, rows in owned if len(rows)]
        margin = self._margins([torch.cat([member.surrogate(x[rows]) for member, rows in owned])])[0]
        return self._as_logits(margin[torch.cat([rows for _, rows in owned]).argsort()])

    def _margins(self, logits: list[Tensor]) -> Tensor:
        """Target margins (M, N) of M answers (N, C), all at once: for few rows a call costs more than what it computes."""
        every = torch.cat(logits)
        return target_margin(every, torch.full((len(every),), self.target)).reshape(len(logits), -1)

    def _as_logits(self, margin: Tensor) -> Tensor:
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
    """Recourse that reaches its target in every one of ``predictors`` at once, at the least cost found.

    ``found`` and ``margin`` speak of the most reluctant predictor. A row that has its target in all of them gets a zero action.

    Args:
        predictors: the nominal model first (a target rule is asked about its logits), then its variants: see
            :func:`cfptq.quantize.sample_variants`. Anything that :func:`solve` takes.
        rows, space, target, method, seed, chunk_rows, threads, progress: as for :func:`solve`.

    Raises:
        ModelError: no predictor, no list of them, or predictors of different numbers of classes. Otherwise as :func:`solve`.
    """
    x = torch.as_tensor(np.asarray(rows), dtype=torch.float32) if isinstance(rows, np.ndarray) else rows
    if not isinstance(x, Tensor) or x.dim() < 2 or len(x) == 0:
        raise DataError("robust recourse needs at least one row as (N, d), a float tensor or array of columns")
    modules = _modules(predictors)
    with preserved_state(*modules, threads=threads):
        members = tuple(as_predictor(model, example=x[:_EXAMPLE_ROWS]) for model in predictors)
        wanted = target_of_rows(target, x, members[0].logits(x))
        parts: list[tuple[Tensor, RecourseBatch]] = []
        for one in torch.unique(wanted).tolist():
            own = (wanted == one).nonzero()[:, 0]
            ensemble = WorstOf(members, int(one))
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


def holds(predictors: Sequence[Model], batch: RecourseBatch, threads: int | None = 1) -> Tensor:
    """In which predictors the actions of ``batch`` reach their target, (M, N) bool: nominal and robust success of Table 12.

    Raises:
        ModelError: no predictor, or no list of them.
    """
    modules = _modules(predictors)
    with preserved_state(*modules, threads=threads):
        members = [as_predictor(model, example=batch.factual[:_EXAMPLE_ROWS]) for model in predictors]
        return torch.stack([target_margin(member.logits(batch.points), batch.target) > 0 for member in members])


def _modules(predictors: Sequence[Model]) -> list[nn.Module]:
    """Those of ``predictors`` that are modules; refuses one model in place of several, which may itself be iterable (nn.Sequential)."""
    if isinstance(predictors, str) or not isinstance(predictors, Sequence):
        raise ModelError(f"robust recourse takes a list of models, such as [model, *variants], not one {type(predictors).__name__}")
    if not predictors:
        raise ModelError("robust recourse needs at least one predictor")
    return [model for model in predictors if isinstance(model, nn.Module)]
