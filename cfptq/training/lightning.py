"""Training under Lightning, by ``cfptq.qat(..., fit=fit_with(lightning.Trainer(...)))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import ConfigurationError, MissingDependencyError
from cfptq.training.history import History
from cfptq.training.supervision import Batch
from cfptq.training.trainer import Trainer

try:
    from lightning import LightningModule
except ImportError as error:
    raise MissingDependencyError(
        "Training under Lightning requires the package lightning. Install it by: pip install 'cfptq[lightning]'"
    ) from error


class QatModule(LightningModule):  # type: ignore[misc]
    """LightningModule of one ``cfptq.training.Trainer``, with the same batches, losses, rates and epochs as its own loop."""

    def __init__(self, run: Trainer) -> None:
        super().__init__()
        self.run = run
        self.student = run.student
        if run.search is not None:
            self.policy = run.search.policy
        self._sums: dict[str, float] = {}

    def train_dataloader(self) -> Any:
        """Return the batches of the current epoch."""
        return _EpochBatches(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the run's optimizer, whose learning rates follow the run's schedule."""
        return self.run.optimizer

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch unchanged, because training runs on the CPU."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Prepare the epoch."""
        self._sums = {}
        self.run.begin_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch."""
        terms = self.run.compute_step_loss(batch, self.current_epoch, batch_idx)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach()) / self.run.steps_per_epoch
        self.log_dict({name: term.detach() for name, term in terms.items()}, batch_size=len(batch.rows))
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Validate the student, and keep the best epoch's values."""
        self.run.end_epoch(self.current_epoch, self._sums)


class _EpochBatches:
    """Iterable over the batches of the module's current epoch."""

    def __init__(self, module: QatModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.module.run.draw_batches(self.module.current_epoch))

    def __len__(self) -> int:
        return self.module.run.steps_per_epoch


def fit_with(trainer: Any) -> Callable[[Trainer], History]:
    """Return a function for the ``fit`` argument of ``cfptq.qat`` that trains under Lightning.

    Args:
        trainer: a ``lightning.Trainer`` on one CPU device. Its ``max_epochs`` must equal the schedule's epochs.

    Raises:
        ConfigurationError: by the returned function, where ``max_epochs`` differs.
    """

    def fit(run: Trainer) -> History:
        if trainer.max_epochs != run.schedule.epochs:
            raise ConfigurationError(
                f"max_epochs of the Lightning trainer must be {run.schedule.epochs}, the epochs of the method's schedule, got "
                f"{trainer.max_epochs}. Set max_epochs={run.schedule.epochs}."
            )
        trainer.fit(QatModule(run))
        return run.finish()

    return fit
