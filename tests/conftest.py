"""What many files build: a small trained model with its people and action set. And what a test may need of the processor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import nn

    from cfptq.actions import ActionSet
    from cfptq.datasets import Columns, Dataset

# Networks of a test are too small for threads, and each of several test processes would start as many as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imports of what takes seconds stand where it is used: the process that hands tests out to the others needs none of it.

NEEDS_VNNI = (
    "this processor adds int8 products in pairs in 16 bits (it has no VNNI), so that weights beyond ±63 saturate in ONNX Runtime's "
    "default session, and the test is about such weights there"
)


def pytest_configure(config: pytest.Config) -> None:
    # Whoever names a test means it, slow or not.
    if config.option.markexpr == "not slow" and any("::" in argument for argument in config.args):
        config.option.markexpr = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_vnni") is None:
        return
    from cfptq.network.onnx.session import int8_saturates

    # One saturating product a process tells.
    if int8_saturates():
        pytest.skip(NEEDS_VNNI)


# Generated people, and a classifier trained on them. Tests take them as they are: nobody changes the model.


@pytest.fixture(scope="session")
def people() -> Dataset:
    from cfptq import datasets

    return datasets.load("synthetic")


@pytest.fixture(scope="session")
def columns(people: Dataset) -> Columns:
    from cfptq import datasets

    return datasets.encode(people)


@pytest.fixture(scope="session")
def action_set(people: Dataset, columns: Columns) -> ActionSet:
    from cfptq.actions import ActionSet

    declared = ActionSet.from_frame(
        people.train,
        immutable=["age", "sex"],
        increase_only=["education"],
        ordinal=people.ordinal,
        max_changes=3,
        favourable=people.favourable,
    )
    return declared.encoded_by(columns.encoder)


@pytest.fixture(scope="session")
def model(columns: Columns) -> nn.Module:
    from cfptq import models

    model = models.MLP(columns.train.shape[1], 2, hidden=(32, 16), seed=0)
    models.train(model, columns.train, columns.train_labels, seed=0, settings=models.TrainingSettings(epochs=6), progress=False)
    return model
