"""Prop. 5.1 at recourse points, with the perturbation ε measured instead of proven (Appendix L.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.network import Predictor, target_margin
from cfptq.network.head import decide


@dataclass(frozen=True, eq=False)
class MarginEstimate:
    """Estimate of Prop. 5.1 at N recourse points, with the measured ε̂ of eq. 61.

    It is no certificate, because ε̂ is a lower bound of ε. ``cfptq.auditing.RecourseProver`` proves.

    Attributes:
        margin: Full-precision target margin m_f(u*), (N,), in logits (eq. 63).
        epsilon: Largest change of a class logit in the ball around each point, its centre included, (N,), in logits (eq. 61).
        radius: Radius ρ of the ball, in columns.
        samples: Number J of points drawn in each ball beside its centre.
        first_order: Estimate of ε from the difference at the centre and its gradient, (N,), in logits (eqs. 65 and 66). NaN where a model
            has no gradient. Curvature is left out, and rounded activations have the straight-through gradient.
        fails: Points that f_q decides otherwise than the target, (N,) bool.
    """

    margin: Tensor
    epsilon: Tensor
    first_order: Tensor
    fails: Tensor
    radius: float
    samples: int

    @cached_property
    def holds(self) -> Tensor:
        """Points with m_f(u*) > 2 ε̂ (eq. 1), at which f_q decides the target, (N,) bool. The others are at risk (eq. 64)."""
        return self.margin > 2 * self.epsilon

    @property
    def risk(self) -> float:
        """Share of the points at risk (mean of eq. 64), NaN for no points."""
        return 1 - self.fraction

    @property
    def first_order_risk(self) -> float:
        """Share of the points with m_f(u*) ≤ 2 ε for the first-order estimate of ε, NaN for no points and without gradient."""
        if not len(self.margin) or bool(self.first_order.isnan().any()):
            return math.nan
        return float((self.margin <= 2 * self.first_order).double().mean())

    @property
    def failed(self) -> float:
        """Share of the points that f_q decides otherwise than the target, NaN for no points."""
        return float(self.fails.double().mean()) if len(self.fails) else math.nan

    @property
    def fraction(self) -> float:
        """Share of the points at which Prop. 5.1 holds, NaN for no points."""
        return float(self.holds.double().mean()) if len(self.holds) else math.nan

    def epsilon_quantile(self, share: float = 0.95) -> float:
        """Return the quantile of ε̂ at ``share``, in logits. A share of 1 gives the largest ε̂ (eq. 62)."""
        return float(torch.quantile(self.epsilon.double(), share)) if len(self.epsilon) else math.nan

    def __str__(self) -> str:
        return (
            f"Prop. 5.1 holds at an estimated {self.fraction:.1%} of {len(self.margin)} recourse points. ε was measured at "
            f"{self.samples + 1} points within {self.radius:g} of each, is below {self.epsilon_quantile():.3g} at 95 % of them and at most "
            f"{self.epsilon_quantile(1):.3g}. Measured ε is a lower bound. The quantized model refuses {self.failed:.1%} of the points"
        )


def estimate_margins(
    f: Predictor,
    f_q: Predictor,
    points: Tensor,
    target: Tensor,
    *,
    radius: float = 0.1,
    samples: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> MarginEstimate:
    """Measure ε around recourse points and compare it with their margins.

    Args:
        f: Full-precision model.
        f_q: Quantized model.
        points: Recourse points u*, (N, ...).
        target: Target classes, (N,).
        radius: Radius ρ of the balls, in columns. 0 measures at the points alone.
        samples: Number J of points drawn uniformly from each ball.
        seed: Seed of the draws.
        progress: Show progress where it takes long.

    Raises:
        DataError: The radius or the number of samples is negative, or targets do not fit.
    """
    if not (math.isfinite(radius) and radius >= 0) or samples < 0:
        raise DataError(f"radius and samples must be finite and not negative, got {radius} and {samples}.")
    if target.shape != points.shape[:1]:
        raise DataError(f"target must be one class for each of {len(points)} recourse points, got shape {tuple(target.shape)}.")
    if len(points) == 0:
        nothing = torch.zeros(0)
        return MarginEstimate(nothing, nothing, nothing, nothing.bool(), radius, samples)
    logits, quantized = f.logits(points), f_q.logits(points)
    epsilon = (quantized - logits).abs().amax(dim=1)
    first_order = estimate_first_order(f, f_q, points, radius)
    generator = torch.Generator().manual_seed(seed)
    for _ in track(range(samples if radius > 0 else 0), "measuring ε", enabled=progress):
        near = points + _sample_ball(points, radius, generator)
        epsilon = torch.maximum(epsilon, (f_q.logits(near) - f.logits(near)).abs().amax(dim=1))
    drawn = samples if radius > 0 else 0
    return MarginEstimate(target_margin(logits, target), epsilon, first_order, decide(quantized) != target, radius, drawn)


def estimate_first_order(f: Predictor, f_q: Predictor, points: Tensor, radius: float) -> Tensor:
    """Estimate ε in the ball around each point from the difference at its centre and that difference's gradient (eqs. 65 and 66).

    It is an estimate, and the true ε may be larger or smaller.

    Args:
        f: Full-precision model.
        f_q: Quantized model.
        points: Recourse points u*, (N, ...).
        radius: Radius ρ of the ℓ2 balls, in columns.

    Returns:
        The estimates, (N,), in logits, NaN where a model has no gradient.
    """
    if not (f.is_differentiable and f_q.is_differentiable):
        return torch.full((len(points),), math.nan)
    with torch.enable_grad():
        rows = points.detach().clone().requires_grad_(True)
        difference = f_q.surrogate(rows) - f.surrogate(rows)
        slopes = [
            torch.autograd.grad(difference[:, c].sum(), rows, retain_graph=True, allow_unused=True)[0] for c in range(difference.shape[1])
        ]
    steepness = torch.stack([torch.zeros(len(points)) if slope is None else slope.flatten(1).norm(dim=1) for slope in slopes]).amax(dim=0)
    # The change at the centre is that of the artefacts, which the differentiable forms may differ from.
    return (f_q.logits(points) - f.logits(points)).abs().amax(dim=1) + radius * steepness


def _sample_ball(points: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Draw one offset for each point, uniformly from the ℓ2 ball of ``radius`` around 0."""
    direction = torch.randn(points.shape, generator=generator)
    size = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    length = radius * torch.rand(len(points), generator=generator) ** (1 / direction[0].numel())
    scale: Tensor = (length / size).reshape(-1, *[1] * (points.dim() - 1))
    return direction * scale
