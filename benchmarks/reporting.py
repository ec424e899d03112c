"""Seeds, networks, statistics and records that all benchmarks share.

Settings are chosen on development seeds only. Reporting seeds are run once for each change of the default, and every results file keeps
a record of each run on them. A benchmark calls ``start_run`` before it measures and ``write_results`` when it has measured:

    seeds = reporting.REPORTING_SEEDS
    reporting.start_run(OUT, {name: seeds[name] for name in chosen.datasets}, chosen.reason)
    for name in chosen.datasets:
        for seed in seeds[name]:
            experiment = reporting.load_experiment(name, seed)
            ...
        reporting.write_results(OUT, results)

Statistics have one definition each. The standard deviation is that of a sample (divisor n - 1) over seeds. The 95 % interval is Student's
t-interval over seeds. german is pooled: people of all its splits together, so that each split weighs by its people; the interval is the
t-interval of that ratio over splits. Its splits share people, so the interval tells how much the draw of the splits matters, not how
other applicants would fare. Where two methods are compared, the interval is that of the paired difference.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

import cfptq
from cfptq.errors import ConfigurationError, FileError
from cfptq.experiments.recipe import Experiment, Recipe
from cfptq.experiments.stored_networks import INDEX_FILE, name_file, read_index, write_network
from cfptq.io.atomic import write_text
from cfptq.io.files import read_json
from cfptq.pipeline.comparison import Comparison
from cfptq.pipeline.method import Method

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
RESULTS = HERE / "results"
#: Networks of the reporting seeds, which are committed, and those of development seeds, which are trained where they are needed.
NETWORKS, DEVELOPMENT_NETWORKS = HERE / "networks", HERE / "networks" / "development"

DATASETS = ("adult", "bank", "bank-with-duration", "compas", "default", "german")
#: Data sets whose seeds draw splits of one small table and are pooled, because one split holds only some 75 rejected people.
POOLED = ("german",)

#: Data set -> seeds that settings may be chosen on. Further ones are 100 and above, but for german.
DEVELOPMENT_SEEDS: Mapping[str, Sequence[int]] = {name: range(60) if name in POOLED else range(10) for name in DATASETS}
#: Data set -> seeds that figures are reported for.
REPORTING_SEEDS: Mapping[str, Sequence[int]] = {name: range(60, 120) if name in POOLED else range(10, 20) for name in DATASETS}
#: The same for data sets of images, whose networks ``images.py`` trains.
IMAGE_REPORTING_SEEDS: Mapping[str, Sequence[int]] = {"mnist": range(10, 13), "fashion-mnist": range(10, 13), "celeba": range(10, 13)}
FURTHER_DEVELOPMENT_SEEDS = 100  # Seeds from here on are for development, but for german.

#: Key of a results file under which the runs on reporting seeds stand.
RUNS_KEY = "runs_on_reporting_seeds"
CONFIDENCE = 0.95


def load_recipe(name: str) -> Recipe:
    """Load a data set's recipe, which reads the networks of its reporting seeds."""
    return Recipe.load(RECIPES / f"{name}.yaml")


def is_reporting_seed(name: str, seed: int) -> bool:
    """Tell whether figures are reported for a seed of a data set."""
    return seed in {**REPORTING_SEEDS, **IMAGE_REPORTING_SEEDS}.get(name, ())


def is_development_seed(name: str, seed: int) -> bool:
    """Tell whether settings may be chosen on a seed of a data set."""
    return seed in DEVELOPMENT_SEEDS[name] or (name not in POOLED and seed >= FURTHER_DEVELOPMENT_SEEDS)


def compare_methods(experiment: Experiment, name: str, seed: int, methods: Sequence[str | Method], **settings: Any) -> Comparison:
    """Quantize an experiment's network by several methods, and judge all of them on its test people.

    Args:
        experiment: data, action set and network of one seed.
        name: Name of the data set in the results.
        seed: Seed of the calibration draw and of the people.
        methods: Presets, toolchains and methods.
        settings: Further keywords of ``cfptq.compare``.
    """
    columns = experiment.columns
    return cfptq.compare(
        experiment.model,
        [(columns.train, columns.train_labels)],
        [(columns.test, columns.test_labels)],
        experiment.action_set,
        methods=methods,
        seed=seed,
        dataset=name,
        **settings,
    )


def load_experiment(name: str, seed: int, *, progress: bool = False) -> Experiment:
    """Load data, action set and stored network of one seed.

    The network of a reporting seed is a committed file. That of a development seed is trained once and kept in
    ``benchmarks/networks/development/``, which git ignores.

    Args:
        name: Data set, one of ``DATASETS``.
        seed: Development or reporting seed.
        progress: Show progress of training.

    Raises:
        ConfigurationError: The seed is for neither development nor reporting.
        FileError: A reporting seed has no stored network, or a stored network does not fit.
    """
    recipe = load_recipe(name)
    if is_reporting_seed(name, seed):
        if not _has_network(name, seed, NETWORKS):
            raise FileError(f"{NETWORKS} holds no network of {name} for seed {seed}. Run python benchmarks/networks.py --datasets {name}.")
        return recipe.prepare(seed, progress=progress)
    if not is_development_seed(name, seed):
        further = "" if name in POOLED else f" or seeds from {FURTHER_DEVELOPMENT_SEEDS}"
        raise ConfigurationError(f"Seed {seed} of {name} is kept unused. Develop on {_describe_seeds(DEVELOPMENT_SEEDS[name])}{further}.")
    recipe = recipe.model_copy(update={"networks": str(DEVELOPMENT_NETWORKS)})
    try:
        store_network(recipe, seed, DEVELOPMENT_NETWORKS, progress=progress)
        return recipe.prepare(seed, progress=progress)
    except FileError:  # The network is damaged, or the recipe asks for another one by now.
        store_network(recipe, seed, DEVELOPMENT_NETWORKS, again=True, progress=progress)
        return recipe.prepare(seed, progress=progress)


def store_network(recipe: Recipe, seed: int, folder: Path, *, again: bool = False, progress: bool = False) -> bool:
    """Train and store the network of one seed, and return False if there is one already.

    Args:
        recipe: Recipe of the data set.
        seed: Seed of the network.
        folder: Folder of stored networks.
        again: Train it although there is one.
        progress: Show progress of training.
    """
    if not again and _has_network(recipe.dataset_name, seed, folder):
        return False
    experiment = recipe.prepare(seed, train=True, progress=progress)
    write_network(folder, experiment.model, recipe.describe_network(experiment.columns, seed), experiment.training)
    return True


def _has_network(name: str, seed: int, folder: Path) -> bool:
    return (folder / INDEX_FILE).exists() and name_file(name, seed) in read_index(folder)


@dataclass(frozen=True)
class Summary:
    """Statistics of one figure over seeds.

    Attributes:
        mean: Mean over seeds, or the ratio over all people where seeds are pooled. None if every value is undefined.
        std: Standard deviation over seeds with divisor n - 1, or None for fewer than two seeds.
        low: Lower end of the 95 % interval of ``mean``, or None for fewer than two seeds.
        high: Its upper end.
        seeds: Number of seeds whose value is defined.
    """

    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    seeds: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the entry of a results file, rounded to 6 decimals."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def summarize(values: Sequence[float | None], people: Sequence[float] | None = None) -> Summary:
    """Summarize one figure over seeds.

    The interval is mean ± t·s/√n. With ``people``, the mean is Σ p·v / Σ p, and s/√n is the standard error of this ratio by its first
    order, √(n/(n-1) · Σ p²(v - mean)²) / Σ p. Equal numbers of people give the interval without them.

    Args:
        values: Value of each seed, None or NaN where it is undefined.
        people: Number of people behind each value, for data sets whose seeds are pooled.
    """
    weights = [1.0] * len(values) if people is None else people
    known = [
        (float(value), float(weight))
        for value, weight in zip(values, weights, strict=True)
        if value is not None and not math.isnan(value) and weight > 0
    ]
    if not known:
        return Summary(None, None, None, None, 0)
    count, total = len(known), sum(weight for _, weight in known)
    mean = sum(weight * value for value, weight in known) / total
    if count == 1:
        return Summary(mean, None, None, None, 1)
    error = math.sqrt(count / (count - 1) * sum((weight * (value - mean)) ** 2 for value, weight in known)) / total
    reach = float(student_t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Summary(mean, statistics.stdev(value for value, _ in known), mean - reach, mean + reach, count)


def summarize_difference(first: Sequence[float | None], second: Sequence[float | None], people: Sequence[float] | None = None) -> Summary:
    """Summarize the paired difference of two methods, ``first`` less ``second``, over the seeds for which both are defined.

    Args:
        first: Value of each seed of one method.
        second: Value of each seed of the other, in the same order.
        people: Number of people behind each pair, for data sets whose seeds are pooled.
    """
    differences = [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    return summarize(differences, people)


def add_reason(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--reason`` to a benchmark's command line."""
    parser.add_argument("--reason", help="why the reporting seeds are run (again), such as the change of the default that is measured")


def start_run(path: Path, seeds: Mapping[str, Sequence[int]], reason: str | None) -> None:
    """Record a run in its results file before it measures anything. A run that fails later has been recorded too.

    Nothing is recorded if no seed is a reporting seed.

    Args:
        path: Results file, whose other content stays as it is.
        seeds: Data set -> seeds that are going to be run.
        reason: Reason of the run.

    Raises:
        ConfigurationError: Reporting seeds are run without a reason.
        FileError: The results file is damaged or cannot be written.
    """
    reporting = {name: [seed for seed in chosen if is_reporting_seed(name, seed)] for name, chosen in seeds.items()}
    reporting = {name: chosen for name, chosen in reporting.items() if chosen}
    if not reporting:
        return
    if reason is None or not reason.strip():
        listed = "; ".join(f"{_describe_seeds(chosen)} of {name}" for name, chosen in reporting.items())
        raise ConfigurationError(
            f'Reporting seeds are run once for each change of the default. This run has {listed}. Give --reason "...", or use other seeds.'
        )
    content = read_json(path) if path.exists() else {}
    record = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": find_commit(),
        "reason": reason.strip(),
        "seeds": {name: _describe_seeds(chosen).removeprefix("seeds ").removeprefix("seed ") for name, chosen in reporting.items()},
    }
    write_json(path, {**content, RUNS_KEY: [*list_runs(path), record]})


def list_runs(path: Path) -> list[dict[str, Any]]:
    """List the runs on reporting seeds that a results file records, the earliest first.

    Raises:
        FileError: The file is damaged.
    """
    runs = read_json(path).get(RUNS_KEY, []) if path.exists() else []
    if not isinstance(runs, list):
        raise FileError(f"{path} must hold a list under {RUNS_KEY!r}, got {type(runs).__name__}. Restore the file.")
    return runs


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write a results file and keep the records of runs that it has.

    Args:
        path: Results file.
        content: Everything but the records.

    Raises:
        FileError: The file that is there is damaged, or it cannot be written.
    """
    runs = list_runs(path)
    write_json(path, {**content, **({RUNS_KEY: runs} if runs else {})})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n")


def find_commit() -> str | None:
    """Return the commit of this folder, with "+" where code or recipes have changed since, or None without git."""
    try:
        commit = _run_git("rev-parse", "HEAD")
        changed = _run_git("status", "--porcelain", "--", "cfptq", "recipes", "benchmarks/*.py", "benchmarks/networks/index.json")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _run_git(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(
        ("git", *arguments), cwd=HERE.parent, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def _describe_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as text, such as "seeds 10-19" or "seeds 3, 7"."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
