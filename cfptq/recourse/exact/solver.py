"""Exact recourse for the rows of a predictor, starting from a heuristic and checked in the artefact."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet
from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError, ModelError, name_rows
from cfptq.io.progress import track
from cfptq.network import Head, Network, Predictor, capture, target_margin
from cfptq.network.head import compute_threshold_logit
from cfptq.network.predictor import ArtefactPredictor
from cfptq.recourse.batch import Status
from cfptq.recourse.exact.action_model import build_action_models
from cfptq.recourse.exact.coupling import couple_action_models
from cfptq.recourse.exact.enumeration import FindFirstValid
from cfptq.recourse.exact.relu_encoding import EXACT_RECOURSE, PiecewiseLinearNetwork, Purpose, read_piecewise_linear
from cfptq.recourse.exact.row_search import Array, classify_infeasibility, is_unreachable, solve_row
from cfptq.recourse.exact.settings import Exact

#: Rows on which the network that was read is compared with the artefact.
_COMPARED_ROWS = 256
#: Relative difference of margins beyond which a row counts as different.
_MARGIN_TOLERANCE = 1e-4
#: Share of rows that may differ in a network with rounded activations, where float32 rounding may lead to the neighbouring integer.
_MAX_DIFFERENT_SHARE = 0.05


def read_network(predictor: Predictor, rows: Tensor) -> PiecewiseLinearNetwork:
    """Read the network of a predictor as affine maps and nonlinearities, and compare it with the artefact.

    Args:
        predictor: Predictor of a module or an ONNX file.
        rows: Rows to compare on, (N, d).

    Raises:
        ModelError: The predictor has no module or ONNX file, holds an operation that is not piecewise linear, or its artefact computes
            other margins than the network that was read.
    """
    read = read_piecewise_linear(*capture_network(predictor, rows, EXACT_RECOURSE))
    compare_with_artefact(read, predictor, rows, EXACT_RECOURSE)
    return read


def capture_network(predictor: Predictor, rows: Tensor, purpose: Purpose) -> tuple[Network, Head, float]:
    """Capture the network of a predictor, and return it with its head and the log odds of its threshold.

    Args:
        predictor: Predictor of a module or an ONNX file.
        rows: Rows that the network is meant for, (N, d).
        purpose: What errors name the reading by.

    Raises:
        ModelError: The predictor has no module or ONNX file.
    """
    module = getattr(predictor.twin, "module", None) if isinstance(predictor, ArtefactPredictor) else None
    if not isinstance(module, nn.Module) or not isinstance(predictor, ArtefactPredictor):
        why = getattr(predictor, "reason", "") or "it is not a module"
        raise ModelError(f"{purpose.name} needs the weights of a torch module or an ONNX file, but {predictor.name} has none ({why}).")
    log_odds = compute_threshold_logit(predictor.threshold) if predictor.threshold is not None else 0.0
    return capture(module, rows[:_COMPARED_ROWS].detach()), predictor.twin_head or predictor.head, log_odds


def compare_with_artefact(read: PiecewiseLinearNetwork, predictor: Predictor, rows: Tensor, purpose: Purpose) -> None:
    """Compare a network that was read with the artefact.

    Args:
        read: Network of the predictor.
        predictor: Predictor of a module or an ONNX file.
        rows: Rows to compare on, (N, d).
        purpose: What errors name the reading by.

    Raises:
        ModelError: The artefact computes other margins.
    """
    compared = rows[:_COMPARED_ROWS].detach()
    margins = _subtract_first(predictor.logits(compared).double().numpy())
    difference = np.abs(_subtract_first(read(compared.double().numpy())) - margins).max(1)
    is_different = difference > _MARGIN_TOLERANCE * (1 + np.abs(margins).max())
    if is_different.mean() > (_MAX_DIFFERENT_SHARE if read.has_rounding else 0.0):
        raise ModelError(
            f"{predictor.name} does not compute what its network does. Margins differ by up to {float(difference.max()):.3g} on rows "
            f"{name_rows(np.flatnonzero(is_different).tolist())}. {purpose.remedy}"
        )


def _subtract_first(logits: Array) -> Array:
    """Return differences to the logit of the first class, which a constant added to all logits does not change."""
    return np.asarray(logits[:, 1:] - logits[:, :1])


def solve_exact(
    predictor: Predictor,
    rows: Tensor,
    space: ActionSpace,
    target: Tensor,
    settings: Exact,
    heuristic: Callable[[], Tensor],
    *,
    progress: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the cheapest action of each row that is not at its target, with a proof.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows without their target, (N, d).
        space: Action set that defines the admissible actions.
        target: Target class of each row, (N,) int64.
        settings: Settings of exact recourse.
        heuristic: Function that returns feasible actions (N, d) to start from, zero where it finds none.
        progress: Show a progress bar, default False.

    Returns:
        Actions (N, d), zero where none is known, ``Status`` codes (N,) int8, and lower bounds of the cost (N,).
    """
    action_set = _check_action_set(space)
    actions = couple_action_models(action_set, rows, build_action_models(action_set, rows))
    network = cache(lambda: read_network(predictor, rows))
    start = heuristic()
    prices = space.cost(rows, start)
    relaxed = settings.activations == "relaxed"
    best = torch.zeros_like(start)
    status = torch.zeros(len(rows), dtype=torch.int8)
    bounds = torch.zeros(len(rows))
    for row in track(range(len(rows)), "exact recourse", enabled=progress):
        factual = rows[row : row + 1]
        known = (start[row].double().numpy(), float(prices[row])) if bool((start[row] != 0).any()) else None
        outcome = solve_row(
            network,
            actions[row],
            int(target[row]),
            settings.required_margin,
            settings.slack,
            known,
            _make_check(predictor, factual, space, target[row : row + 1], settings.required_margin),
            _make_validity_search(predictor, factual, space, target[row : row + 1], settings.required_margin + settings.slack),
            time_limit=settings.time_limit,
            gap=settings.gap,
            max_enumerated=settings.max_enumerated,
            use_regions=settings.use_regions,
            relaxed=relaxed,
        )
        if outcome.delta is not None:
            best[row] = torch.from_numpy(outcome.delta).float()
        status[row], bounds[row] = int(outcome.status), outcome.bound
    return best, status, bounds


def _make_check(
    predictor: Predictor, factual: Tensor, space: ActionSpace, target: Tensor, required_margin: float
) -> Callable[[Array], tuple[Array, float, bool]]:
    """Return a function that evaluates one action in the artefact."""

    def check(delta: Array) -> tuple[Array, float, bool]:
        with torch.no_grad():
            action = space.project(factual, torch.from_numpy(delta).float()[None])
            point = space.apply(factual, action)
        margin = float(target_margin(predictor.logits(point), target))
        return action[0].double().numpy(), float(space.cost(factual, action)), margin >= required_margin if required_margin else margin > 0

    return check


def _make_validity_search(
    predictor: Predictor, factual: Tensor, space: ActionSpace, target: Tensor, required_margin: float
) -> FindFirstValid:
    """Return a function that finds the first of several actions that is valid in the artefact."""

    def find_first_valid(delta: Array) -> int | None:
        row = factual.expand(len(delta), -1)
        with torch.no_grad():
            asked = torch.from_numpy(delta).float()
            action = space.project(row, asked)
            points = space.apply(row, action)
        is_valid = target_margin(predictor.logits(points), target.expand(len(delta))) >= required_margin
        if isinstance(space, ActionSet) and space.constraints:  # An action that the constraints alter is another action.
            is_valid &= ((action - asked).abs() <= 1e-4 * (1 + asked.abs()))[:, space.mutable_columns].all(1)
        return int(is_valid.int().argmax()) if bool(is_valid.any()) else None

    return find_first_valid


def compute_infeasibility_status(
    predictor: Predictor, action_set: ActionSet, rows: Tensor, target: Tensor, required_margin: float
) -> tuple[Tensor, Tensor]:
    """Compute status and cost bound of rows without recourse from cheap bounds alone.

    Args:
        predictor: Model that the recourse was solved on.
        action_set: Admissible actions.
        rows: Factual rows without recourse, (N, d).
        target: Target class of each row, (N,) int64.
        required_margin: Target margin to reach, in logits.

    Returns:
        ``Status`` codes (N,) int8 and lower bounds of the cost (N,).

    Raises:
        ModelError: As ``read_network``.
    """
    network = read_network(predictor, rows)
    status = torch.full((len(rows),), int(Status.NOT_FOUND), dtype=torch.int8)
    bounds = torch.zeros(len(rows))
    for row, actions in enumerate(couple_action_models(action_set, rows, build_action_models(action_set, rows))):
        wanted = int(target[row])
        if is_unreachable(network, actions, wanted, required_margin):
            status[row], bounds[row] = int(classify_infeasibility(lambda: network, actions, wanted, required_margin)), inf
    return status, bounds


def _check_action_set(space: ActionSpace) -> ActionSet:
    """Return ``space`` if it is an action set, or raise DataError."""
    if not isinstance(space, ActionSet):
        raise DataError(
            f'Exact recourse needs a cfptq.ActionSet, because it reads features, got a {type(space).__name__}. Use method="minimal-cost".'
        )
    counted = [type(one).__name__ for one in space.constraints if one.targets and not one.is_free]
    if counted:
        raise DataError(
            f"Exact recourse does not know the cost of consequences that count ({', '.join(counted)} with counts=True). "
            'Use method="minimal-cost".'
        )
    return space
