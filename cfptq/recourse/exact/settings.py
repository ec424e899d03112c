"""Settings of exact recourse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from cfptq.errors import DataError
from cfptq.recourse.confidence import check_confidence, margin_at_confidence
from cfptq.recourse.minimal_cost import MinimalCost


@dataclass(frozen=True)
class Exact:
    """Settings of exact recourse, which finds the cheapest action with a proof.

    If time runs out, the best action found comes with a lower bound of the cost.

    Attributes:
        confidence: Probability of the target against the strongest other class that a point must have, default 0.5 (the decision).
        time_limit: Seconds for each row, default 10. After it the best action found is returned with the bound reached.
        gap: Relative difference between cost and bound at which an action counts as optimal, default 1e-4.
        slack: Logits by which a point must lie beyond the required margin, default 1e-5. The optimum is that over such points.
        max_enumerated: Up to this many admissible actions are enumerated, cheapest first, and evaluated in the artefact, default
            200,000. More actions are left to branch and bound or to one mixed-integer program. 0 turns enumeration off.
        use_regions: Try branch and bound over regions of actions first, default True. It covers l1 costs and networks without
            activation quantizers. ``False`` always solves one mixed-integer program.
        activations: ``"rounded"`` (default) models each activation quantizer by an integer variable, exactly as the network computes.
            ``"relaxed"`` lets each rounded value lie anywhere within half a step, which is faster. Bounds stay sound, but actions
            are the heuristic's. The batch's ``method`` names the choice.
        heuristic: Search whose cost is the upper bound to start from. Its confidence and slack are replaced by those above.
    """

    confidence: float = 0.5
    time_limit: float = 10.0
    gap: float = 1e-4
    slack: float = 1e-5
    max_enumerated: int = 200_000
    use_regions: bool = True
    activations: Literal["rounded", "relaxed"] = "rounded"
    heuristic: MinimalCost = field(default_factory=lambda: MinimalCost(effort="thorough"))

    def __post_init__(self) -> None:
        check_confidence(self)
        if not self.time_limit > 0:
            raise DataError(f"Exact.time_limit must be a positive number of seconds for each row, got {self.time_limit}.")
        if not 0 <= self.gap < 1:
            raise DataError(f"Exact.gap must be a share from 0 to below 1, such as 1e-4, got {self.gap}.")
        if self.max_enumerated < 0:
            raise DataError(f"Exact.max_enumerated must be a number of actions, 0 for none, got {self.max_enumerated}.")
        if self.activations not in ("rounded", "relaxed"):
            raise DataError(f'Exact.activations must be "rounded" or "relaxed", got {self.activations!r}.')

    @property
    def required_margin(self) -> float:
        """Required target margin in logits, the logit of the confidence."""
        return margin_at_confidence(self.confidence)

    @property
    def search(self) -> MinimalCost:
        """The heuristic with the confidence and slack of these settings."""
        return replace(self.heuristic, confidence=self.confidence, slack=self.slack)
