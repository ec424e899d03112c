"""``progress=False`` silences every loop that a public function runs, at any depth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import cfptq
from cfptq import models, recourse
from cfptq.actions import ActionSet, Continuous
from cfptq.io import progress
from cfptq.training import QAT_METHODS

ROWS = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
ACTIONS = ActionSet.from_columns(ROWS, [Continuous(f"f{column}", column=column) for column in range(3)], favourable=1)


def build_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


def train_shortly(shown: bool) -> None:
    preset = QAT_METHODS["cfq-qat"]
    method = replace(preset, schedule=replace(preset.schedule, epochs=1, least_steps=0))
    cfptq.qat(build_model(), [ROWS], ACTIONS, method=method, progress=shown)


CALLS: dict[str, Callable[[bool, Path], object]] = {
    "calibrate": lambda shown, folder: cfptq.calibrate(build_model(), [ROWS], ACTIONS, progress=shown),
    "calibrate to a limit": lambda shown, folder: cfptq.calibrate(build_model(), [ROWS], ACTIONS, max_validity_drop=0.3, progress=shown),
    "qat": lambda shown, folder: train_shortly(shown),
    "compare": lambda shown, folder: cfptq.compare(build_model(), [ROWS], [ROWS], ACTIONS, methods=["cf-ptq"], progress=shown),
    "audit": lambda shown, folder: cfptq.audit(build_model(), build_model(), ROWS, ACTIONS, progress=shown),
    "tuning_score": lambda shown, folder: cfptq.tuning_score(build_model(), [ROWS], ACTIONS, progress=shown),
    "solve": lambda shown, folder: recourse.solve(build_model(), ROWS, ACTIONS, target=1, progress=shown),
    "solve exactly": lambda shown, folder: recourse.solve(
        build_model(), ROWS[:2], ACTIONS, target=1, method=recourse.Exact(), progress=shown
    ),
    "train": lambda shown, folder: models.train(build_model(), ROWS, (ROWS[:, 0] > 0).long(), progress=shown),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_shown_without_progress(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)  # Every loop shows its progress, however short.
    CALLS[name](False, tmp_path)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""


def test_progress_is_shown_by_default(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    assert sys.stderr is not None
    recourse.solve(build_model(), ROWS, ACTIONS, target=1)
    assert "recourse: 1 of 1" in capsys.readouterr().err


def test_a_call_without_progress_silences_those_within_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    with progress.allow_progress(False), progress.allow_progress(True):
        list(progress.track(range(3), "work"))
    assert capsys.readouterr().err == ""
    list(progress.track(range(3), "work"))
    assert capsys.readouterr().err
