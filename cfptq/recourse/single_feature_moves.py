"""Single-feature moves of rows, each evaluated once in the model, as the elements of gradient-free search."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: Lengths of moves of single columns, ascending, as shares of the way to the bound or of the length that the cost limit allows.
LENGTH_SHARES = (0.02, 0.05, 0.1, 0.17, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.87, 1.0)
#: Lengths kept even where they do not reach the target, so that combinations can use them.
_PARTIAL_SHARES = (0.35, 1.0)
#: A push beyond every finite bound, in column units.
_LARGE_PUSH = 1e6
#: A column that can move farther than this, in column units, counts as unbounded. Its lengths are then spaced by a factor of 4.
_UNBOUNDED_LENGTH = 1e5
_UNBOUNDED_SHARES = tuple(4.0 ** (position + 1 - len(LENGTH_SHARES)) for position in range(len(LENGTH_SHARES)))
#: Largest tensor of candidate actions. More candidates are split into chunks.
_MAX_TENSOR_NUMBERS = 2**21


@dataclass(frozen=True)
class MoveTable:
    """Table of A single-feature moves for n rows.

    Attributes:
        index: Rows of the problem, (n,).
        feature: Feature of each move, (A,).
        column: Column that each move pushes, (A,).
        fill: Push of the feature's other columns, (A,).
        value: Push of ``column``, (n, A). The projection turns it into a feasible action.
        cost: Cost of the move alone, (n, A), infinite where the row cannot make it.
        gain: Gain in target margin by the move alone, (n, A), in logits.
        is_level: Moves to a one-hot level, which cannot be shortened, (A,) bool.
        is_partial: Moves to keep even where they do not reach the target, (A,) bool.
        shorter: Next shorter move of the same column and direction, (A,), -1 where there is none.
    """

    index: Tensor
    feature: Tensor
    column: Tensor
    fill: Tensor
    value: Tensor
    cost: Tensor
    gain: Tensor
    is_level: Tensor
    is_partial: Tensor
    shorter: Tensor

    def apply_to(self, problem: SearchProblem, row: Tensor, delta: Tensor, move: Tensor) -> Tensor:
        """Apply one ``move`` (M,) to each action ``delta`` (M, d) and return feasible actions.

        The move replaces an earlier change of its feature. ``row`` (M,) holds positions among the n rows.
        """
        own = problem.incidence[self.feature[move]] > 0
        pushed = torch.where(own, self.fill[move][:, None], delta)
        pushed.scatter_(1, self.column[move][:, None], self.value[row, move][:, None])
        return problem.project(self.index[row], pushed)


def tabulate_moves(problem: SearchProblem, index: Tensor, budget: Tensor) -> MoveTable:
    """List all moves of the rows and evaluate each move alone.

    Args:
        problem: Recourse problem of N rows.
        index: Rows to list moves for, (n,).
        budget: Cost that moves must stay below, (n,), infinite where there is no limit.
    """
    feature, column, fill, is_level, is_partial, shorter, value = _list_moves(problem, index, budget)
    count, moves = len(index), len(feature)
    cost, gain = torch.full((count, moves), inf), torch.zeros(count, moves)
    table = MoveTable(index, feature, column, fill, value, cost, gain, is_level, is_partial, shorter)
    if moves == 0:
        return table
    zero = torch.zeros_like(problem.lowest[:1])
    start = evaluate_margins(problem, index, zero.expand(count, -1))
    reached_value = torch.zeros(count, moves)
    chunk_size = max(1, _MAX_TENSOR_NUMBERS // (moves * zero.shape[1]))
    for first in range(0, count, chunk_size):
        row = torch.arange(first, min(first + chunk_size, count)).repeat_interleave(moves)
        move = torch.arange(moves).repeat(len(row) // moves)
        delta = table.apply_to(problem, row, zero.expand(len(row), -1), move)
        move_cost = problem.cost(index[row], delta)
        reached_value[row, move] = delta.gather(1, column[move][:, None])[:, 0]
        possible = ((move_cost > 0) & (move_cost < budget[row])).nonzero()[:, 0]
        if len(possible) == 0:
            continue
        row, move, delta, move_cost = row[possible], move[possible], delta[possible], move_cost[possible]
        cost[row, move] = move_cost
        gain[row, move] = evaluate_margins(problem, index[row], delta) - start[row]
    # Two lengths on a grid may give the same point, which counts as one move.
    is_repeated = (shorter >= 0) & (reached_value == reached_value[:, shorter.clamp_min(0)])
    cost[is_repeated] = inf
    return table


def find_grid_steps(problem: SearchProblem, index: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows and actions that reach the target by one grid step of one column, regardless of gradients."""
    columns = (problem.grid_step > 0).nonzero()[:, 0]
    row = torch.arange(len(index)).repeat_interleave(2 * len(columns))
    column = columns.repeat_interleave(2).repeat(len(index))
    sign = torch.tensor([1.0, -1.0]).repeat(len(index) * len(columns))
    push = torch.zeros(len(row), len(problem.unit_cost)).scatter_(1, column[:, None], (sign * problem.grid_step[column])[:, None])
    delta = problem.project(index[row], push)
    changed = (delta != 0).any(1).nonzero()[:, 0]
    valid = changed[evaluate_margins(problem, index[row[changed]], delta[changed]) >= problem.required_margin]
    return index[row[valid]], delta[valid]


def evaluate_margins(problem: SearchProblem, index: Tensor, delta: Tensor) -> Tensor:
    """Compute target margins (M,) of many actions in chunks that bound memory."""
    chunk_size = max(1, _MAX_TENSOR_NUMBERS // max(1, delta.shape[1]))
    if len(delta) <= chunk_size:
        return problem.compute_margin(index, delta)
    return torch.cat(
        [problem.compute_margin(i, d) for i, d in zip(torch.split(index, chunk_size), torch.split(delta, chunk_size), strict=True)]
    )


def _list_moves(problem: SearchProblem, index: Tensor, budget: Tensor) -> tuple[Tensor, ...]:
    """List feature, column, fill, is_level, is_partial and shorter of each move (A,), and its pushes (n, A)."""
    feature: list[int] = []
    column: list[int] = []
    fill: list[float] = []
    level: list[bool] = []
    partial: list[bool] = []
    shorter: list[int] = []
    value: list[Tensor] = []

    def add(target_column: int, push: Tensor, others: float, level_move: bool, keep: bool, previous: int) -> None:
        feature.append(int(problem.feature_of_column[target_column]))
        column.append(target_column)
        fill.append(others)
        level.append(level_move)
        partial.append(keep)
        shorter.append(previous)
        value.append(push)

    ones = torch.ones(len(index))
    for own in problem.incidence:
        columns = own.nonzero()[:, 0].tolist()
        if len(columns) > 1:
            reachable = [target_column for target_column in columns if bool(problem.is_reachable[target_column])]
            for target_column in reachable:
                add(target_column, _LARGE_PUSH * ones, 0.0, True, True, -1)
            if reachable:  # All columns zero, which is the level that an encoder dropped.
                add(columns[0], -_LARGE_PUSH * ones, -_LARGE_PUSH, True, True, -1)
            continue
        target_column = columns[0]
        on_grid = not bool(problem.is_continuous[target_column])  # On a grid several lengths may give the same point.
        for bound in (problem.lowest[index, target_column], problem.highest[index, target_column]):
            if not bool((bound != 0).any()):
                continue
            affordable = torch.nan_to_num(budget / problem.unit_cost[target_column], posinf=2 * _LARGE_PUSH)
            # The budget limits the length. Without a limit, unbounded columns are tried on all scales.
            reach = torch.minimum(bound.abs(), affordable)[:, None]
            lengths = torch.where(reach > _UNBOUNDED_LENGTH, reach * torch.tensor(_UNBOUNDED_SHARES), reach * torch.tensor(LENGTH_SHARES))
            for position, push in enumerate((bound.sign()[:, None] * lengths).T):
                add(
                    target_column,
                    push,
                    0.0,
                    False,
                    LENGTH_SHARES[position] in _PARTIAL_SHARES or on_grid,
                    len(column) - 1 if position else -1,
                )
    empty = torch.zeros(len(index), 0)
    return (
        torch.tensor(feature, dtype=torch.int64),
        torch.tensor(column, dtype=torch.int64),
        torch.tensor(fill),
        torch.tensor(level, dtype=torch.bool),
        torch.tensor(partial, dtype=torch.bool),
        torch.tensor(shorter, dtype=torch.int64),
        torch.stack(value, 1) if value else empty,
    )
