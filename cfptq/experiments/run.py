"""Runs of a recipe, which read or train a network, quantize it by each method and measure recourse."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cfptq.auditing import Protocol
from cfptq.experiments.recipe import Experiment, Recipe
from cfptq.io.arguments import BOOLEAN, PATH, check_arguments, instance_of, optional
from cfptq.io.atomic import make_folder
from cfptq.io.progress import allow_progress
from cfptq.network import preserved_state
from cfptq.pipeline.comparison import COMPARED, Comparison, check_budgets, check_methods, compare_methods
from cfptq.pipeline.inputs import check_seed
from cfptq.pipeline.task import TaskSettings

#: Files that a run writes beside the quantized models.
RESULTS_FILE, TIMINGS_FILE = "results.json", "timings.json"


@check_arguments(
    recipe=instance_of((Recipe, str, os.PathLike), "a recipe or the path of its YAML file"),
    out=PATH,
    seeds=optional(instance_of((list, tuple, range), "a list of seeds")),
    data_dir=optional(PATH),
    train=BOOLEAN,
    progress=BOOLEAN,
)
def run_recipe(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    train: bool = False,
    on_result: Callable[[Path, Comparison], None] | None = None,
    progress: bool = True,
) -> dict[int, Comparison]:
    """Run a recipe for each of its seeds and write the results.

    One seed writes into ``out``. Several seeds write into a folder each, ``out/seed-0``, ``out/seed-1`` and so on. A folder gets
    ``results.json``, ``timings.json`` and the quantized models.

    Networks are read from the folder that the recipe names. A seed without a stored network is trained, and the results say so.

    Args:
        recipe: A recipe, or the path of its YAML file.
        out: Folder for the results, which is made if it is missing.
        seeds: Seeds to run. The recipe's seeds by default.
        data_dir: Folder of data sets. ``CFPTQ_DATA_DIR`` by default.
        train: Train every network, although there are stored ones.
        on_result: Called after each seed with its folder and comparison.
        progress: Show progress of long loops.

    Returns:
        The comparison of each seed.

    Raises:
        RecipeError: The recipe cannot be read or makes no sense.
        FileError: A data set is missing, a stored network does not fit, or the folder cannot be made.
        CfptqError: A seed cannot be run, see ``cfptq.compare``.
    """
    known = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    chosen = tuple(dict.fromkeys(known.seeds if seeds is None else seeds))
    for seed in chosen:
        check_seed(seed)
    check_methods(known.methods or COMPARED)
    check_budgets(known.budgets)
    comparisons = {}
    for seed in chosen:
        folder = make_folder(Path(out) if len(chosen) == 1 else Path(out) / f"seed-{seed}")
        with allow_progress(progress):
            experiment = known.prepare(seed, data_dir=data_dir, train=train, progress=progress)
            comparisons[seed] = run_experiment(known, experiment, folder, progress=progress)
        if on_result is not None:
            on_result(folder, comparisons[seed])
    return comparisons


def run_experiment(recipe: Recipe, experiment: Experiment, out: str | os.PathLike[str], *, progress: bool = True) -> Comparison:
    """Compare the recipe's methods on one prepared experiment and write the results.

    Args:
        recipe: Recipe that the experiment was prepared by.
        experiment: Data, action set and network of one seed.
        out: Folder for ``results.json``, ``timings.json`` and the quantized models, which is made if it is missing.
        progress: Show progress of long loops.
    """
    folder = make_folder(out)
    columns = experiment.columns
    with preserved_state(experiment.model, threads=1):
        comparison = compare_methods(
            experiment.model,
            [(columns.train, columns.train_labels)],
            [(columns.test, columns.test_labels)],
            experiment.action_set,
            check_methods(recipe.methods or COMPARED),
            check_budgets(recipe.budgets),
            TaskSettings(max_rows=recipe.calibration.rows, seed=experiment.seed, progress=progress),
            groups=experiment.groups,
            portable=True,
            protocol=Protocol(),
            dataset=experiment.dataset.name,
            keep=folder,
        )
    note = experiment.network.note
    comparison = replace(
        comparison,
        network=experiment.network.to_dict(),
        warnings=comparison.warnings if note is None else (note, *comparison.warnings),
    )
    write_comparison(comparison, folder)
    return comparison


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write ``results.json`` and ``timings.json`` into ``folder``."""
    comparison.to_json(folder / RESULTS_FILE)
    comparison.timings_to_json(folder / TIMINGS_FILE)
