"""The entry point of recourse, which returns a checked action for every row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError, ModelError, name_rows
from cfptq.io.arguments import BOOLEAN, COUNT, SEED, check_arguments, one_of, optional
from cfptq.io.progress import allow_progress, track
from cfptq.network.head import Head, target_margin
from cfptq.network.predictor import Model, Predictor, as_predictor
from cfptq.network.state import preserved_state
from cfptq.recourse.arguments import ACTION_SPACE, MODEL_TO_RUN, TARGET
from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.exact import Exact, solve_exact
from cfptq.recourse.gradient import ProjectedGradient, count_flat_rows, run_projected_gradient
from cfptq.recourse.gradient_free import GradientFree, search_without_gradient
from cfptq.recourse.minimal_cost import MinimalCost, search_minimal_cost
from cfptq.recourse.target import Target, resolve_target

Method: TypeAlias = ProjectedGradient | MinimalCost | GradientFree | Exact

#: Methods by name, with their default settings.
METHODS: dict[str, Method] = {
    "minimal-cost": MinimalCost(), "projected-gradient": ProjectedGradient(), "gradient-free": GradientFree(), "exact": Exact(),
}  # fmt: skip

#: Rows from which the output format of an unknown model is read.
EXAMPLE_ROWS = 256
#: Added to the slack, one after the other, where an action fails its final check. A row that still fails gets a zero action.
_EXTRA_SLACK_LOGITS = (1e-3, 1e-1)

_METHOD = replace(
    one_of(METHODS, accepts=lambda value: isinstance(value, Method)),
    words=f"one of {', '.join(map(repr, METHODS))}, or the settings of a method",
    error=DataError,
)


@check_arguments(
    model=MODEL_TO_RUN,
    action_set=ACTION_SPACE,
    target=TARGET,
    method=_METHOD,
    seed=SEED,
    chunk_rows=replace(COUNT, error=DataError),
    threads=optional(COUNT),
    progress=BOOLEAN,
)
def solve(
    model: Model,
    rows: Tensor | np.ndarray | pd.DataFrame,
    action_set: ActionSpace,
    *,
    target: Target,
    method: str | Method = "minimal-cost",
    seed: int = 0,
    chunk_rows: int = 4096,
    threads: int | None = 1,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    progress: bool = True,
) -> RecourseBatch:
    """Find recourse for every row (section 3.1, appendix A).

    A row that has its target already gets a zero action and counts as found. A row for which a minimal-cost search finds nothing
    keeps a zero action with ``found`` false. Projected gradient leaves its final iterate there. Gradients come from the
    predictor's surrogate. Decisions, ``margin`` and ``found`` come from the artefact itself.

    Args:
        model: Predictor, ``nn.Module``, ONNX file or function (see ``cfptq.network.predictor.as_predictor``).
        rows: Columns as floats, (N, d) or (N, ...), or a DataFrame of raw features, which an ``cfptq.actions.ActionSet`` encodes. A
            DataFrame brings along the columns that ``PerPerson`` names.
        action_set: Admissible actions of each person and their costs.
        target: One class for all rows, one class per row (N,), or a rule ``(rows, logits) -> (N,)``.
        method: One of the names in ``METHODS``, or the settings of a method.
            ``"minimal-cost"`` (default) finds a cheap action, without gradients if the model has none.
            ``"gradient-free"`` only evaluates the model.
            ``"projected-gradient"`` is the paper's method (eq. 6).
            ``"exact"`` proves each answer. It reads linear models and ReLU networks, quantized or not, and needs an
            ``cfptq.actions.ActionSet``. It takes any model if there are few enough actions to enumerate.
        seed: Seed of the random restarts, default 0.
        chunk_rows: Rows solved at a time, default 4096. It bounds memory and affects results by float rounding only.
        threads: PyTorch threads, default 1, which is fastest for small models. ``None`` keeps the current number.
        head: What a model that is no predictor yet puts out. Inferred from its output by default.
        threshold: Probability of class 1 above which a model that is no predictor yet decides class 1. By default what an ONNX file
            records, or else 0.5.
        output: Name of the output with the class scores, for an ONNX file with several.
        progress: Show a progress bar for long runs if standard error is a terminal, default True.

    Raises:
        DataError: The rows hold NaN or are not floats, ``target`` is not a class, or the method is unknown.
        ActionSetError: Rows break the rules of the action set.
        ModelError: The model cannot be run, or has no gradient.
    """
    settings = METHODS[method] if isinstance(method, str) else method
    action_set, columns = encode_people(action_set, rows)
    x = _check_rows(columns)
    modules = (model,) if isinstance(model, nn.Module) else ()
    with allow_progress(progress), preserved_state(*modules, threads=threads):
        predictor = as_predictor(model, example=x[:EXAMPLE_ROWS], head=head, threshold=threshold, output=output)
        if isinstance(settings, MinimalCost) and not predictor.is_differentiable:
            settings = settings.without_gradient()
        if not predictor.is_differentiable and not isinstance(settings, GradientFree | Exact):
            why = getattr(predictor, "reason", "") or "it has no surrogate"
            raise ModelError(
                f"The method must have a gradient, but {predictor.name} has none ({why}). Give as_predictor a differentiable twin=, "
                'or use method="gradient-free".'
            )
        action_set.check(x)
        logits = predictor.logits(x)
        wanted = resolve_target(target, x, logits)
        margins = target_margin(logits, wanted)
        parts = [slice(start, start + chunk_rows) for start in range(0, len(x), chunk_rows)]
        whole: tuple[Tensor, ...] = ()
        for part in track(parts, "recourse", enabled=progress):
            pieces = _solve_chunk(predictor, x[part], action_set, wanted[part], margins[part], settings, seed, progress)
            # Concatenating all chunks at the end would need twice the memory.
            whole = whole or tuple(piece.new_empty(len(x), *piece.shape[1:]) for piece in pieces)
            for destination, piece in zip(whole, pieces, strict=True):
                destination[part] = piece
        delta, points, cost, margin, status, bound, *path = whole
        last_refused = path[0] if path else None
        proofs = {"status": status, "bound": bound} if isinstance(settings, Exact) else {}
        found = _has_reached(margin, settings) | (margins > 0)
        note = _describe_flat_rows(predictor, x, action_set, wanted, found, settings, parts)
    name, confidence = name_method(settings), _get_confidence(settings)
    return RecourseBatch(
        x.clone(), points, delta, cost, found, margin, wanted, name, confidence, last_refused=last_refused, note=note, **proofs
    )


def _solve_chunk(
    predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, margin: Tensor, settings: Method, seed: int, progress: bool
) -> tuple[Tensor, ...]:
    """Return actions, points, costs, margins, status codes and bounds of one chunk, and the last refused points of a path.

    ``margin`` holds the target margins of the factual rows.
    """
    last_refused = x.clone() if isinstance(settings, ProjectedGradient) and settings.early_stop else None
    delta = space.zero(x)
    points, margin = x.clone(), margin.clone()
    # A row that has the target already needs no action, whatever the confidence.
    left = (~(_has_reached(margin, settings) | (margin > 0))).nonzero()[:, 0]
    status = torch.full((len(x),), int(Status.FAVOURABLE), dtype=torch.int8)
    bound = torch.zeros(len(x))
    if len(left):
        if isinstance(settings, Exact):
            search = settings.search if predictor.is_differentiable else settings.search.without_gradient()
            action, status[left], bound[left] = solve_exact(
                predictor,
                x[left],
                space,
                target[left],
                settings,
                lambda: _search_checked(predictor, x[left], space, target[left], search),
                progress=progress,
            )
        elif isinstance(settings, MinimalCost | GradientFree):
            action = _search_checked(predictor, x[left], space, target[left], settings)
        else:
            action, before = run_projected_gradient(predictor, x[left], space, target[left], settings, seed)
            if last_refused is not None:
                last_refused[left] = space.apply(x[left], before)
        delta[left] = action
        points[left], margin[left] = _apply(predictor, x[left], space, action, target[left])
    claimed = (status == int(Status.OPTIMAL)) | (status == int(Status.BOUNDED))
    status[claimed & ~_has_reached(margin, settings)] = int(Status.NOT_FOUND)
    path = () if last_refused is None else (last_refused,)
    return delta, points, space.cost(x, delta), margin, status, bound, *path


def _describe_flat_rows(
    predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, found: Tensor, settings: Method, parts: list[slice]
) -> str:
    """Return a note about the rows without recourse at which the gradient is zero, or "" where there are none."""
    if not isinstance(settings, ProjectedGradient) or bool(found.all()):
        return ""
    flat, left = 0, 0
    for part in parts:
        rest = ~found[part]
        left += int(rest.sum())
        if bool(rest.any()):
            flat += count_flat_rows(predictor, x[part][rest], space, target[part][rest], settings)
    if flat == 0:
        return ""
    return (
        f"The gradient of {predictor.name} is zero at {flat} of the {left} rows without recourse, so that projected-gradient steps do not "
        'move them. Search them by method="minimal-cost", or give the model\'s logits in place of saturated probabilities.'
    )


def _search_checked(predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost | GradientFree) -> Tensor:
    """Return minimal-cost actions that pass a final check in the artefact as one batch, and zero for the others."""
    delta = _search(predictor, x, space, target, settings)
    for slack in (*_EXTRA_SLACK_LOGITS, None):
        _, margin = _apply(predictor, x, space, delta, target)
        lost = (~_has_reached(margin, settings) & (delta != 0).any(1)).nonzero()[:, 0]
        if len(lost) == 0:
            break
        wider = settings if slack is None else replace(settings, slack=settings.slack + slack)
        delta[lost] = space.zero(x[lost]) if slack is None else _search(predictor, x[lost], space, target[lost], wider)
    return delta


def _search(predictor: Predictor, x: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost | GradientFree) -> Tensor:
    """Run the search that belongs to the settings."""
    if isinstance(settings, GradientFree):
        return search_without_gradient(predictor, x, space, target, settings)
    return search_minimal_cost(predictor, x, space, target, settings)


def _apply(predictor: Predictor, x: Tensor, space: ActionSpace, delta: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the counterfactual points and the artefact's target margins there."""
    with torch.no_grad():
        points = space.apply(x, delta)
    return points, target_margin(predictor.logits(points), target)


def _has_reached(margin: Tensor, settings: Method) -> Tensor:
    """Return which margins reach the target.

    A confidence is reached at its logit. A plain decision needs a margin above zero, because a tie is no decision for the target.
    """
    if isinstance(settings, MinimalCost | GradientFree | Exact) and settings.required_margin != 0:
        return margin >= settings.required_margin
    return margin > 0


def _get_confidence(settings: Method) -> float:
    """Return the confidence that a method requires."""
    return settings.confidence if isinstance(settings, MinimalCost | GradientFree | Exact) else 0.5


def name_method(settings: Method) -> str:
    """Return the name of a method, as ``RecourseBatch.method`` shows it."""
    if isinstance(settings, Exact):
        return "exact" if settings.activations == "rounded" else "exact with relaxed activations"
    if isinstance(settings, GradientFree):
        return "gradient-free"
    return "minimal-cost" if isinstance(settings, MinimalCost) else "projected-gradient"


def encode_people(space: ActionSpace, rows: Any) -> tuple[ActionSpace, Any]:
    """Return the action space that knows the people of a DataFrame, and their columns. Other rows are returned as they are."""
    if not isinstance(rows, pd.DataFrame):
        return space, rows
    if not isinstance(space, ActionSet):
        raise DataError(f"rows must be columns, because a {type(space).__name__} cannot encode a DataFrame. Give the model's columns.")
    return space.for_people(rows), space.encode(rows)


def _check_rows(rows: Tensor | np.ndarray) -> Tensor:
    """Return the rows as finite float32, (N, ...), or raise DataError."""
    if not isinstance(rows, Tensor | np.ndarray):
        raise DataError(f"rows must be a tensor or array of columns, got a {type(rows).__name__}. Use action_set.encode(frame).")
    x = torch.as_tensor(np.require(rows, requirements="W") if isinstance(rows, np.ndarray) else rows)
    if not x.dtype.is_floating_point:
        raise DataError(f"rows must be floats, encoded as the model takes them, got {x.dtype}.")
    if x.dim() < 2 or len(x) == 0:
        raise DataError(f"rows must have shape (N, d) with at least one row, got {tuple(x.shape)}.")
    x = x.detach().to(device="cpu", dtype=torch.float32)
    bad = (~torch.isfinite(x).flatten(1).all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"rows must be finite, but rows {name_rows(bad)} hold NaN or infinity. Impute or drop them first.")
    return x
