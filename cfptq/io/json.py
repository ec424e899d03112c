"""Results as JSON whose bytes depend on the results alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

#: Significant digits and decimals kept of every float: far below sampling noise, above rounding noise between machines.
DIGITS = 6
DECIMALS = 9


def canonical(value: Any) -> Any:
    """``value`` made of what JSON knows: floats rounded, NaN None, no negative zero.

    An infinity, which only a setting can be, becomes the text "inf" or "-inf".

    Mappings keep their order and get text keys; tuples, arrays and tensors become lists.

    Raises:
        TypeError: something that has no JSON form.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isinf(number):
            return str(number)
        return None if math.isnan(number) else round(float(f"{number:.{DIGITS}g}"), DECIMALS) + 0.0
    if isinstance(value, Mapping):
        return {str(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return canonical(value.tolist())
    if isinstance(value, list | tuple):
        return [canonical(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def canonical_json(value: Any) -> str:
    """:func:`canonical` of ``value`` as text, indented, with a line end: the same value, the same bytes."""
    return json.dumps(canonical(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
