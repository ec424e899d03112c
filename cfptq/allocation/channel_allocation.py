"""Allocation of one width to each of thousands of output channels (eq. 24 by channel).

Where the budget has few distinct amounts, dynamic programming finds the optimum. Elsewhere the program is relaxed. On the upper hull of a
channel's benefits against its cost, every further bit pays less than the one before. Steps along all hulls are taken in the order of their
benefit for each bit until the budget is spent. No allocation has more benefit than these steps with a fraction of the first that does not
fit, which bounds the distance to the optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import gcd

import numpy as np
from numpy.typing import NDArray

from cfptq.allocation.bit_allocation import BitAllocation
from cfptq.allocation.budget import Budget, BudgetUnit, Widths, assign_lowest_bits, resolve_widths
from cfptq.allocation.channel_scores import ChannelScores
from cfptq.quantize.formats import Bits, count_bits
from cfptq.quantize.split_inputs import MAX_SPLIT_BITS
from cfptq.quantize.storage import StoredLayer, count_weight_bytes

#: Least and largest average bits of a budget at which columns are split.
MIN_SPLIT_AVERAGE, MAX_SPLIT_AVERAGE = 2.75, 6.0

#: Channels times amounts of the budget up to which dynamic programming finds the optimum.
MAX_TABLE_ENTRIES = 2**23

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelProblem:
    """Choice of a width for every channel, within a number of bits.

    Attributes:
        layer: position of each channel's layer, (U,).
        costs: bits of each channel at each width, (U, W).
        ratio: score of each channel per weight, (U,).
        widths: every candidate width, ascending, W of them.
        is_allowed: True for each candidate width of a channel, (U, W). A pinned channel has one.
        benefit: benefit of each channel at each width, (U, W), not falling along its candidates.
    """

    layer: Integers
    costs: Integers
    ratio: Floats
    widths: tuple[int, ...]
    is_allowed: NDArray[np.bool_]
    benefit: Floats

    @property
    def lowest(self) -> Integers:
        """Position of each channel's lowest candidate, (U,)."""
        lowest: Integers = self.is_allowed.argmax(axis=1)
        return lowest

    @property
    def lowest_kept(self) -> Integers:
        """Position of each channel's lowest candidate that does not drop it, (U,)."""
        is_kept = self.is_allowed & (np.asarray(self.widths) > 0)
        lowest: Integers = np.where(is_kept.any(axis=1), is_kept.argmax(axis=1), self.lowest)
        return lowest

    def count_bits(self, choice: Integers) -> int:
        """Count the bits of all weights at a choice of widths, (U,)."""
        return int(self.costs[np.arange(len(choice)), choice].sum())

    def sum_benefit(self, choice: Integers) -> float:
        """Return the total benefit of a choice of widths, (U,)."""
        return float(self.benefit[np.arange(len(choice)), choice].sum())

    def to_bits(self, choice: Integers) -> tuple[Bits, ...]:
        """Return the widths of a choice, layer by layer."""
        bits = np.asarray(self.widths)[choice]
        return tuple(tuple(bits[self.layer == layer].tolist()) for layer in range(int(self.layer[-1]) + 1))

    def spend_rest(self, choice: Integers, ceiling: int) -> Integers:
        """Spend the bits that a choice leaves on the channels with the largest score per weight, each widened as far as it can be."""
        choice, left = choice.copy(), ceiling - self.count_bits(choice)
        for channel in np.argsort(-self.ratio, kind="stable").tolist():
            costs, own = self.costs[channel].tolist(), np.flatnonzero(self.is_allowed[channel])
            for place in own[own > choice[channel]].tolist():
                cost = costs[place] - costs[choice[channel]]
                if cost > left:
                    break
                choice[channel], left = place, left - cost
        return choice

    def choose_greedily(self, ceiling: int) -> Integers:
        """Widen the channels with the largest score per weight first, from the lowest widths on."""
        return self.spend_rest(self.lowest_kept, ceiling)

    def choose_best(self, ceiling: int) -> Integers:
        """Choose the widths with the largest benefit, exactly where a table of all amounts is small."""
        return self._fill_table(ceiling) if self._count_entries(ceiling) <= MAX_TABLE_ENTRIES else self._follow_hulls(ceiling)[0]

    def bound_benefit(self, ceiling: int) -> float:
        """Return a number that no choice's benefit exceeds."""
        return self._follow_hulls(ceiling)[1]

    @cached_property
    def _unit(self) -> int:
        """Greatest common divisor of all costs above the lowest widths, in bits."""
        steps = np.unique(self._steps[self.is_allowed])
        return reduce(gcd, steps.tolist(), 0) or 1

    @property
    def _steps(self) -> Integers:
        """Bits of each channel at each width above those at its lowest candidate, (U, W)."""
        steps: Integers = self.costs - np.take_along_axis(self.costs, self.lowest[:, None], axis=1)
        return steps

    def _count_entries(self, ceiling: int) -> int:
        return len(self.costs) * ((ceiling - self.count_bits(self.lowest)) // self._unit + 1)

    def _fill_table(self, ceiling: int) -> Integers:
        """Choose the widths with the largest benefit by dynamic programming over the bits that are spent."""
        amounts = (ceiling - self.count_bits(self.lowest)) // self._unit + 1
        reached = np.zeros(amounts)
        chosen = np.empty((len(self.costs), amounts), dtype=np.int8)
        costs = self._steps // self._unit
        for channel in range(len(self.costs)):
            best, place_of_best = np.full(amounts, -np.inf), np.zeros(amounts, dtype=np.int8)
            for place in np.flatnonzero(self.is_allowed[channel]).tolist():
                cost = int(costs[channel, place])
                if cost >= amounts:
                    break
                candidate = reached[: amounts - cost] + self.benefit[channel, place]
                # Of equal benefits, the wider one is kept, so that bits are spent.
                better = candidate >= best[cost:]
                np.copyto(best[cost:], candidate, where=better)
                np.copyto(place_of_best[cost:], place, where=better, casting="unsafe")
            reached, chosen[channel] = best, place_of_best
        choice, left = np.empty(len(self.costs), dtype=np.int64), amounts - 1
        for channel in range(len(self.costs) - 1, -1, -1):
            choice[channel] = chosen[channel, left]
            left -= int(costs[channel, choice[channel]])
        return choice

    @cached_property
    def _hull_steps(self) -> tuple[Integers, Integers, Integers, Floats]:
        """Channel, place reached, bits and benefit of each step along the hulls, by falling benefit a bit."""
        steps = []
        for channel, (spent, row, benefit) in enumerate(zip(self.costs.tolist(), self.is_allowed, self.benefit, strict=True)):
            places = np.flatnonzero(row).tolist()
            here = 0
            while here < len(places) - 1:
                gains = [
                    (benefit[places[there]] - benefit[places[here]]) / (spent[places[there]] - spent[places[here]])
                    for there in range(here + 1, len(places))
                ]
                best = max(gains)
                if best <= 0:
                    break
                there = here + 1 + max(number for number, gain in enumerate(gains) if gain == best)
                cost = spent[places[there]] - spent[places[here]]
                steps.append((-best, channel, places[there], cost, benefit[places[there]] - benefit[places[here]]))
                here = there
        steps.sort(key=lambda step: step[0])
        columns = list(zip(*steps, strict=True)) or [()] * 5
        return (
            np.asarray(columns[1], dtype=np.int64),
            np.asarray(columns[2], dtype=np.int64),
            np.asarray(columns[3], dtype=np.int64),
            np.asarray(columns[4], dtype=float),
        )

    def _follow_hulls(self, ceiling: int) -> tuple[Integers, float]:
        """Take steps along the hulls while they fit, and return the choice and the bound on any choice's benefit."""
        channels, places, costs, gains = self._hull_steps
        choice = self.lowest.copy()
        left, bound = ceiling - self.count_bits(choice), self.sum_benefit(choice)
        spent = np.cumsum(costs)
        whole = int(np.searchsorted(spent, left, side="right"))
        bound += float(gains[:whole].sum())
        if whole < len(costs):
            bound += float(gains[whole]) * (left - (int(spent[whole - 1]) if whole else 0)) / float(costs[whole])
        stopped = np.zeros(len(choice), dtype=bool)
        for channel, place, cost in zip(channels.tolist(), places.tolist(), costs.tolist(), strict=True):
            # A channel whose step does not fit takes no later one.
            if stopped[channel]:
                continue
            if cost > left:
                stopped[channel] = True
            else:
                choice[channel], left = place, left - cost
        return choice, bound


def build_channel_problem(
    scores: ChannelScores,
    budget: Budget | float,
    widths: Widths,
    pinned: Mapping[str, int] | None = None,
    kept_inputs: Sequence[Sequence[bool]] = (),
) -> ChannelProblem:
    """Build the problem of a set of scores.

    A channel of 0 bits is a candidate only where the effect of dropping it was measured. The channel of a layer that matters most is never
    dropped.

    Args:
        scores: scores of all channels.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, the same for all layers or by layer name.
        pinned: width that a layer keeps in all of its channels, by layer name.
        kept_inputs: kept input channels of each layer, as ``BitAllocation`` has them, once it is decided which channels are dropped.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    assign_lowest_bits(scores.names, scores.parameters, Budget.of(budget), widths, pinned)  # refuses a budget that cannot be met
    candidates, pins = resolve_widths(scores.names, widths), dict(pinned or {})
    all_widths = tuple(sorted(set().union(*candidates)))
    counts = [len(own) for own in scores.channels]
    layer = np.repeat(np.arange(len(counts)), counts)
    none = ((),) * len(counts)
    inputs = kept_inputs or none
    sizes = [n // count for n, count in zip(scores.parameters, counts, strict=True)]
    costs = np.array(
        [
            [count_bits(bits, size, kept, fine) for bits in all_widths]
            for size, kept, fine in zip(sizes, inputs, scores.fine_inputs or none, strict=True)
        ]
    )[layer]
    allowed = np.array(
        [
            [bits in own and pins.get(name, bits) == bits and not (fine and bits > MAX_SPLIT_BITS) for bits in all_widths]
            for name, own, fine in zip(scores.names, candidates, scores.fine_inputs or none, strict=True)
        ]
    )
    is_allowed = allowed[layer]
    measured = scores.channel_benefits(all_widths)
    if all_widths[0] == 0:
        can_drop = np.concatenate([_find_droppable(scores, own, inputs) for own in range(len(counts))])
        is_allowed[:, 0] &= can_drop
        if kept_inputs:
            is_allowed[can_drop, 1:] = False
    # A wider candidate has at least the benefit of a narrower one of the same channel.
    benefit = np.maximum.accumulate(np.where(is_allowed, measured, -np.inf), axis=1)
    channels = np.concatenate([np.asarray(own, dtype=float) for own in scores.channels])
    ratio = channels / np.repeat(sizes, counts)
    return ChannelProblem(layer, costs, ratio, all_widths, is_allowed, np.where(is_allowed, benefit, 0.0))


def _find_droppable(scores: ChannelScores, layer: int, inputs: Sequence[Sequence[bool]]) -> NDArray[np.bool_]:
    """Return True for each channel of a layer that may be dropped, or that is dropped where this is decided."""
    consumer, count = scores.consumers[layer], len(scores.channels[layer])
    if consumer is None or not scores.widths:
        return np.zeros(count, dtype=bool)
    if inputs[consumer]:
        return ~np.asarray(inputs[consumer])
    if any(inputs):
        return np.zeros(count, dtype=bool)
    droppable = np.ones(count, dtype=bool)
    droppable[int(np.asarray(scores.damage[layer])[:, scores.widths.index(0)].argmax())] = False
    return droppable


def _choose_split_layers(scores: ChannelScores, budget: Budget, widths: Widths, pinned: Mapping[str, int] | None) -> ChannelScores:
    """Return the scores with the layers whose columns are split at this budget.

    A pinned layer is not split. With little to spend, coarse columns would have no fewer bits than fine ones, and with much, all columns
    can have as many bits as storage holds.
    """
    if not scores.fine_inputs:
        return scores
    bits = budget.ceiling(scores.parameters) * (8 if budget.unit is BudgetUnit.BYTES else 1)
    if not MIN_SPLIT_AVERAGE <= bits / sum(scores.parameters) <= MAX_SPLIT_AVERAGE:
        return replace(scores, fine_inputs=())
    pins = pinned or {}
    chosen = replace(
        scores, fine_inputs=tuple(() if name in pins else own for name, own in zip(scores.names, scores.fine_inputs, strict=True))
    )
    if not any(chosen.fine_inputs):
        return replace(scores, fine_inputs=())
    problem = build_channel_problem(chosen, budget, widths, pinned)
    return chosen if problem.count_bits(problem.lowest_kept) <= bits else replace(scores, fine_inputs=())


def allocate_channels(
    scores: ChannelScores,
    budget: Budget | float,
    widths: Widths,
    pinned: Mapping[str, int] | None,
    choose: Callable[[ChannelProblem, int], Integers],
) -> BitAllocation:
    """Choose a width for every channel, and spend what is left of the budget.

    Args:
        scores: scores of all channels.
        budget: a ``Budget``, or average bits.
        widths: candidate widths in bits, the same for all layers or by layer name.
        pinned: width that a layer keeps in all of its channels, by layer name.
        choose: function from the problem and a number of bits to a choice of widths.

    Raises:
        BudgetError: the budget does not pay for the lowest widths and the pins, or a pin names no layer or no candidate width.
    """
    budget = Budget.of(budget)
    scores = _choose_split_layers(scores, budget, widths, pinned)
    problem = build_channel_problem(scores, budget, widths, pinned)

    def solve(ceiling: int) -> BitAllocation:
        bits = problem.to_bits(choose(problem, ceiling))
        kept_inputs = scores.find_kept_inputs(bits)
        # The columns that dropped channels feed take no bits, which are spent on the channels that are kept.
        rest = build_channel_problem(scores, budget, widths, pinned, kept_inputs) if any(kept_inputs) else problem
        bits = rest.to_bits(rest.spend_rest(choose(rest, ceiling), ceiling))
        return BitAllocation(scores.names, scores.parameters, bits, kept_inputs if any(kept_inputs) else (), scores.fine_inputs)

    if budget.unit is not BudgetUnit.BYTES:
        return solve(budget.ceiling(scores.parameters))
    # A file's bytes do not follow from the bits alone. The largest number of bits whose file fits is found by bisection.
    limit = budget.ceiling(scores.parameters)
    lowest = problem.count_bits(problem.lowest_kept)
    fitting, best = lowest, BitAllocation(scores.names, scores.parameters, problem.to_bits(problem.lowest_kept), (), scores.fine_inputs)
    beyond = max(lowest, 8 * limit) + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        allocation = solve(middle)
        if count_file_bytes(scores, allocation) <= limit:
            fitting, best = middle, allocation
        else:
            beyond = middle
    return best


def count_file_bytes(scores: ChannelScores, allocation: BitAllocation) -> int:
    """Count the bytes of the weights in a file at some widths of the channels, with the nodes that unpack them."""
    parts = zip(allocation.bits, scores.parameters, scores.consumers, allocation.inputs, strict=True)
    return count_weight_bytes([StoredLayer(own, n, consumer is not None, *inputs) for own, n, consumer, inputs in parts])


def sum_channel_benefit(scores: ChannelScores, allocation: BitAllocation, widths: Widths) -> float:
    """Return the total benefit of an allocation of widths to channels.

    Args:
        scores: scores of the same channels.
        allocation: widths of all channels.
        widths: candidate widths in bits, the same for all layers or by layer name.
    """
    scores = replace(scores, fine_inputs=allocation.fine_inputs)
    problem = build_channel_problem(scores, Budget.average(max(resolve_widths(scores.names, widths)[0])), widths)
    bits = np.concatenate([np.asarray(own) for own in allocation.bits])
    return problem.sum_benefit(np.searchsorted(problem.widths, bits))
