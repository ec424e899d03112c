"""What the weights may take: in average bits, in total bits, or in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from difflib import get_close_matches
from enum import StrEnum
from numbers import Real

from cfptq.errors import BudgetError
from cfptq.quantize.formats import ALL_WIDTHS, WIDTHS, container_bits

#: Candidate widths: the same for all layers, or by layer name.
Widths = Sequence[int] | Mapping[str, Sequence[int]]


class BudgetUnit(StrEnum):
    """What a budget counts."""

    AVERAGE_BITS = "average bits"
    """Bits per weight over all quantizable layers, sum n_l b_l / sum n_l."""
    TOTAL_BITS = "total bits"
    """sum n_l b_l, the left side of eq. 24."""
    BYTES = "bytes"
    """Bytes of the weights as a file stores them: 3-bit integers take 4 bits, each layer is rounded up to whole bytes.
    Scales, biases and the graph are not counted."""


@dataclass(frozen=True)
class Budget:
    """A ceiling on the storage of the quantized weights (the right side of eq. 24).

    ``Budget.average(4)``, ``Budget.total(1_000_000)``, ``Budget.bytes(50_000)``; a plain number means average bits.

    Attributes:
        amount: how much, positive and finite.
        unit: of what.

    Raises:
        BudgetError: the amount is not a positive, finite number.
    """

    amount: float
    unit: BudgetUnit = BudgetUnit.AVERAGE_BITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", BudgetUnit(self.unit))
        if isinstance(self.amount, bool) or not isinstance(self.amount, Real):
            raise BudgetError(f"a budget must be a number of {self.unit}, not {self.amount!r}")
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise BudgetError(f"a budget of {self.amount} {self.unit} makes no sense; give a positive, finite number")
        # A plain number, whichever library it came from: the decimal arithmetic below reads its shortest form.
        amount = float(self.amount)
        object.__setattr__(self, "amount", int(amount) if amount.is_integer() else amount)

    @classmethod
    def average(cls, bits: float) -> Budget:
        """At most ``bits`` per weight, averaged over all quantizable layers."""
        return cls(bits, BudgetUnit.AVERAGE_BITS)

    @classmethod
    def total(cls, bits: float) -> Budget:
        """At most ``bits`` over all weights of all quantizable layers."""
        return cls(bits, BudgetUnit.TOTAL_BITS)

    @classmethod
    def bytes(cls, count: float) -> Budget:
        """At most ``count`` bytes of stored weights."""
        return cls(count, BudgetUnit.BYTES)

    @classmethod
    def of(cls, budget: Budget | float) -> Budget:
        """A budget as it is; a number as average bits."""
        return budget if isinstance(budget, Budget) else cls.average(budget)

    def __str__(self) -> str:
        return f"{self.amount:,} {self.unit}"

    def cost(self, parameters: int, bits: int) -> int:
        """What a layer of ``parameters`` weights at ``bits`` takes of :meth:`ceiling`: bits, or bytes for a budget in bytes."""
        return count_stored_bytes(parameters, bits) if self.unit is BudgetUnit.BYTES else parameters * bits

    def ceiling(self, parameters: Sequence[int]) -> int:
        """The most that :meth:`cost` may add up to over layers of these sizes."""
        # In decimal, so that 3.3 bits times 10 weights is 33 and not 32.999...
        amount = Decimal(repr(self.amount))
        return int(amount * sum(parameters)) if self.unit is BudgetUnit.AVERAGE_BITS else int(amount)

    def least(self, parameters: Sequence[int], bits: Sequence[int]) -> Budget:
        """The smallest budget in this unit that pays for layers of these sizes at these widths."""
        cost = sum(self.cost(n, b) for n, b in zip(parameters, bits, strict=True))
        if self.unit is not BudgetUnit.AVERAGE_BITS:
            return Budget(cost, self.unit)
        exact = Decimal(cost) / Decimal(sum(parameters))
        return Budget(float(exact.quantize(Decimal("0.0001"), rounding=ROUND_CEILING)), self.unit)


def count_stored_bytes(parameters: int, bits: int) -> int:
    """Bytes of ``parameters`` weights in a file: 3-bit integers in a 4-bit container, rounded up to a whole byte."""
    return -(-parameters * container_bits(bits) // 8)


def assign_lowest_bits(
    names: Sequence[str],
    parameters: Sequence[int],
    budget: Budget,
    widths: Widths = WIDTHS,
    pinned: Mapping[str, int] | None = None,
) -> list[int]:
    """Every layer at its pinned width or at the lowest one: where an allocation starts.

    Raises:
        BudgetError: a pin names no layer or no candidate width; or the budget does not even pay for this start
            (the message says the least that would).
    """
    candidates = resolve_widths(names, widths)
    pins = dict(pinned or {})
    for name, bits in pins.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the layers are {', '.join(names)}"
            raise BudgetError(f"cannot pin layer {name!r}: the model has no quantizable layer of that name; {hint}")
        own = candidates[names.index(name)]
        if bits not in own:
            why = ""
            if bits == WIDTHS[-1] and own[-1] < bits:
                why = (
                    ". Its input is quantized, and 8-bit weights give wrong sums there on processors without VNNI. Pin 7 bits, or pass "
                    "portable=False"
                )
            raise BudgetError(f"cannot pin layer {name!r} to {bits!r} bits; choose one of {', '.join(map(str, own))}{why}")
    start = [pins.get(name, own[0]) for name, own in zip(names, candidates, strict=True)]
    if sum(budget.cost(n, b) for n, b in zip(parameters, start, strict=True)) > budget.ceiling(parameters):
        least = budget.least(parameters, start)
        lowest = min(own[0] for own in candidates)
        pinned_to = ", ".join(f"{name} pinned to {bits}" for name, bits in pins.items())
        raise BudgetError(
            f"a budget of {budget} cannot be met: {f'with {pinned_to} bits, ' if pins else ''}the lowest width ({lowest} bits) "
            f"everywhere{' else' if pins else ''} already takes {least}; ask for at least that{', or pin fewer bits' if pins else ''}"
        )
    return start


def resolve_widths(names: Sequence[str], widths: Widths) -> list[list[int]]:
    """Return each layer's candidate widths (the set B of Section 4.3), ascending.

    Raises:
        BudgetError: a layer has none, has one twice, or has one that is not among 2, 3, 4, 7 and 8.
    """
    found = [sorted(widths[name] if isinstance(widths, Mapping) else widths) for name in names]
    for own in found:
        if not own or not set(own) <= set(ALL_WIDTHS) or len(set(own)) != len(own):
            raise BudgetError(f"candidate widths {tuple(own)} must be distinct and among {ALL_WIDTHS}")
    return found
