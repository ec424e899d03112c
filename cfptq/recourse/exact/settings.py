"""Settings of exact recourse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from cfptq.errors import DataError
from cfptq.recourse.confidence import check_confidence, level_of
from cfptq.recourse.minimal_cost import MinimalCost


@dataclass(frozen=True)
class Exact:
    """Settings of exact recourse: the cheapest action there is, with its proof, or the best known and how far from it that may be.

    Attributes:
        confidence: probability of the target that the point must have against the strongest other class; 0.5 is the decision.
        time_limit: seconds for each row; after it the best action known is given with the bound reached.
        gap: relative difference between cost and bound at which an action counts as optimal.
        slack: logits by which a point must lie beyond the boundary, as in :class:`MinimalCost`; the optimum is that over such points.
        listed: most actions that are asked about one by one, in the artefact, cheapest first, instead of setting up a program; 0 for
            none. Whole numbers and levels within the heuristic's cost are often that few.
        regions: whether the moves are cut into regions, each bounded and, where few kinks are left open, solved as a program of its
            own (l1 costs without activation quantizers); ``False`` always sets up one program for everything.
        activations: what to do about activation quantizers. ``"rounded"`` has an integer variable for each, the network exactly as it
            computes. ``"relaxed"`` lets each rounded value lie anywhere within half a step: faster; bounds stay sound, but actions are
            the heuristic's and come out as bounded. The batch's ``method`` says which.
        heuristic: the search whose cost is the cut-off; its confidence and slack are replaced by those above.
    """

    confidence: float = 0.5
    time_limit: float = 10.0
    gap: float = 1e-4
    slack: float = 1e-5
    listed: int = 200_000
    regions: bool = True
    activations: Literal["rounded", "relaxed"] = "rounded"
    heuristic: MinimalCost = field(default_factory=lambda: MinimalCost(effort="thorough"))

    def __post_init__(self) -> None:
        check_confidence(self)
        if not self.time_limit > 0:
            raise DataError(f"Exact.time_limit is {self.time_limit}; give seconds above 0, for each row")
        if not 0 <= self.gap < 1:
            raise DataError(f"Exact.gap is {self.gap}; it is a share from 0 to below 1, such as 1e-4")
        if self.listed < 0:
            raise DataError(f"Exact.listed is {self.listed}; it is a number of actions, 0 for none")
        if self.activations not in ("rounded", "relaxed"):
            raise DataError(f'Exact.activations is {self.activations!r}; use "rounded" or "relaxed"')

    @property
    def level(self) -> float:
        """Target margin asked for: logit of the confidence, in logits."""
        return level_of(self.confidence)

    @property
    def search(self) -> MinimalCost:
        """The heuristic with this method's own confidence and slack."""
        return replace(self.heuristic, confidence=self.confidence, slack=self.slack)
