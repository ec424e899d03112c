"""On the public data sets: the deployed file against the twin, on every test row (DESIGN's agreement of artefact and twin)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import cfptq
from cfptq.datasets import locate
from cfptq.experiments.recipe import Recipe
from cfptq.network import as_predictor, decide

RECIPES = Path(__file__).parents[2] / "recipes"
#: Three epochs are enough for a model that rejects some and accepts others.
LARGE = ("adult", "bank", "default")
SETS = ("adult", "german", "compas", "bank", "default")


def present(name: str) -> bool:
    beside = Path(__file__).parent.parent.parent / "shared" / "data"
    if "CFPTQ_DATA_DIR" not in os.environ and beside.is_dir():
        os.environ["CFPTQ_DATA_DIR"] = str(beside)
    return all(path is not None for path in locate(name).values())


@pytest.mark.parametrize("name", SETS)
def test_the_file_decides_as_the_twin_does_on_every_test_row(name: str, tmp_path: Path) -> None:
    if not present(name):
        pytest.skip(f"the files of {name} are not here; set CFPTQ_DATA_DIR")
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    if name in LARGE:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 3})})
    experiment = recipe.prepare(0, progress=False)
    columns = experiment.columns
    result = cfptq.calibrate(
        experiment.model, [(columns.train, columns.train_labels)], experiment.action_set, max_rows=1024, progress=False
    )
    assert result.plan.average_bits <= 4.0
    path = tmp_path / f"{name}.onnx"
    result.to_onnx(path)
    file = as_predictor(path, example=columns.test[:256], head=result.head)
    twin = as_predictor(result.module(), example=columns.test[:256], head=result.head)
    said, expected = file.logits(columns.test), twin.logits(columns.test)
    close = (said - expected).abs().amax(dim=1) <= 1e-3
    assert close.float().mean() >= 0.999
    clear = (expected[:, 1] - expected[:, 0]).abs() > 0.05
    assert torch.equal(decide(said)[clear], decide(expected)[clear])
