"""How long and how fast: epochs, batches, rates, temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral

import torch
from torch import Tensor

from cfptq.errors import ConfigurationError, DataError

#: How often the student's own recourse is looked for.
LOOKS = 5


def randomness(seed: int, epoch: int, step: int = 0) -> torch.Generator:
    """Randomness of one step: depends on the seed and the place alone, so that a resumed run draws the same."""
    # PyTorch's seeds have 64 bits.
    return torch.Generator().manual_seed(((seed * 1_000_003 + epoch + 7) * 1_000_003 + step) % 2**64)


@dataclass(frozen=True)
class Schedule:
    """AdamW with rates that fall along a half cosine.

    Attributes:
        epochs: passes over the training rows.
        least_steps: fewest optimizer steps; where the epochs hold fewer, there are more epochs, so that small data are trained too.
        batch_size: factual rows a step; the recourse points that go with them come on top.
        learning_rate: of weights and biases, as a share of the layer's root mean square weight, so that it suits every scale.
        quantizer_rate: of steps and clips, as a share of their mean.
        policy_rate: of the bit policy's log-odds.
        weight_decay: of weights.
        search: share of the epochs in which the bit policy is sampled and learned; then it is fixed and the rest is fine-tuning.
        settle: share of the epochs, at the end, in which all integers are held and only steps, clips and biases are trained. Weights near
            a tie flip back and forth as long as they are trained; what they leave as error is taken up here.
        sweeps: how often each of these epochs first moves all integers to where margins err least (:func:`cfptq.quantize.sweep_plan`).
        own_recourse: share of the rejected, drawn anew a few times in these epochs, whose cheapest recourse by the student itself is
            trained on with the teacher's: where the student promises what the teacher refuses, or asks for more, quantization makes
            recourse cheaper or dearer.
        temperature: of the Gumbel-Softmax, at the first and at the last step of the search; falls geometrically.
        validation_share: share of the rows set aside to choose the epoch.
        max_drift: how far an epoch that is kept may move the share of rows that get their target, or as far as the start moves it, if
            that is more; where no epoch stays within, the start is kept. None chooses by the loss alone.
    """

    epochs: int = 10
    least_steps: int = 0
    batch_size: int = 256
    learning_rate: float = 2e-3
    quantizer_rate: float = 1e-3
    policy_rate: float = 2e-2
    weight_decay: float = 0.0
    search: float = 0.3
    temperature: tuple[float, float] = (2.0, 0.3)
    settle: float = 0.0
    sweeps: int = 0
    own_recourse: float = 0.0
    validation_share: float = 0.1
    max_drift: float | None = 0.005

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("least_steps", 0), ("sweeps", 0)):
            count = getattr(self, name)
            if not isinstance(count, Integral) or count < least:
                raise ConfigurationError(f"Schedule.{name} is {count!r}; it must be a whole number, at least {least}")
        if not (self.max_drift is None or self.max_drift >= 0):
            raise ConfigurationError(f"Schedule.max_drift is {self.max_drift}; it must be at least 0, or None")
        for name in ("learning_rate", "quantizer_rate", "policy_rate", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigurationError(f"Schedule.{name} is {value}; it must be a finite number, at least 0")
        if not 0 <= self.own_recourse <= 1:
            raise ConfigurationError(f"Schedule.own_recourse is {self.own_recourse}; it is a share of the rejected, between 0 and 1")
        if not (0 < self.search < 1 and 0 < self.validation_share < 1 and 0 <= self.settle < 1 and self.search + self.settle < 1):
            raise ConfigurationError(
                f"Schedule.search, settle and validation_share are shares of a whole, not {self.search}, {self.settle} and "
                f"{self.validation_share}"
            )
        if self.sweeps and not self.settle:
            raise ConfigurationError(
                f"Schedule.sweeps is {self.sweeps} and settle 0; sweeps move the integers that settling holds: raise settle"
            )
        if self.own_recourse and not self.settle:
            raise ConfigurationError(
                f"Schedule.own_recourse is {self.own_recourse} and settle 0; settling is when it is looked for: raise settle"
            )
        if not min(self.temperature) > 0:
            raise ConfigurationError(f"Schedule.temperature is {self.temperature}; temperatures are above 0")

    def split(self, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Positions of the rows that are trained on, and of those set aside to choose the epoch; both ascending.

        Raises:
            DataError: fewer than two rows, or none left to train on.
        """
        order = torch.randperm(rows, generator=randomness(seed, -1))
        aside = max(1, round(self.validation_share * rows))
        if aside >= rows:
            raise DataError(
                f"there are {rows} training rows, and {aside} would be set aside (validation_share={self.validation_share}); "
                "training needs at least 2 rows: one to train on and one set aside"
            )
        return order[aside:].sort().values, order[:aside].sort().values

    def lasting(self, rows: int) -> Schedule:
        """The same schedule with as many epochs over ``rows`` rows as ``least_steps`` asks for."""
        steps = -(-rows // self.batch_size)
        return replace(self, epochs=max(self.epochs, -(-self.least_steps // steps)))

    @property
    def pretraining(self) -> Schedule:
        """A third of it, for each full-precision training that comes first; a model that is meant to change may drift."""
        return replace(self, epochs=max(2, self.epochs // 3), least_steps=self.least_steps // 3, max_drift=None)

    @property
    def search_epochs(self) -> int:
        """Epochs in which the policy is learned; at least one, and at least one is left where there are two."""
        return max(1, min(round(self.search * self.epochs), self.epochs - 1))

    @property
    def settle_from(self) -> int:
        """The first epoch in which integers are held."""
        return self.epochs - round(self.settle * self.epochs)

    @property
    def asking_epochs(self) -> range:
        """The settling epochs that look for the student's own recourse first: the first one, and :data:`LOOKS` in all at most."""
        return range(self.settle_from, self.epochs, max(1, math.ceil((self.epochs - self.settle_from) / LOOKS)))

    def rate(self, epoch: float) -> float:
        """Factor on all rates at a moment of the training, counted in epochs: a half cosine, and a second one while settling."""
        first, last = (0, self.settle_from) if epoch < self.settle_from else (self.settle_from, self.epochs)
        return 0.5 * (1 + math.cos(math.pi * (epoch - first) / (last - first)))

    def temperature_at(self, progress: float) -> float:
        """Temperature after ``progress`` (0 to 1) of the search."""
        first, last = self.temperature
        return float(first * (last / first) ** progress)

    def to_dict(self) -> dict[str, object]:
        """Field -> value, for files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
