"""Increasing functions by which encoders map a number to a column, each with its inverse.

A step of a scikit-learn pipeline that is none of scikit-learn's own may follow the protocol ``NumberEncoder``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from cfptq.actions.validation import parse_finite_number
from cfptq.errors import ActionSetError
from cfptq.io.suggestions import did_you_mean

Numbers: TypeAlias = npt.NDArray[np.float64]

FUNCTIONS: dict[str, str] = {"log1p": "expm1", "log": "exp", "log2": "exp2", "sqrt": "square", "cbrt": "cube", "arcsinh": "sinh"}
"""NumPy functions that increase where they are defined, and the inverse of each."""

_QUANTILE_CLIP = 1e-7  # scikit-learn's BOUNDS_THRESHOLD: quantiles this close to 0 or 1 are mapped to 0 or 1.


NORMAL_LIMITS = (-5.199337582605575, 5.19933758270342)
"""Least and greatest value that ``QuantileTransformer`` gives with a normal distribution."""


@runtime_checkable
class NumberEncoder(Protocol):
    """A map of one number to one column, increasing, whose inverse is known."""

    def encode(self, values: Numbers) -> Numbers:
        """Return the column for raw numbers, both ``(N,)``."""
        ...

    def decode(self, columns: Numbers) -> Numbers:
        """Return raw numbers that ``encode`` maps to the column, or next to it, both ``(N,)``."""
        ...


@dataclass(frozen=True)
class Scaling:
    """The map ``(value - offset) / scale``."""

    kind: ClassVar[str] = "scaling"
    offset: float
    scale: float

    def __post_init__(self) -> None:
        for name in ("offset", "scale"):
            object.__setattr__(self, name, parse_finite_number(getattr(self, name), f"curve: {name}"))
        if self.scale <= 0:
            raise ActionSetError(f"curve: scale must be above 0, got {self.scale:g}.")

    def encode(self, values: Numbers) -> Numbers:
        return (values - self.offset) / self.scale

    def decode(self, columns: Numbers) -> Numbers:
        return columns * self.scale + self.offset


@dataclass(frozen=True)
class NamedFunction:
    """A function of NumPy from ``FUNCTIONS``."""

    kind: ClassVar[str] = "function"
    name: str

    def __post_init__(self) -> None:
        if self.name not in FUNCTIONS:
            raise ActionSetError(
                f"curve: the function must be one of {', '.join(FUNCTIONS)}, got {self.name!r}{did_you_mean(str(self.name), FUNCTIONS)}."
            )

    def encode(self, values: Numbers) -> Numbers:
        return np.asarray(getattr(np, self.name)(values), dtype=np.float64)

    def decode(self, columns: Numbers) -> Numbers:
        if self.name == "sqrt":
            return np.square(np.maximum(columns, 0.0))
        return np.asarray(columns**3 if self.name == "cbrt" else getattr(np, FUNCTIONS[self.name])(columns), dtype=np.float64)


@dataclass(frozen=True)
class PowerCurve:
    """The Box-Cox or Yeo-Johnson transform.

    Attributes:
        method: ``"box-cox"`` or ``"yeo-johnson"``.
        exponent: λ of the transform.
    """

    kind: ClassVar[str] = "power"
    method: str
    exponent: float

    def __post_init__(self) -> None:
        if self.method not in ("box-cox", "yeo-johnson"):
            raise ActionSetError(f'curve: method must be "box-cox" or "yeo-johnson", got {self.method!r}.')
        object.__setattr__(self, "exponent", parse_finite_number(self.exponent, "curve: exponent"))

    def encode(self, values: Numbers) -> Numbers:
        from scipy.special import boxcox, boxcox1p

        if self.method == "box-cox":
            return np.asarray(boxcox(values, self.exponent), dtype=np.float64)
        up = boxcox1p(np.maximum(values, 0.0), self.exponent)
        down = -boxcox1p(np.maximum(-values, 0.0), 2.0 - self.exponent)
        return np.where(values >= 0, up, down)

    def decode(self, columns: Numbers) -> Numbers:
        from scipy.special import inv_boxcox, inv_boxcox1p

        if self.method == "box-cox":
            return np.asarray(inv_boxcox(columns, self.exponent), dtype=np.float64)
        up = inv_boxcox1p(np.maximum(columns, 0.0), self.exponent)
        down = -inv_boxcox1p(np.maximum(-columns, 0.0), 2.0 - self.exponent)
        return np.where(columns >= 0, up, down)


@dataclass(frozen=True)
class QuantileCurve:
    """Linear interpolation between quantiles, as ``QuantileTransformer`` does it.

    Attributes:
        quantiles: raw values at ``references``, which do not fall.
        references: shares between 0 and 1, which rise.
        distribution: ``"uniform"`` or ``"normal"``.
    """

    kind: ClassVar[str] = "quantile"
    quantiles: tuple[float, ...]
    references: tuple[float, ...]
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        for name in ("quantiles", "references"):
            values = tuple(parse_finite_number(value, f"curve: {name}") for value in getattr(self, name))
            object.__setattr__(self, name, values)
        if len(self.quantiles) != len(self.references) or len(self.quantiles) < 2 or np.any(np.diff(self.quantiles) < 0):
            raise ActionSetError("curve: quantiles must be at least 2 numbers that do not fall, one for each of references.")
        if self.distribution not in ("uniform", "normal"):
            raise ActionSetError(f'curve: distribution must be "uniform" or "normal", got {self.distribution!r}.')

    def encode(self, values: Numbers) -> Numbers:
        from scipy.special import ndtri

        knots, shares = np.array(self.quantiles), np.array(self.references)
        result = 0.5 * (np.interp(values, knots, shares) - np.interp(-values, -knots[::-1], -shares[::-1]))
        slack = _QUANTILE_CLIP if self.distribution == "normal" else 0.0
        result = np.where(values + slack > knots[-1] if slack else values == knots[-1], 1.0, result)
        result = np.where(values - slack < knots[0] if slack else values == knots[0], 0.0, result)
        if self.distribution == "uniform":
            return result
        return np.clip(ndtri(result), *NORMAL_LIMITS)

    def decode(self, columns: Numbers) -> Numbers:
        from scipy.special import ndtr

        shares = ndtr(columns) if self.distribution == "normal" else columns
        knots = np.array(self.quantiles)
        result = np.interp(shares, self.references, knots)
        if self.distribution == "normal":
            result = np.where(shares < 2 * _QUANTILE_CLIP, knots[0], np.where(1 - shares < 2 * _QUANTILE_CLIP, knots[-1], result))
        return np.asarray(result, dtype=np.float64)


Curve: TypeAlias = NumberEncoder
_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Scaling, NamedFunction, PowerCurve, QuantileCurve)}


def format_curve(curve: Curve, name: str) -> dict[str, Any]:
    """Return a curve as a mapping for YAML.

    Args:
        curve: the curve.
        name: name of the feature, for messages.

    Raises:
        ActionSetError: the curve is a user's own.
    """
    if type(curve) not in _KINDS.values():
        raise ActionSetError(
            f"{name}: the encoder {type(curve).__name__} is your own, so that an action-set file cannot hold it. "
            "Save the set before encoded_by, and encode it again after loading."
        )
    fields = {field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)}  # type: ignore[arg-type]
    return {"kind": curve.kind, **{key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}}  # type: ignore[attr-defined]


def parse_curve(entry: Any, name: str) -> Curve:
    """Return the curve of a mapping that ``format_curve`` made.

    Raises:
        ActionSetError: the mapping describes no curve.
    """
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ActionSetError(f"{name}: curve must list mappings whose kind is one of {', '.join(_KINDS)}, got {entry!r:.80}.")
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key != "kind"}
    try:
        result: Curve = _KINDS[kind](**fields)
    except TypeError as error:
        raise ActionSetError(f"{name}: curve: {str(error).replace('__init__() ', '')}.") from error
    return result
