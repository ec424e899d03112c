"""Exact recourse for a predictor's rows: its network read, the heuristic's cost as cut-off, every answer checked in the artefact."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError, ModelError, name_rows
from cfptq.io.progress import track
from cfptq.network import Predictor, capture, target_margin
from cfptq.network.head import check_threshold
from cfptq.network.predictor import ArtefactPredictor
from cfptq.recourse.batch import Status
from cfptq.recourse.exact.action_model import moves_of
from cfptq.recourse.exact.enumeration import FirstThatHolds
from cfptq.recourse.exact.relu_encoding import PiecewiseLinear, piecewise_linear
from cfptq.recourse.exact.row_search import Array, out_of_reach, proven_reason, solve_row
from cfptq.recourse.exact.settings import Exact

#: Rows on which the network read is compared with the artefact, and by how much their logits may differ.
_COMPARED_ROWS = 256
_TOLERANCE = 1e-4
#: Where activations are rounded the last bit of float32 may send a value to the other integer: the share of rows for which that may be.
_OTHER_ROUNDING = 0.05


def read_network(predictor: Predictor, rows: Tensor) -> PiecewiseLinear:
    """The predictor's network as affine maps and kinks, compared with the artefact on ``rows`` (N, d).

    Raises:
        ModelError: the predictor is not made of a module or an ONNX file, holds an operation that is not piecewise linear (named), or its
            artefact does not say what the network read says.
    """
    module = getattr(predictor.twin, "module", None) if isinstance(predictor, ArtefactPredictor) else None
    if not isinstance(module, nn.Module) or not isinstance(predictor, ArtefactPredictor):
        why = getattr(predictor, "reason", "") or "it is no module"
        raise ModelError(f"exact recourse needs the weights of a torch module or an ONNX file; {predictor.name} has none to show ({why})")
    few = rows[:_COMPARED_ROWS].detach()
    network = capture(module, few)
    head = predictor.twin_head or predictor.head
    threshold = check_threshold(predictor.threshold) if predictor.threshold is not None else 0.0
    read = piecewise_linear(network, head, threshold)
    said = predictor.logits(few).double().numpy()
    apart = np.abs(_margins(read(few.double().numpy())) - _margins(said)).max(1)
    off = apart > _TOLERANCE * (1 + np.abs(_margins(said)).max())
    if off.mean() > (_OTHER_ROUNDING if read.rounds else 0.0):
        raise ModelError(
            f"{predictor.name} does not compute what its network says: margins differ by up to {float(apart.max()):.3g} on rows "
            f'{name_rows(np.flatnonzero(off).tolist())}; exact recourse would be about another model: use method="minimal-cost"'
        )
    return read


def _margins(logits: Array) -> Array:
    """Differences to the first class: what is left of logits when a constant in each row means nothing."""
    return np.asarray(logits[:, 1:] - logits[:, :1])


def exact(
    predictor: Predictor,
    rows: Tensor,
    space: ActionSpace,
    target: Tensor,
    settings: Exact,
    heuristic: Callable[[], Tensor],
    *,
    progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest action of each row that is not at its target.

    Args:
        rows: (N, d). target: (N,).
        heuristic: gives feasible actions (N, d), zero where it found none.

    Returns:
        Actions (N, d), zero where none is known; :class:`Status` codes (N,) int8; bounds of the cost (N,).
    """
    moves = moves_of(_action_set(space), rows)
    network = _once(lambda: read_network(predictor, rows))
    start = heuristic()
    prices = space.cost(rows, start)
    relaxed = settings.activations == "relaxed"
    best = torch.zeros_like(start)
    status = torch.zeros(len(rows), dtype=torch.int8)
    bounds = torch.zeros(len(rows))
    for row in track(range(len(rows)), "exact recourse", enabled=progress):
        here = rows[row : row + 1]
        known = (start[row].double().numpy(), float(prices[row])) if bool((start[row] != 0).any()) else None
        outcome = solve_row(
            network,
            moves[row],
            int(target[row]),
            settings.level,
            settings.slack,
            known,
            _checked(predictor, here, space, target[row : row + 1], settings.level),
            _first_that_holds(predictor, here, space, target[row : row + 1], settings.level + settings.slack),
            time_limit=settings.time_limit,
            gap=settings.gap,
            listed=settings.listed,
            regions=settings.regions,
            relaxed=relaxed,
        )
        if outcome.delta is not None:
            best[row] = torch.from_numpy(outcome.delta).float()
        status[row], bounds[row] = int(outcome.status), outcome.bound
    return best, status, bounds


def _checked(
    predictor: Predictor, here: Tensor, space: ActionSpace, target: Tensor, level: float
) -> Callable[[Array], tuple[Array, float, bool]]:
    def check(delta: Array) -> tuple[Array, float, bool]:
        with torch.no_grad():
            action = space.project(here, torch.from_numpy(delta).float()[None])
            point = space.apply(here, action)
        margin = float(target_margin(predictor.logits(point), target))
        return action[0].double().numpy(), float(space.cost(here, action)), margin >= level if level else margin > 0

    return check


def _first_that_holds(predictor: Predictor, here: Tensor, space: ActionSpace, target: Tensor, level: float) -> FirstThatHolds:
    def first_that_holds(delta: Array) -> int | None:
        row = here.expand(len(delta), -1)
        with torch.no_grad():
            points = space.apply(row, space.project(row, torch.from_numpy(delta).float()))
        good = target_margin(predictor.logits(points), target.expand(len(delta))) >= level
        return int(good.int().argmax()) if bool(good.any()) else None

    return first_that_holds


def _once(read: Callable[[], PiecewiseLinear]) -> Callable[[], PiecewiseLinear]:
    """Read when first asked, once."""
    kept: list[PiecewiseLinear] = []

    def network() -> PiecewiseLinear:
        if not kept:
            kept.append(read())
        return kept[0]

    return network


def missing_status(predictor: Predictor, action_set: ActionSet, rows: Tensor, target: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """For rows without recourse, by the cheap bounds alone: :class:`Status` codes (N,) int8 and bounds of the cost (N,).

    Raises:
        ModelError: as :func:`read_network`.
    """
    network = read_network(predictor, rows)
    status = torch.full((len(rows),), int(Status.NOT_FOUND), dtype=torch.int8)
    bounds = torch.zeros(len(rows))
    for row, moves in enumerate(moves_of(action_set, rows)):
        wanted = int(target[row])
        if out_of_reach(network, moves, wanted, level):
            status[row], bounds[row] = int(proven_reason(lambda: network, moves, wanted, level)), inf
    return status, bounds


def _action_set(space: ActionSpace) -> ActionSet:
    if not isinstance(space, ActionSet):
        raise DataError(
            f"exact recourse needs a cfptq.ActionSet, whose features say what may move; a {type(space).__name__} is known by its "
            'projection only: use method="minimal-cost"'
        )
    return space
