"""The bit allocation solved exactly: a multiple-choice knapsack on SciPy's HiGHS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.scores import LayerScores
from cfptq.errors import BudgetError
from cfptq.quantize.formats import WIDTHS


def allocate_exactly(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """The allocation with the largest total benefit within the budget (eq. 24, or any benefits measured per width).

    One binary variable for each layer and width, one width a layer, one budget row. What the optimum leaves over is spent on the
    layers with the largest score per weight that it still pays for.

    Args:
        scores: their :meth:`~cfptq.allocation.LayerScores.benefits` are what is maximized.
        budget: a :class:`Budget`, or average bits.
        widths: candidate widths, among 2, 3, 4, 7, 8: the same for all layers, or by layer name.
        pinned: layer name -> width it keeps.

    Raises:
        BudgetError: as :func:`cfptq.allocation.allocate_greedily`.
    """
    budget = Budget.of(budget)
    candidates = resolve_widths(scores.names, widths)
    assign_lowest_bits(scores.names, scores.parameters, budget, widths, pinned)  # refuses what cannot be met, and says what would do
    pins = dict(pinned or {})
    ladder = sorted(set().union(*candidates))
    has = np.array([[bits in own for bits in ladder] for own in candidates])
    # A wider layer is worth at least what a narrower candidate of its own is worth.
    worth = np.array(scores.benefits(ladder))
    worth = np.maximum.accumulate(np.where(has, worth, worth.min(axis=1, keepdims=True)), axis=1)
    cost = np.array([[budget.cost(n, bits) for bits in ladder] for n in scores.parameters], dtype=float)
    scale = max(float(np.ptp(worth, axis=1).max()), np.finfo(float).tiny)
    layers, choices = worth.shape
    allowed = np.array([[pins.get(name, bits) == bits for bits in ladder] for name in scores.names]) & has
    one_width_each = np.kron(np.eye(layers), np.ones(choices))
    solved = milp(
        -((worth - worth[:, :1]) / scale).ravel(),
        integrality=np.ones(layers * choices),
        bounds=Bounds(np.zeros(layers * choices), allowed.ravel().astype(float)),
        constraints=[
            LinearConstraint(one_width_each, 1, 1),
            LinearConstraint(cost.reshape(1, -1), -np.inf, budget.ceiling(scores.parameters)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        raise BudgetError(f"no allocation within {budget} was found ({solved.message}); ask for a larger budget")
    bits = [ladder[choice] for choice in solved.x.reshape(layers, choices).argmax(axis=1)]
    spare = budget.ceiling(scores.parameters) - sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True))
    ratio = [score / n for score, n in zip(scores.scores, scores.parameters, strict=True)]
    for layer in sorted(range(layers), key=lambda index: (-ratio[index], index)):
        size = scores.parameters[layer]
        own = candidates[layer]
        for wider in own[own.index(bits[layer]) + 1 :] if scores.names[layer] not in pins else ():
            step = budget.cost(size, wider) - budget.cost(size, bits[layer])
            if step > spare:
                break
            bits[layer], spare = wider, spare - step
    return BitAllocation(scores.names, scores.parameters, tuple(bits))
