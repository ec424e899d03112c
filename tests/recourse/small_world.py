"""Rows with so few actions that all can be enumerated, and the least cost over them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from cfptq.actions import ActionSet, Categorical, Integer
from cfptq.actions.cost import Norm
from cfptq.network import as_predictor, target_margin

CHOICES = (range(5), range(5), range(3), range(4))


def network(width: int, seed: int, hidden: int = 12, outputs: int = 2) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return filled(model, generator)


def filled(model: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 if parameter.dim() > 1 else 0.2))
    return model.eval()


def people(count: int, seed: int, max_changes: int | None = None, norm: Norm = "l1", effort: float = 1.0) -> tuple[ActionSet, Tensor]:
    """Return rows of two integers from 0 to 4, an immutable column, and one-hot groups of three and four levels."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(count, 10)
    rows[:, :2] = torch.randint(0, 5, (count, 2), generator=generator)
    rows[:, 2] = torch.randn(count, generator=generator).clamp(-2, 2)
    for first, last in ((3, 5), (6, 9)):
        rows[torch.arange(count), torch.randint(first, last + 1, (count,), generator=generator)] = 1
    features = [
        Integer("first", column=0, bounds=(0, 4), effort=effort),
        Integer("second", column=1, bounds=(0, 4), effort=1.3),
        Categorical("one", columns=(3, 4, 5), levels=("a", "b", "c"), effort=0.8),
        Categorical("two", columns=(6, 7, 8, 9), levels=("p", "q", "r", "s"), effort=1.7),
    ]
    # Columns that no feature claims are immutable.
    return ActionSet.from_columns(rows, features, max_changes=max_changes, norm=norm, weights="uniform"), rows


def every_action(row: Tensor) -> Tensor:
    """Return all actions of ``row`` without regard to sparsity, (M, 10)."""
    choices = list(itertools.product(*CHOICES))
    points = row.repeat(len(choices), 1)
    points[:, 3:] = 0
    for point, (first, second, one, two) in zip(points, choices, strict=True):
        point[0], point[1], point[3 + one], point[6 + two] = first, second, 1, 1
    return points - row


def least_cost(model: nn.Module, row: Tensor, action_set: ActionSet, target: int, slack: float = 1e-5) -> float:
    """Return the least cost over all admissible actions that reach ``target``, infinite where none does."""
    delta = every_action(row)
    changed = torch.stack([(delta[:, list(columns)] != 0).any(1) for columns in action_set.feature_columns], 1).sum(1)
    allowed = changed <= (action_set.max_changes or len(action_set))
    predictor = as_predictor(model, example=row.repeat(2, 1), head="logits")
    margin = target_margin(predictor.logits(row + delta), torch.full((len(delta),), target))
    cost = torch.linalg.vector_norm(delta * action_set.column_weights, dim=1, ord=1 if action_set.norm == "l1" else 2)
    if isinstance(action_set.norm, tuple):
        weighted = delta * action_set.column_weights
        cost = action_set.norm[1] * weighted.abs().sum(1) + action_set.norm[2] * weighted.square().sum(1).sqrt()
    good = cost[allowed & (margin >= slack)]
    return float(good.min()) if len(good) else float("inf")
