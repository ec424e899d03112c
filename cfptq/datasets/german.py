"""The German Credit data set (Statlog), which predicts a good credit risk.

It has 1,000 people. Each seed therefore draws a split of its own, so that splits can be pooled.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfptq.datasets.dataset import Dataset
from cfptq.datasets.published_files import PublishedFile, Source
from cfptq.datasets.splits import split_table

_COPY = "https://raw.githubusercontent.com/amirhk/mace/01e6a405ff74e24dc3438a005cd60892154d189d/_data_other/uci_german.csv"

FILES = (
    PublishedFile(
        "german", "german.data", 79_793, "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
        (Source(_COPY),),
    ),
)  # fmt: skip

COLUMNS = (
    "checking-account", "duration-months", "credit-history", "purpose", "credit-amount", "savings", "employment-since",
    "instalment-rate", "personal-status-and-sex", "other-debtors", "residence-since", "property", "age",
    "other-instalment-plans", "housing", "existing-credits", "job", "liable-people", "telephone", "foreign-worker", "label",
)  # fmt: skip
INTEGER = ("duration-months", "credit-amount", "instalment-rate", "residence-since", "age", "existing-credits", "liable-people")
N_TRAIN = 700


def build(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set from the bytes of ``FILES``, split 700 / 300 by ``seed`` with equal class shares."""
    frame = pd.read_csv(io.BytesIO(contents["german.data"]), header=None, names=list(COLUMNS), sep=" ", keep_default_na=False)
    labels = (frame.pop("label") == 1).to_numpy().astype(np.int64)
    return Dataset(
        name="german",
        **split_table(frame, labels, N_TRAIN, seed),
        label_names=("bad risk", "good risk"), favourable=1,
        integer=INTEGER, categorical=tuple(name for name in frame.columns if name not in INTEGER),
        # The codes do not reveal sex (single men and non-single women share A92), so the codes themselves are the groups.
        groups=("personal-status-and-sex",),
        source=(
            "UCI Statlog German Credit (data set 144), H. Hofmann, CC BY 4.0. Categories keep their published codes (A11, ...): "
            "several of their published meanings are wrong (Groemping 2019)"
        ),
    )  # fmt: skip
