"""The generated credit data set and the parts that all data sets share."""

from __future__ import annotations

import dataclasses
import urllib.request

import numpy as np
import pandas as pd
import pytest

from cfptq import datasets
from cfptq.datasets.splits import split_stratified
from cfptq.errors import DataError


def test_it_needs_no_file_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("CFPTQ_DATA_DIR", "/nowhere")
    people = datasets.load("synthetic")
    assert datasets.locate("synthetic") == {}
    assert people.synthetic and people.source.startswith("SYNTHETIC")


@pytest.mark.parametrize("seed", range(5))
def test_about_two_in_five_are_refused(seed: int) -> None:
    people = datasets.load("synthetic", seed=seed)
    assert (len(people.train), len(people.test)) == (3_000, 1_000)
    assert 0.30 <= 1 - people.favourable_share <= 0.45


def test_the_same_seed_gives_the_same_people_and_another_seed_others() -> None:
    first, again, other = (datasets.load("synthetic", seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first.train, again.train)
    assert np.array_equal(first.train_labels, again.train_labels)
    assert not first.train.equals(other.train)


def test_it_has_every_kind_of_column() -> None:
    people = datasets.load("synthetic")
    assert people.continuous and people.integer and people.ordinal and people.categorical
    assert {"age", "sex"} <= set(people.train)
    assert people.train["age"].between(18, 80).all()
    assert (people.train["employment-years"] <= people.train["age"] - 17).all()
    assert set(people.train["education"]) == set(people.ordinal["education"])


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1]
    datasets.load("synthetic")
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("n_train", [1, 37, 50, 99])
def test_a_stratified_split_is_exact_disjoint_and_keeps_class_shares(n_train: int) -> None:
    labels = np.array([0] * 61 + [1] * 29 + [2] * 10)
    train, test = split_stratified(labels, n_train, seed=5)
    assert len(train) == n_train
    assert sorted([*train, *test]) == list(range(100))
    for value, count in ((0, 61), (1, 29), (2, 10)):
        assert abs((labels[train] == value).sum() - count * n_train / 100) < 1


def test_a_split_never_changes() -> None:
    _, test = split_stratified(np.arange(20) % 2, 14, seed=0)
    assert test.tolist() == [0, 2, 3, 11, 15, 16]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"integer": ("age",)}, "exactly one kind"),
        ({"continuous": ("income", "savings", "loan-amount", "age")}, "exactly one kind"),
        ({"favourable": 2}, "favourable must be .* got 2"),
        ({"groups": ("race",)}, "groups"),
        ({"train_labels": np.zeros(5, dtype=np.int64)}, "5 labels"),
        ({"test_labels": np.full(1_000, 2, dtype=np.int64)}, "labels of test"),
    ],
)
def test_a_data_set_that_contradicts_itself_cannot_be_built(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        dataclasses.replace(datasets.load("synthetic"), **changes)
