"""Single moves tried out in the model itself: what a gradient at the factual row cannot see."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from cfptq.recourse.terrain import Terrain

#: Single columns are moved this far, as shares of what the best known action costs.
_SHARES = (0.3, 0.6, 0.95)


def promising_moves(terrain: Terrain, cost: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """For each row the single moves that promise the target at the least total cost, judged by their true change in margin.

    Args:
        cost: of the best known action of each row, (N,); moves that cost more are not tried. Infinite where there is none.
        most: moves kept a row.

    Returns:
        Rows (M,) and their moves (M, d), feasible, cheaper than the best known; some may be valid already.
    """
    everyone = torch.arange(len(cost))
    zero = terrain.space.zero(terrain.rows)
    need = terrain.level - terrain.margin(everyone, zero)
    promise = torch.full((len(cost), most), inf)
    moves = zero[:, None].repeat(1, most, 1)
    for column in range(zero.shape[1]):
        for candidate in _moves_along(terrain, column, cost, zero):
            index = (candidate[:, column] != 0).nonzero()[:, 0]
            if len(index) == 0:
                continue
            tried = terrain.project(index, candidate[index])
            price = terrain.cost(index, tried)
            affordable = (price > 0) & (price < cost[index])
            index, tried, price = index[affordable], tried[affordable], price[affordable]
            if len(index) == 0:
                continue
            gain = terrain.margin(index, tried) - terrain.level + need[index]
            total = torch.where(gain > 0, price * (need[index] / gain.clamp_min(1e-9)).clamp_min(1.0), inf)
            worst, place = promise[index].max(1)
            better = total < worst
            promise[index[better], place[better]] = total[better]
            moves[index[better], place[better]] = tried[better]
    row, place = promise.isfinite().nonzero(as_tuple=True)
    return row, moves[row, place]


def climb(terrain: Terrain, index: Tensor, start: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Raise the margin feature by feature, trying every level and several lengths of each in the model, whatever it costs.

    Args:
        index: rows (M,). start: feasible actions to start from, (M, d).

    Returns:
        Positions in 0..M-1 that reach the target, and their actions.
    """
    delta = start.clone()
    margin = terrain.margin(index, delta)
    zero = torch.zeros_like(terrain.lowest)
    unlimited = torch.full((len(zero),), inf)
    live = (margin < terrain.level).nonzero()[:, 0]
    for _ in range(sweeps):
        if len(live) == 0:
            break
        before = margin[live]
        for column in range(delta.shape[1]):
            feature = terrain.member[terrain.owner[column]] > 0
            for move in _moves_along(terrain, column, unlimited, zero):
                tried = terrain.project(index[live], torch.where(feature, move[index[live]], delta[live]))
                reached = terrain.margin(index[live], tried)
                better = reached > margin[live]
                delta[live[better]], margin[live[better]] = tried[better], reached[better]
        live = live[(margin[live] < terrain.level) & (margin[live] > before)]
    arrived = (margin >= terrain.level).nonzero()[:, 0]
    return arrived, delta[arrived]


def anywhere(terrain: Terrain, index: Tensor, seed: int) -> Tensor:
    """Random feasible actions that move every feature, (M, d); the same draw for every row."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(terrain.price), generator=generator)
    span = torch.where(draw < 0.5, terrain.lowest[index], terrain.highest[index]) * (2 * draw - 1).abs()
    # Of each group the reachable level with the largest draw.
    return terrain.project(index, torch.where(terrain.single, span, terrain.reachable * (1 + draw) - 1.0 * terrain.standing[index]))


def _moves_along(terrain: Terrain, column: int, cost: Tensor, zero: Tensor) -> list[Tensor]:
    """Actions (N, d) that move one column; rows that cannot are left at zero."""
    if bool(terrain.single[column]):
        moves = []
        for bound in (terrain.lowest[:, column], terrain.highest[:, column]):
            for share in _SHARES:
                move = zero.clone()
                affordable = share * torch.nan_to_num(cost / terrain.price[column], posinf=1e6)
                move[:, column] = bound.sign() * torch.minimum(bound.abs() * (1.0 if share == max(_SHARES) else share), affordable)
                moves.append(move)
        return moves
    if bool(terrain.reachable[column]):
        move = torch.where(terrain.member[terrain.owner[column]] > 0, -1.0 * terrain.standing, zero)
        move[:, column] = torch.where(terrain.standing[:, column], 0.0, 1.0)
        move[terrain.standing[:, column]] = 0
        return [move]
    return []
