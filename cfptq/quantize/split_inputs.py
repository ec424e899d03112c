"""Input columns of a first layer with one bit more or one bit less than their channel.

A layer that takes the model's own float input meets columns of very different importance, such as levels of rare categories beside an
amount. A fine column has one bit more than each channel, and half its step. A coarse one has one bit less, but at least 2, and twice its
step. Because the input is in float, no integer kernel needs one step for each channel. Toolchains that do are given the integers on the
step of the fine columns, where those of coarse columns are multiples of 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Step of a coarse column in steps of a fine one.
COARSE_STEP = 4

#: Least width whose range holds the integers of a split layer. Those of a coarse column of 2 bits are 4, 0 and -4.
MIN_SPLIT_HELD_BITS = 4

#: Largest width of a channel of a split layer, in bits. The integers of its fine columns have 8.
MAX_SPLIT_BITS = 7

#: Least width of a coarse column, in bits.
MIN_COARSE_BITS = 2


def find_column_factors(fine_inputs: Sequence[bool]) -> Tensor:
    """Return the channel's step over each column's step, (in,), 2 for a fine column and 1/2 for a coarse one."""
    return torch.where(torch.tensor(fine_inputs), 2.0, 0.5)


def find_integer_factors(fine_inputs: Sequence[bool]) -> Tensor:
    """Return each column's step in steps of the fine columns, int8, (in,), 1 for a fine column and 4 for a coarse one."""
    return torch.where(torch.tensor(fine_inputs), 1, COARSE_STEP).to(torch.int8)


def spread_weight_bits(bits: Sequence[int], fine_inputs: Sequence[bool]) -> NDArray[np.int64]:
    """Return the width of every weight of a split layer, (out, in).

    Args:
        bits: width of each output channel, 0 for a dropped one.
        fine_inputs: True for each fine column and False for each coarse one.
    """
    own = np.asarray(bits, dtype=np.int64)[:, None]
    widths: NDArray[np.int64] = np.where(np.asarray(fine_inputs), own + 1, np.maximum(own - 1, MIN_COARSE_BITS))
    return widths * (own > 0)


def split_bits(bits: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the width of each channel in its fine columns, and in its coarse ones.

    Args:
        bits: width of each output channel, 0 for a dropped one.
    """
    fine, coarse = spread_weight_bits(bits, (True, False)).T.tolist()
    return tuple(fine), tuple(coarse)


def count_split_bits(bits: Sequence[int], fine_inputs: Sequence[bool]) -> int:
    """Count the bits of all weights of a split layer.

    Args:
        bits: width of each output channel, 0 for a dropped one.
        fine_inputs: True for each fine column and False for each coarse one.
    """
    return int(spread_weight_bits(bits, fine_inputs).sum())


def limit_columns(bits: Sequence[int], fine_inputs: Sequence[bool]) -> Tensor:
    """Return the largest magnitude of every integer of a split layer on its column's own step, float32, (out, in).

    Args:
        bits: width of each output channel, 0 for a dropped one.
        fine_inputs: True for each fine column and False for each coarse one.
    """
    widths = spread_weight_bits(bits, fine_inputs)
    return torch.from_numpy(np.where(widths > 0, 2.0 ** (widths - 1) - 1, 0.0)).to(torch.float32)
