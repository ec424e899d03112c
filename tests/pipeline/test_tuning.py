"""The score for other toolchains' tuners is Validity Drop above an accuracy floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import cfptq
from cfptq.actions import ActionSet, Continuous
from cfptq.errors import DataError, MissingDependencyError

COLUMNS = 6


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(600, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def action_set(rows: torch.Tensor) -> ActionSet:
    return ActionSet.from_columns(rows, [Continuous(f"f{column}", column=column) for column in range(COLUMNS)], favourable=1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(COLUMNS, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
        made(torch.randn(64, COLUMNS))
        made.eval()
        with torch.no_grad():  # half of the people are rejected
            made[-1].bias[1] -= made(torch.randn(500, COLUMNS)).diff(dim=1).median()
    return made


class Shifted(nn.Module):
    """A model whose logit of class 1 is moved: people lose what they were promised."""

    def __init__(self, model: nn.Module, by: float) -> None:
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + torch.tensor([0.0, self.by])


def test_tuners_are_told_boundary_disagreement_above_an_accuracy_floor(model: nn.Module, rows: torch.Tensor, action_set: ActionSet) -> None:
    score = cfptq.tuning_score(model, [rows], action_set, max_accuracy_drop=0.2, progress=False)
    assert score(model) == 1
    points = score.recourse.points[score.recourse.found]
    margins = np.diff(model(points).detach().numpy(), axis=1).ravel()
    shift = float(np.median(margins))
    lost = float((margins < shift).mean())
    drop = Shifted(model, -shift - 1e-6)
    changed = float((drop(rows).argmax(dim=1) != model(rows).argmax(dim=1)).float().mean())
    assert 0 < changed < 0.2
    # A model that accepts fewer people accepts nobody too early, so that half of the disagreement is 0.
    assert score(drop) == pytest.approx(1 - lost / 2, abs=0.01)
    early = np.diff(model(score.recourse.last_refused[score.recourse.found]).detach().numpy(), axis=1).ravel()
    offset = -float(np.quantile(early, 0.8))
    gained = float((early > -offset).mean())
    assert gained > 0
    assert score(Shifted(model, offset)) == pytest.approx(1 - gained / 2, abs=0.02)  # accepting more people is not free
    assert score(Shifted(model, -100.0)) < 0


def test_neural_compressor_tunes_on_boundary_disagreement(model: nn.Module, rows: torch.Tensor, action_set: ActionSet) -> None:
    pytest.importorskip("cfptq.backends.neural_compressor", exc_type=MissingDependencyError)
    from neural_compressor.torch.quantization import TuningConfig, autotune

    from cfptq.backends import pt2e

    made = [cfptq.calibrate(model, [rows], action_set, method="ptq", budget=bits, input_bits=8, progress=False) for bits in (2.0, 8.0)]
    score = cfptq.tuning_score(model, [rows], action_set, max_accuracy_drop=0.1, progress=False)
    coarse, fine = (score(result.module()) for result in made)
    assert coarse < fine
    configs = [result.neural_compressor_config() for result in made]
    tuning = TuningConfig(config_set=configs, tolerable_loss=1 - (coarse + fine) / 2, max_trials=2)
    pt2e.check_coverage(autotune(model, tuning, score), made[1].plan)


def test_a_model_that_rejects_nobody_cannot_be_tuned_on(model: nn.Module, rows: torch.Tensor, action_set: ActionSet) -> None:
    with pytest.raises(DataError, match="whom the model rejects"):
        cfptq.tuning_score(Shifted(model, 100.0), [rows], action_set, progress=False)
