"""The data set Default of Credit Card Clients (Taiwan, 2005), which predicts default in the next month."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfptq.datasets.dataset import Dataset
from cfptq.datasets.published_files import PublishedFile, Source
from cfptq.datasets.splits import split_table

_COPY = "https://raw.githubusercontent.com/ofurman/counterfactuals/3587f943826f6b087a0d198c8c4aa4373712c7ee/data/credit_card.csv"

FILES = (
    PublishedFile(
        "default", "default_of_credit_card_clients.csv", 2_867_208, "4edce6da569b2c30788a85fd98a9bafb1a983e8ca1a7aac875dd7ff853cbd0bb",
        (Source(_COPY),),
    ),
)  # fmt: skip

LABEL = "default payment next month"
#: Documented codes. The undocumented ones (EDUCATION 0, 5, 6 and MARRIAGE 0) count as missing.
WORDS = {
    "SEX": {1: "male", 2: "female"},
    "EDUCATION": {1: "graduate school", 2: "university", 3: "high school", 4: "other"},
    "MARRIAGE": {1: "married", 2: "single", 3: "other"},
}
#: Repayment status. -2, -1 and 0 mean no delay, and n means n months late.
STATUS = tuple(range(-2, 9))
STATUS_COLUMNS = ("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6")
N_TRAIN = 24_000
SPLIT_SEED = 0


def build(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set from the bytes of ``FILES``. The split is fixed, so ``seed`` has no effect."""
    frame = pd.read_csv(io.BytesIO(contents["default_of_credit_card_clients.csv"])).drop(columns="ID")
    labels = frame.pop(LABEL).to_numpy(dtype=np.int64)
    for column, words in WORDS.items():
        frame[column] = frame[column].map(words)
    return Dataset(
        name="default",
        **split_table(frame, labels, N_TRAIN, SPLIT_SEED),
        label_names=("no default", "default"), favourable=0,
        integer=tuple(column for column in frame.columns if column not in WORDS and column not in STATUS_COLUMNS),
        ordinal=dict.fromkeys(STATUS_COLUMNS, STATUS), categorical=tuple(WORDS),
        groups=("SEX", "EDUCATION"),
        missing="undocumented codes of EDUCATION (0, 5, 6) and MARRIAGE (0) count as missing: all their one-hot columns are zero",
        source="UCI Default of Credit Card Clients (data set 350), I-C. Yeh, CC BY 4.0",
    )  # fmt: skip
