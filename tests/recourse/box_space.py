"""A minimal action space with bounds, immutable columns, integers, one-hot groups and a cap on changed features.

It shares no code with ``cfptq.actions``, which shows that solvers need nothing but the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxSpace:
    low: Tensor  # (d,) bounds of the changed row, 0 and 1 in group columns
    high: Tensor
    weight: Tensor  # (d,) price of one unit of a column
    groups: tuple[tuple[int, ...], ...] = ()
    integer: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    max_changes: int | None = None
    norm: int = 1
    feature_columns: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        grouped = {column for group in self.groups for column in group}
        singles = tuple((column,) for column in range(len(self.low)) if column not in grouped)
        object.__setattr__(self, "feature_columns", singles + self.groups)
        member = torch.zeros(len(self.low), len(self.feature_columns))
        for feature, columns in enumerate(self.feature_columns):
            member[list(columns), feature] = 1
        object.__setattr__(self, "_member", member)
        object.__setattr__(self, "_free", torch.tensor([c not in self.frozen for c in range(len(self.low))]))

    def zero(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        delta = torch.where(self._free, delta, 0)
        low, high = torch.minimum(self.low, x), torch.maximum(self.high, x)
        moved = torch.minimum(torch.maximum(x + delta, low), high) - x
        for column in self.integer:
            whole = (x + delta)[:, column].round()
            moved[:, column] = torch.minimum(torch.maximum(whole, low[:, column].ceil()), high[:, column].floor()) - x[:, column]
            moved[:, column] = torch.where(self._free[column], moved[:, column], 0)
        for group in self.groups:
            columns = list(group)
            if bool(self._free[columns[0]]):
                best = (x + delta)[:, columns].argmax(1)
                moved[:, columns] = torch.nn.functional.one_hot(best, len(columns)).to(x.dtype) - x[:, columns]
        if self.max_changes is not None:
            size = (moved.abs() * self.weight) @ self._member
            order = size.argsort(dim=1, descending=True, stable=True)
            keep = torch.zeros_like(size).scatter_(1, order[:, : self.max_changes], 1.0)
            moved = moved * (keep @ self._member.T)
        return moved

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + delta

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        return (delta * self.weight).abs().sum(1) if self.norm == 1 else (delta * self.weight).square().sum(1).sqrt()

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        return [", ".join(f"column {j}: {d:+.3g}" for j, d in enumerate(row) if d) for row in delta.tolist()]

    def check(self, x: Tensor) -> None:
        return None
