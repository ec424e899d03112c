"""How much recourse Prop. 5.1 vouches for, with the perturbation ε measured instead of proven (Appendix L.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cfptq.errors import DataError
from cfptq.io.progress import track
from cfptq.network import Predictor, target_margin


@dataclass(frozen=True, eq=False)
class MarginEstimate:
    """Prop. 5.1 at N recourse points with the estimated ε̂ of eq. 61. An estimate: ε̂ is a lower bound, so this is no certificate.

    Attributes:
        margin: (N,) full-precision target margin m_f(u*) (eq. 63).
        epsilon: (N,) largest change of a class logit seen in the ball around each point, the point itself included (eq. 61).
        radius: ρ of the ball, in columns.
        samples: J, points drawn in each ball beside its centre.
    """

    margin: Tensor
    epsilon: Tensor
    radius: float
    samples: int

    @cached_property
    def holds(self) -> Tensor:
        """(N,) where m_f(u*) > 2 ε̂ (eq. 1): the complement of eq. 64's risk. At these points f_q decides the target."""
        return self.margin > 2 * self.epsilon

    @property
    def fraction(self) -> float:
        """Share of the points at which it holds; NaN for no points."""
        return float(self.holds.double().mean()) if len(self.holds) else math.nan

    def epsilon_quantile(self, share: float = 0.95) -> float:
        """ε̂ that ``share`` of the points stay below; 1 gives the largest (eq. 62)."""
        return float(torch.quantile(self.epsilon.double(), share)) if len(self.epsilon) else math.nan

    def __str__(self) -> str:
        return (
            f"Prop. 5.1 holds at an estimated {self.fraction:.1%} of {len(self.margin)} recourse points (ε measured at {self.samples + 1} "
            f"points within {self.radius:g} of each: 95 % below {self.epsilon_quantile():.3g}, at most {self.epsilon_quantile(1):.3g}); "
            "ε so measured is a lower bound"
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
    """Measure ε around recourse points and ask where the margin exceeds twice that.

    Args:
        f, f_q: the full-precision and the quantized model.
        points: (N, ...) recourse points u*.
        target: (N,) classes.
        radius: ρ; 0 looks at the points alone.
        samples: J, drawn uniformly from each ball.
        seed: of the draws.
        progress: show a bar when it takes long.

    Raises:
        DataError: a negative radius or number of samples, or targets that do not fit.
    """
    if not (math.isfinite(radius) and radius >= 0) or samples < 0:
        raise DataError(f"radius and samples must be finite and not negative, but are {radius} and {samples}")
    if target.shape != points.shape[:1]:
        raise DataError(f"{tuple(target.shape)} targets for {len(points)} recourse points; give one class for each")
    if len(points) == 0:
        nothing = torch.zeros(0)
        return MarginEstimate(nothing, nothing, radius, samples)
    logits = f.logits(points)
    epsilon = (f_q.logits(points) - logits).abs().amax(dim=1)
    generator = torch.Generator().manual_seed(seed)
    for _ in track(range(samples if radius > 0 else 0), "measuring ε", enabled=progress):
        near = points + _in_ball(points, radius, generator)
        epsilon = torch.maximum(epsilon, (f_q.logits(near) - f.logits(near)).abs().amax(dim=1))
    return MarginEstimate(target_margin(logits, target), epsilon, radius, samples if radius > 0 else 0)


def _in_ball(points: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """One draw for each point, uniform in the ℓ2 ball of ``radius`` around 0."""
    direction = torch.randn(points.shape, generator=generator)
    size = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    length = radius * torch.rand(len(points), generator=generator) ** (1 / direction[0].numel())
    scale: Tensor = (length / size).reshape(-1, *[1] * (points.dim() - 1))
    return direction * scale
