"""The COMPAS data set (ProPublica, Broward County), which predicts a new offence within two years.

The people are real. Names and dates of birth are never read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfptq.datasets.dataset import Dataset
from cfptq.datasets.published_files import PublishedFile, Source
from cfptq.datasets.splits import split_table

_PROPUBLICA = (
    "https://raw.githubusercontent.com/propublica/compas-analysis/bafff5da3f2e45eca6c2d5055faad269defd135a/compas-scores-two-years.csv"
)

FILES = (
    PublishedFile(
        "compas", "compas-scores-two-years.csv", 2_546_489, "c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",
        (Source(_PROPUBLICA),),
    ),
)  # fmt: skip

FEATURES = ("sex", "age", "race", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree")
INTEGER = ("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count")
#: Columns that ProPublica's filter reads, besides the features and the label.
FILTER = ("days_b_screening_arrest", "is_recid", "score_text")
#: Share of training people, which the paper gives as 4,500 of 6,500. The filter leaves 6,172.
TRAIN_SHARE = 4_500 / 6_500
SPLIT_SEED = 0


def build(contents: Mapping[str, bytes], seed: int) -> Dataset:
    """Build the data set from the bytes of ``FILES``, with ProPublica's filter (6,172 people).

    The split is fixed, so ``seed`` has no effect.
    """
    content = io.BytesIO(contents["compas-scores-two-years.csv"])
    frame = pd.read_csv(content, usecols=[*FEATURES, *FILTER, "two_year_recid"], keep_default_na=False, na_values=[""])
    kept = (
        frame["days_b_screening_arrest"].abs().le(30)  # The screening belongs to this arrest.
        & frame["is_recid"].ne(-1)
        & frame["c_charge_degree"].ne("O")  # Ordinary traffic offences.
        & frame["score_text"].ne("N/A")
    )
    frame = frame[kept].reset_index(drop=True)
    labels = frame["two_year_recid"].to_numpy(dtype=np.int64)
    frame = frame[list(FEATURES)]
    return Dataset(
        name="compas",
        **split_table(frame, labels, round(TRAIN_SHARE * len(frame)), SPLIT_SEED),
        label_names=("no new offence", "new offence within two years"), favourable=0,
        integer=INTEGER, categorical=tuple(name for name in FEATURES if name not in INTEGER),
        groups=("race", "sex"),
        source="ProPublica, 'Machine Bias' (2016): public records of Broward County, Florida",
    )  # fmt: skip
