"""The public data sets, where their files are present, against counts taken from the publishers and from the paper's Table 3."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfptq import datasets
from cfptq.errors import DataError

pytestmark = pytest.mark.data

PUBLISHED = [name for name in datasets.NAMES if name != "synthetic"]
#: Train and test people, features, one-hot groups, columns, share of the favourable class.
FACTS = {
    "adult": (32_561, 16_281, 12, 7, 88, (7_841 + 3_846) / 48_842),
    "german": (700, 300, 20, 13, 61, 0.7),
    "compas": (4_273, 1_899, 8, 3, 15, 1 - 0.4551),
    "bank": (36_168, 9_043, 15, 9, 47, 5_289 / 45_211),
    "bank-with-duration": (36_168, 9_043, 16, 9, 48, 5_289 / 45_211),
    "default": (24_000, 6_000, 23, 3, 29, 1 - 0.2212),
}


@functools.cache
def loaded(name: str, seed: int = 0) -> datasets.Dataset:
    folder = Path(os.environ.get("CFPTQ_DATA_DIR") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if None in datasets.locate(name, data_dir=folder).values():
        pytest.skip(f"the files of {name} are not in {folder}")
    return datasets.load(name, seed=seed, data_dir=folder, download=False)


@functools.cache
def encoded(name: str) -> datasets.Columns:
    return datasets.encode(loaded(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_shares_are_the_published_ones(name: str) -> None:
    people = loaded(name)
    n_train, n_test, features, categories, width, favourable = FACTS[name]
    assert (len(people.train), len(people.test)) == (n_train, n_test)
    assert people.train.shape[1] == features
    assert len(people.categorical) == categories
    assert people.favourable_share == pytest.approx(favourable, abs=1e-4)
    assert people.name == name
    assert not people.synthetic
    assert encoded(name).train.shape == (n_train, width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_columns_are_standardized_and_one_hot(name: str) -> None:
    people = loaded(name)
    columns = encoded(name)
    numbers = len(people.numbers)
    assert columns.train.dtype == torch.float32
    assert columns.train.isfinite().all() and columns.test.isfinite().all()
    torch.testing.assert_close(columns.train[:, :numbers].double().mean(0), torch.zeros(numbers, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(columns.train[:, :numbers].double().std(0), torch.ones(numbers, dtype=torch.float64), atol=1e-3, rtol=0)
    # A category is one column at 1, or none where it is missing.
    present = torch.tensor(people.train[list(people.categorical)].notna().to_numpy()).sum(1)
    assert columns.train[:, numbers:].unique().tolist() == [0.0, 1.0]
    assert torch.equal(columns.train[:, numbers:].sum(1).long(), present)


@pytest.mark.parametrize("name", PUBLISHED)
def test_kinds_of_columns_hold_what_they_say(name: str) -> None:
    people = loaded(name)
    for frame in (people.train, people.test):
        for column in people.integer:
            assert pd.api.types.is_integer_dtype(frame[column])
        for column, domain in people.ordinal.items():
            assert set(frame[column]) <= set(domain)
        for column in people.categorical:
            assert all(isinstance(level, str) for level in frame[column].dropna().unique())


@pytest.mark.parametrize("name", ["adult", "compas", "bank", "bank-with-duration", "default"])
def test_a_large_data_set_has_one_split_for_all_seeds(name: str) -> None:
    pd.testing.assert_frame_equal(loaded(name, seed=0).test, loaded(name, seed=7).test)


def test_german_is_split_anew_for_each_seed_and_the_same_way_each_time() -> None:
    first, again, other = loaded("german", 0), loaded("german", 0), loaded("german", 1)
    pd.testing.assert_frame_equal(first.test, again.test)
    assert not first.test.equals(other.test)
    for people in (first, other):
        assert people.test_labels.sum() == 210 and people.train_labels.sum() == 490


def test_adult_loses_the_census_weight_and_keeps_one_education() -> None:
    people = loaded("adult")
    assert "fnlwgt" not in people.train and "education" not in people.train and "education-num" in people.train
    assert people.train.isna().any(axis=1).sum() == 2_399 and people.test.isna().any(axis=1).sum() == 1_221
    assert people.train_labels.sum() == 7_841 and people.test_labels.sum() == 3_846


def test_compas_holds_no_names_no_dates_and_nothing_that_leaks_the_label() -> None:
    people = loaded("compas")
    assert list(people.train) == [
        "sex",
        "age",
        "race",
        "juv_fel_count",
        "juv_misd_count",
        "juv_other_count",
        "priors_count",
        "c_charge_degree",
    ]
    race = pd.concat([people.train["race"], people.test["race"]]).value_counts()
    assert (race["African-American"], race["Caucasian"], race["Hispanic"]) == (3_175, 2_103, 509)
    assert people.label_names[people.favourable] == "no new offence"


def test_bank_leaves_out_what_is_known_only_after_the_call() -> None:
    without, with_duration = loaded("bank"), loaded("bank-with-duration")
    assert "duration" not in without.train
    pd.testing.assert_frame_equal(with_duration.test.drop(columns="duration"), without.test)


def test_undocumented_codes_of_default_are_missing() -> None:
    people = loaded("default")
    everyone = pd.concat([people.train, people.test])
    assert everyone["EDUCATION"].isna().sum() == 14 + 280 + 51
    assert everyone["MARRIAGE"].isna().sum() == 54
    assert everyone["SEX"].isna().sum() == 0


def test_no_test_person_is_a_training_person() -> None:
    people = loaded("german")
    everyone = pd.concat([people.train, people.test])
    assert len(everyone) == 1_000 and not everyone.duplicated().any()


def test_a_level_that_training_never_saw_is_all_zero() -> None:
    people = loaded("german")
    transformer = datasets.fit_encoder(people)
    stranger = people.test.head(1).assign(job="A199")
    columns = np.asarray(transformer.transform(stranger))[0]
    jobs = [index for index, name in enumerate(transformer.get_feature_names_out()) if name.startswith("job_")]
    assert len(jobs) == 4 and not columns[jobs].any()


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(DataError, match="adult, german, compas, bank, bank-with-duration, default, synthetic"):
        datasets.load("adults")
