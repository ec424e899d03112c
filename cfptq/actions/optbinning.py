"""Reading of optbinning's ``BinningProcess``, which shows each bin of numbers or group of categories as one number.

The package optbinning itself is not imported. A fitted process tells all by its own ``transform``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from cfptq.actions.column_mapping import TracedColumn
from cfptq.actions.validation import Level, to_python_value
from cfptq.errors import ActionSetError

_SLACK = 1e-12
_UNLISTED = "(a value that no training row has)"


def is_binning_process(step: Any) -> bool:
    """Return whether a step of a pipeline is a ``BinningProcess`` of optbinning."""
    return type(step).__name__ == "BinningProcess" and type(step).__module__.split(".")[0] == "optbinning"


def trace_binning_process(step: Any, columns: list[TracedColumn], require_raw: Callable[[Any, TracedColumn], None]) -> list[TracedColumn]:
    """Return the columns of the variables that a fitted process selected.

    Args:
        step: the process.
        columns: its input columns, in the order of its variables.
        require_raw: raises unless a column still holds the raw value.

    Raises:
        ActionSetError: the process reads codes of missing values, or shows a bin as text.
    """
    names = [str(name) for name in step.variable_names]
    if step.special_codes:
        raise ActionSetError("BinningProcess must have no special_codes. Replace them by NaN in the frame first.")
    for column in columns:
        require_raw(step, column)
    binned = {name: step.get_binned_variable(name) for name in names}
    samples = {name: _list_samples(binned[name]) for name in names}
    rows = 2 + max(len(listed) for listed in samples.values())
    frame = pd.DataFrame({name: _build_series(binned[name], samples[name], rows) for name in names})
    shown = step.transform(frame)
    chosen = [str(name) for name in step.get_support(names=True)]
    result = []
    for name in chosen:
        try:
            values = np.asarray(shown[name], dtype=np.float64)
        except ValueError as error:
            raise ActionSetError(
                f"BinningProcess shows {name!r} as text. Fit it so that its transform gives numbers, such as weights of evidence."
            ) from error
        column = columns[names.index(name)]
        count, missing, unlisted = len(samples[name]), float(values[-1]), float(values[-2])
        if binned[name].dtype == "categorical":
            is_alike = abs(missing - unlisted) <= _SLACK  # The mean of several values differs from zero by rounding.
            result.append(
                dataclasses.replace(
                    column,
                    base="code",
                    categories=tuple(samples[name]),
                    values=tuple(values[:count].tolist()),
                    unknown=unlisted,
                    missing_as="nan",
                    missing_code=None if is_alike else missing,
                )
            )
            continue
        result.append(_join_equal_bins(column, [float(edge) for edge in binned[name].splits], values[:count].tolist(), missing))
    return result


def _list_samples(variable: Any) -> list[Level]:
    """Return the categories of a variable, or one number of each of its bins."""
    if variable.dtype == "categorical":
        return [to_python_value(category) for group in variable.splits for category in group]
    edges = [float(edge) for edge in variable.splits]
    return [edges[0] - max(1.0, abs(edges[0])), *edges] if edges else [0.0]


def _build_series(variable: Any, samples: list[Level], rows: int) -> pd.Series[Any]:
    """Return a series of the samples, an unlisted value and a missing one at the end, filled up by repetition."""
    is_text = variable.dtype == "categorical"
    filled = [samples[place % len(samples)] for place in range(rows - 2)]
    return pd.Series([*filled, _UNLISTED if is_text else samples[0], np.nan], dtype=object if is_text else np.float64)


def _join_equal_bins(column: TracedColumn, edges: list[float], values: list[float], missing: float) -> TracedColumn:
    """Return the column of a binned number. Neighbouring bins with the same value are one to the model."""
    kept = [place for place in range(len(edges)) if values[place] != values[place + 1]]
    joined = [values[place] for place in kept] + [values[-1]]
    if len(set(joined)) < len(joined):
        raise ActionSetError(f"BinningProcess shows bins of {column.feature!r} alike that are no neighbours. Fit it with fewer bins.")
    return dataclasses.replace(
        column,
        base="code",
        categories=tuple(range(len(joined))),
        edges=tuple(edges[place] for place in kept),
        values=tuple(joined),
        unknown=missing,
        missing_as="nan",
    )
