"""Proofs that recourse holds, at the point that was advised and for every deviation from it within a radius."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfptq.errors import DataError, ModelError
from cfptq.network import Head, Predictor, target_margin
from cfptq.network.head import decide
from cfptq.network.predictor import ArtefactPredictor
from cfptq.recourse.exact import BallBounds, Purpose, capture_network, compare_with_artefact, read_magnitudes, read_piecewise_linear

_PURPOSE = Purpose("A proof of recourse", "Estimate the margins instead, or leave the proof out.")
#: Error of a probability that a sigmoid or softmax computes in float32. Its own formula differs between processors.
_PROBABILITY_ERROR = 1e-6
#: Relative float32 error of a margin that is computed from two logits.
_ROUNDED_MARGIN = 1e-6


@dataclass(frozen=True, eq=False)
class RecourseProof:
    """Proven lower bounds of a model's target margin in balls around N recourse points.

    Attributes:
        margin_low: Lower bound of the target margin at every point of each ball, (N,), in logits.
        radius: Radius ρ of the ℓ2 balls, in columns. 0 is the point alone.
    """

    margin_low: Tensor
    radius: float

    @property
    def holds(self) -> Tensor:
        """Points at which the model is proven to decide the target in the whole ball, (N,) bool. Nothing is known about the others."""
        return self.margin_low > 0

    @property
    def fraction(self) -> float:
        """Proven share of the points, NaN for no points."""
        return float(self.holds.double().mean()) if len(self.holds) else math.nan

    def __str__(self) -> str:
        where = "at the point itself" if self.radius == 0 else f"for every deviation of at most {self.radius:g} from the point"
        return f"Recourse is proven to hold {where} for {self.fraction:.1%} of {len(self.holds)} recourse points"


class RecourseProver:
    """A model's graph, read once, from which proofs about the model are computed.

    A proof is by linear relaxations of the graph. It counts the rounding of activations and of float32 sums in any order. It is about
    the model as ``logits`` runs it, so for ONNX files without saturation of 8-bit products.

    Args:
        predictor: Predictor of a module or an ONNX file of Linear, ReLU and similar layers, quantized or not.
        example: Rows that the model is meant for, (N, d) float32. The graph is compared with the model on them.

    Raises:
        ModelError: The model's graph cannot be read, or the model computes something else than its graph.
    """

    def __init__(self, predictor: Predictor, example: Tensor) -> None:
        graph = capture_network(predictor, example, _PURPOSE)
        network = read_piecewise_linear(*graph, _PURPOSE)
        compare_with_artefact(network, predictor, example, _PURPOSE)
        self.predictor = predictor
        self._bounds = BallBounds(network, read_magnitudes(*graph, _PURPOSE))
        self._slack = _bound_head_error(predictor)

    def prove(self, points: Tensor, target: Tensor, *, radius: float = 0.0) -> RecourseProof:
        """Prove at which recourse points the model decides the target, also for every deviation within a radius.

        The model is also run at every point. A decision or margin that contradicts the proof is an error.

        Args:
            points: Recourse points u*, (N, d) float32.
            target: Target classes, (N,).
            radius: Radius ρ of the ℓ2 ball around each point in which recourse must hold, in columns. 0 takes the points alone.

        Raises:
            DataError: The radius is negative, or points and targets do not fit.
            ModelError: The model contradicts its graph.
        """
        if not (math.isfinite(radius) and radius >= 0):
            raise DataError(f"radius must be finite and not negative, got {radius}.")
        if target.shape != points.shape[:1]:
            raise DataError(f"target must be one class for each of {len(points)} recourse points, got shape {tuple(target.shape)}.")
        if len(points) == 0:
            return RecourseProof(torch.zeros(0, dtype=torch.float64), radius)
        points = points.detach().float()
        rows, classes = points.double().numpy(), target.numpy().astype(np.int64)
        low = torch.from_numpy(self._bounds.bound_margins(rows, classes, radius) - self._slack)
        logits = self.predictor.logits(points)
        is_wrong = decide(logits) != target
        if not self._slack:  # Probabilities near 0 and 1 have no exact logit, so that only decisions are compared there.
            is_wrong |= target_margin(logits, target).double() < low - _ROUNDED_MARGIN * (1 + low.abs())
        contradicted = int((is_wrong & (low > 0)).sum())
        if contradicted:
            raise ModelError(
                f"{self.predictor.name} does not compute what its graph says at {contradicted} points, so that nothing can be proven "
                f"about it. {_PURPOSE.remedy}"
            )
        return RecourseProof(low, radius)


def _bound_head_error(predictor: Predictor) -> float:
    """Bound the error in logits that a last sigmoid or softmax adds at the threshold."""
    if not isinstance(predictor, ArtefactPredictor) or predictor.head in (Head.LOGIT, Head.LOGITS):
        return 0.0
    threshold = 0.5 if predictor.threshold is None else predictor.threshold
    return _PROBABILITY_ERROR / (threshold * (1 - threshold))
