"""The Adult data set (census income, 1994), which predicts an income above 50,000 USD a year."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cfptq.datasets.dataset import Dataset
from cfptq.datasets.published_files import PublishedFile, Source

_UCI = "https://archive.ics.uci.edu/static/public/2/adult.zip"
_COPY = "https://raw.githubusercontent.com/amirhk/mace/01e6a405ff74e24dc3438a005cd60892154d189d/_data_main"

FILES = (
    PublishedFile(
        "adult", "adult.data", 3_974_305, "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
        (Source(_UCI, ("adult.data",)), Source(f"{_COPY}/adult.data")),
    ),
    PublishedFile(
        "adult", "adult.test", 2_003_153, "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        (Source(_UCI, ("adult.test",)), Source(f"{_COPY}/adult.test")),
    ),
)  # fmt: skip

COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
    "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "label",
)  # fmt: skip
#: fnlwgt is the person's weight in the census sample and no feature. education holds the same levels as education-num.
DROPPED = ("fnlwgt", "education")
INTEGER = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")


def build(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set from the bytes of ``FILES``. The publisher gives the split, so ``seed`` has no effect."""
    train, train_labels = _parse(contents["adult.data"], skip=0)
    test, test_labels = _parse(contents["adult.test"], skip=1)  # The first line of the file holds no data.
    return Dataset(
        name="adult", train=train, test=test, train_labels=train_labels, test_labels=test_labels,
        label_names=("<=50K", ">50K"), favourable=1,
        integer=INTEGER, categorical=tuple(name for name in train.columns if name not in INTEGER),
        groups=("sex", "race"),
        missing="workclass, occupation and native-country may be missing ('?'): all their one-hot columns are zero",
        source="UCI Adult (data set 2), B. Becker and R. Kohavi, CC BY 4.0",
    )  # fmt: skip


def _parse(content: bytes, skip: int) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    frame = pd.read_csv(
        io.BytesIO(content), header=None, names=list(COLUMNS), skiprows=skip, skipinitialspace=True, keep_default_na=False, na_values=["?"]
    )
    labels = frame["label"].str.startswith(">50K").to_numpy().astype(np.int64)
    return frame.drop(columns=[*DROPPED, "label"]), labels
