"""Storage of integers in a file, in containers with channels of one width side by side or in one stream of bits.

A file has integer types of 2, 4 and 8 bits. Integers of other widths are stored exactly in two parts, q = h 2^p + l. The high part h is an
integer of 2 or 4 bits, and the low part l has p bits, which lie side by side in bytes. ONNX Runtime puts the parts together when it loads
the file. Each part costs some bytes for its names and nodes. Where a wider container costs less than another part, channels share it.

In the file of a small network, names and nodes of containers take more bytes than they save. Its integers are stored in one stream of
bits, layer after layer, each with its own width and none between them. The nodes that read a stream take the same bytes whatever the
widths are. ONNX Runtime needs more time to read a stream than containers, so that only small networks have one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from cfptq.quantize.formats import Bits, container_bits, count_channels, count_kept_weights, spread_bits
from cfptq.quantize.split_inputs import count_split_bits, split_bits


@dataclass(frozen=True)
class Container:
    """Form in which integers of one width are stored.

    Attributes:
        width: width of the widest integers that it holds, in bits.
        high: bits of the integer type of the high part, 2, 4 or 8.
        low: bits of each low part, highest first. Empty where the integer type holds the whole integer.
    """

    width: int
    high: int
    low: tuple[int, ...] = ()

    def count_bytes(self, channels: int, weights: int) -> int:
        """Count the bytes of some channels, without names and nodes.

        The high part is rounded up to whole bytes, and each channel's low parts too.

        Args:
            channels: number of channels.
            weights: number of weights of one channel.
        """
        return -(-channels * weights * self.high // 8) + channels * sum(-(-weights * bits // 8) for bits in self.low)


#: Width in bits -> container that holds its integers exactly.
CONTAINERS = {
    2: Container(2, 2),
    3: Container(3, 2, (1,)),
    4: Container(4, 4),
    5: Container(5, 4, (1,)),
    6: Container(6, 4, (2,)),
    7: Container(7, 4, (2, 1)),
    8: Container(8, 8),
}

#: Bytes that the two halves of the columns take in a file for names and nodes beside those of their containers.
SPLIT_BYTES = 190

#: Bits of the integer types that current files have.
INTEGER_TYPES = (2, 4, 8)

#: Bytes that one more container, one more low part (by its bits), and a permutation take in a file for names and nodes.
CONTAINER_BYTES, LOW_PART_BYTES, ORDER_BYTES = 65, {1: 220, 2: 140}, 80

#: Most weights that a file holds in a stream. ONNX Runtime would need more than three times as long to load a larger file.
MAX_STREAM_WEIGHTS = 2**15

#: Bytes that a stream takes in a file for names and nodes, those of each layer beside its first container's, and those of a split layer.
STREAM_BYTES, STREAM_LAYER_BYTES, STREAM_SPLIT_BYTES = 440, 106, 60


@dataclass(frozen=True)
class StoredLayer:
    """Widths and shape of a layer, on which the bytes of its integers in a file depend.

    Attributes:
        bits: the layer's width, or one for each output channel.
        parameters: number of weights. Each channel has the same number.
        is_sortable: the file may hold the channels in another order, and lacks dropped ones.
        kept_inputs: False for each input channel that is dropped, whose weights a file does not hold. Empty where none is.
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less, or empty.
    """

    bits: Bits
    parameters: int
    is_sortable: bool
    kept_inputs: Sequence[bool] = ()
    fine_inputs: Sequence[bool] = ()

    @property
    def stream_bits(self) -> tuple[int, ...]:
        """Width in a stream of each output channel that the file holds. The columns of a split layer have at least 2 bits."""
        kept = [width for width in spread_bits(self.bits, 1) if width or not self.is_sortable]
        return tuple(max(width, 1) if self.fine_inputs else width for width in kept)

    def count_stream_bits(self) -> int:
        """Count the bits of the layer's integers in a stream."""
        weights = count_kept_weights(self.parameters, self.kept_inputs) // len(spread_bits(self.bits, 1))
        if self.fine_inputs:
            return count_split_bits(self.stream_bits, self.fine_inputs) * (weights // len(self.fine_inputs))
        return weights * sum(self.stream_bits)


def count_weight_bytes(layers: Sequence[StoredLayer]) -> int:
    """Count the bytes of the integers of all layers in a file, in a stream where that is smaller.

    Args:
        layers: all quantized layers of the file.
    """
    containers = _count_container_bytes(layers)
    return min(containers, _count_stream_bytes(layers)) if _may_have_stream(layers) else containers


def is_streamed(layers: Sequence[StoredLayer]) -> bool:
    """Return True if a file holds its integers in one stream of bits, and False if it has containers.

    Args:
        layers: all quantized layers of the file.
    """
    return _may_have_stream(layers) and _count_stream_bytes(layers) < _count_container_bytes(layers)


def _may_have_stream(layers: Sequence[StoredLayer]) -> bool:
    """Return True if the network is small, and all layers have a width for each channel."""
    return sum(layer.parameters for layer in layers) <= MAX_STREAM_WEIGHTS and not any(isinstance(layer.bits, int) for layer in layers)


def _count_container_bytes(layers: Sequence[StoredLayer]) -> int:
    return sum(count_layer_bytes(layer.bits, layer.parameters, layer.is_sortable, layer.kept_inputs, layer.fine_inputs) for layer in layers)


def _count_stream_bytes(layers: Sequence[StoredLayer]) -> int:
    """Count the bytes of a stream, of its widths, and of names and nodes. A width takes half a byte, and so does a split layer's column."""
    bits = sum(layer.count_stream_bits() for layer in layers)
    halves = sum(len(layer.stream_bits) for layer in layers)
    columns = [len(layer.fine_inputs) for layer in layers if layer.fine_inputs]
    split = sum(STREAM_SPLIT_BYTES + -(-count // 2) for count in columns)
    return -(-bits // 8) + -(-halves // 2) + split + STREAM_BYTES + STREAM_LAYER_BYTES * len(layers)


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels of a layer that share one container.

    Attributes:
        container: the container.
        channels: positions of the channels in the layer, ascending.
    """

    container: Container
    channels: tuple[int, ...]


def group_channels(
    bits: Sequence[int], weights: int, is_sortable: bool, types: Collection[int] = INTEGER_TYPES
) -> tuple[ChannelGroup, ...]:
    """Group the channels of a layer so that they take the fewest bytes, narrowest container first.

    Channels of 0 bits are in no group if the layer is sortable, because its file has neither them nor the columns that they feed.

    Args:
        bits: width of each output channel.
        weights: number of weights of one channel.
        is_sortable: the file may hold the channels in another order, so that no permutation is stored.
        types: bits of the integer types that the file can have.
    """
    counts = _count_stored(bits, is_sortable)
    widths = _choose_widths(tuple(counts.items()), weights, is_sortable, tuple(types))
    chosen = {width: min(wide for wide in widths if width <= wide) for width in counts}
    if not is_sortable:
        chosen[0] = min(widths)
    groups = [
        ChannelGroup(CONTAINERS[wide], tuple(place for place, width in enumerate(bits) if chosen.get(width) == wide))
        for wide in sorted(widths)
    ]
    return tuple(group for group in groups if group.channels)


def _count_stored(bits: Sequence[int], is_sortable: bool) -> dict[int, int]:
    """Count the channels of each width that a file holds, narrowest first. Where dropped channels must stay, they take 2 bits."""
    kept = [width for width in bits if width] if is_sortable else [width or 2 for width in bits]
    return count_channels(kept)


def count_layer_bytes(
    bits: Bits, parameters: int, is_sortable: bool, kept_inputs: Sequence[bool] = (), fine_inputs: Sequence[bool] = ()
) -> int:
    """Count the bytes of a layer's integers in containers.

    Channels of different widths also take bytes for names and nodes of their containers and, where their order is fixed, for a permutation.

    Args:
        bits: the layer's width, or one for each output channel.
        parameters: number of weights. Each channel has the same number.
        is_sortable: the file may hold the channels in another order, and lacks dropped ones.
        kept_inputs: False for each input channel that is dropped, whose weights a file does not hold. Empty where none is.
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less, or empty.
    """
    if fine_inputs:
        channels = len(spread_bits(bits, 1))
        weights = parameters // channels // len(fine_inputs)
        halves = [
            count_layer_bytes(own, channels * weights * columns, is_sortable)
            for own, columns in zip(split_bits(spread_bits(bits, 1)), (sum(fine_inputs), len(fine_inputs) - sum(fine_inputs)), strict=True)
        ]
        return sum(halves) + SPLIT_BYTES + len(fine_inputs) * count_index_bytes(len(fine_inputs))
    parameters = count_kept_weights(parameters, kept_inputs)
    if isinstance(bits, int):
        return -(-parameters * container_bits(bits) // 8)
    counts, weights = tuple(_count_stored(bits, is_sortable).items()), parameters // len(bits)
    return _count_bytes(_choose_widths(counts, weights, is_sortable, INTEGER_TYPES), counts, weights, is_sortable)


@lru_cache(maxsize=4096)
def _choose_widths(counts: tuple[tuple[int, int], ...], weights: int, is_sortable: bool, types: tuple[int, ...]) -> tuple[int, ...]:
    """Choose the widths of the containers that take the fewest bytes.

    Args:
        counts: each width and its number of channels, narrowest first.
        weights: number of weights of one channel.
        is_sortable: no permutation is stored.
        types: bits of the integer types that the file can have.
    """
    widest = counts[-1][0]
    possible = [width for width, container in CONTAINERS.items() if container.high in types]
    last = [width for width in possible if width >= widest]
    narrower = [width for width in possible if width < widest]
    choices = [(*some, end) for size in range(len(narrower) + 1) for some in combinations(narrower, size) for end in last]
    return min(choices, key=lambda widths: (_count_bytes(widths, counts, weights, is_sortable), len(widths), widths))


def _count_bytes(widths: Sequence[int], counts: Sequence[tuple[int, int]], weights: int, is_sortable: bool) -> int:
    """Count the bytes of channels in containers of some widths, with names, nodes and permutation."""
    held = dict.fromkeys(widths, 0)
    for width, channels in counts:
        held[min(wide for wide in widths if width <= wide)] += channels
    used = {wide: channels for wide, channels in held.items() if channels}
    total = sum(CONTAINERS[wide].count_bytes(channels, weights) for wide, channels in used.items())
    total += CONTAINER_BYTES * (len(used) - 1) + sum(LOW_PART_BYTES[bits] for wide in used for bits in CONTAINERS[wide].low)
    if len(used) > 1 and not is_sortable:
        channels = sum(used.values())
        total += ORDER_BYTES + channels * count_index_bytes(channels)
    return total


def count_index_bytes(channels: int) -> int:
    """Count the bytes of the unsigned integer that numbers so many channels."""
    return 1 if channels <= 2**8 else 2 if channels <= 2**16 else 4
