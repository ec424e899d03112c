"""Scores of output channels, which an allocation of one width a channel is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cfptq.allocation.scores import LayerScores
from cfptq.errors import ModelError
from cfptq.network import Network
from cfptq.quantize import CHANNEL_WIDTHS, Bits, find_sortable_layers


@dataclass(frozen=True)
class ChannelScores(LayerScores):
    """Scores of every output channel. ``scores`` holds the sum over each layer's channels.

    Attributes:
        channels: score of each channel, finite and at least 0, one tuple for each layer.
        consumers: position of the layer that alone takes the channels of each layer, whose file may hold them in another order, or None.
        fine_inputs: True for each input column with one bit more than its channel and False for each with one bit less, a tuple for each
            layer that is empty where no column differs. Empty where no layer is split.
        widths: the measured widths in bits, ascending. Empty where the benefit of a width is score times bits (eq. 24).
        damage: effect of rounding each channel at each width, at least 0, one tuple of (channels, widths) for each layer.

    Raises:
        ModelError: a number of channels or widths does not fit, or as ``LayerScores``.
    """

    channels: tuple[tuple[float, ...], ...] = ()
    consumers: tuple[int | None, ...] = ()
    fine_inputs: tuple[tuple[bool, ...], ...] = ()
    widths: tuple[int, ...] = ()
    damage: tuple[tuple[tuple[float, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", tuple(map(tuple, self.channels)))
        object.__setattr__(self, "consumers", tuple(self.consumers))
        object.__setattr__(self, "fine_inputs", tuple(map(tuple, self.fine_inputs)))
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "damage", tuple(tuple(map(tuple, layer)) for layer in self.damage))
        if len(self.channels) != len(self.names) or len(self.consumers) != len(self.names):
            raise ModelError(f"channels and consumers must have one entry for each of {len(self.names)} layers.")
        for name, size, own in zip(self.names, self.parameters, self.channels, strict=True):
            values = np.asarray(own, dtype=float)
            if not len(own) or size % len(own) or not (np.isfinite(values).all() and (values >= 0).all()):
                raise ModelError(
                    f"The scores of layer {name!r} must be finite and at least 0, one for each output channel. Look for huge or NaN values "
                    "in its inputs."
                )
        if self.widths and [[len(row) for row in layer] for layer in self.damage] != [[len(self.widths)] * len(it) for it in self.channels]:
            raise ModelError(f"damage must have {len(self.widths)} values for each channel.")

    @classmethod
    def from_channels(cls, network: Network, channels: Sequence[Tensor], kind: str, note: str = "") -> ChannelScores:
        """Build scores whose benefit is score times bits (eq. 24).

        Args:
            network: the network whose layers were scored.
            channels: score of each channel, one tensor (out,) for each layer in execution order.
            kind: the measured quantity in words.
            note: remark on the measurement for the reader, or "".
        """
        sortable = find_sortable_layers(network)
        names = [layer.name for layer in network.layers]
        return cls(
            names=tuple(names),
            parameters=tuple(layer.parameters for layer in network.layers),
            scores=tuple(float(own.double().sum()) for own in channels),
            kind=kind,
            note=note,
            channels=tuple(tuple(own.tolist()) for own in channels),
            consumers=tuple(names.index(sortable[name]) if name in sortable else None for name in names),
        )

    @classmethod
    def from_channel_damage(cls, network: Network, damage: Sequence[Tensor], kind: str) -> ChannelScores:
        """Build scores from the damage of each channel at every width.

        Args:
            network: the network whose layers were measured.
            damage: one tensor (out, widths) for each layer in execution order, with one column for each of
                ``cfptq.quantize.CHANNEL_WIDTHS``.
            kind: the measured quantity in words.
        """
        narrowest = CHANNEL_WIDTHS.index(2)
        plain = cls.from_channels(network, [own[:, narrowest] for own in damage], kind)
        return cls(
            plain.names,
            plain.parameters,
            plain.scores,
            kind,
            channels=plain.channels,
            consumers=plain.consumers,
            widths=CHANNEL_WIDTHS,
            damage=tuple(tuple(map(tuple, own.tolist())) for own in damage),
        )

    def channel_benefits(self, widths: Sequence[int]) -> NDArray[np.float64]:
        """Return the benefit of every channel at some widths, (all channels, widths), layer after layer.

        Args:
            widths: widths, in bits.

        Raises:
            ModelError: a width was not measured.
        """
        if not self.widths:
            scores: NDArray[np.float64] = np.concatenate([np.asarray(own, dtype=float) for own in self.channels])
            linear: NDArray[np.float64] = np.outer(scores, np.asarray(widths, dtype=float))
            return linear
        missing = [bits for bits in widths if bits not in self.widths]
        if missing:
            raise ModelError(f"These scores were measured at {', '.join(map(str, self.widths))} bits, and not at {missing[0]} bits.")
        damage: NDArray[np.float64] = np.concatenate([np.asarray(own, dtype=float) for own in self.damage])
        chosen: NDArray[np.float64] = damage[:, [self.widths.index(bits) for bits in widths]]
        return -chosen

    def find_kept_inputs(self, bits: Sequence[Bits]) -> tuple[tuple[bool, ...], ...]:
        """Return the kept input channels of every layer, as ``BitAllocation`` has them, where channels of 0 bits are dropped.

        Args:
            bits: widths of each layer.
        """
        found: list[tuple[bool, ...]] = [()] * len(self.names)
        for own, consumer in zip(bits, self.consumers, strict=True):
            if consumer is not None and not isinstance(own, int) and 0 in own:
                found[consumer] = tuple(width > 0 for width in own)
        return tuple(found)

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return the benefit of each layer at each width, where all of its channels have that width."""
        every, start, rows = self.channel_benefits(widths), 0, []
        for own in self.channels:
            rows.append(tuple(every[start : start + len(own)].sum(axis=0).tolist()))
            start += len(own)
        return tuple(rows)
