"""What a search for the fewest bits within a limit on Validity Drop can say about the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cfptq.metrics import Interval, wilson_interval


@dataclass(frozen=True)
class FewestBits:
    """The people set aside that the limit was held on.

    Attributes:
        limit: the largest Validity Drop allowed, a share.
        people: how many were set aside.
        broken: for how many of them the chosen model breaks recourse.
    """

    limit: float
    people: int
    broken: int

    @property
    def validity_drop(self) -> float:
        """Their Validity Drop."""
        return self.broken / self.people

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of it."""
        return wilson_interval(self.broken, self.people)

    @property
    def shown(self) -> bool:
        """Whether the whole interval keeps the limit; few people cannot show that."""
        return self.interval[1] <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> FewestBits:
        """What :meth:`to_dict` gave."""
        return FewestBits(**content)

    def __str__(self) -> str:
        low, high = self.interval
        doubt = "" if self.shown else "; so few cannot show that it keeps the limit: calibrate on more rows, or audit before deploying"
        return (
            f"Validity Drop {self.validity_drop:.3f} on {self.people} people set aside (interval {low:.3f} to {high:.3f}, limit "
            f"{self.limit:g}{doubt})"
        )
