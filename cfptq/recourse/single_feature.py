"""Recourse that changes a single feature, for every feature that suffices alone."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.network.predictor import Predictor
from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.search_problem import build_search_problem
from cfptq.recourse.single_feature_moves import tabulate_moves


def find_single_feature_actions(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor) -> tuple[RecourseBatch, Tensor]:
    """Find the shortest move of each feature and direction that reaches the target alone.

    Twelve lengths up to the bound are evaluated, so an action may overshoot the boundary a little. Each one-hot level is a move of its
    own. Gradients are not used.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows without their target, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.

    Returns:
        Actions found, and the row of each, (M,), ascending.
    """
    problem = build_search_problem(predictor, rows, space, target, 0.0)
    moves = tabulate_moves(problem, torch.arange(len(rows)), torch.full((len(rows),), inf))
    is_reached = moves.cost.isfinite() & (problem.initial_margin[:, None] + moves.gain > 0)
    has_shorter = torch.where(moves.shorter >= 0, is_reached[:, moves.shorter.clamp_min(0)], False)
    row, move = (is_reached & ~has_shorter).nonzero(as_tuple=True)
    delta = moves.apply_to(problem, row, torch.zeros(len(row), len(problem.unit_cost)), move)
    if problem.is_constrained:
        delta = problem.project(row, delta)
    margin = problem.compute_margin(row, delta)
    factual = rows[row]
    batch = RecourseBatch(
        factual, space.apply(factual, delta), delta, space.cost(factual, delta), margin > 0, margin, target[row], "single-feature", 0.5
    )
    return batch[batch.found], row[batch.found]
