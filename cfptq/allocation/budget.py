"""Budget of the weights, in average bits, total bits or bytes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from difflib import get_close_matches
from enum import StrEnum
from numbers import Real

from cfptq.errors import BudgetError
from cfptq.io.arguments import is_finite_number
from cfptq.quantize.formats import CHANNEL_WIDTHS, WIDTHS, container_bits

#: Candidate widths in bits, the same for all layers or by layer name.
Widths = Sequence[int] | Mapping[str, Sequence[int]]


class BudgetUnit(StrEnum):
    """Unit of a budget."""

    AVERAGE_BITS = "average bits"
    """Bits per weight over all quantizable layers, Σ n_l b_l / Σ n_l."""
    TOTAL_BITS = "total bits"
    """Bits of all weights, Σ n_l b_l, the left side of eq. 24."""
    BYTES = "bytes"
    """Bytes of the weights in a file. 3-bit integers take 4 bits and 7-bit integers 8, and each layer is rounded up to whole bytes.
    Channels of other widths are stored exactly, in a stream of bits or in containers, whichever is smaller. Their widths or permutation
    and the nodes that unpack them count. Scales, biases and the rest of the graph are not counted."""


@dataclass(frozen=True)
class Budget:
    """Ceiling on the storage of the quantized weights (the right side of eq. 24).

    Create one with ``Budget.average(4)``, ``Budget.total(1_000_000)`` or ``Budget.bytes(50_000)``. A plain number means average bits.

    Attributes:
        amount: the ceiling, positive and finite.
        unit: unit of the amount.

    Raises:
        BudgetError: the amount is not a positive, finite number.
    """

    amount: float
    unit: BudgetUnit = BudgetUnit.AVERAGE_BITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", BudgetUnit(self.unit))
        if isinstance(self.amount, bool) or not isinstance(self.amount, Real):
            raise BudgetError(f"A budget must be a number of {self.unit}, got {self.amount!r}.")
        if not (is_finite_number(self.amount) and self.amount > 0):
            raise BudgetError(f"A budget must be positive and finite, got {reprlib.repr(self.amount)} {self.unit}.")
        # The number may come from any library. The decimal arithmetic below reads its shortest form.
        amount = float(self.amount)
        object.__setattr__(self, "amount", int(amount) if amount.is_integer() else amount)

    @classmethod
    def average(cls, bits: float) -> Budget:
        """Return a budget of ``bits`` per weight, averaged over all quantizable layers."""
        return cls(bits, BudgetUnit.AVERAGE_BITS)

    @classmethod
    def total(cls, bits: float) -> Budget:
        """Return a budget of ``bits`` over all weights of all quantizable layers."""
        return cls(bits, BudgetUnit.TOTAL_BITS)

    @classmethod
    def bytes(cls, count: float) -> Budget:
        """Return a budget of ``count`` bytes of stored weights."""
        return cls(count, BudgetUnit.BYTES)

    @classmethod
    def of(cls, budget: Budget | float) -> Budget:
        """Return a budget unchanged, and a number as average bits."""
        return budget if isinstance(budget, Budget) else cls.average(budget)

    def __str__(self) -> str:
        return f"{self.amount:,} {self.unit}"

    def cost(self, parameters: int, bits: int) -> int:
        """Return the cost of one layer, in bits, or in bytes for a budget in bytes.

        Args:
            parameters: number of weights of the layer.
            bits: width of the layer.
        """
        return count_stored_bytes(parameters, bits) if self.unit is BudgetUnit.BYTES else parameters * bits

    def ceiling(self, parameters: Sequence[int]) -> int:
        """Return the largest total ``cost`` that the budget allows.

        Args:
            parameters: number of weights of each layer.
        """
        # In decimal, so that 3.3 bits times 10 weights is 33 and not 32.999...
        amount = Decimal(repr(self.amount))
        return int(amount * sum(parameters)) if self.unit is BudgetUnit.AVERAGE_BITS else int(amount)

    def least(self, parameters: Sequence[int], bits: Sequence[int]) -> Budget:
        """Return the smallest budget in this unit that pays for some widths.

        Args:
            parameters: number of weights of each layer.
            bits: width of each layer.
        """
        cost = sum(self.cost(n, b) for n, b in zip(parameters, bits, strict=True))
        if self.unit is not BudgetUnit.AVERAGE_BITS:
            return Budget(cost, self.unit)
        average = Decimal(cost) / Decimal(sum(parameters))
        return Budget(float(average.quantize(Decimal("0.0001"), rounding=ROUND_CEILING)), self.unit)


def count_stored_bytes(parameters: int, bits: int) -> int:
    """Count the bytes of one layer's weights in a file, rounded up to a whole byte.

    Args:
        parameters: number of weights.
        bits: width. 3-bit integers take 4 bits, and 7-bit integers 8.
    """
    return -(-parameters * container_bits(bits) // 8)


def assign_lowest_bits(
    names: Sequence[str],
    parameters: Sequence[int],
    budget: Budget,
    widths: Widths = WIDTHS,
    pinned: Mapping[str, int] | None = None,
) -> list[int]:
    """Assign each layer its pinned width or its lowest candidate, where an allocation starts.

    Args:
        names: layer names.
        parameters: number of weights of each layer.
        budget: the budget.
        widths: candidate widths in bits, the same for all layers or by layer name.
        pinned: width that a layer keeps, by layer name.

    Raises:
        BudgetError: a pin names no layer or no candidate width, or the budget does not pay for these widths. The message then says how much
            would.
    """
    candidates = resolve_widths(names, widths)
    pins = dict(pinned or {})
    for name, bits in pins.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The layers are {', '.join(names)}."
            raise BudgetError(f"Cannot pin layer {name!r}, because the model has no quantizable layer of that name. {hint}")
        own = candidates[names.index(name)]
        if bits not in own:
            hint = f"Choose one of {', '.join(map(str, own))}."
            if bits == WIDTHS[-1] and own[-1] < bits:
                hint = (
                    "Its input is quantized, and 8-bit weights give wrong sums there on processors without VNNI. Pin 7 bits, or pass "
                    "portable=False."
                )
            raise BudgetError(f"Cannot pin layer {name!r} to {bits!r} bits. {hint}")
    # A budget must pay for channels that are not dropped.
    start = [pins.get(name, next(bits for bits in own if bits)) for name, own in zip(names, candidates, strict=True)]
    if sum(budget.cost(n, b) for n, b in zip(parameters, start, strict=True)) > budget.ceiling(parameters):
        least = budget.least(parameters, start)
        lowest = min(bits for own in candidates for bits in own if bits)
        pinned_to = ", ".join(f"{name} pinned to {bits}" for name, bits in pins.items())
        needed = f"The lowest width ({lowest} bits) everywhere takes {least}."
        if pins:
            needed = f"With {pinned_to} bits, the lowest width ({lowest} bits) everywhere else takes {least}."
        raise BudgetError(f"A budget of {budget} cannot be met. {needed} Ask for at least that{', or pin fewer bits' if pins else ''}.")
    return start


def resolve_widths(names: Sequence[str], widths: Widths) -> list[list[int]]:
    """Return each layer's candidate widths (the set B of Section 4.3), ascending.

    Args:
        names: layer names.
        widths: candidate widths in bits, the same for all layers or by layer name.

    Raises:
        BudgetError: a layer has none, has one twice, or has one that is neither 0 nor from 2 to 8.
    """
    found = [sorted(widths[name] if isinstance(widths, Mapping) else widths) for name in names]
    for own in found:
        if not any(own) or not set(own) <= set(CHANNEL_WIDTHS) or len(set(own)) != len(own):
            raise BudgetError(f"Candidate widths must be distinct and among {CHANNEL_WIDTHS}, got {tuple(own)}.")
    return found
