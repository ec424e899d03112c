"""Every error that cfptq raises on purpose.

A message says what is wrong, where it was found, and how to mend it. Catch :class:`CfptqError` to catch them all.
"""

from __future__ import annotations

from collections.abc import Sequence


class CfptqError(Exception):
    """Base of all errors raised by cfptq. Whatever raised it has changed nothing: no model, no file."""


class ActionSetError(CfptqError):
    """An action set contradicts itself, names something unknown, or a row breaks its rules."""


class DataError(CfptqError):
    """Rows that cannot be used: NaN, a wrong shape or dtype, an empty loader, labels that do not fit."""


class ModelError(CfptqError):
    """A model that cannot be read, captured, run or quantized."""


class BudgetError(CfptqError):
    """A bit budget that no allocation can meet."""


class FileError(CfptqError):
    """A file that is missing, cut off, corrupt, or not what its name promises."""


class MissingDependencyError(CfptqError):
    """An optional toolchain is not installed; the message names the extra that brings it."""


class ConfigurationError(CfptqError):
    """A method, a setting or an argument that does not make sense."""


class RecipeError(ConfigurationError):
    """An experiment file that cannot be read, or that does not make sense."""


class SaturationWarning(UserWarning):
    """A written file decides otherwise in a default session of ONNX Runtime, because int8 products saturate on this processor."""


def name_rows(rows: Sequence[int], most: int = 10) -> str:
    """Row numbers for a message: the first ``most``, then how many more there are."""
    shown = ", ".join(str(int(row)) for row in rows[:most])
    more = len(rows) - most
    return f"{shown} and {more} more" if more > 0 else shown
