"""For those who have a Lightning trainer: ``cfptq.qat(..., fit=fit_with(lightning.Trainer(...)))``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cfptq.errors import ConfigurationError, MissingDependencyError
from cfptq.training.supervision import Batch
from cfptq.training.trainer import History, Trainer

try:
    from lightning import LightningModule
except ImportError as error:
    raise MissingDependencyError("training under Lightning needs it installed: pip install 'cfptq[lightning]'") from error


class QatModule(LightningModule):  # type: ignore[misc]
    """One run of :class:`cfptq.training.Trainer` as a LightningModule: the same batches, losses, rates and epochs as the plain loop."""

    def __init__(self, run: Trainer) -> None:
        super().__init__()
        self.run = run
        self.student = run.student
        if run.search is not None:
            self.policy = run.search.policy
        self._sums: dict[str, float] = {}

    def train_dataloader(self) -> Any:
        """The epoch's batches, whichever epoch it is."""
        return _Epochs(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The run's own optimizer; its rates follow the run's schedule."""
        return self.run.optimizer

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Batches stay where they are: training runs on the CPU."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Hold integers where settling starts."""
        self._sums = {}
        self.run.begin_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        terms = self.run.step_loss(batch, self.current_epoch, batch_idx)
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach()) / self.run.steps_per_epoch
        self.log_dict({name: term.detach() for name, term in terms.items()}, batch_size=len(batch.rows))
        return torch.stack(list(terms.values())).sum()

    def on_train_epoch_end(self) -> None:
        """Validate and remember the best epoch."""
        self.run.end_epoch(self.current_epoch, self._sums)


class _Epochs:
    """An iterable that gives another epoch each time it is gone through."""

    def __init__(self, module: QatModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.module.run.batches(self.module.current_epoch))

    def __len__(self) -> int:
        return self.module.run.steps_per_epoch


def fit_with(trainer: Any) -> Callable[[Trainer], History]:
    """What ``cfptq.qat`` takes as ``fit``: runs ``trainer.fit`` and gives back what happened.

    Args:
        trainer: a ``lightning.Trainer`` on one CPU device; its ``max_epochs`` must be the schedule's epochs.
    """

    def fit(run: Trainer) -> History:
        if trainer.max_epochs != run.schedule.epochs:
            raise ConfigurationError(
                f"the Lightning trainer has max_epochs={trainer.max_epochs} and the method's schedule {run.schedule.epochs} epochs; "
                "make them the same"
            )
        trainer.fit(QatModule(run))
        return run.finish()

    return fit
