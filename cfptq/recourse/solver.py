"""The one entry to recourse: rows in, a checked and priced action for each out."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError, ModelError, name_rows
from cfptq.io.progress import track
from cfptq.network.head import target_margin
from cfptq.network.predictor import Model, Predictor, as_predictor
from cfptq.network.state import preserved_state
from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.exact import Exact, exact
from cfptq.recourse.gradient import ProjectedGradient, projected_gradient
from cfptq.recourse.gradient_free import GradientFree, search_without_gradient
from cfptq.recourse.minimal_cost import MinimalCost, minimal_cost
from cfptq.recourse.target import Target, target_of_rows

Method: TypeAlias = ProjectedGradient | MinimalCost | GradientFree | Exact

#: Methods by name, with their standard settings.
METHODS: dict[str, Method] = {
    "minimal-cost": MinimalCost(), "projected-gradient": ProjectedGradient(), "gradient-free": GradientFree(), "exact": Exact(),
}  # fmt: skip

#: Rows that show an unknown model's output format.
_EXAMPLE_ROWS = 256
#: Logits added to the slack for a row whose action does not survive the last look at it.
_WIDER_SLACKS = (1e-3, 1e-1)


def solve(
    model: Model,
    rows: Tensor | np.ndarray,
    action_set: ActionSpace,
    *,
    target: Target,
    method: str | Method = "minimal-cost",
    seed: int = 0,
    chunk_rows: int = 4096,
    threads: int | None = 1,
    progress: bool = True,
) -> RecourseBatch:
    """Recourse for every row (section 3.1, appendix A).

    A row that has its target already gets a zero action and counts as found. A row for which a minimal-cost search finds nothing
    keeps a zero action with ``found`` false; projected gradient leaves its last iterate there. Gradients come from the
    predictor's surrogate; every decision, ``margin`` and ``found`` from the artefact itself.

    Args:
        model: a predictor, ``nn.Module``, ONNX file, or function (see :func:`cfptq.network.predictor.as_predictor`).
        rows: columns, (N, d) or (N, ...), floats.
        action_set: what each person may change, and at what price.
        target: the wanted class: one for all, one a row (N,), or a rule ``(rows, logits) -> (N,)``.
        method: ``"minimal-cost"`` (without a gradient where the model has none), ``"gradient-free"``, ``"projected-gradient"``,
            ``"exact"`` (linear models and ReLU networks, quantized or not, with an :class:`~cfptq.actions.ActionSet`; a proof for each
            row; any model where the actions are few enough to be listed), or settings of one.
        seed: of the random restarts.
        chunk_rows: rows solved at a time; bounds memory, changes no answer.
        threads: PyTorch threads to use; on small models one is fastest. ``None`` leaves the number as it is.
        progress: draw a bar if it takes long and standard error is a terminal.

    Raises:
        DataError: rows with NaN or no floats, a target that is no class, an unknown method.
        ActionSetError: rows that break the action set's own rules.
        ModelError: the model cannot be run, or has no gradient.
    """
    settings = _settings(method)
    if chunk_rows < 1:
        raise DataError(f"chunk_rows is {chunk_rows}; it must be at least 1")
    x = _columns(rows)
    modules = (model,) if isinstance(model, nn.Module) else ()
    with preserved_state(*modules, threads=threads):
        predictor = as_predictor(model, example=x[:_EXAMPLE_ROWS]) if not isinstance(model, Predictor) or modules else model
        if isinstance(settings, MinimalCost) and not predictor.differentiable:
            settings = settings.without_gradient()
        if not predictor.differentiable and not isinstance(settings, GradientFree | Exact):
            why = getattr(predictor, "reason", "") or "it offers no surrogate"
            raise ModelError(
                f"recourse needs a gradient and {predictor.name} has none ({why}); give as_predictor a differentiable twin=, "
                'or use method="gradient-free"'
            )
        action_set.check(x)
        logits = predictor.logits(x)
        wanted = target_of_rows(target, x, logits)
        margins = target_margin(logits, wanted)
        parts = [slice(start, start + chunk_rows) for start in range(0, len(x), chunk_rows)]
        kept: tuple[Tensor, ...] = ()
        for part in track(parts, "recourse", enabled=progress):
            pieces = _solve_chunk(predictor, x[part], action_set, wanted[part], margins[part], settings, seed, progress)
            # Written where they stay: chunks put together at the end would all be there twice.
            kept = kept or tuple(piece.new_empty(len(x), *piece.shape[1:]) for piece in pieces)
            for whole, piece in zip(kept, pieces, strict=True):
                whole[part] = piece
        delta, points, cost, margin, status, bound = kept
    proofs = {"status": status, "bound": bound} if isinstance(settings, Exact) else {}
    found = _reached(margin, settings)
    return RecourseBatch(x.clone(), points, delta, cost, found, margin, wanted, _name(settings), _confidence(settings), **proofs)


def _solve_chunk(
    predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, margin: Tensor, settings: Method, seed: int, progress: bool
) -> tuple[Tensor, ...]:
    """Actions, points, costs, margins, codes and bounds of one chunk; ``margin`` is that of the factual rows."""
    delta = space.zero(x)
    points, margin = x.clone(), margin.clone()
    left = (~_reached(margin, settings)).nonzero()[:, 0]
    status = torch.full((len(x),), int(Status.FAVOURABLE), dtype=torch.int8)
    bound = torch.zeros(len(x))
    if len(left):
        if isinstance(settings, Exact):
            search = settings.search if predictor.differentiable else settings.search.without_gradient()
            action, status[left], bound[left] = exact(
                predictor,
                x[left],
                space,
                target[left],
                settings,
                lambda: _checked_minimal_cost(predictor, x[left], space, target[left], search),
                progress=progress,
            )
        elif isinstance(settings, MinimalCost | GradientFree):
            action = _checked_minimal_cost(predictor, x[left], space, target[left], settings)
        else:
            action = projected_gradient(predictor, x[left], space, target[left], settings, seed)
        delta[left] = action
        points[left], margin[left] = _outcome(predictor, x[left], space, action, target[left])
    claimed = (status == int(Status.OPTIMAL)) | (status == int(Status.BOUNDED))
    status[claimed & ~_reached(margin, settings)] = int(Status.NOT_FOUND)
    return delta, points, space.cost(x, delta), margin, status, bound


def _checked_minimal_cost(
    predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost | GradientFree
) -> Tensor:
    """Minimal-cost actions that hold when the artefact is asked about them once more, all together; else zero."""
    delta = _searched(predictor, x, space, target, settings)
    for slack in (*_WIDER_SLACKS, None):
        _, margin = _outcome(predictor, x, space, delta, target)
        lost = (~_reached(margin, settings) & (delta != 0).any(1)).nonzero()[:, 0]
        if len(lost) == 0:
            break
        wider = settings if slack is None else replace(settings, slack=settings.slack + slack)
        delta[lost] = space.zero(x[lost]) if slack is None else _searched(predictor, x[lost], space, target[lost], wider)
    return delta


def _searched(predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost | GradientFree) -> Tensor:
    if isinstance(settings, GradientFree):
        return search_without_gradient(predictor, x, space, target, settings)
    return minimal_cost(predictor, x, space, target, settings)


def _outcome(predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Points and the artefact's target margins there."""
    with torch.no_grad():
        points = space.apply(x, delta)
    return points, target_margin(predictor.logits(points), target)


def _reached(margin: Tensor, settings: Method) -> Tensor:
    """A plain decision needs a margin above zero (a tie decides nothing); a confidence is reached at its logit."""
    if isinstance(settings, MinimalCost | GradientFree | Exact) and settings.level != 0:
        return margin >= settings.level
    return margin > 0


def _confidence(settings: Method) -> float:
    return settings.confidence if isinstance(settings, MinimalCost | GradientFree | Exact) else 0.5


def _name(settings: Method) -> str:
    if isinstance(settings, Exact):
        return "exact" if settings.activations == "rounded" else "exact with relaxed activations"
    if isinstance(settings, GradientFree):
        return "gradient-free"
    return "minimal-cost" if isinstance(settings, MinimalCost) else "projected-gradient"


def _settings(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    if method in METHODS:
        return METHODS[method]
    raise DataError(f"there is no recourse method {method!r}; use {' or '.join(map(repr, METHODS))}, or settings of one")


def _columns(rows: Tensor | np.ndarray) -> Tensor:
    """The rows as finite float32, (N, ...)."""
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(f"rows are a {type(rows).__name__}; give a tensor or array of columns (action_set.encode(frame))")
    x = torch.as_tensor(np.require(rows, requirements="W") if isinstance(rows, np.ndarray) else rows)
    if not x.dtype.is_floating_point:
        raise DataError(f"rows are {x.dtype}; give floats, encoded as the model takes them")
    if x.dim() < 2 or len(x) == 0:
        raise DataError(f"rows have shape {tuple(x.shape)}; give at least one row as (N, d)")
    x = x.detach().to(device="cpu", dtype=torch.float32)
    bad = (~torch.isfinite(x).flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"rows {name_rows(bad)} hold NaN or infinity; impute or drop them first")
    return x
