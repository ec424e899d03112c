"""Observations, estimates and proofs about recourse that the full-precision model grants, each named as what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cfptq.auditing.margin_estimate import MarginEstimate, estimate_margins
from cfptq.auditing.recourse_proof import RecourseProof, RecourseProver
from cfptq.errors import ModelError
from cfptq.io.json import canonicalize
from cfptq.network import Predictor
from cfptq.network.head import decide


@dataclass(frozen=True, eq=False)
class Robustness:
    """Findings on whether granted recourse stands up to quantization and to small deviations.

    Attributes:
        about: What the points are, "letters" or the name of the recourse.
        estimate: Measured and estimated logit perturbation ε, the share at risk and the points that fail.
        at_point: Proof about the quantized model at the points. None if its graph cannot be read.
        around: The same for every deviation within the radius.
        around_before: The same about the full-precision model. None if its graph cannot be read.
        obstacles: Sentences on why a proof is missing.
    """

    about: str
    estimate: MarginEstimate
    at_point: RecourseProof | None
    around: RecourseProof | None
    around_before: RecourseProof | None
    obstacles: tuple[str, ...] = ()

    @property
    def radius(self) -> float:
        """Radius ρ of the ℓ2 balls, in columns."""
        return self.estimate.radius

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.estimate.margin)

    @property
    def proven_on_both(self) -> float:
        """Share of points at which both models are proven to decide the target in the whole ball. NaN without both proofs."""
        if self.around is None or self.around_before is None or not self.count:
            return math.nan
        return float((self.around.holds & self.around_before.holds).double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, by what kind of statement they are."""
        proofs = {
            "quantized_at_point": self.at_point, "quantized_within_radius": self.around, "full_precision_within_radius": self.around_before
        }  # fmt: skip
        risky = ~self.estimate.holds
        result: dict[str, Any] = canonicalize(
            {
                "about": self.about,
                "count": self.count,
                "radius": self.radius,
                "observed": {"held": 1 - self.estimate.failed},
                "estimated": {
                    "at_risk": self.estimate.risk,
                    "at_risk_first_order": self.estimate.first_order_risk,
                    "failing_at_risk": _divide(int((risky & self.estimate.fails).sum()), int(self.estimate.fails.sum())),
                    "epsilon_p95": self.estimate.epsilon_quantile(),
                    "epsilon_max": self.estimate.epsilon_quantile(1),
                    "samples": self.estimate.samples,
                },
                "proven": {
                    **{name: None if proof is None else proof.fraction for name, proof in proofs.items()},
                    "both_within_radius": self.proven_on_both,
                },
                "obstacles": self.obstacles,
            }
        )
        return result


def examine_robustness(
    f: Predictor, f_q: Predictor, points: Tensor, target: Tensor, *, example: Tensor, about: str, radius: float, seed: int, progress: bool
) -> Robustness:
    """Estimate and prove whether recourse that the full-precision model grants holds on the quantized one.

    Args:
        f: Full-precision model.
        f_q: Quantized model.
        points: Recourse points, (N, d). Those that f does not grant are left out.
        target: Target classes, (N,).
        example: Rows that the models are meant for.
        about: What the points are.
        radius: Radius ρ of the ℓ2 balls, in columns.
        seed: Seed of the draws that measure ε.
        progress: Show progress where it takes long.
    """
    if len(points):
        granted = decide(f.logits(points)) == target
        points, target = points[granted], target[granted]
    estimate = estimate_margins(f, f_q, points, target, radius=radius, seed=seed, progress=progress)
    obstacles: list[str] = []

    def prove(predictor: Predictor, *radii: float) -> list[RecourseProof | None]:
        try:
            prover = RecourseProver(predictor, example)
            return [prover.prove(points, target, radius=each) for each in radii]
        except ModelError as error:
            obstacles.append(f"Nothing is proven about {predictor.name}. {error}")
            return [None] * len(radii)

    at_point, around = prove(f_q, 0.0, radius)
    (before,) = prove(f, radius)
    return Robustness(about, estimate, at_point, around, before, tuple(obstacles))


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None
