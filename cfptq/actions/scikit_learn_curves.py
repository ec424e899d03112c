"""Reading of scikit-learn transformers that apply an increasing function with an inverse to each column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfptq.actions.column_mapping import TracedColumn
from cfptq.actions.curves import FUNCTIONS, NamedFunction, NumberEncoder, Numbers, PowerCurve, QuantileCurve, Scaling
from cfptq.errors import ActionSetError


@dataclass(frozen=True)
class FunctionPair:
    """A user's function and its inverse, from ``FunctionTransformer``."""

    function: Callable[[Any], Any]
    inverse: Callable[[Any], Any]

    def encode(self, values: Numbers) -> Numbers:
        return np.asarray(self.function(values[:, None]), dtype=np.float64).reshape(-1)

    def decode(self, columns: Numbers) -> Numbers:
        return np.asarray(self.inverse(columns[:, None]), dtype=np.float64).reshape(-1)


def read_curves(step: Any, columns: Sequence[TracedColumn]) -> list[tuple[NumberEncoder, ...]] | None:
    """Return the functions that a fitted step applies to each column, or ``None`` if it is of another kind.

    Raises:
        ActionSetError: a function has no inverse.
    """
    from sklearn import preprocessing

    if isinstance(step, preprocessing.FunctionTransformer):
        return [(_read_function(step, columns),)] * len(columns)
    if isinstance(step, preprocessing.PowerTransformer):
        curves: list[tuple[NumberEncoder, ...]] = [(PowerCurve(step.method, float(exponent)),) for exponent in step.lambdas_]
        if step.standardize:
            scaler = step._scaler
            return [
                (*parts, Scaling(float(mean), float(scale))) for parts, mean, scale in zip(curves, scaler.mean_, scaler.scale_, strict=True)
            ]
        return curves
    if isinstance(step, preprocessing.QuantileTransformer):
        shares = tuple(map(float, step.references_))
        return [
            (QuantileCurve(tuple(map(float, knots)), shares, step.output_distribution),)
            for knots in np.asarray(step.quantiles_, dtype=np.float64).T
        ]
    if callable(getattr(step, "encode", None)) and callable(getattr(step, "decode", None)):
        return [(step,)] * len(columns)
    return None


def _read_function(step: Any, columns: Sequence[TracedColumn]) -> NumberEncoder:
    for name, inverse in FUNCTIONS.items():
        if step.func is getattr(np, name) and step.inverse_func in (None, getattr(np, inverse, None)) and not step.kw_args:
            return NamedFunction(name)
    names = ", ".join(dict.fromkeys(column.feature for column in columns))
    if step.inverse_func is None:
        raise ActionSetError(
            f"FunctionTransformer on {names} has no inverse_func. Give one, or a step with the methods encode and decode of "
            "cfptq.actions.NumberEncoder."
        )
    if step.kw_args or step.inv_kw_args:
        raise ActionSetError(f"FunctionTransformer on {names} must have no kw_args. Bind them by functools.partial.")
    return FunctionPair(step.func, step.inverse_func)
