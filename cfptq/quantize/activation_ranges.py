"""Ranges of activations by the error of margins.

A range trades two errors. A wide range has a coarse step, and every value inside it is rounded. A narrow one clips the largest values. Both
matter as far as they reach the decision, so they are measured through the margin's slope ∂m/∂x and weighted like the calibration rows.
The range of a channel is the one at which

    Σ_u w_u Σ_x (∂m/∂x)² ( [x inside] step² / 12 + 16 · clipping² )

is least. Values of 0 are exact in every format and have no rounding error. A row far from the boundary weighs next to nothing, so that an
outlier sets no range. The clipping error of one value never counts more than the mean square margin. An outlier that lies on the boundary
therefore costs no more than one decision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from cfptq.network import DecisionRule, Network, target_margin
from cfptq.quantize.cross_layer_equalization import MIN_HEIGHT_SHARE, find_hidden_channels
from cfptq.quantize.row_sampling import sample_rows

#: Factor of the squared clipping error. Clipping errors of one channel have one sign and add up, while rounding errors cancel.
CLIPPING_FACTOR = 16.0

#: Halvings of the full range that are tried first. Shares of the best of them are tried next, and finer ones of the best of those.
HALVINGS = 16
SHARES = tuple(0.5 + 0.0625 * step for step in range(25))
FINE_SHARES = (0.955, 0.97, 0.985, 1.015, 1.03, 1.045)

#: Numbers of tensors that ranges are measured on. Beyond, rows are sampled, but at least so many are used.
MAX_HELD_NUMBERS, MIN_ROWS = 2**26, 256

#: Largest value of a channel over its root mean square, about.
SPREADS_TO_TOP = 4.0


@dataclass(frozen=True)
class SlopedValues:
    """Values of one tensor over weighted rows, and the effect of each value on the margin.

    Attributes:
        values: (N, channels, positions).
        pull: w (∂m/∂x)² of each value, with weights w that sum to 1, of the same shape.
        share: w, (N,).
        square_margin: the mean square margin, which one value's clipping error counts at most.
    """

    values: Tensor
    pull: Tensor
    share: Tensor
    square_margin: float

    @property
    def spread(self) -> Tensor:
        """Root mean square of each channel, (channels,), at the position where it is largest."""
        return (self.share[:, None, None] * self.values.square()).sum(dim=0).amax(dim=1).sqrt()

    def choose_channel_ranges(self, steps: int) -> tuple[Tensor, Tensor]:
        """Return the least and the largest value of each channel's range, (channels,) each. The ranges hold 0.

        Args:
            steps: steps that a range is divided into.
        """
        by_channel = [part.transpose(0, 1).flatten(1) for part in (self.values, self.pull)]
        limit = (self.square_margin * self.share)[:, None].expand(-1, self.values.shape[2]).flatten()
        return _choose_ranges(by_channel[0], by_channel[1], limit, steps)

    def choose_range(self, steps: int) -> tuple[float, float]:
        """Return the least and the largest value of the whole tensor's range, which holds 0.

        Args:
            steps: steps that the range is divided into.
        """
        limit = (self.square_margin * self.share)[:, None].expand(-1, self.values[0].numel()).flatten()
        low, high = _choose_ranges(self.values.reshape(1, -1), self.pull.reshape(1, -1), limit, steps)
        return float(low), float(high)


@dataclass(frozen=True)
class MarginRanges:
    """Choice of activation ranges over weighted rows.

    Attributes:
        rows: (N, ...).
        weights: weight of each row, (N,).
        target: the class whose margin counts, (N,).
        decision: head of the network's raw output and decision threshold.
    """

    rows: Tensor
    weights: Tensor
    target: Tensor
    decision: DecisionRule

    def choose(self, network: Network, steps: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Choose the range of each tensor.

        Args:
            network: the full-precision network.
            steps: steps that the range is divided into, by the name of a node that feeds layers.
        """
        return {name: measured.choose_range(steps[name]) for name, measured in self._measure(network, steps).items()}

    def measure_heights(self, network: Network) -> dict[str, Tensor]:
        """Measure the largest value that each channel needs in 8 bits, (channels,), for tensors whose channels can be equalized.

        A channel that is almost always 0 leaves room for the rounding errors of the layers before it.

        Args:
            network: the full-precision network.
        """
        producers = find_hidden_channels(network)
        measured = self._measure(network, [name for pair in producers.items() for name in pair])
        heights = {}
        for tensor, producer in producers.items():
            low, high = measured[tensor].choose_channel_ranges(2**8 - 1)
            heights[tensor] = torch.maximum(torch.maximum(high, -low), MIN_HEIGHT_SHARE * SPREADS_TO_TOP * measured[producer].spread)
        return heights

    def _measure(self, network: Network, names: Collection[str]) -> dict[str, SlopedValues]:
        """Measure tensors on as many rows as the held numbers afford."""
        if not names:
            return {}
        numbers = sum(value.numel() for value in network.observe(self.rows[:1], names).values())
        kept, weights = sample_rows(self.weights, max(MIN_ROWS, MAX_HELD_NUMBERS // numbers))
        axes = {name: -1 if layer.kind == "linear" else 1 for layer in network.layers for name in (layer.node, layer.input)}
        return measure_slopes(network, self.rows[kept], weights, self.target[kept], self.decision, {name: axes[name] for name in names})


def _choose_ranges(values: Tensor, pull: Tensor, limit: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Choose the range of each of C channels, given the values and pulls (C, M), and the limit of each column's clipping error (M,)."""
    low, high = values.amin(dim=1).clamp(max=0), values.amax(dim=1).clamp(min=0)
    for _ in range(2 if bool((low < 0).any()) and bool((high > 0).any()) else 1):
        high = _choose_end(values, pull, limit, high, -low, steps)
        if bool((low < 0).any()):
            low = -_choose_end(-values, pull, limit, -low, high, steps)
    return low, high


def _choose_end(values: Tensor, pull: Tensor, limit: Tensor, full: Tensor, other: Tensor, steps: int) -> Tensor:
    """Choose the upper end of each range, at most ``full``, with the lower end at -``other``."""
    exact = values == 0
    inner = torch.where(exact | (values < -other[:, None]), torch.zeros_like(pull), pull)

    def measure(end: Tensor) -> tuple[Tensor, Tensor]:
        beyond = values - end[:, None]
        rounding = (inner * (beyond <= 0)).sum(dim=1) * ((end + other) / steps).square() / 12
        clipped = torch.minimum(pull * beyond.clamp_min_(0).square_(), limit)
        return rounding, CLIPPING_FACTOR * clipped.sum(dim=1)

    best, least = full, torch.add(*measure(full))

    def search(ends: Iterable[Tensor], falls: bool) -> None:
        nonlocal best, least
        for end in ends:
            rounding, clipping = measure(end)
            error = rounding + clipping
            best, least = torch.where(error < least, end, best), torch.minimum(error, least)
            # Clipping alone only grows while the ends fall, and rounding alone while they rise. No later end can be better.
            if bool(((clipping if falls else rounding) > least).all()):
                return

    search((full * 2.0**-halving for halving in range(1, HALVINGS)), falls=True)
    for shares in (SHARES, FINE_SHARES):
        middle = best
        search((middle * share for share in reversed(shares) if share < 1), falls=True)
        search((torch.minimum(middle * share, full) for share in shares if share > 1), falls=False)
    return best


def measure_slopes(
    network: Network, rows: Tensor, weights: Tensor, target: Tensor, decision: DecisionRule, channel_axes: dict[str, int]
) -> dict[str, SlopedValues]:
    """Measure tensors and the margin's slope in them over weighted rows.

    Args:
        network: the full-precision network.
        rows: (N, ...).
        weights: weight of each row, (N,).
        target: the class whose margin counts, (N,).
        decision: head of the network's raw output and decision threshold.
        channel_axes: axis of the channels of each tensor to measure, by the name of its node.
    """
    # Callers may have gradients switched off.
    with torch.inference_mode(False), torch.enable_grad():
        run = _RecordingRun(network, channel_axes)
        margins = target_margin(decision.class_logits(run.run(rows.clone())), target)
        kept = [run.tensors[name] for name in channel_axes]
        slopes = torch.autograd.grad(margins.sum(), kept, allow_unused=True)
    share = weights / weights.sum()
    square_margin = float((share * margins.detach().square()).sum())
    found = {}
    for (name, axis), tensor, slope in zip(channel_axes.items(), kept, slopes, strict=True):
        values = _flatten_positions(tensor.detach(), axis)
        pull = torch.zeros_like(values) if slope is None else _flatten_positions(slope, axis).square()
        found[name] = SlopedValues(values, pull.mul_(share[:, None, None]), share, square_margin)
    return found


def _flatten_positions(values: Tensor, axis: int) -> Tensor:
    """Reshape a tensor to (N, channels, positions)."""
    return values.movedim(axis, 1).flatten(2) if values.dim() > 2 else values[:, :, None]


class _RecordingRun(fx.Interpreter):
    """Run that keeps some tensors with their gradients."""

    def __init__(self, network: Network, names: Collection[str]) -> None:
        super().__init__(network.graph)
        self._names = set(names)
        self.tensors: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Run one node, and keep its value."""
        value = super().run_node(node)
        if node.name in self._names:
            self.tensors[node.name] = value if value.requires_grad else value.requires_grad_()
        return value
