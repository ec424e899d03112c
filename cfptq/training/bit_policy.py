"""A learned distribution over the widths of every layer, and the cost of its choice (Section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from cfptq.allocation import BitAllocation, Budget, BudgetUnit, ChannelScores, LayerScores, allocate_exactly
from cfptq.errors import BudgetError
from cfptq.network import Network, count_multiply_adds_by_layer
from cfptq.quantize import WIDTHS, Granularity

#: Quantity that the resource term counts, bits Σ n_ℓ b̄_ℓ or bit operations Σ MACs_ℓ b̄_ℓ b^(a)_ℓ.
Resource = Literal["bits", "bops"]


class BitPolicy(nn.Module):
    """Categorical distribution π over candidate widths for every layer or output channel.

    Args:
        layers: number of layers or of all their output channels, L.
        widths: candidate widths in bits, ascending.
        start: initially preferred width of every layer or channel, in bits. None prefers none.
        start_log_odds: initial log-odds of the preferred width against each other width.
    """

    def __init__(
        self, layers: int, widths: Sequence[int] = WIDTHS, start: Sequence[int] | None = None, start_log_odds: float = 2.0
    ) -> None:
        super().__init__()
        logits = torch.zeros(layers, len(widths))
        for layer, bits in enumerate(start or ()):
            logits[layer, list(widths).index(bits)] = start_log_odds
        self.logits = nn.Parameter(logits)
        self.widths = tuple(widths)

    def sample(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Sample a one-hot choice z, (L, widths), with the gradient of the Gumbel-Softmax sample (straight-through).

        Args:
            temperature: of the Gumbel-Softmax, above 0.
            generator: source of randomness. Its state advances.
        """
        uniform = torch.rand(self.logits.shape, generator=generator).clamp_(1e-20, 1 - 1e-7)
        gumbel = -torch.log(-torch.log(uniform))
        soft = torch.softmax((torch.log_softmax(self.logits, dim=1) + gumbel) / temperature, dim=1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return hard + soft - soft.detach()

    def get_most_likely_bits(self) -> tuple[int, ...]:
        """Return the most likely width of every layer, arg max π."""
        return tuple(self.widths[choice] for choice in self.logits.argmax(dim=1).tolist())


def compute_mean_bits(choice: Tensor, widths: Sequence[int]) -> Tensor:
    """Compute the mean width b̄_ℓ = Σ_r z_ℓr b_r of every layer, (L,), for a choice z, (L, widths)."""
    return choice @ torch.tensor(widths, dtype=choice.dtype)


def compute_bops(macs: Sequence[int], weight_bits: Tensor, activation_bits: Sequence[int]) -> Tensor:
    """Compute the bit operations Σ_ℓ MACs_ℓ b̄_ℓ^(w) b̄_ℓ^(a) of one row, ()."""
    return (torch.tensor(macs, dtype=weight_bits.dtype) * weight_bits * torch.tensor(activation_bits, dtype=weight_bits.dtype)).sum()


@dataclass(frozen=True)
class BitCost:
    """Resource term of the objective, as a share of the budget, so that λ has the same meaning on every model.

    Attributes:
        unit_costs: cost of one bit of width in every layer. It is n_ℓ for bits and MACs_ℓ b^(a)_ℓ for bit operations.
        ceiling: largest cost within the budget, in the same units.
        hinge: True for Algorithm 2's max(0, cost − ceiling), False for the plain sum of Section 4.2.
    """

    unit_costs: tuple[int, ...]
    ceiling: float
    hinge: bool = True

    @staticmethod
    def of(
        network: Network,
        budget: Budget,
        activation_bits: Sequence[int],
        resource: Resource = "bits",
        hinge: bool = True,
        granularity: Granularity = "layer",
    ) -> BitCost:
        """Build the term for a network and a budget.

        Args:
            network: the network that is quantized.
            budget: the budget. One in bytes counts 8 bits per byte.
            activation_bits: bits of every layer's input, used for bit operations.
            resource: the quantity that is counted.
            hinge: see ``BitCost``.
            granularity: what has a width of its own. Each channel of a layer costs the same.
        """
        sizes = tuple(layer.parameters for layer in network.layers)
        channels = [layer.weight_shape[0] if granularity == "channel" else 1 for layer in network.layers]
        ceiling = float(budget.ceiling(sizes)) * (8 if budget.unit is BudgetUnit.BYTES else 1)
        if resource == "bits":
            return BitCost(_divide(sizes, channels), ceiling, hinge)
        work = tuple(macs * bits for macs, bits in zip(count_multiply_adds_by_layer(network), activation_bits, strict=True))
        # The budget's average width at every layer, in BOPs.
        return BitCost(_divide(work, channels), ceiling / sum(sizes) * sum(work), hinge)

    def __call__(self, bits: Tensor) -> Tensor:
        """Compute the term for widths in bits, (L,), with gradient. A width may lie between two candidates."""
        cost = (torch.tensor(self.unit_costs, dtype=bits.dtype) * bits).sum() / self.ceiling
        return (cost - 1).clamp_min(0) if self.hinge else cost


def _divide(costs: Sequence[int], channels: Sequence[int]) -> tuple[int, ...]:
    """Divide the cost of each layer evenly among its channels."""
    return tuple(cost // count for cost, count in zip(costs, channels, strict=True) for _ in range(count))


@dataclass(frozen=True)
class PolicyScores(LayerScores):
    """Layer scores of a learned policy, in which a width's benefit is its log-probability.

    Attributes:
        widths: candidate widths in bits, ascending.
        preference: log π, (L, widths).
    """

    widths: tuple[int, ...] = ()
    preference: tuple[tuple[float, ...], ...] = ()

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return log π of each layer at ``widths``."""
        at = {bits: number for number, bits in enumerate(self.widths)}
        missing = [bits for bits in widths if bits not in at]
        if missing:
            raise BudgetError(f"Widths must be among the policy's {', '.join(map(str, self.widths))} bits, got {missing[0]}.")
        return tuple(tuple(row[at[bits]] for bits in widths) for row in self.preference)


def score_by_policy(policy: BitPolicy, network: Network, granularity: Granularity = "layer") -> PolicyScores | ChannelScores:
    """Score layers or channels by a learned policy.

    The score is the log-probability of the most likely width minus that of the lowest width.

    Args:
        policy: the learned policy.
        network: the network whose layers or channels it chooses widths for.
        granularity: what the policy chooses widths for.
    """
    preference = torch.log_softmax(policy.logits.detach().double(), dim=1)
    if granularity == "channel":
        by_layer = torch.split(preference, [layer.weight_shape[0] for layer in network.layers])
        plain = ChannelScores.from_channels(network, [own.amax(dim=1) - own[:, 0] for own in by_layer], "learned bit policy")
        return replace(plain, widths=policy.widths, damage=tuple(tuple(map(tuple, (-own).tolist())) for own in by_layer))
    return PolicyScores(
        names=tuple(layer.name for layer in network.layers),
        parameters=tuple(layer.parameters for layer in network.layers),
        scores=tuple((preference.amax(dim=1) - preference[:, 0]).tolist()),
        kind="learned bit policy",
        widths=policy.widths,
        preference=tuple(tuple(row) for row in preference.tolist()),
    )


def discretize_policy(
    scores: PolicyScores | ChannelScores, budget: Budget, pinned: dict[str, int] | None = None
) -> tuple[BitAllocation, bool]:
    """Return the most likely allocation within the budget, and whether arg max π was over the budget.

    The knapsack chooses the allocation. A budget left over is spent.

    Args:
        scores: the learned policy.
        budget: the budget that the allocation meets.
        pinned: layer name to the bits that it keeps. None pins nothing.
    """
    if isinstance(scores, ChannelScores):
        chosen = tuple(tuple(scores.widths[row.index(min(row))] for row in layer) for layer in scores.damage)
        limit = budget.ceiling(scores.parameters) * (8 if budget.unit is BudgetUnit.BYTES else 1)
        total = BitAllocation(scores.names, scores.parameters, chosen).total_bits
        return allocate_exactly(scores, budget, scores.widths, pinned), total > limit
    most_likely = [scores.widths[max(range(len(row)), key=row.__getitem__)] for row in scores.preference]
    spent = sum(budget.cost(n, bits) for n, bits in zip(scores.parameters, most_likely, strict=True))
    return allocate_exactly(scores, budget, scores.widths, pinned), spent > budget.ceiling(scores.parameters)
