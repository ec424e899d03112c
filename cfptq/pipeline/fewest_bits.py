"""The evidence that a search for the fewest bits within a limit on Validity Drop leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cfptq.metrics import Interval, wilson_interval


@dataclass(frozen=True)
class FewestBits:
    """The limit on Validity Drop that chose the bits, and the held-out people that it was checked on.

    Attributes:
        limit: the largest Validity Drop allowed, a share from 0 to 1.
        people: number of held-out people.
        broken: for how many of them the chosen model breaks recourse.
    """

    limit: float
    people: int
    broken: int

    @property
    def validity_drop(self) -> float:
        """Validity Drop among the held-out people."""
        return self.broken / self.people

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % confidence interval of ``validity_drop``."""
        return wilson_interval(self.broken, self.people)

    @property
    def is_confirmed(self) -> bool:
        """True where the whole interval lies within the limit, which takes enough people."""
        return self.interval[1] <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> FewestBits:
        """Build the record from what ``to_dict`` returned."""
        return FewestBits(**content)

    def __str__(self) -> str:
        low, high = self.interval
        doubt = (
            "" if self.is_confirmed else ". Too few held-out people to confirm the limit. Calibrate on more rows, or audit before deploying"
        )
        return (
            f"Validity Drop {self.validity_drop:.3f} on {self.people} held-out people (interval {low:.3f} to {high:.3f}, "
            f"limit {self.limit:g}){doubt}"
        )
