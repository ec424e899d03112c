"""What each feature could do alone: recourse that changes one feature of a person, for every feature that suffices."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.network.predictor import Predictor
from cfptq.recourse.batch import RecourseBatch
from cfptq.recourse.search_problem import build_search_problem
from cfptq.recourse.single_feature_moves import tabulate


def single_feature(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor) -> tuple[RecourseBatch, Tensor]:
    """For each row, feature and direction, the shortest move tried that reaches the target, if one does.

    Lengths are tried on a scale of a dozen shares of the way to the bound, so a move may overshoot the boundary a little; each one-hot
    level is a move of its own. One pass of the model, whatever its gradient says.

    Args:
        predictor: the model. rows: (N, ...) without their target. space: what each may change. target: (N,) int64.

    Returns:
        The actions found, and the row that each belongs to (M,), ascending.
    """
    terrain = build_search_problem(predictor, rows, space, target, 0.0)
    moves = tabulate(terrain, torch.arange(len(rows)), torch.full((len(rows),), inf))
    reached = moves.price.isfinite() & (terrain.outset[:, None] + moves.gain > 0)
    shorter = torch.where(moves.shorter >= 0, reached[:, moves.shorter.clamp_min(0)], False)
    row, move = (reached & ~shorter).nonzero(as_tuple=True)
    delta = moves.onto(terrain, row, torch.zeros(len(row), len(terrain.price)), move)
    margin = terrain.margin(row, delta)
    factual = rows[row]
    batch = RecourseBatch(
        factual, space.apply(factual, delta), delta, space.cost(factual, delta), margin > 0, margin, target[row], "single-feature", 0.5
    )
    return batch[batch.found], row[batch.found]
