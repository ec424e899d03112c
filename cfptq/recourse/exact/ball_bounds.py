"""Sound lower bounds of target margins in balls around points, for the network as it is computed in float32.

Intervals and linear relaxations are propagated layer by layer for many points at once. Rounded activations are enclosed by the rounded ends
of their interval or by a band of half a step. The float32 error of each affine map is bounded by its number of roundings times the sum of
magnitudes, so that the bounds hold for any order of the sums. The error of the bounds' own float64 arithmetic is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfptq.recourse.exact.relu_encoding import Affine, Array, Magnitudes, PiecewiseLinearNetwork

#: Unit roundoff of float32.
_ROUNDOFF = 2.0**-24
#: Roundings allowed beside those that the graph shows. Kernels may multiply scales and convert integers first.
_EXTRA_ROUNDINGS = 16
#: Relative error allowed for the bounds' own sums in float64.
_DOUBLE_ERROR = 1e-11
#: Points that are bounded at once.
_CHUNK_POINTS = 32


@dataclass(frozen=True, eq=False)
class _Units:
    """Lines below and above the outputs of a nonlinearity as functions of its inputs. All arrays are (N, n)."""

    slope_low: Array
    offset_low: Array
    slope_high: Array
    offset_high: Array


@dataclass(frozen=True, eq=False)
class _Layer:
    """An affine map with what propagation needs of it.

    Attributes:
        function: The map.
        magnitude: Map from magnitudes of v to its sums of magnitudes.
        roundoff: Relative float32 error of the sum of magnitudes.
        sources: The one entry of v that each output depends on, all different, (n,), or None where there are others.
        factors: Coefficient of that entry, (n,).
    """

    function: Affine
    magnitude: Affine
    roundoff: float
    sources: npt.NDArray[np.intp] | None
    factors: Array

    def bound_error(self, reach: Array) -> Array:
        """Bound the float32 error of the outputs, (N, n), for magnitudes (N, w) of v."""
        sums = reach[:, : self.magnitude.matrix.shape[1]] @ self.magnitude.matrix.T + self.magnitude.offset
        return np.asarray(self.roundoff * sums + 1e-30)


class BallBounds:
    """Bounds of one network.

    Args:
        network: Network in exact arithmetic.
        magnitudes: Its sums of magnitudes, from the same graph.
    """

    def __init__(self, network: PiecewiseLinearNetwork, magnitudes: Magnitudes) -> None:
        self.network = network
        # The factor covers the terms of second order and the float64 error of the sums.
        roundoff = 1.01 * (magnitudes.roundings + _EXTRA_ROUNDINGS) * _ROUNDOFF
        self.roundoff = roundoff
        self.logit_magnitudes = magnitudes.logits
        self.layers = [
            _read_layer(layer.preactivation, magnitude, roundoff)
            for layer, magnitude in zip(network.nonlinearities, magnitudes.preactivations, strict=True)
        ]

    def bound_margins(self, points: Array, target: npt.NDArray[np.int64], radius: float) -> Array:
        """Bound the least target margin in the ball around each point from below, (N,), in logits.

        Args:
            points: Points, (N, d).
            target: Target classes, (N,).
            radius: Radius of the ℓ2 balls, in columns.
        """
        low = np.empty(len(points))
        for start in range(0, len(points), _CHUNK_POINTS):
            part = slice(start, start + _CHUNK_POINTS)
            low[part] = self._bound_chunk(points[part], target[part], radius)
        return low

    def _bound_chunk(self, points: Array, target: npt.NDArray[np.int64], radius: float) -> Array:
        widened = radius * (1 + _DOUBLE_ERROR)
        low, high = points - widened, points + widened
        units: list[_Units] = []
        for layer, nonlinearity in zip(self.layers, self.network.nonlinearities, strict=True):
            reach = np.maximum(np.abs(low), np.abs(high))
            error = layer.bound_error(reach)
            least, most = _bound_by_intervals(layer.function, low, high)
            if layer.sources is None:
                matrix = np.concatenate((layer.function.matrix, -layer.function.matrix))
                offset = np.concatenate((layer.function.offset, -layer.function.offset))
                bound = self._bound_below(
                    np.broadcast_to(matrix, (len(points), *matrix.shape)).copy(),
                    np.broadcast_to(offset, (len(points), len(offset))),
                    units, reach, points, radius,
                )  # fmt: skip
                size = layer.function.size
                least, most = np.maximum(least, bound[:, :size]), np.minimum(most, -bound[:, size:])
            unit, bottom, top = _relax(nonlinearity.kind, least - 1.01 * error, most + 1.01 * error)
            units.append(unit)
            low, high = np.concatenate((low, bottom), axis=1), np.concatenate((high, top), axis=1)
        return self._bound_target(target, units, np.maximum(np.abs(low), np.abs(high)), points, radius)

    def _bound_target(self, target: npt.NDArray[np.int64], units: list[_Units], reach: Array, points: Array, radius: float) -> Array:
        logits, width = self.network.logits, self.network.total_width
        others = np.array([[c for c in range(logits.size) if c != wanted] for wanted in target])
        matrix, own = logits.pad(width), self.logit_magnitudes.pad(width)
        sums = self.roundoff * (reach @ own.T + self.logit_magnitudes.offset) + 1e-30
        error = np.take_along_axis(sums, target[:, None], 1) + np.take_along_axis(sums, others, 1)
        offset = logits.offset[target][:, None] - logits.offset[others]
        bound = self._bound_below(matrix[target][:, None, :] - matrix[others], offset, units, reach, points, radius)
        return np.asarray((bound - 1.01 * error).min(axis=1))

    def _bound_below(self, matrix: Array, offset: Array, units: list[_Units], reach: Array, points: Array, radius: float) -> Array:
        """Bound R functions of v from below for each of N points, (N, R).

        Args:
            matrix: Coefficients, (N, R, w). They are overwritten.
            offset: Constants, (N, R).
            units: Relaxed nonlinearities whose outputs are among the w entries.
            reach: Largest magnitudes of v, (N, at least w).
            points: Centres of the balls, (N, d).
            radius: Radius of the balls.
        """
        magnitude = np.abs(offset)
        for layer, nonlinearity, unit in reversed(list(zip(self.layers, self.network.nonlinearities, units, strict=False))):
            part = matrix[:, :, nonlinearity.start : nonlinearity.start + nonlinearity.size]
            if not part.any():
                continue
            up, down = np.maximum(part, 0), np.minimum(part, 0)
            constants = np.einsum("nrs,ns->nr", up, unit.offset_low) + np.einsum("nrs,ns->nr", down, unit.offset_high)
            magnitude = magnitude + np.einsum("nrs,ns->nr", up, np.abs(unit.offset_low))
            magnitude = magnitude - np.einsum("nrs,ns->nr", down, np.abs(unit.offset_high))
            part = up * unit.slope_low[:, None] + down * unit.slope_high[:, None]
            size = np.abs(part)
            error = 1.01 * layer.bound_error(reach)
            sums = reach[:, : layer.magnitude.matrix.shape[1]] @ layer.magnitude.matrix.T + layer.magnitude.offset
            offset = offset + constants + part @ layer.function.offset - np.einsum("nrs,ns->nr", size, error)
            magnitude = magnitude + np.einsum("nrs,ns->nr", size, sums + error)
            if layer.sources is None:
                inner = layer.function.matrix
                matrix[:, :, : inner.shape[1]] += part @ inner
            else:
                matrix[:, :, layer.sources] += part * layer.factors
        direct = matrix[:, :, : self.network.width]
        magnitude = magnitude + np.einsum("nrd,nd->nr", np.abs(direct), np.abs(points) + radius)
        lowest = offset + np.einsum("nrd,nd->nr", direct, points) - radius * np.linalg.norm(direct, axis=2)
        return np.asarray(lowest - _DOUBLE_ERROR * (1 + magnitude))


def _read_layer(function: Affine, magnitude: Affine, roundoff: float) -> _Layer:
    is_used = function.matrix != 0
    sources = is_used.argmax(axis=1) if bool((is_used.sum(axis=1) == 1).all()) else None
    if sources is not None and len(np.unique(sources)) < len(sources):
        sources = None
    factors = np.zeros(0) if sources is None else function.matrix[np.arange(function.size), sources]
    return _Layer(function, magnitude, roundoff, sources, factors)


def _bound_by_intervals(function: Affine, low: Array, high: Array) -> tuple[Array, Array]:
    """Bound an affine map of entries of v between ``low`` and ``high``, (N, w) each."""
    width = function.matrix.shape[1]
    positive, negative = np.maximum(function.matrix, 0), np.minimum(function.matrix, 0)
    low, high = low[:, :width], high[:, :width]
    return low @ positive.T + high @ negative.T + function.offset, high @ positive.T + low @ negative.T + function.offset


def _relax(kind: str, low: Array, high: Array) -> tuple[_Units, Array, Array]:
    """Relax a nonlinearity for inputs between ``low`` and ``high``. Return its lines and the range of its outputs."""
    one, zero = np.ones_like(low), np.zeros_like(low)
    if kind == "round":
        bottom, top = np.rint(low), np.rint(high)
        # Between neighbouring integers, two constants enclose the outputs as closely as a band does.
        is_flat = top - bottom <= 1
        slope, half = np.where(is_flat, zero, one), 0.5 + _DOUBLE_ERROR * np.maximum(np.abs(low), np.abs(high))
        return _Units(slope, np.where(is_flat, bottom, -half), slope, np.where(is_flat, top, half)), bottom, top
    is_unstable = (low < 0) & (high > 0)
    is_active = (low >= 0).astype(np.float64)
    above = np.where(is_unstable, high / np.where(is_unstable, high - low, 1.0), is_active)
    intercept = np.where(is_unstable, -above * low * (1 + _DOUBLE_ERROR) + _DOUBLE_ERROR * high, 0.0)
    below = np.where(is_unstable, (high > -low).astype(np.float64), is_active)
    return _Units(below, zero, above, intercept), np.maximum(low, 0), np.maximum(high, 0)
