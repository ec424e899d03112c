"""The Bank Marketing data set (Portugal, 2008-2010), which predicts whether a client takes a term deposit."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfptq.datasets.dataset import Dataset
from cfptq.datasets.published_files import PublishedFile, Source
from cfptq.datasets.splits import split_table

_MEMBERS = ("bank.zip", "bank-full.csv")
_COPY = "https://raw.githubusercontent.com/Eshani-haldorai/bank-marketing-classifier/eb5cc1ace7babca900ef7484106d073ff70164c7/bank%2Bmarketing.zip"

FILES = (
    PublishedFile(
        "bank", "bank-full.csv", 4_610_348, "d1513ec63b385506f7cfce9f2c5caa9fe99e7ba4e8c3fa264b3aaf0f849ed32d",
        (Source("https://archive.ics.uci.edu/static/public/222/bank+marketing.zip", _MEMBERS), Source(_COPY, _MEMBERS)),
    ),
)  # fmt: skip

INTEGER = ("age", "balance", "day", "duration", "campaign", "pdays", "previous")
#: Columns in which "unknown" is a missing value. In poutcome it is a level, which means that there was no earlier campaign.
MAY_BE_MISSING = ("job", "education", "contact")
N_TRAIN = 36_168
SPLIT_SEED = 0


def build(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set without ``duration``, which is known only after the call. The split is fixed, so ``seed`` has no effect."""
    return _build(contents, "bank", duration=False)


def build_with_duration(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set with ``duration`` for comparison with papers, in the split of ``build``.

    A model with ``duration`` cannot be deployed.
    """
    return _build(contents, "bank-with-duration", duration=True)


def _build(contents: Mapping[str, bytes], name: str, duration: bool) -> Dataset:
    frame = pd.read_csv(
        io.BytesIO(contents["bank-full.csv"]), sep=";", keep_default_na=False, na_values={column: ["unknown"] for column in MAY_BE_MISSING}
    )
    labels = (frame.pop("y") == "yes").to_numpy().astype(np.int64)
    if not duration:
        frame = frame.drop(columns="duration")
    integer = tuple(column for column in INTEGER if column in frame.columns)
    return Dataset(
        name=name,
        **split_table(frame, labels, N_TRAIN, SPLIT_SEED),
        label_names=("no", "yes"), favourable=1,
        integer=integer, categorical=tuple(column for column in frame.columns if column not in integer),
        groups=("marital",),
        missing="job, education and contact may be missing ('unknown'): all their one-hot columns are zero",
        source="UCI Bank Marketing (data set 222), S. Moro, P. Rita and P. Cortez, CC BY 4.0",
    )  # fmt: skip
