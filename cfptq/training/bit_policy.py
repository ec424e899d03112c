"""The bit policy: a categorical distribution over widths for every layer, and what its choice costs (Section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cfptq.allocation import BitAllocation, Budget, BudgetUnit, LayerScores, allocate_exactly
from cfptq.errors import BudgetError
from cfptq.network import Network, count_multiply_adds_by_layer
from cfptq.quantize import WIDTHS

#: What the resource term counts: Σ n_ℓ b̄_ℓ, or Σ MACs_ℓ b̄_ℓ b^(a)_ℓ.
Resource = Literal["bits", "bops"]


class BitPolicy(nn.Module):
    """π over candidate widths for every layer.

    Args:
        layers: L.
        widths: candidate widths, ascending.
        start: width of every layer that the policy leans to at first, or None for no preference.
        lean: log-odds of that width against each other one.
    """

    def __init__(self, layers: int, widths: Sequence[int] = WIDTHS, start: Sequence[int] | None = None, lean: float = 2.0) -> None:
        super().__init__()
        logits = torch.zeros(layers, len(widths))
        for layer, bits in enumerate(start or ()):
            logits[layer, list(widths).index(bits)] = lean
        self.logits = nn.Parameter(logits)
        self.widths = tuple(widths)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """z, (L, widths): one-hot forward, the Gumbel-Softmax sample of ``temperature`` backward (straight-through)."""
        uniform = torch.rand(self.logits.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
        gumbel = -torch.log(-torch.log(uniform))
        soft = torch.softmax((torch.log_softmax(self.logits, dim=1) + gumbel) / temperature, dim=1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return hard + soft - soft.detach()

    def bits(self) -> tuple[int, ...]:
        """arg max π, the width of every layer."""
        return tuple(self.widths[choice] for choice in self.logits.argmax(dim=1).tolist())


def mean_bits(choice: Tensor, widths: Sequence[int]) -> Tensor:
    """b̄_ℓ = Σ_r z_ℓr b_r, (L,), of a choice (L, widths)."""
    return choice @ torch.tensor(widths, dtype=choice.dtype)


def bops(macs: Sequence[int], weight_bits: Tensor, activation_bits: Sequence[int]) -> Tensor:
    """Σ_ℓ MACs_ℓ b̄_ℓ^(w) b̄_ℓ^(a) for one row, ()."""
    return (torch.tensor(macs, dtype=weight_bits.dtype) * weight_bits * torch.tensor(activation_bits, dtype=weight_bits.dtype)).sum()


@dataclass(frozen=True)
class BitCost:
    """The resource term of the objective, as a share of the budget so that λ means the same on every model.

    Attributes:
        parameters: n_ℓ, or MACs_ℓ b^(a)_ℓ where BOPs are counted.
        ceiling: what the choice may cost in these units.
        hinge: Algorithm 2's max(0, cost − ceiling); False is the plain sum of Section 4.2.
    """

    parameters: tuple[int, ...]
    ceiling: float
    hinge: bool = True

    @staticmethod
    def of(network: Network, budget: Budget, activation_bits: Sequence[int], resource: Resource = "bits", hinge: bool = True) -> BitCost:
        """The term for a network and a budget; a budget in bytes is met in bits, 8 to a byte."""
        sizes = tuple(layer.parameters for layer in network.layers)
        ceiling = float(budget.ceiling(sizes)) * (8 if budget.unit is BudgetUnit.BYTES else 1)
        if resource == "bits":
            return BitCost(sizes, ceiling, hinge)
        work = tuple(macs * bits for macs, bits in zip(count_multiply_adds_by_layer(network), activation_bits, strict=True))
        # The budget's average width at every layer, in BOPs.
        return BitCost(work, ceiling / sum(sizes) * sum(work), hinge)

    def __call__(self, bits: Tensor) -> Tensor:
        """The term for widths (L,), possibly between two candidates; differentiable."""
        cost = (torch.tensor(self.parameters, dtype=bits.dtype) * bits).sum() / self.ceiling
        return (cost - 1).clamp_min(0) if self.hinge else cost


@dataclass(frozen=True)
class PolicyScores(LayerScores):
    """A learned policy as layer scores: what a width is worth is its log-probability.

    Attributes:
        widths: candidate widths, ascending.
        preference: (L, widths) log π.
    """

    widths: tuple[int, ...] = ()
    preference: tuple[tuple[float, ...], ...] = ()

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """log π of each layer at ``widths``."""
        at = {bits: number for number, bits in enumerate(self.widths)}
        missing = [bits for bits in widths if bits not in at]
        if missing:
            raise BudgetError(f"the policy has no width of {missing[0]} bits; its widths are {', '.join(map(str, self.widths))}")
        return tuple(tuple(row[at[bits]] for bits in widths) for row in self.preference)


def policy_scores(policy: BitPolicy, network: Network) -> PolicyScores:
    """The policy's preferences; a layer's score is how much better than the lowest width it likes its favourite."""
    preference = torch.log_softmax(policy.logits.detach().double(), dim=1)
    return PolicyScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple((preference.amax(dim=1) - preference[:, 0]).tolist()),
        kind="learned bit policy",
        widths=policy.widths,
        preference=tuple(tuple(row) for row in preference.tolist()),
    )


def discretized(scores: PolicyScores, budget: Budget, pinned: dict[str, int] | None = None) -> tuple[BitAllocation, bool]:
    """The likeliest allocation within the budget, and whether the policy's own arg max had to be brought back to it.

    Without a budget in the way this is arg max π; else the knapsack picks the most probable widths that can be paid for. What is left
    over is spent.
    """
    favourite = [scores.widths[max(range(len(row)), key=row.__getitem__)] for row in scores.preference]
    spent = sum(budget.cost(n, bits) for n, bits in zip(scores.parameters, favourite, strict=True))
    return allocate_exactly(scores, budget, scores.widths, pinned), spent > budget.ceiling(scores.parameters)
