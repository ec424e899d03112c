"""Bits per layer under a budget (eq. 24)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, count_stored_bytes, resolve_widths
from cfptq.allocation.scores import LayerScores
from cfptq.errors import BudgetError
from cfptq.quantize.formats import ALL_WIDTHS, WIDTHS


@dataclass(frozen=True)
class BitAllocation:
    """The width of every quantizable layer, in execution order.

    Attributes:
        names: layer names, L of them, distinct.
        parameters: n_l, weights per layer.
        bits: b_l, each one of 2, 3, 4, 7, 8.

    Raises:
        BudgetError: lengths differ, a name comes twice, or a width is not among 2, 3, 4, 7 and 8.
    """

    names: tuple[str, ...]
    parameters: tuple[int, ...]
    bits: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("names", "parameters", "bits"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not len(self.names) == len(self.parameters) == len(self.bits) > 0:
            raise BudgetError(
                f"{len(self.names)} layers, {len(self.parameters)} sizes and {len(self.bits)} widths do not make an allocation"
            )
        if len(set(self.names)) != len(self.names):
            raise BudgetError(f"a layer comes twice in {self.names}")
        for name, n, b in zip(self.names, self.parameters, self.bits, strict=True):
            if b not in ALL_WIDTHS or n < 1:
                raise BudgetError(f"layer {name!r} cannot have {n} weights of {b} bits; the widths are {ALL_WIDTHS}")

    @property
    def total_bits(self) -> int:
        """sum n_l b_l."""
        return sum(n * b for n, b in zip(self.parameters, self.bits, strict=True))

    @property
    def average_bits(self) -> float:
        """sum n_l b_l / sum n_l."""
        return self.total_bits / sum(self.parameters)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weights: 3-bit integers take 4 bits each, every layer is rounded up to whole bytes."""
        return sum(count_stored_bytes(n, b) for n, b in zip(self.parameters, self.bits, strict=True))

    def __getitem__(self, name: str) -> int:
        return self.by_layer()[name]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(name, bits) in execution order."""
        return iter(zip(self.names, self.bits, strict=True))

    def by_layer(self) -> dict[str, int]:
        """Layer name -> bits, in execution order."""
        return dict(self)

    def __str__(self) -> str:
        return f"{', '.join(f'{name}: {bits}' for name, bits in self)} ({self.average_bits:.2f} bits on average)"


class Allocator(Protocol):
    """Chooses a width for every layer: :func:`allocate_greedily`, :func:`allocate_uniformly`, or a function of the user's own.

    It must stay within the budget, keep every pinned layer at its pin, and be deterministic.
    """

    def __call__(
        self, scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
    ) -> BitAllocation: ...


def allocate_greedily(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """The paper's rule for eq. 24: from the lowest width, more bits to the layers with the largest score per parameter.

    Each turn widens, by one candidate width, the layer with the largest s_l / n_l whose next width is still affordable,
    until none is: what one layer cannot use goes to the next, so no affordable single upgrade is left. Because eq. 24 is
    linear in the bits, s_l / n_l does not fall as a layer widens, and the first layer fills up before the second starts.
    Equal ratios: the earlier layer first.

    Args:
        scores: s_l and n_l of L layers.
        budget: a :class:`Budget`, or average bits.
        widths: candidate widths B, among 2, 3, 4, 7, 8: the same for all layers, or by layer name.
        pinned: layer name -> width it keeps.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, a pin names no layer or width.
    """
    budget = Budget.of(budget)
    candidates = resolve_widths(scores.names, widths)
    bits = assign_lowest_bits(scores.names, scores.parameters, budget, widths, pinned)
    ceiling = budget.ceiling(scores.parameters)
    spent = sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True))
    # Spending only ever grows, so a width that one layer cannot afford now it can never afford later: one pass in
    # order of the ratio is the turn-by-turn rule.
    ratio = [s / n for s, n in zip(scores.scores, scores.parameters, strict=True)]
    for layer in sorted(range(len(bits)), key=lambda index: (-ratio[index], index)):
        if scores.names[layer] in (pinned or {}):
            continue
        for wider in candidates[layer][1:]:
            step = budget.cost(scores.parameters[layer], wider) - budget.cost(scores.parameters[layer], bits[layer])
            if spent + step > ceiling:
                break
            bits[layer], spent = wider, spent + step
    return BitAllocation(scores.names, scores.parameters, tuple(bits))


def allocate_uniformly(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """One width for all layers that are not pinned: the widest that the budget pays for. The scores are not looked at.

    Where layers have different candidates, all take the same place among theirs.

    Raises:
        BudgetError: as :func:`allocate_greedily`.
    """
    budget = Budget.of(budget)
    candidates = resolve_widths(scores.names, widths)
    pins = dict(pinned or {})
    best = assign_lowest_bits(scores.names, scores.parameters, budget, widths, pins)
    for place in range(1, max(map(len, candidates))):
        bits = [pins.get(name, own[min(place, len(own) - 1)]) for name, own in zip(scores.names, candidates, strict=True)]
        if sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True)) <= budget.ceiling(scores.parameters):
            best = bits
    return BitAllocation(scores.names, scores.parameters, tuple(best))
