"""Training of classifiers with early stopping on held-out rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cfptq.errors import DataError, ModelError, name_rows
from cfptq.io.progress import track


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of ``train``, which minimizes the cross-entropy with AdamW.

    The learning rate follows a half cosine over all epochs.

    Attributes:
        epochs: largest number of epochs.
        batch_size: rows per step.
        learning_rate: initial learning rate.
        weight_decay: weight decay of AdamW.
        validation_share: share of the rows held out to choose the epoch.
        patience: epochs without a lower validation loss after which training ends.
    """

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    validation_share: float = 0.1
    patience: int = 6

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ModelError(f"learning_rate must be above 0, got {self.learning_rate}.")
        if not self.weight_decay >= 0:
            raise ModelError(f"weight_decay must be at least 0, got {self.weight_decay}.")
        if not 0 < self.validation_share < 1:
            raise ModelError(f"validation_share must lie between 0 and 1, got {self.validation_share}.")


@dataclass(frozen=True)
class TrainingLog:
    """Outcome of a training.

    Attributes:
        best_epoch: the epoch whose weights were kept, from 0.
        epochs: number of epochs run.
        validation_accuracy: accuracy on the held-out rows at the best epoch.
        validation_loss: cross-entropy on the held-out rows at the best epoch.
    """

    best_epoch: int
    epochs: int
    validation_accuracy: float
    validation_loss: float


def train(
    model: nn.Module, rows: Tensor, labels: Tensor, *, seed: int = 0, settings: TrainingSettings | None = None, progress: bool = True
) -> TrainingLog:
    """Train ``model`` in place and leave it in eval mode with the weights of its best epoch.

    The same seed gives the same weights on the same machine with the same versions. Another processor gives other weights. Training
    uses one thread. The global random state and the thread count are restored on exit.

    Args:
        model: maps rows to class logits (N, C).
        rows: (N, ...) float32.
        labels: (N,) int64 class indices from 0.
        seed: seed of the held-out rows (drawn by class), the order of batches, and dropout.
        settings: training settings. By default ``TrainingSettings()``.
        progress: show progress if training takes longer than two seconds.

    Returns:
        The best epoch and its validation results.

    Raises:
        DataError: rows and labels do not fit each other or the model, hold NaN or infinite values, or are too few.
        ModelError: the loss is not finite. The model's weights are not changed.
    """
    settings = settings if settings is not None else TrainingSettings()
    _check_data(rows, labels)
    before = copy.deepcopy(model.state_dict())
    mode = model.training
    try:
        with _isolated_randomness(seed):
            return _train(model, rows, labels, torch.Generator().manual_seed(seed), settings, progress)
    except BaseException:
        model.load_state_dict(before)
        model.train(mode)
        raise


def _train(
    model: nn.Module, rows: Tensor, labels: Tensor, generator: torch.Generator, settings: TrainingSettings, progress: bool
) -> TrainingLog:
    _check_classes(model, rows, labels)
    fitted, held_out = _split_rows(labels, settings.validation_share, generator)
    x, y, x_held, y_held = rows[fitted], labels[fitted], rows[held_out], labels[held_out]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
    best: TrainingLog | None = None
    best_weights: dict[str, Tensor] = {}
    ended = 0
    for epoch in track(range(settings.epochs), "training", enabled=progress):
        model.train()
        order = torch.randperm(len(y), generator=generator)
        for batch in torch.split(order, settings.batch_size):
            if len(batch) == 1 and len(order) > 1:
                continue  # BatchNorm has no variance over one row.
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            logits = model(x_held)
        loss = float(cross_entropy(logits, y_held))
        if not loss < float("inf"):
            raise ModelError(
                f"Training diverged in epoch {epoch} with a validation loss of {loss}. Lower learning_rate from {settings.learning_rate}."
            )
        ended = epoch + 1
        if best is None or loss < best.validation_loss:
            accuracy = float((logits.argmax(1) == y_held).double().mean())
            best = TrainingLog(best_epoch=epoch, epochs=ended, validation_accuracy=accuracy, validation_loss=loss)
            best_weights = copy.deepcopy(model.state_dict())
        elif epoch - best.best_epoch >= settings.patience:
            break
    assert best is not None
    model.load_state_dict(best_weights)
    for parameter in model.parameters():
        parameter.grad = None
    return TrainingLog(best.best_epoch, ended, best.validation_accuracy, best.validation_loss)


def _split_rows(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the indices of the training rows and of the held-out rows, which are ``share`` of each class, rounded."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for value in torch.unique(labels):
        members = (labels == value).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(share * len(members))]] = True
    if not held_out.any() or held_out.all():
        raise DataError(f"{len(labels)} rows are too few to hold out a share of {share} for validation. Give more rows or another share.")
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _check_data(rows: Tensor, labels: Tensor) -> None:
    if rows.dtype != torch.float32 or labels.dtype != torch.int64:
        raise DataError(
            f"Rows must be float32 and labels int64, got {rows.dtype} and {labels.dtype}. Convert them with .float() and .long()."
        )
    if rows.ndim < 2 or labels.ndim != 1 or len(rows) != len(labels) or len(rows) == 0:
        raise DataError(
            f"Shapes must be (N, ...) for rows and (N,) for labels with N >= 1, got {tuple(rows.shape)} and {tuple(labels.shape)}."
        )
    bad = (~rows.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"Rows must be finite, but rows {name_rows(bad)} hold NaN or infinite values. Impute or drop them before training.")
    if int(labels.min()) < 0:
        rows_below = name_rows((labels < 0).nonzero()[:, 0].tolist())
        raise DataError(f"Labels must be class indices from 0, but rows {rows_below} have a negative label.")


def _check_classes(model: nn.Module, rows: Tensor, labels: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        logits = model(rows[:1])
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(f"The model must return class logits (N, C) with C >= 2, got shape {tuple(logits.shape)} for one row.")
    bad = (labels >= logits.shape[1]).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"Labels must be below the model's {logits.shape[1]} classes, but are not in rows {name_rows(bad)}.")


@contextmanager
def _isolated_randomness(seed: int) -> Iterator[None]:
    """Use one thread and seed the CPU generator, which dropout draws from, and restore both on exit."""
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
