"""Under a Lightning trainer a run gives what the plain loop gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfptq.errors import ConfigurationError

lightning = pytest.importorskip("lightning")

from small_lesson import lesson  # noqa: E402
from test_trainer import SHORT, trainer  # noqa: E402

from cfptq.training.lightning import fit_with  # noqa: E402


def _lightning(epochs: int, folder: Path) -> object:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("learned", [False, True])
def test_lightning_trains_what_the_loop_trains(learned: bool, tmp_path: Path) -> None:
    taught = lesson()
    alone = trainer(taught, learned=learned)
    expected = alone.fit(progress=False)
    run = trainer(taught, learned=learned)
    history = fit_with(_lightning(SHORT.epochs, tmp_path))(run)
    assert history.bits == expected.bits and history.best_epoch == expected.best_epoch
    assert run.student.to_plan("cfq").digest == alone.student.to_plan("cfq").digest


def test_other_epochs_than_the_schedules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_epochs"):
        fit_with(_lightning(99, tmp_path))(trainer(lesson()))
