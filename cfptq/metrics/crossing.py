"""Crossing shift, the distance between the two models' decision boundaries on each person's last step of recourse.

It measures what boundary disagreement measures with less sampling noise, because everybody has a distance. Positions count steps.
0 is the last iterate that the full-precision model refuses, 1 the recourse point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cfptq.errors import DataError
from cfptq.metrics.arrays import Floats, Values, as_vector, check_lengths

#: Which of the people ``people`` (M,) are accepted at their ``positions`` (M,), as booleans (M,).
AcceptsAt: TypeAlias = Callable[[NDArray[np.int64], Floats], NDArray[np.bool_]]

#: Steps that are searched on each side. A person without a crossing within them counts as this far away.
REACH_STEPS = 4.0
#: Steps between the positions at which a crossing is looked for. Two crossings within one interval cancel and are not seen.
SPACING_STEPS = 0.25
#: Halvings of an interval with a crossing, which place it to 0.25 / 2^12 of a step.
HALVINGS = 12


def find_nearest_crossings(accepts_at: AcceptsAt, near: Values, *, reach: float = REACH_STEPS) -> Floats:
    """Find the position nearest to ``near`` at which a model's decision changes on each person's line.

    Args:
        accepts_at: decides for the target or against it at positions on the lines of chosen people.
        near: (N,) positions to start from, in steps. People with NaN are left out.
        reach: largest distance searched on each side, in steps.

    Returns:
        Positions (N,) in steps. Infinity where the model refuses within the whole reach, minus infinity where it accepts there, and
        NaN where ``near`` is NaN.
    """
    start = as_vector(near, "near")
    crossing = np.full(len(start), np.nan)
    people = np.flatnonzero(~np.isnan(start))
    if not len(people):
        return crossing
    middle = accepts_at(people, start[people])
    crossing[people] = np.where(middle, -np.inf, np.inf)
    left, below, above = people, middle, middle  # decisions at the last positions on both sides
    for ring in range(1, round(reach / SPACING_STEPS) + 1):
        if not len(left):
            break
        inner, outer = (ring - 1) * SPACING_STEPS, ring * SPACING_STEPS
        down, up = accepts_at(left, start[left] - outer), accepts_at(left, start[left] + outer)
        fell, rose = down != below, up != above
        found = np.full(len(left), np.inf)
        for changed, sign, inside in ((fell, -1.0, below), (rose, 1.0, above)):
            chosen = np.flatnonzero(changed)
            if len(chosen):
                place = _bisect(accepts_at, left[chosen], start[left[chosen]] + sign * inner, sign * SPACING_STEPS, inside[chosen])
                distance = place - start[left[chosen]]
                found[chosen] = np.where(np.abs(distance) < np.abs(found[chosen]), distance, found[chosen])
        arrived = np.isfinite(found)
        crossing[left[arrived]] = start[left[arrived]] + found[arrived]
        left, below, above = left[~arrived], down[~arrived], up[~arrived]
    return crossing


def crossing_shifts(crossing_f: Values, crossing_q: Values, *, reach: float = REACH_STEPS) -> Floats:
    """Compute by how many steps the quantized model's boundary lies farther than the full-precision model's.

    Args:
        crossing_f: (N,) positions of the full-precision model's crossing, in steps.
        crossing_q: (N,) positions of the quantized model's crossing that is nearest to it, from ``find_nearest_crossings``.
        reach: distance that people without a crossing of the quantized model count as, in steps.

    Returns:
        Array (N,) of signed distances, positive where the quantized model asks for more. It is ``reach`` where the quantized model
        refuses the whole line, ``-reach`` where it accepts it, and NaN where the full-precision model has no crossing.

    Raises:
        DataError: the lengths differ.
    """
    before, after = as_vector(crossing_f, "crossing_f"), as_vector(crossing_q, "crossing_q")
    check_lengths(crossing_f=before, crossing_q=after)
    if bool(np.isinf(before).any()):
        raise DataError("crossing_f must be finite or NaN. Leave out people whose line the full-precision model does not cross.")
    with np.errstate(invalid="ignore"):
        shifts = np.where(np.isinf(after), np.sign(after) * reach, after - before)
    return np.where(np.isnan(before), np.nan, shifts)


def _bisect(accepts_at: AcceptsAt, people: NDArray[np.int64], start: Floats, width: float, accepted: NDArray[np.bool_]) -> Floats:
    """Halve the intervals from ``start`` to ``start + width``, at whose beginning the decision is ``accepted``."""
    low, high = start, start + width
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        same = accepts_at(people, middle) == accepted
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return (low + high) / 2
