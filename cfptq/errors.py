"""The errors and warnings that cfptq raises on purpose.

A message says what is wrong, where it was found, and what to do. Catch ``CfptqError`` to catch all errors.
"""

from __future__ import annotations

from collections.abc import Sequence


class CfptqError(Exception):
    """Base of all errors raised by cfptq. No model and no file was changed by the call that raised it."""


class ActionSetError(CfptqError):
    """An action set that contradicts itself or names something unknown, or a row that breaks its rules."""


class DataError(CfptqError):
    """Rows or labels that cannot be used, such as NaN, a wrong shape or dtype, or an empty loader."""


class ModelError(CfptqError):
    """A model that cannot be read, captured, run or quantized."""


class BudgetError(CfptqError):
    """A bit budget that no allocation can meet."""


class FileError(CfptqError):
    """A file that is missing, cut off, corrupt, or not of the expected kind."""


class MissingDependencyError(CfptqError):
    """An optional package that is not installed. The message names the extra that installs it."""


class ConfigurationError(CfptqError):
    """A method, a setting or an argument that does not make sense."""


class RecipeError(ConfigurationError):
    """A recipe that cannot be read, or that does not make sense."""


class DataWarning(UserWarning):
    """Rows that are read in a way that their owner may not have meant."""


class ModelWarning(UserWarning):
    """A model that is read in a way that its owner may not have meant, or whose answers do not mean what they seem to."""


class SaturationWarning(UserWarning):
    """A file whose decisions change in a default session of ONNX Runtime, because int8 products saturate on this processor."""


def name_rows(rows: Sequence[int], most: int = 10) -> str:
    """Format row numbers for a message, the first ``most`` and the number of others."""
    shown = ", ".join(str(int(row)) for row in rows[:most])
    more = len(rows) - most
    return f"{shown} and {more} more" if more > 0 else shown
