"""Recipes and their runs, for researchers."""

from cfptq.experiments.quickstart import QuickstartResult, run_quickstart
from cfptq.experiments.recipe import Experiment, Recipe
from cfptq.experiments.run import run_experiment, run_recipe

__all__ = ["Experiment", "QuickstartResult", "Recipe", "run_experiment", "run_quickstart", "run_recipe"]
