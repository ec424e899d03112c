"""Minimal-cost recourse (eqs. 3 and 4) by a portfolio of descents, refinement and repair."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import inf
from typing import Literal

import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.errors import DataError
from cfptq.network.predictor import Predictor
from cfptq.recourse.confidence import check_confidence, margin_at_confidence
from cfptq.recourse.fallback_search import MAX_PAIRS_PER_ROW
from cfptq.recourse.gradient_free import (
    COMBINED_ROWS_PER_BATCH,
    KEPT_ACTIONS,
    MAX_MOVES,
    GradientFree,
    search_combinations,
    search_without_gradient,
)
from cfptq.recourse.gradient_search import SLIDES, couples_columns, search_along_gradients
from cfptq.recourse.margin_descent import Descent, descend_to_target
from cfptq.recourse.refinement import mask_columns, refine_into, search_nearer_segments
from cfptq.recourse.search_problem import SearchProblem, build_search_problem
from cfptq.recourse.single_feature_moves import LENGTH_SHARES, find_grid_steps

#: Descents tried for every row.
PORTFOLIO = (
    Descent(exponent=inf),
    Descent(exponent=inf, skipped_features=1),
    Descent(exponent=inf, skipped_features=2),
    Descent(exponent=inf, skipped_features=3),
    Descent(exponent=inf, step_fraction=0.25),
    Descent(exponent=2.0, step_fraction=0.25),
)
#: Descents added where the cost is not a sum over features. Many small changes are then cheaper than one large change.
SPREADING_DESCENTS = (Descent(exponent=1.0), Descent(exponent=1.0, step_fraction=0.25))
#: Search over combinations of moves, for rows that no descent brings to the target, and for every row in a thorough search.
COMBINATION_SEARCH = GradientFree(shift_effort=False)
#: Search over pairs of moves, for rows whose action changes integers or ordinals. Gradients do not see across a grid step.
PAIR_SEARCH = GradientFree(width=4, depth=2, rounds=0, shift_effort=False)

#: Approximate number of model evaluations for the minimal-cost recourse of one row. Callers use it to estimate running time.
EVALUATIONS_PER_ROW = 512

#: Largest tensor that holds the descents of a chunk of rows. More rows are split into chunks.
_MAX_TENSOR_NUMBERS = 2**22


@dataclass(frozen=True)
class MinimalCost:
    """Settings of minimal-cost recourse.

    Attributes:
        confidence: Probability of the target against the strongest other class that a point must have, default 0.5 (the decision).
        effort: ``"fast"`` (default), or ``"thorough"``, which also evaluates combinations of moves for every row and repairs more
            often. It takes several times as long, and its cost is seldom more than a few per cent above the optimum.
        portfolio: Descents tried for every row.
        steps: Maximal number of gradient evaluations of one descent, default 16.
        slack: Logits by which a point must lie beyond the required margin, default 1e-5. It covers float rounding between batch sizes.
        combination_runs: Rows that the model may be run on, about, to search combinations of moves, default ``None`` for no limit. Rows
            beyond it keep what descents find. Combinations are many where actions have many columns.
    """

    confidence: float = 0.5
    effort: Literal["fast", "thorough"] = "fast"
    portfolio: tuple[Descent, ...] = PORTFOLIO
    steps: int = 16
    slack: float = 1e-5
    combination_runs: int | None = None

    def __post_init__(self) -> None:
        check_confidence(self)
        if self.effort not in ("fast", "thorough"):
            raise DataError(f'MinimalCost.effort must be "fast" or "thorough", got {self.effort!r}.')
        if self.steps < 1 or not self.portfolio:
            raise DataError(
                f"MinimalCost needs steps >= 1 and at least one descent in portfolio, got {self.steps} and {len(self.portfolio)} descents."
            )

    @property
    def required_margin(self) -> float:
        """Required target margin in logits, the logit of the confidence."""
        return margin_at_confidence(self.confidence)

    def limit_combinations(self, space: ActionSpace) -> int | None:
        """Return the number of rows whose combinations of moves ``combination_runs`` affords, or None where there is no limit."""
        return None if self.combination_runs is None else self.combination_runs // count_combination_runs(space)

    def without_gradient(self) -> GradientFree:
        """Return the settings of the gradient-free search that replaces this one for a predictor without gradient."""
        return GradientFree(confidence=self.confidence, width=64 if self.effort == "fast" else 128, slack=self.slack)


def search_minimal_cost(predictor: Predictor, rows: Tensor, space: ActionSpace, target: Tensor, settings: MinimalCost) -> Tensor:
    """Search the cheapest action of each row that is not at its target, (N, d), zero where none is found.

    A predictor without gradient is searched by ``cfptq.recourse.search_without_gradient``. A space whose columns limit each other is
    searched along gradients of all columns by ``cfptq.recourse.gradient_search``.

    Args:
        predictor: Model to change the decision of.
        rows: Factual rows without their target, (N, ...).
        space: Admissible actions.
        target: Target class of each row, (N,) int64.
        settings: Settings of the search.
    """
    if not predictor.is_differentiable:
        return search_without_gradient(predictor, rows, space, target, settings.without_gradient())
    if couples_columns(space):
        more = 2 if settings.effort == "thorough" else 1
        required = settings.required_margin + settings.slack
        return search_along_gradients(predictor, rows, space, target, required, steps=more * settings.steps, rounds=more * SLIDES)
    problem = build_search_problem(predictor, rows, space, target, settings.required_margin + settings.slack)
    best = space.zero(rows)
    cost = torch.full((len(rows),), inf)
    is_thorough = settings.effort == "thorough"
    portfolio = settings.portfolio if problem.is_additive else settings.portfolio + SPREADING_DESCENTS
    _run_portfolio(problem, best, cost, portfolio, settings.steps)
    limit = settings.limit_combinations(space)
    for index in torch.split(cost.isinf().nonzero()[:limit, 0], COMBINED_ROWS_PER_BATCH):
        search_combinations(problem, index, best, cost, COMBINATION_SEARCH)
    found = cost.isfinite().nonzero()[:, 0]
    delta, new_cost = best[found], cost[found]
    search_nearer_segments(problem, found, delta, new_cost, 15 if is_thorough else 7)
    best[found], cost[found] = delta, new_cost
    open_rows = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(4 if is_thorough else 1):
        open_rows = _repair(problem, best, cost, open_rows, settings.steps)
        if not bool(open_rows.any()):
            break
    uses_grid = ((best[found] != 0) & (problem.grid_step > 0)).any(1)
    for index in torch.split((found if is_thorough else found[uses_grid])[:limit], COMBINED_ROWS_PER_BATCH):
        search_combinations(problem, index, best, cost, COMBINATION_SEARCH if is_thorough else PAIR_SEARCH)
    # Refinement treats features as independent. A space that couples features corrects the actions here.
    return space.project(rows, best)


def count_combination_runs(space: ActionSpace) -> int:
    """Count the model evaluations that a search of combinations may take for one row, about."""
    moves = sum(2 * len(LENGTH_SHARES) if len(columns) == 1 else len(columns) for columns in space.feature_columns)
    return moves * (1 + KEPT_ACTIONS * MAX_MOVES) + MAX_PAIRS_PER_ROW


def _run_portfolio(problem: SearchProblem, best: Tensor, cost: Tensor, rules: tuple[Descent, ...], steps: int) -> None:
    """Run every descent, then refine all actions that reach the target."""
    max_cost = torch.full_like(cost, inf)
    chunk_size = max(1, _MAX_TENSOR_NUMBERS // (len(rules) * best.shape[1]))
    for index in torch.split(torch.arange(len(best)), chunk_size):
        start = torch.zeros_like(best[index])
        found = [find_grid_steps(problem, index)]
        initial = problem.differentiate_margin(index, start)  # All descents share their first step.
        for _, group in groupby(rules, key=lambda rule: (rule.exponent, rule.is_weighted)):
            found.append(descend_to_target(problem, index, start, tuple(group), steps, max_cost, initial=initial))
        refine_into(problem, best, cost, torch.cat([row for row, _ in found]), torch.cat([delta for _, delta in found]))


def _repair(problem: SearchProblem, best: Tensor, cost: Tensor, open_rows: Tensor, steps: int) -> Tensor:
    """Revert each changed feature in turn and descend again, and return the rows that became cheaper.

    One descent may not use the reverted feature (or, of a category, its level). If other changes remain, a second descent may use
    all features.
    """
    changed = problem.find_changed_features(best) & open_rows[:, None]
    owner, feature = changed.nonzero(as_tuple=True)
    if len(owner) == 0:
        return open_rows
    is_reverted = problem.incidence[feature] > 0
    start = torch.where(is_reverted, 0, best[owner])
    forbidden = is_reverted & (problem.is_single | (best[owner] > 0))
    several = changed.sum(1)[owner] > 1
    owner, start = torch.cat((owner, owner[several])), torch.cat((start, start[several]))
    forbidden = torch.cat((forbidden, torch.zeros_like(forbidden[several])))
    # A grid step may overshoot the boundary. These descents start one step back and make up the rest with other features.
    row_on_grid, column = ((best != 0) & (problem.grid_step > 0) & (best.abs() > 1.5 * problem.grid_step) & open_rows[:, None]).nonzero(
        as_tuple=True
    )
    is_stepped = mask_columns(column, best.shape[1])
    owner, forbidden = torch.cat((owner, row_on_grid)), torch.cat((forbidden, is_stepped))
    start = torch.cat((start, best[row_on_grid] - torch.where(is_stepped, best[row_on_grid].sign() * problem.grid_step, 0.0)))
    rule = Descent(exponent=inf) if problem.is_additive else Descent(exponent=1.0, step_fraction=0.5)
    arrived, delta = descend_to_target(problem, owner, start, (rule,), steps, 1.1 * cost, forbidden)
    before = cost.clone()
    refine_into(problem, best, cost, arrived, delta)
    return cost < before
