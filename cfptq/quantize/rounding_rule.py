"""Input and output of a rounding rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cfptq.quantize.formats import ActivationFormat, Bits, align_limits, align_with_channels, integer_limits, spread_bits
from cfptq.quantize.split_inputs import find_integer_factors, limit_columns
from cfptq.quantize.structure import SignBounds


@dataclass(frozen=True)
class LayerProblem:
    """Everything that a rounding rule is given about one layer.

    Attributes:
        name: the layer's name.
        weight: full-precision weight, (out, ...).
        bias: full-precision bias, (out,), or None.
        inputs: full-precision inputs of the layer over the calibration rows, (N, ...).
        seen: inputs of the layer once the layers before it are quantized, (N, ...), not yet rounded to ``form``. They are ``inputs`` where
            layers are rounded independently of each other.
        form: format of the input tensor.
        bits: width to round to, one for the layer, or one for each output channel.
        patches: function from inputs (n, ...) to the vectors that weight rows are multiplied with, (groups, m, k). The weight reshaped to
            (groups, out / groups, k) meets them in the last axis.
        row_weights: weight of each row, (N,).
        margins: function from a rounding of this layer to its effect on the decision, with the layers before it quantized and those behind
            it not. It returns each row's target margin minus the full-precision model's, (N,), and the margin's gradient in the layer's
            output, (N, out, positions). None where layers are rounded independently of each other, or no head is known.
        signs: signs that each integer may have, so that the structure of the weights is kept. None allows all.
        fine_inputs: True for each input column with one bit more than its channel, and False for each with one bit less; see
            ``cfptq.quantize.split_inputs``. ``weight`` and ``patches`` are then those on the channel's step. Empty where no column differs.
    """

    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    inputs: torch.Tensor
    seen: torch.Tensor
    form: ActivationFormat
    bits: Bits
    patches: Callable[[torch.Tensor], torch.Tensor]
    row_weights: torch.Tensor
    margins: Callable[[RoundedWeight], tuple[torch.Tensor, torch.Tensor]] | None = None
    signs: SignBounds | None = None
    fine_inputs: tuple[bool, ...] = ()

    @property
    def limit(self) -> int | torch.Tensor:
        """The largest integer magnitude that the weight may take, one number, or one for each output channel, (out,)."""
        return integer_limits(self.bits)

    @property
    def aligned_limit(self) -> int | torch.Tensor:
        """The same limit in a shape that broadcasts over the weight."""
        return align_limits(self.bits, self.weight)

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the largest value of each integer, float32 of the weight's shape."""
        limit = self.aligned_limit * torch.ones_like(self.weight)
        if self.fine_inputs:
            limit = limit_columns(spread_bits(self.bits, len(self.weight)), self.fine_inputs)
        return (-limit, limit) if self.signs is None else (-limit * self.signs.negative, limit * self.signs.positive)

    def compute_full_scale(self) -> torch.Tensor:
        """Compute the step of each channel at which no weight that may differ from 0 is clipped, (out,)."""
        lowest, highest = self.bounds
        limit = torch.maximum(-lowest, highest)
        needed = torch.where(limit > 0, self.weight.abs() / limit.clamp_min(1), torch.zeros_like(limit)).flatten(1).amax(dim=1)
        return torch.where(needed > torch.finfo(torch.float32).tiny, needed, torch.ones_like(needed))

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """Reshape a weight (out, ...) to (groups, out / groups, k), as ``patches`` has its vectors."""
        groups = self.patches(self.inputs[:1]).shape[0]
        return weight.reshape(groups, weight.shape[0] // groups, -1)


@dataclass(frozen=True)
class RoundedWeight:
    """The result of a rounding rule.

    Attributes:
        integers: int8, of the weight's shape.
        scale: float32 step of each output channel, (out,).
        bias: bias that goes with the integers, (out,), or None.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def weight(self) -> torch.Tensor:
        """Return the weight on its grid, float32."""
        return self.integers * align_with_channels(self.scale, self.integers)

    def join_columns(self, fine_inputs: Sequence[bool]) -> RoundedWeight:
        """Return the rounding with the fine columns' step for each channel, from integers on each column's own step.

        Args:
            fine_inputs: True for each fine column and False for each coarse one, or empty.
        """
        if not fine_inputs:
            return self
        return replace(self, integers=self.integers * find_integer_factors(fine_inputs), scale=self.scale / 2)

    def split_columns(self, fine_inputs: Sequence[bool]) -> RoundedWeight:
        """Return the rounding with integers on each column's own step, the inverse of ``join_columns``.

        Args:
            fine_inputs: True for each fine column and False for each coarse one, or empty.
        """
        if not fine_inputs:
            return self
        return replace(self, integers=self.integers // find_integer_factors(fine_inputs), scale=self.scale * 2)


#: A rounding rule. Methods name one of ours, or hold your own.
Rounding = Callable[[LayerProblem], RoundedWeight]
