"""Counts of the zeros and signs of a network's weights that a plan keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cfptq.network import Network
from cfptq.quantize.plan import QuantizationPlan


@dataclass(frozen=True)
class KeptStructure:
    """Counts of what a plan keeps of its network's structure.

    Attributes:
        zeros: weights of quantized layers that are exactly 0.
        zeros_kept: those among them whose integer is 0.
        signed: weights of quantized layers other than 0.
        signs_kept: those among them whose integer does not have the opposite sign.
    """

    zeros: int
    zeros_kept: int
    signed: int
    signs_kept: int

    def __str__(self) -> str:
        parts = []
        if self.zeros:
            parts.append(f"{_count(self.zeros_kept, self.zeros)} weights of 0 stay 0")
        if self.signed:
            parts.append(f"{_count(self.signs_kept, self.signed)} other weights keep their sign or become 0")
        return "structure: " + ", and ".join(parts)


def _count(part: int, whole: int) -> str:
    return f"all {whole:,}" if part == whole else f"{part:,} of {whole:,}"


def count_kept_structure(network: Network, plan: QuantizationPlan) -> KeptStructure:
    """Count the zeros and signs of a network's weights that a plan keeps.

    Args:
        network: the captured full-precision network.
        plan: a plan for it.
    """
    zeros = zeros_kept = signed = signs_kept = 0
    for layer in plan.layers:
        sign, integers = network.weight(layer.name).sign(), layer.integers.to(torch.float32)
        zero = sign == 0
        zeros += int(zero.sum())
        zeros_kept += int((zero & (integers == 0)).sum())
        signed += int((~zero).sum())
        signs_kept += int((~zero & (integers * sign >= 0)).sum())
    return KeptStructure(zeros, zeros_kept, signed, signs_kept)
