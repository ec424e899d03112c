"""Training: what it learns, what it leaves alone, and that it is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cfptq.datasets import Columns
from cfptq.errors import CfptqError, DataError, ModelError
from cfptq.models import MLP, LogisticRegression, TrainingSettings, train

QUICK = TrainingSettings(epochs=3, batch_size=64)


def moons(n: int = 600) -> tuple[Tensor, Tensor]:
    """Two classes that no straight line tells apart."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(n, 2, generator=draw) * 4 - 2
    return x, (x[:, 0] * x[:, 1] > 0).long()


def test_an_mlp_learns_what_a_line_cannot() -> None:
    x, y = moons(2_000)
    settings = TrainingSettings(epochs=20, batch_size=64, learning_rate=1e-2)
    mlp, line = MLP(2, hidden=(32, 32)), LogisticRegression(2)
    assert train(mlp, x, y, settings=settings).validation_accuracy > 0.95
    assert train(line, x, y, settings=settings).validation_accuracy < 0.65


def test_logistic_regression_reaches_the_optimum_that_scikit_learn_finds(columns: Columns) -> None:
    from sklearn.linear_model import LogisticRegression as Reference

    ours = LogisticRegression(columns.train.shape[1])
    train(ours, columns.train, columns.train_labels, settings=TrainingSettings(epochs=60, learning_rate=1e-2, weight_decay=0.0))
    reference = Reference(C=1e6, max_iter=5_000).fit(columns.train.numpy(), columns.train_labels.numpy())
    with torch.no_grad():
        chance = ours(columns.test).softmax(1)[:, 1].numpy()
    assert np.abs(chance - reference.predict_proba(columns.test.numpy())[:, 1]).mean() < 0.02


def test_the_synthetic_data_set_can_be_learnt(columns: Columns) -> None:
    model = MLP(columns.train.shape[1])
    train(model, columns.train, columns.train_labels)
    with torch.no_grad():
        right = (model(columns.test).argmax(1) == columns.test_labels).double().mean()
    assert right > 0.8


@pytest.mark.parametrize("build", [lambda: MLP(2, batch_norm=True, dropout=0.3), lambda: MLP(2, residual=True)])
def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(build) -> None:
    x, y = moons()
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        torch.rand(noise)
        model = build()
        train(model, x, y, seed=4, settings=QUICK)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_random_state_and_threads_are_as_before_and_the_model_is_ready_to_use() -> None:
    x, y = moons()
    model = MLP(2, dropout=0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        train(model, x, y, settings=QUICK)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


class Recorder(nn.Module):
    """Remembers its weights and its cross-entropy at every pass in eval mode over more than one row."""

    def __init__(self, labels_of: dict[tuple[float, ...], int]) -> None:
        super().__init__()
        self.inner = MLP(2)
        self.labels_of = labels_of
        self.weights: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if not self.training and len(x) > 1:
            labels = torch.tensor([self.labels_of[tuple(row)] for row in x.tolist()])
            self.losses.append(float(nn.functional.cross_entropy(logits, labels)))
            self.weights.append({name: value.clone() for name, value in self.inner.state_dict().items()})
        return logits


def test_the_weights_kept_are_those_of_the_epoch_with_the_lowest_loss_on_rows_set_aside() -> None:
    x, y = moons(300)
    model = Recorder({tuple(row): label for row, label in zip(x.tolist(), y.tolist(), strict=True)})
    log = train(model, x, y, settings=TrainingSettings(epochs=30, batch_size=32, learning_rate=0.05, patience=3))
    best = model.losses.index(min(model.losses))
    assert log.best_epoch == best
    assert log.validation_loss == pytest.approx(model.losses[best])
    assert log.epochs == len(model.losses) == best + 1 + 3, "patience ends training three epochs after the best"
    assert all(torch.equal(model.weights[best][name], value) for name, value in model.inner.state_dict().items())


def test_an_epoch_may_end_in_a_batch_of_one() -> None:
    x, y = moons(72)
    train(MLP(2, batch_norm=True), x, y, settings=TrainingSettings(epochs=2, batch_size=32, validation_share=0.1))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x, y: (x.index_fill(0, torch.tensor([3, 5]), float("nan")), y), "rows 3, 5 hold NaN"),
        (lambda x, y: (x.double(), y), "float32"),
        (lambda x, y: (x, y.int()), "int64"),
        (lambda x, y: (x[:-1], y), "labels"),
        (lambda x, y: (x[:0], y[:0]), "N >= 1"),
        (lambda x, y: (x[:, 0], y), "rows"),
        (lambda x, y: (x, y - 1), "negative label"),
        (lambda x, y: (x[:2], y[:2]), "too few"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_and_the_model_is_as_it_was(spoil, complaint: str) -> None:
    model = MLP(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match=complaint):
        train(model, *spoil(*moons()), settings=QUICK)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_label_beyond_the_models_classes_is_refused() -> None:
    x, y = moons()
    with pytest.raises(DataError, match="2 classes"):
        train(MLP(2), x, y + 1, settings=QUICK)


def test_a_model_that_diverges_is_an_error_and_is_as_it_was() -> None:
    model = MLP(2, batch_norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = moons()
    with pytest.raises(ModelError, match="diverged"):
        train(model, x * 1e30, y, settings=TrainingSettings(epochs=20, learning_rate=1e30, batch_size=64))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"validation_share": 1.0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(CfptqError):
        TrainingSettings(**settings)
