"""Layer scores that a bit allocation is made from, and the protocol of the functions that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cfptq.errors import ModelError
from cfptq.io.arguments import is_finite_number
from cfptq.network import DecisionRule, Network
from cfptq.quantize.calibration_set import CalibrationSet
from cfptq.quantize.formats import ALL_WIDTHS, Granularity


@dataclass(frozen=True)
class LayerScores:
    """Value of one more bit in each quantizable layer, in execution order.

    Attributes:
        names: layer names, L of them, distinct.
        parameters: n_l, the number of weights of each layer.
        scores: s_l, finite and at least 0.
        kind: the measured quantity in words, such as "counterfactual gradient".
        note: remark on the measurement for the reader, or "".

    Raises:
        ModelError: lengths differ, a name occurs twice, a layer has no weights, or a score is negative or not finite.
    """

    names: tuple[str, ...]
    parameters: tuple[int, ...]
    scores: tuple[float, ...]
    kind: str
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("names", "parameters", "scores"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not len(self.names) == len(self.parameters) == len(self.scores) > 0:
            raise ModelError(
                f"Names, parameters and scores must have the same length, at least 1. Got {len(self.names)}, {len(self.parameters)} and "
                f"{len(self.scores)}."
            )
        if len(set(self.names)) != len(self.names):
            raise ModelError(f"Layer names must be distinct, got {self.names}.")
        for name, n, score in zip(self.names, self.parameters, self.scores, strict=True):
            if n < 1:
                raise ModelError(f"A scored layer must have at least one weight. Layer {name!r} has {n}.")
            if not (is_finite_number(score) and score >= 0):
                raise ModelError(
                    f"The score of layer {name!r} must be finite and at least 0, got {score}. Look for huge or NaN values in its inputs."
                )

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return the benefit s_l b of each layer at each width, which is the summand of eq. 24.

        Args:
            widths: widths b, in bits.

        Returns:
            One row for each layer, one column for each width.
        """
        return tuple(tuple(score * bits for bits in widths) for score in self.scores)

    def by_layer(self) -> dict[str, float]:
        """Return the scores by layer name, in execution order."""
        return dict(zip(self.names, self.scores, strict=True))


@dataclass(frozen=True)
class MeasuredScores(LayerScores):
    """Layer scores with a damage for every width.

    Attributes:
        widths: the measured widths in bits, ascending.
        damage: effect of rounding each layer at each width, (L, widths), at least 0. ``scores`` holds that of the lowest width.

    Raises:
        ModelError: there is not one damage for each layer and width, or as ``LayerScores``.
    """

    widths: tuple[int, ...] = ()
    damage: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "damage", tuple(tuple(row) for row in self.damage))
        if len(self.damage) != len(self.names) or any(len(row) != len(self.widths) for row in self.damage):
            raise ModelError(f"damage must have {len(self.names)} rows of {len(self.widths)} values, one for each layer and width.")

    @classmethod
    def from_damage(cls, network: Network, damage: Sequence[Sequence[float]], kind: str) -> MeasuredScores:
        """Build the scores of a network's layers from their damage at every width.

        Args:
            network: the network whose layers were measured.
            damage: one row for each layer in execution order, one column for each of ``cfptq.quantize.ALL_WIDTHS``.
            kind: the measured quantity in words.
        """
        rows = tuple(tuple(row) for row in damage)
        return cls(
            names=tuple(layer.name for layer in network.layers),
            parameters=tuple(layer.parameters for layer in network.layers),
            scores=tuple(row[0] for row in rows),
            kind=kind,
            widths=ALL_WIDTHS,
            damage=rows,
        )

    def benefits(self, widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return the benefit of each layer at each width, which is its damage with the sign changed.

        Args:
            widths: widths, in bits.

        Raises:
            ModelError: a width was not measured.
        """
        columns = {bits: number for number, bits in enumerate(self.widths)}
        missing = [bits for bits in widths if bits not in columns]
        if missing:
            raise ModelError(f"These scores were measured at {', '.join(map(str, self.widths))} bits, and not at {missing[0]} bits.")
        return tuple(tuple(-row[columns[bits]] for bits in widths) for row in self.damage)


class Score(Protocol):
    """Function that scores the layers of a network on a calibration set.

    It may be one of this package or your own. It must not change the network, and must give the same scores for the same input on the same
    machine with the same versions.
    """

    def __call__(
        self,
        network: Network,
        calibration: CalibrationSet,
        *,
        decision: DecisionRule | None = None,
        granularity: Granularity = "layer",
        progress: bool = True,
    ) -> LayerScores:
        """Score the layers, or their output channels.

        Args:
            network: the full-precision network f.
            calibration: rows, targets and weights.
            decision: head of the network's raw output and decision threshold. None infers the head.
            granularity: what is scored. "channel" asks for ``cfptq.allocation.ChannelScores``, and is passed only where a method has that
                granularity.
            progress: show a bar when it takes long.
        """
        ...
