"""JSON text whose bytes depend on the values alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

#: Significant digits kept of every float. Sampling noise is much larger, rounding noise between machines smaller.
SIGNIFICANT_DIGITS = 6
#: Decimals kept of every float. Smaller numbers become 0.
DECIMALS = 9


def canonicalize(value: Any) -> Any:
    """Convert ``value`` to rounded values that JSON can hold.

    NaN becomes None, negative zero becomes zero, and an infinity becomes the text "inf" or "-inf". Mappings keep their order and
    get text keys. Tuples, arrays and tensors become lists.

    Raises:
        TypeError: a value has no JSON form.
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
        return None if math.isnan(number) else round(float(f"{number:.{SIGNIFICANT_DIGITS}g}"), DECIMALS) + 0.0
    if isinstance(value, Mapping):
        return {str(key): canonicalize(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return canonicalize(value.tolist())
    if isinstance(value, list | tuple):
        return [canonicalize(entry) for entry in value]
    raise TypeError(f"A value of type {type(value).__name__} cannot be written as JSON.")


def to_canonical_json(value: Any) -> str:
    """Return ``value`` as indented JSON text with a final line end.

    Equal values give equal bytes. Characters that a terminal would obey, or that hide others, are written as escapes, which JSON readers
    read as these characters.
    """
    text = json.dumps(canonicalize(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(map(_escape_line, text.split("\n"))) + "\n"


def _escape_line(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(character if character.isprintable() else json.dumps(character)[1:-1] for character in line)
