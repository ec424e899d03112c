"""Training that is the same every time: early stopping on rows set aside, and the best weights kept."""

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
    """How :func:`train` trains: AdamW on the cross-entropy, its rate falling along a half cosine over all ``epochs``."""

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    #: Share of the rows set aside to choose the epoch.
    validation_share: float = 0.1
    #: Epochs without a lower validation loss after which training ends.
    patience: int = 6

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ModelError(f"training with {name}={getattr(self, name)}: it must be at least 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ModelError(f"training needs learning_rate > 0 and weight_decay >= 0, not {self.learning_rate} and {self.weight_decay}")
        if not 0 < self.validation_share < 1:
            raise ModelError(f"training with validation_share={self.validation_share}: it must lie between 0 and 1")


@dataclass(frozen=True)
class TrainingLog:
    """What training came to: the epoch kept (from 0), and accuracy and cross-entropy on the rows set aside, at that epoch."""

    best_epoch: int
    epochs: int
    validation_accuracy: float
    validation_loss: float


def train(
    model: nn.Module, rows: Tensor, labels: Tensor, *, seed: int = 0, settings: TrainingSettings | None = None, progress: bool = True
) -> TrainingLog:
    """Train ``model`` in place and leave it in eval mode with the weights of its best epoch.

    One thread and its own random numbers: the same seed gives the same weights. The global random state and thread
    count are afterwards what they were.

    Args:
        model: gives class logits (N, C).
        rows: (N, ...) float32.
        labels: (N,) int64 class indices.
        seed: fixes the rows set aside (class shares kept), the order of batches, and dropout.
        settings: how long, how fast.
        progress: draw a bar where it takes longer than two seconds.

    Raises:
        DataError: rows and labels that do not fit each other or the model, NaN or infinite values, too few rows.
        ModelError: the model diverged (its loss is not finite). Its weights are as they were.
    """
    settings = settings if settings is not None else TrainingSettings()
    _check_data(rows, labels)
    before = copy.deepcopy(model.state_dict())
    mode = model.training
    try:
        with _private_randomness(seed):
            return _train(model, rows, labels, torch.Generator().manual_seed(seed), settings, progress)
    except BaseException:
        model.load_state_dict(before)
        model.train(mode)
        raise


def _train(
    model: nn.Module, rows: Tensor, labels: Tensor, generator: torch.Generator, settings: TrainingSettings, progress: bool
) -> TrainingLog:
    _check_classes(model, rows, labels)
    fitted, held_out = _set_aside(labels, settings.validation_share, generator)
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
                continue  # BatchNorm has no variance over one row
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
                f"training diverged in epoch {epoch}: the validation loss is {loss}; lower learning_rate from {settings.learning_rate}"
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


def _set_aside(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the rows to fit and of those set aside; each class gives ``share`` of its rows, rounded."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for value in torch.unique(labels):
        members = (labels == value).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(share * len(members))]] = True
    if not held_out.any() or held_out.all():
        raise DataError(f"{len(labels)} rows are too few to set aside a share of {share} for validation; give more rows or another share")
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _check_data(rows: Tensor, labels: Tensor) -> None:
    if rows.dtype != torch.float32 or labels.dtype != torch.int64:
        raise DataError(
            f"training needs float32 rows and int64 labels, not {rows.dtype} and {labels.dtype}; convert them with .float() and .long()"
        )
    if rows.ndim < 2 or labels.ndim != 1 or len(rows) != len(labels) or len(rows) == 0:
        raise DataError(f"training needs rows (N, ...) and labels (N,) with N >= 1, not {tuple(rows.shape)} and {tuple(labels.shape)}")
    bad = (~rows.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"rows {name_rows(bad)} hold NaN or infinite values; impute or drop them before training")
    if int(labels.min()) < 0:
        raise DataError(f"rows {name_rows((labels < 0).nonzero()[:, 0].tolist())} have a negative label; labels are class indices from 0")


def _check_classes(model: nn.Module, rows: Tensor, labels: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        logits = model(rows[:1])
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(f"training needs class logits (N, C) with C >= 2; the model gives {tuple(logits.shape)} for one row")
    bad = (labels >= logits.shape[1]).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(f"rows {name_rows(bad)} have a label that the model's {logits.shape[1]} classes do not hold; labels count from 0")


@contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """One thread, and the CPU generator (dropout draws from it) seeded; both are put back."""
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
