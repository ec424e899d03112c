"""Structure of a network's weights that its quantized form keeps.

Weights can carry a promise. A model that is blind to a column has zeros there, a monotone one has weights of one sign, and a pruned one has
zeros. Rounding that compensates for errors would break these promises. Bounds on every integer keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfptq.errors import ConfigurationError

#: Parts of a network's structure that can be kept: exact zeros stay zero, and no integer has the opposite sign of its weight.
STRUCTURE = ("zeros", "signs")


def check_keep(keep: Sequence[str], where: str = "") -> tuple[str, ...]:
    """Return ``keep`` in the order of ``STRUCTURE``, without repetitions.

    Args:
        keep: names among ``STRUCTURE``.
        where: words that the message begins with, such as a method's name.

    Raises:
        ConfigurationError: ``keep`` is no sequence of such names.
    """
    if isinstance(keep, str) or not isinstance(keep, Sequence) or not set(keep) <= set(STRUCTURE):
        names = " and ".join(map(repr, STRUCTURE))
        raise ConfigurationError(f"{where}keep must hold {names}, one of them or none, got {keep!r}. Pass keep=('zeros', 'signs').")
    return tuple(name for name in STRUCTURE if name in keep)


@dataclass(frozen=True)
class SignBounds:
    """Signs that each integer of one layer may have. 0 is always allowed.

    Attributes:
        negative: 1 where the integer may be negative and 0 elsewhere, float32, of the weight's shape.
        positive: 1 where it may be positive and 0 elsewhere, likewise.
    """

    negative: Tensor
    positive: Tensor

    @staticmethod
    def of(weight: Tensor, keep: Sequence[str], kept_inputs: Sequence[bool] = ()) -> SignBounds | None:
        """Return the bounds that keep the structure of a weight, or None where nothing is kept.

        Args:
            weight: full-precision weight, (out, ...).
            keep: parts of the structure to keep, among ``STRUCTURE``.
            kept_inputs: False for each input channel that is dropped, whose integers are 0. Empty where none is.
        """
        if not keep and all(kept_inputs):
            return None
        zero = (weight == 0) & ("zeros" in keep)
        if kept_inputs:
            zero[:, ~torch.tensor(kept_inputs)] = True
        is_bound = "signs" in keep
        forbidden_below, forbidden_above = zero | ((weight > 0) & is_bound), zero | ((weight < 0) & is_bound)
        return SignBounds((~forbidden_below).to(torch.float32), (~forbidden_above).to(torch.float32))

    def clamp(self, values: Tensor) -> Tensor:
        """Return values (integers or weights) with those of a forbidden sign set to 0."""
        allowed = torch.where(values < 0, self.negative, self.positive)
        return torch.where(allowed > 0, values, torch.zeros_like(values))
