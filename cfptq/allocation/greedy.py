"""Greedy allocation, the paper's rule for eq. 24."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.channel_allocation import ChannelProblem, allocate_channels
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.allocation.scores import LayerScores
from cfptq.quantize.formats import WIDTHS


def allocate_greedily(
    scores: LayerScores, budget: Budget | float, widths: Widths = WIDTHS, pinned: Mapping[str, int] | None = None
) -> BitAllocation:
    """Widen the layers with the largest score per weight first, from the lowest width on (eq. 24).

    Each turn widens the layer with the largest s_l / n_l whose next candidate width is affordable. It ends when no single upgrade is
    affordable. Because eq. 24 is linear in the bits, s_l / n_l does not fall as a layer widens, and one layer is widened as far as possible
    before the next. Of equal ratios, the earlier layer comes first. With scores of channels, channels are widened likewise.

    Args:
        scores: scores s_l and sizes n_l of L layers.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, from 2 to 8, the same for all layers or by layer name.
        pinned: width that a layer keeps, by layer name.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    if isinstance(scores, ChannelScores):
        return allocate_channels(scores, budget, widths, pinned, ChannelProblem.choose_greedily)
    budget = Budget.of(budget)
    candidates = resolve_widths(scores.names, widths)
    start = assign_lowest_bits(scores.names, scores.parameters, budget, widths, pinned)
    return BitAllocation(scores.names, scores.parameters, tuple(spend_remaining(start, scores, budget, candidates, pinned or ())))


def spend_remaining(
    bits: Sequence[int], scores: LayerScores, budget: Budget, candidates: Sequence[Sequence[int]], pinned: Collection[str]
) -> list[int]:
    """Spend the rest of a budget on the layers with the largest score per weight.

    Args:
        bits: width of each layer, within the budget.
        scores: scores and sizes of the layers.
        budget: the whole budget.
        candidates: candidate widths of each layer, ascending.
        pinned: names of the layers that keep their width.

    Returns:
        The new width of each layer.
    """
    bits = list(bits)
    left = budget.ceiling(scores.parameters) - sum(budget.cost(n, b) for n, b in zip(scores.parameters, bits, strict=True))
    ratio = [s / n for s, n in zip(scores.scores, scores.parameters, strict=True)]
    # The budget that is left only falls. A width that a layer cannot afford now it can never afford, so that one pass suffices.
    for layer in sorted(range(len(bits)), key=lambda index: (-ratio[index], index)):
        if scores.names[layer] in pinned:
            continue
        size = scores.parameters[layer]
        for wider in candidates[layer][candidates[layer].index(bits[layer]) + 1 :]:
            cost = budget.cost(size, wider) - budget.cost(size, bits[layer])
            if cost > left:
                break
            bits[layer], left = wider, left - cost
    return bits
