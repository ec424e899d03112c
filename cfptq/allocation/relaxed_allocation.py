"""Real-valued allocation that is optimal for the exponential surrogate (Appendix L.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cfptq.errors import BudgetError


def solve_relaxed_allocation(
    coefficients: Sequence[float], parameters: Sequence[int], average_bits: float, lowest: float = 0.0, highest: float = math.inf
) -> tuple[float, ...]:
    """Find the real-valued bits that minimize Σ c_l 2^-b_l under Σ n_l b_l ≤ B and lowest ≤ b_l ≤ highest (eqs. 71 to 75).

    Between the bounds, b_l = log2(ln 2 · c_l / n_l) − log2 ν (eq. 75). The bits spent are piecewise linear in log2 ν. The ν that spends B
    follows by interpolation between the points where a layer meets a bound. No discrete allocation within the bounds and the budget has a
    smaller sum, so that the result checks the allocators.

    Args:
        coefficients: c_l = s̄_l κ_l, at least 0.
        parameters: n_l, the number of weights of each layer.
        average_bits: B / Σ n_l.
        lowest: lower bound of every b_l.
        highest: upper bound of every b_l.

    Raises:
        BudgetError: the budget does not pay for ``lowest``, or a coefficient is negative or not finite.
    """
    c, n = np.asarray(coefficients, dtype=float), np.asarray(parameters, dtype=float)
    if c.shape != n.shape or not (np.isfinite(c).all() and (c >= 0).all() and (n > 0).all()):
        raise BudgetError("Each layer must have at least one weight and one coefficient, finite and at least 0.")
    if not lowest <= average_bits or not lowest <= highest:
        raise BudgetError(f"average_bits and highest must be at least lowest ({lowest}), got {average_bits} and {highest}.")
    budget = average_bits * n.sum()
    # A layer has the most bits if the whole budget above the lowest width is its own.
    top = min(highest, lowest + (budget - lowest * n.sum()) / n.min())
    unshifted = np.log2(math.log(2) * np.maximum(c, np.finfo(float).tiny) / n)
    shifts = np.unique(np.concatenate((lowest - unshifted, top - unshifted)))
    spent = [float((n * np.clip(unshifted + shift, lowest, top)).sum()) for shift in shifts]
    shift = np.interp(budget, spent, shifts)
    return tuple(np.clip(unshifted + shift, lowest, top).tolist())
