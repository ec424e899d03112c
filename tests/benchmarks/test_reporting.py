"""What all benchmarks share: their seeds and networks, their statistics, and the records of their runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from cfptq import datasets
from cfptq.errors import ConfigurationError, FileError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import networks  # noqa: E402
import reporting  # noqa: E402


def test_reporting_and_development_seeds_have_nothing_in_common() -> None:
    for name in reporting.DATASETS:
        assert not set(reporting.REPORTING_SEEDS[name]) & set(reporting.DEVELOPMENT_SEEDS[name])
        assert not any(reporting.is_development_seed(name, seed) for seed in reporting.REPORTING_SEEDS[name])
        assert len(reporting.REPORTING_SEEDS[name]) == (60 if name == "german" else 10)


def test_every_reporting_seed_has_its_network() -> None:
    wanted = {f"{name}-{seed}.safetensors" for name, seeds in reporting.REPORTING_SEEDS.items() for seed in seeds}
    assert {path.name for path in reporting.NETWORKS.glob("*.safetensors")} == wanted
    assert networks.check_files(reporting.NETWORKS) == len(wanted)


@pytest.mark.data
@pytest.mark.parametrize("name", reporting.DATASETS)
def test_the_networks_fit_their_recipe_and_are_better_than_a_constant(name: str) -> None:
    folder = Path(os.environ.get("CFPTQ_DATA_DIR") or BENCHMARKS.parents[1] / "shared" / "data")
    if None in datasets.locate(name, data_dir=folder).values():
        pytest.skip(f"the files of {name} are not in {folder}")
    experiment = reporting.load_recipe(name).prepare(reporting.REPORTING_SEEDS[name][-1], data_dir=folder, download=False, progress=False)
    assert experiment.network.source == "read"
    decided, labels = experiment.model(experiment.columns.test).argmax(1), experiment.columns.test_labels
    assert float((decided == labels).double().mean()) > float(labels.bincount().max()) / len(labels)


@pytest.mark.parametrize(("name", "seed"), [("adult", 20), ("compas", 99), ("german", 120)])
def test_a_seed_for_neither_purpose_is_refused(name: str, seed: int) -> None:
    with pytest.raises(ConfigurationError, match=f"Seed {seed} of {name} is kept unused"):
        reporting.load_experiment(name, seed)


def test_a_summary_is_the_sample_deviation_and_the_t_interval() -> None:
    values = [0.01, 0.03, 0.02, 0.06]
    summary = reporting.summarize(values)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (summary.mean, summary.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (summary.low, summary.high) == pytest.approx((low, high))
    assert summary.seeds == 4


def test_equal_numbers_of_people_change_nothing() -> None:
    values = [0.01, 0.03, 0.02, 0.06]
    assert vars(reporting.summarize(values, [70] * 4)) == pytest.approx(vars(reporting.summarize(values)))


def test_a_pooled_mean_is_that_of_all_people_and_its_interval_covers_it() -> None:
    assert reporting.summarize([0.0, 0.1], [30, 10]).mean == pytest.approx(1 / 40)
    # Coverage, by drawing: 60 splits of some 75 people, of whom 5 % lose their recourse.
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        people = draw.integers(50, 100, 60)
        summary = reporting.summarize(list(draw.binomial(people, 0.05) / people), list(people))
        assert summary.low is not None and summary.high is not None
        covered += summary.low <= 0.05 <= summary.high
    assert covered / 400 == pytest.approx(0.95, abs=0.035), "three standard errors of 400 draws"


def test_undefined_values_and_empty_splits_are_left_out() -> None:
    left = reporting.summarize([0.1, None, float("nan"), 0.3, 0.9], [1, 1, 1, 1, 0])
    assert left == reporting.summarize([0.1, 0.3])
    assert reporting.summarize([None]).to_dict() == {"mean": None, "std": None, "low": None, "high": None, "seeds": 0}
    assert reporting.summarize([0.1]).to_dict() == {"mean": 0.1, "std": None, "low": None, "high": None, "seeds": 1}


def test_the_interval_of_a_paired_difference_is_not_that_of_two_means() -> None:
    first, second = [0.10, 0.20, 0.30], [0.09, 0.18, 0.30]
    test = scipy.stats.ttest_rel(first, second)
    summary = reporting.summarize_difference(first, second)
    assert (summary.low, summary.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert reporting.summarize_difference([0.1, None], [0.1, 0.2]).seeds == 1


def test_reporting_seeds_are_run_for_a_reason_only(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for reason in (None, " "):
        with pytest.raises(ConfigurationError, match=r"seeds 10-19 of adult.*--reason"):
            reporting.start_run(path, {"adult": range(10, 20), "german": range(3)}, reason)
    reporting.start_run(path, {"adult": range(10), "german": range(60)}, None)
    assert not path.exists(), "development seeds need no reason and leave no record"


def test_every_run_on_reporting_seeds_stays_on_record(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"figures": 1}')
    reporting.start_run(path, {"adult": range(8, 20)}, "first")
    assert json.loads(path.read_text())["figures"] == 1, "a run that fails has lost nothing"
    reporting.write_results(path, {"figures": 2, reporting.RUNS_KEY: []})
    reporting.start_run(path, {"adult": [10], "german": [60, 62]}, "second")
    reporting.write_results(path, {"figures": 3})
    content = json.loads(path.read_text())
    assert content["figures"] == 3
    assert [(run["reason"], run["seeds"]) for run in content[reporting.RUNS_KEY]] == [
        ("first", {"adult": "10-19"}),
        ("second", {"adult": "10", "german": "60, 62"}),
    ]
    assert all(set(run) == {"date", "commit", "reason", "seeds"} for run in content[reporting.RUNS_KEY])


def test_a_damaged_results_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for damaged in ("{", f'{{"{reporting.RUNS_KEY}": 1}}'):
        path.write_text(damaged)
        for act in (lambda: reporting.write_results(path, {}), lambda: reporting.start_run(path, {"adult": [10]}, "why")):
            with pytest.raises(FileError):
                act()
        assert path.read_text() == damaged
