"""The training schedule, with epochs, batch size, learning rates and temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral

import torch
from torch import Tensor

from cfptq.errors import ConfigurationError, DataError
from cfptq.io.arguments import describe_value, is_finite_number

#: Searches for the student's own recourse in one run. With more settling epochs, the searches are spread evenly over them.
MAX_STUDENT_RECOURSE_SEARCHES = 5


def create_generator(seed: int, epoch: int, step: int = 0) -> torch.Generator:
    """Create the random generator of one step from the seed and the step's place alone, so that a resumed run draws the same numbers."""
    # PyTorch's seeds have 64 bits.
    return torch.Generator().manual_seed(((seed * 1_000_003 + epoch + 7) * 1_000_003 + step) % 2**64)


@dataclass(frozen=True)
class Schedule:
    """Settings of AdamW training with learning rates that fall along a half cosine.

    Attributes:
        epochs: passes over the training rows.
        least_steps: fewest optimizer steps. Where ``epochs`` hold fewer, epochs are added, so that small data sets are trained too.
        batch_size: factual rows per step. The recourse points of the step are added to them.
        learning_rate: of weights and biases, as a share of the layer's root mean square weight.
        quantizer_rate: learning rate of quantizer steps and clips, as a share of their mean.
        policy_rate: learning rate of the bit policy's log-odds.
        weight_decay: of weights.
        search: share of the epochs, at the start, in which the bit policy is sampled and learned. Afterwards the widths are fixed.
        temperature: of the Gumbel-Softmax at the first and at the last step of the search. It falls geometrically.
        settle: share of the epochs, at the end, in which all integers are frozen and only steps, clips and biases are trained. Weights near
            a rounding tie flip back and forth while they are trained. Settling compensates the error that remains.
        sweeps: passes of ``cfptq.quantize.sweep_plan`` at the start of each settling epoch. A sweep moves integers to lower the error
            of margins.
        student_recourse: share of the rejected people whose cheapest recourse by the student is added to the teacher's recourse. It is
            drawn anew a few times while settling. It corrects recourse that the student offers and the teacher refuses.
        validation_share: share of the rows that are held out to choose the epoch.
        max_drift: largest change of the favourable rate in an epoch that is kept, as a share of all rows. Where the start drifts
            further, the start's drift is the limit. Where no epoch is within the limit, the start is kept. None sets no limit.
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
    student_recourse: float = 0.0
    validation_share: float = 0.1
    max_drift: float | None = 0.005

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("least_steps", 0), ("sweeps", 0)):
            count = getattr(self, name)
            if not isinstance(count, Integral) or count < least:
                raise ConfigurationError(f"Schedule.{name} must be a whole number of at least {least}, got {count!r}.")
        if not (self.max_drift is None or self.max_drift >= 0):
            raise ConfigurationError(f"Schedule.max_drift must be at least 0 or None, got {self.max_drift}.")
        for name in ("learning_rate", "quantizer_rate", "policy_rate", "weight_decay"):
            value = getattr(self, name)
            if not (is_finite_number(value) and value >= 0):
                raise ConfigurationError(f"Schedule.{name} must be a finite number of at least 0, got {describe_value(value)}.")
        if not 0 <= self.student_recourse <= 1:
            raise ConfigurationError(f"Schedule.student_recourse must be a share of the rejected in [0, 1], got {self.student_recourse}.")
        for name in ("search", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"Schedule.{name} must lie in (0, 1), got {getattr(self, name)}.")
        if not 0 <= self.settle < 1:
            raise ConfigurationError(f"Schedule.settle must lie in [0, 1), got {self.settle}.")
        if not self.search + self.settle < 1:
            raise ConfigurationError(
                f"Schedule.search and settle must sum to less than 1, got {self.search} and {self.settle}. Lower one of them."
            )
        if self.sweeps and not self.settle:
            raise ConfigurationError(
                f"sweeps={self.sweeps} requires settle > 0, because sweeps change the integers that settling freezes. "
                "Set settle=0.2, or sweeps=0."
            )
        if self.student_recourse and not self.settle:
            raise ConfigurationError(
                f"student_recourse={self.student_recourse} requires settle > 0, because it is computed while settling. "
                "Set settle=0.2, or student_recourse=0."
            )
        if not min(self.temperature) > 0:
            raise ConfigurationError(f"Schedule.temperature must hold two numbers above 0, got {self.temperature}.")

    def split(self, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Split row positions into training rows and held-out rows, both ascending.

        Args:
            rows: number of rows.
            seed: of the random draw.

        Raises:
            DataError: no row is left to train on.
        """
        order = torch.randperm(rows, generator=create_generator(seed, -1))
        held_out = max(1, round(self.validation_share * rows))
        if held_out >= rows:
            raise DataError(
                f"Training needs at least 2 rows, one to train on and one held out, got {rows} rows of which {held_out} would be held out "
                f"(validation_share={self.validation_share}). Give more rows, or lower validation_share."
            )
        return order[held_out:].sort().values, order[:held_out].sort().values

    def extend_to_least_steps(self, rows: int) -> Schedule:
        """Return the schedule with as many epochs over ``rows`` rows as ``least_steps`` requires."""
        steps = -(-rows // self.batch_size)
        return replace(self, epochs=max(self.epochs, -(-self.least_steps // steps)))

    @property
    def pretraining(self) -> Schedule:
        """Schedule of full-precision training beforehand, a third as long and without a limit on drift."""
        return replace(self, epochs=max(2, self.epochs // 3), least_steps=self.least_steps // 3, max_drift=None)

    @property
    def search_epochs(self) -> int:
        """Number of epochs in which the policy is learned, at least 1, and fewer than all where there are two or more."""
        return max(1, min(round(self.search * self.epochs), self.epochs - 1))

    @property
    def first_settling_epoch(self) -> int:
        """Number of the first epoch with frozen integers, from 0."""
        return self.epochs - round(self.settle * self.epochs)

    @property
    def student_recourse_epochs(self) -> range:
        """Settling epochs that begin with a search for the student's recourse, at most ``MAX_STUDENT_RECOURSE_SEARCHES``."""
        first = self.first_settling_epoch
        return range(first, self.epochs, max(1, math.ceil((self.epochs - first) / MAX_STUDENT_RECOURSE_SEARCHES)))

    def compute_rate_factor(self, epoch: float) -> float:
        """Compute the factor on all learning rates, which falls along a half cosine and along a second one while settling.

        Args:
            epoch: moment of the training in epochs, from 0. Fractions count steps within an epoch.
        """
        settling = self.first_settling_epoch
        first, last = (0, settling) if epoch < settling else (settling, self.epochs)
        return 0.5 * (1 + math.cos(math.pi * (epoch - first) / (last - first)))

    def compute_temperature(self, progress: float) -> float:
        """Compute the Gumbel-Softmax temperature after the share ``progress`` of the search, from 0 to 1."""
        first, last = self.temperature
        return float(first * (last / first) ** progress)

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name, for files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
