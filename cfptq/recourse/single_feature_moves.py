"""Every single-feature move of every row, tried out in the model once: what a search without gradients is made of."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from cfptq.recourse.search_problem import SearchProblem

#: How far single columns are moved, as shares of the way to the bound, or of what the best known action would pay for. Ascending.
SHARES = (0.02, 0.05, 0.1, 0.17, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.87, 1.0)
#: Shares that are worth keeping also where they do not reach the target: part of the way, and all of it.
_PARTIAL = (0.35, 1.0)
#: A push that leaves every bound behind, and beyond which a column counts as without bound.
_FAR, _UNBOUNDED = 1e6, 1e5
#: Without a bound and without a known cost the lengths tried are a factor apart.
_SCALES = tuple(4.0 ** (place + 1 - len(SHARES)) for place in range(len(SHARES)))
#: Numbers in the largest tensor made while moves are tried out.
_AT_A_TIME = 2**21


@dataclass(frozen=True)
class Moves:
    """A moves of single features for n rows.

    Attributes:
        index: the rows of the terrain, (n,).
        feature, column: of each move, (A,).
        fill: what the move pushes its feature's other columns by, (A,).
        value: what it pushes ``column`` by, (n, A); the projection makes a feasible action of it.
        price: cost of the move taken alone, infinite where the row cannot make it, (n, A).
        gain: by how much it raises the target margin when taken alone, (n, A).
        level: the move puts a whole level, so it cannot be shortened, (A,) bool.
        partial: the move is worth keeping where it does not reach the target, (A,) bool.
        shorter: the next shorter move of the same column and direction, or -1, (A,).
    """

    index: Tensor
    feature: Tensor
    column: Tensor
    fill: Tensor
    value: Tensor
    price: Tensor
    gain: Tensor
    level: Tensor
    partial: Tensor
    shorter: Tensor

    def onto(self, terrain: SearchProblem, row: Tensor, delta: Tensor, move: Tensor) -> Tensor:
        """Feasible actions: ``delta`` (M, d) with the feature of ``move`` (M,) moved anew; ``row`` (M,) counts within the n rows."""
        own = terrain.member[self.feature[move]] > 0
        pushed = torch.where(own, self.fill[move][:, None], delta)
        pushed.scatter_(1, self.column[move][:, None], self.value[row, move][:, None])
        return terrain.project(self.index[row], pushed)


def tabulate(terrain: SearchProblem, index: Tensor, budget: Tensor) -> Moves:
    """Try every move of every row.

    Args:
        index: rows (n,). budget: cost of the best known action of each, (n,), infinite where there is none; no move dearer than that.
    """
    feature, column, fill, level, partial, shorter, value = _listed(terrain, index, budget)
    count, moves = len(index), len(feature)
    price, gain = torch.full((count, moves), inf), torch.zeros(count, moves)
    blank = Moves(index, feature, column, fill, value, price, gain, level, partial, shorter)
    if moves == 0:
        return blank
    zero = torch.zeros_like(terrain.lowest[:1])
    start = evaluate(terrain, index, zero.expand(count, -1))
    landed = torch.zeros(count, moves)
    some = max(1, _AT_A_TIME // (moves * zero.shape[1]))
    for first in range(0, count, some):
        row = torch.arange(first, min(first + some, count)).repeat_interleave(moves)
        move = torch.arange(moves).repeat(len(row) // moves)
        delta = blank.onto(terrain, row, zero.expand(len(row), -1), move)
        paid = terrain.cost(index[row], delta)
        landed[row, move] = delta.gather(1, column[move][:, None])[:, 0]
        possible = ((paid > 0) & (paid < budget[row])).nonzero()[:, 0]
        if len(possible) == 0:
            continue
        row, move, delta, paid = row[possible], move[possible], delta[possible], paid[possible]
        price[row, move] = paid
        gain[row, move] = evaluate(terrain, index[row], delta) - start[row]
    # On a grid two lengths may land on one point: it is one move.
    again = (shorter >= 0) & (landed == landed[:, shorter.clamp_min(0)])
    price[again] = inf
    return blank


def single_steps(terrain: SearchProblem, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and the actions that reach the target by one step of one column on its grid, whatever the slope says there."""
    columns = (terrain.step > 0).nonzero()[:, 0]
    row = torch.arange(len(index)).repeat_interleave(2 * len(columns))
    column = columns.repeat_interleave(2).repeat(len(index))
    side = torch.tensor([1.0, -1.0]).repeat(len(index) * len(columns))
    push = torch.zeros(len(row), len(terrain.price)).scatter_(1, column[:, None], (side * terrain.step[column])[:, None])
    delta = terrain.project(index[row], push)
    moved = (delta != 0).any(1).nonzero()[:, 0]
    valid = moved[evaluate(terrain, index[row[moved]], delta[moved]) >= terrain.level]
    return index[row[valid]], delta[valid]


def evaluate(terrain: SearchProblem, index: Tensor, delta: Tensor) -> Tensor:
    """Target margins (M,) of any number of actions, memory bounded."""
    some = max(1, _AT_A_TIME // max(1, delta.shape[1]))
    if len(delta) <= some:
        return terrain.margin(index, delta)
    return torch.cat([terrain.margin(i, d) for i, d in zip(torch.split(index, some), torch.split(delta, some), strict=True)])


def _listed(terrain: SearchProblem, index: Tensor, budget: Tensor) -> tuple[Tensor, ...]:
    """Feature, column, fill, level, partial and shorter of each move (A,), and its pushes (n, A)."""
    feature: list[int] = []
    column: list[int] = []
    fill: list[float] = []
    level: list[bool] = []
    partial: list[bool] = []
    shorter: list[int] = []
    value: list[Tensor] = []

    def add(where: int, push: Tensor, others: float, whole: bool, keep: bool, previous: int) -> None:
        feature.append(int(terrain.owner[where]))
        column.append(where)
        fill.append(others)
        level.append(whole)
        partial.append(keep)
        shorter.append(previous)
        value.append(push)

    everyone = torch.ones(len(index))
    for own in terrain.member:
        columns = own.nonzero()[:, 0].tolist()
        if len(columns) > 1:
            reachable = [where for where in columns if bool(terrain.reachable[where])]
            for where in reachable:
                add(where, _FAR * everyone, 0.0, True, True, -1)
            if reachable:  # all off: the level that an encoder dropped
                add(columns[0], -_FAR * everyone, -_FAR, True, True, -1)
            continue
        where = columns[0]
        stepped = not bool(terrain.smooth[where])  # several of its lengths may come to one
        for bound in (terrain.lowest[index, where], terrain.highest[index, where]):
            if not bool((bound != 0).any()):
                continue
            affordable = torch.nan_to_num(budget / terrain.price[where], posinf=2 * _FAR)
            # No more than is paid for already; where nothing is, unbounded columns are tried on all scales.
            reach = torch.minimum(bound.abs(), affordable)[:, None]
            lengths = torch.where(reach > _UNBOUNDED, reach * torch.tensor(_SCALES), reach * torch.tensor(SHARES))
            for place, push in enumerate((bound.sign()[:, None] * lengths).T):
                add(where, push, 0.0, False, SHARES[place] in _PARTIAL or stepped, len(column) - 1 if place else -1)
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
