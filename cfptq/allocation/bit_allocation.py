"""Bit allocation, and the protocol of the functions that choose one under a budget (eq. 24)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cfptq.allocation.budget import Budget, Widths
from cfptq.allocation.scores import LayerScores
from cfptq.errors import BudgetError
from cfptq.quantize.formats import ALL_WIDTHS, CHANNEL_WIDTHS, WIDTHS, Bits, count_bits, describe_bits
from cfptq.quantize.storage import StoredLayer, count_weight_bytes


@dataclass(frozen=True)
class BitAllocation:
    """Width of every quantizable layer or of each of its output channels, in execution order.

    Attributes:
        names: layer names, L of them, distinct.
        parameters: n_l, the number of weights of each layer.
        bits: b_l, each one of 2, 3, 4, 7 and 8, or a tuple with a width from 2 to 8 for each output channel, 0 for a dropped one.
        kept_inputs: for each layer, False for each input channel that the layer before drops, whose weights take no bits, or an empty
            tuple where it drops none. Empty where no layer drops any.
        fine_inputs: for each layer, True for each input column with one bit more than its channel and False for each with one bit less, or
            an empty tuple. Empty where no layer is split.

    Raises:
        BudgetError: lengths differ, a name occurs twice, a layer has no weights, or there is no such width.
    """

    names: tuple[str, ...]
    parameters: tuple[int, ...]
    bits: tuple[Bits, ...]
    kept_inputs: tuple[tuple[bool, ...], ...] = ()
    fine_inputs: tuple[tuple[bool, ...], ...] = ()

    def __post_init__(self) -> None:
        for field in ("names", "parameters"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ("kept_inputs", "fine_inputs"):
            object.__setattr__(self, field, tuple(map(tuple, getattr(self, field))))
        object.__setattr__(self, "bits", tuple(tuple(own) if isinstance(own, Sequence) else own for own in self.bits))
        if not len(self.names) == len(self.parameters) == len(self.bits) > 0:
            raise BudgetError(
                f"Names, parameters and bits must have the same length, at least 1. Got {len(self.names)}, {len(self.parameters)} and "
                f"{len(self.bits)}."
            )
        if len(set(self.names)) != len(self.names):
            raise BudgetError(f"Layer names must be distinct, got {self.names}.")
        for name, n, b in zip(self.names, self.parameters, self.bits, strict=True):
            if isinstance(b, tuple):
                if not b or n < 1 or n % len(b) or not set(b) <= set(CHANNEL_WIDTHS):
                    raise BudgetError(
                        f"Layer {name!r} must have equally large channels of the widths {CHANNEL_WIDTHS}, got {n} weights and "
                        f"{len(b)} channels of the widths {tuple(sorted(set(b)))}."
                    )
            elif b not in ALL_WIDTHS or n < 1:
                raise BudgetError(f"Layer {name!r} must have at least one weight and one of the widths {ALL_WIDTHS}, got {n} of {b} bits.")

    @property
    def total_bits(self) -> int:
        """Bits of all weights, Σ n_l b_l. The weights of a dropped input channel take none."""
        return sum(count_bits(b, n, *inputs) for n, b, inputs in zip(self.parameters, self.bits, self.inputs, strict=True))

    @property
    def average_bits(self) -> float:
        """Average bits per weight, Σ n_l b_l / Σ n_l."""
        return self.total_bits / sum(self.parameters)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weights. 3-bit integers take 4 bits and 7-bit integers 8, and each layer is rounded up to whole bytes.

        Channels are stored as ``cfptq.quantize.storage`` says, where no layer's channels may be reordered.
        """
        parts = zip(self.parameters, self.bits, self.inputs, strict=True)
        return count_weight_bytes([StoredLayer(b, n, False, *inputs) for n, b, inputs in parts])

    @property
    def inputs(self) -> tuple[tuple[tuple[bool, ...], tuple[bool, ...]], ...]:
        """``kept_inputs`` and ``fine_inputs`` of every layer."""
        none = ((),) * len(self.names)
        return tuple(zip(self.kept_inputs or none, self.fine_inputs or none, strict=True))

    def __getitem__(self, name: str) -> Bits:
        """Return the width of one layer, or one for each of its channels."""
        return self.by_layer()[name]

    def __iter__(self) -> Iterator[tuple[str, Bits]]:
        """Iterate over names and widths in execution order."""
        return iter(zip(self.names, self.bits, strict=True))

    def by_layer(self) -> dict[str, Bits]:
        """Return the widths by layer name, in execution order."""
        return dict(self)

    def __str__(self) -> str:
        return f"{', '.join(f'{name}: {describe_bits(bits)}' for name, bits in self)} ({self.average_bits:.2f} bits on average)"


class Allocator(Protocol):
    """Function that chooses a width for every layer, or for every output channel.

    It may be one of this package or your own. It must stay within the budget, keep every pinned layer at its width, and give the same
    allocation for the same input.
    """

    def __call__(
        self, scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
    ) -> BitAllocation:
        """Choose a width for every layer.

        Args:
            scores: scores s_l and sizes n_l of L layers. With ``cfptq.allocation.ChannelScores`` each output channel has a width.
            budget: a ``Budget``, or average bits.
            widths: candidate widths in bits, the same for all layers or by layer name.
            pinned: width that a layer keeps, by layer name.

        Raises:
            BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
        """
        ...
