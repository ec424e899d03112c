"""A world in which every audit can be worked out by hand.

People have two columns. Only the first one matters to the models, which accept above a cut; both columns can be changed, at a
price of 1 per unit. The recourse of a person at -a under the cut s therefore costs a + s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfptq.auditing import Protocol
from cfptq.recourse import MinimalCost

#: On a line one walk finds the optimum.
QUICK = Protocol(minimal_cost=MinimalCost(portfolio=MinimalCost().portfolio[:1]), resamples=200)


@dataclass(frozen=True)
class Plane:
    """Two free columns; ``reach`` is the farthest that either can be moved to."""

    reach: float = 100.0
    favourable: int | None = 1
    max_changes: int | None = None
    feature_columns: tuple[tuple[int, ...], ...] = ((0,), (1,))

    def zero(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        return torch.where(delta.abs() <= 0, delta, (x + delta).clamp(-100.0, self.reach).maximum(x) - x)

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + delta

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        return delta.abs().sum(dim=1)

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        return [str(row) for row in delta.tolist()]

    def check(self, x: Tensor) -> None:
        return None

    def encode(self, frame: pd.DataFrame) -> Tensor:
        return torch.tensor(frame[["skill", "luck"]].to_numpy(dtype=np.float32))


class Cut(nn.Module):
    """Accepts (class 1) where the first column is above ``cut``; one logit with the given slope."""

    def __init__(self, cut: float, slope: float = 1.0) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[slope, 0.0]]))
            self.line.bias.fill_(-slope * cut)

    def forward(self, x: Tensor) -> Tensor:
        logit = self.line(x)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def people(*skills: float) -> Tensor:
    """One person per number, all with luck 0.5."""
    return torch.tensor([[skill, 0.5] for skill in skills], dtype=torch.float32)


def crowd(count: int, seed: int = 0) -> Tensor:
    """People whose two columns are standard normal."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32))
