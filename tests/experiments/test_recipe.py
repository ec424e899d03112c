"""Experiment files: those of the repository, and every way of getting one wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cfptq import datasets
from cfptq.errors import ActionSetError, ConfigurationError, RecipeError
from cfptq.experiments import run_recipe
from cfptq.experiments.quickstart import build_quickstart_recipe
from cfptq.experiments.recipe import Recipe
from cfptq.models import MLP, LogisticRegression

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
#: The paper's Table 4: sparsity k and cost.
TABLE_4 = {
    "adult": (5, "l1"),
    "german": (4, "l1"),
    "compas": (3, "l1"),
    "bank": (5, "l1"),
    "bank-with-duration": (5, "l1"),
    "default": (4, "l2"),
}


def data_dir(recipe: Recipe) -> Path:
    folder = Path(os.environ.get("CFPTQ_DATA_DIR") or Path(__file__).resolve().parents[3] / "shared" / "data")
    if None in datasets.locate(recipe.dataset_name, data_dir=folder).values():
        pytest.skip(f"the files of {recipe.dataset_name} are not in {folder}")
    return folder


def test_every_published_data_set_has_its_recipe() -> None:
    assert {Recipe.load(path).dataset_name for path in RECIPES} == set(datasets.NAMES) - {"synthetic"}
    assert [path.stem for path in RECIPES] == [Recipe.load(path).dataset_name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_keeps_the_standard_protocol_and_the_papers_table_4(path: Path) -> None:
    recipe = Recipe.load(path)
    assert (recipe.actions.max_changes, recipe.actions.norm) == TABLE_4[recipe.dataset_name]
    assert recipe.actions.weights == "std"
    assert recipe.calibration.rows == 1024
    assert recipe.budgets == (4,)
    assert recipe.backbone.hidden == (64, 64)
    assert recipe.seeds == tuple(range(60, 120) if recipe.dataset_name == "german" else range(10, 20))
    assert recipe.networks is not None and (Path(recipe.networks) / "index.json").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_one_way_and_immutable_feature_says_why_in_a_comment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    recipe = Recipe.load(path)
    lines = [line for line in text.splitlines() if line.strip().startswith("- ")]
    named = {line.split("#")[0].strip(" -") for line in lines if len(line.split("#", 1)[-1].strip()) > 5 and "#" in line}
    assert named == {*recipe.actions.immutable, *recipe.actions.increase_only, *recipe.actions.decrease_only}
    assert "benchmark, not advice" in text


@pytest.mark.data
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_action_set_accepts_every_person_and_fixes_what_the_recipe_fixes(path: Path) -> None:
    recipe = Recipe.load(path)
    people = recipe.dataset(data_dir=data_dir(recipe), download=False)
    columns = datasets.encode(people)
    action_set = recipe.action_set(people, columns.encoder)
    action_set.check(columns.train)
    action_set.check(columns.test)
    assert action_set.width == columns.train.shape[1]
    assert action_set.favourable == people.favourable
    torch.testing.assert_close(action_set.encode(people.test), columns.test)
    fixed = {feature.name for feature in action_set if feature.is_immutable}
    assert fixed == set(recipe.actions.immutable)


def test_the_quickstart_prepares_a_model_without_any_file() -> None:
    experiment = build_quickstart_recipe().prepare(0, progress=False)
    assert experiment.dataset.synthetic
    assert not experiment.model.training
    with torch.no_grad():
        decided = experiment.model(experiment.columns.test).argmax(1)
    assert (decided == experiment.columns.test_labels).double().mean() > 0.8
    assert 0.25 < (decided != experiment.action_set.favourable).double().mean() < 0.5
    experiment.action_set.check(experiment.columns.test)
    assert set(experiment.groups["sex"]) == {"female", "male"} and len(experiment.groups["sex"]) == 1_000


def test_training_by_a_recipe_depends_on_the_seed_alone() -> None:
    recipe = Recipe.parse("{schema: 1, dataset: synthetic, training: {epochs: 2}}")
    columns = datasets.encode(recipe.dataset())
    first, again, other = (recipe.train(seed, columns=columns, progress=False).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_what_is_left_out_is_the_standard_protocol() -> None:
    recipe = Recipe.parse("{schema: 1, dataset: synthetic}")
    assert recipe.budgets == (4,) and recipe.seeds == (0, 1, 2) and recipe.calibration.rows == 1024 and recipe.methods is None
    assert isinstance(recipe.backbone.build(5, 2, 0), MLP)


def test_a_logistic_regression_has_no_hidden_layers() -> None:
    assert isinstance(
        Recipe.parse("{schema: 1, dataset: synthetic, model: {kind: logistic-regression}}").backbone.build(5, 2, 0), LogisticRegression
    )
    with pytest.raises(RecipeError, match="logistic-regression has no hidden"):
        Recipe.parse("{schema: 1, dataset: synthetic, model: {kind: logistic-regression, hidden: [8]}}")


def test_a_mixed_cost_reaches_the_action_set() -> None:
    recipe = Recipe.parse("{schema: 1, dataset: synthetic, actions: {norm: {l1: 0.7, l2: 0.3}}}")
    assert recipe.action_set(recipe.dataset()).norm == ("mix", 0.7, 0.3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{schema: 1, dataset: synthetic, action: {}}", r"unknown key 'action' \(did you mean 'actions'\?\)"),
        ("{schema: 1, dataset: synthetic, actions: {imutable: [age]}}", "unknown key 'actions.imutable'"),
        ("{schema: 1, dataset_name: synthetic}", "'dataset'"),
        ("{schema: 1}", "the key 'dataset' is missing"),
        ("{dataset: synthetic}", "the key 'schema' is missing"),
        ("{schema: 2, dataset: synthetic}", "schema"),
        ("{schema: 1, dataset: adults}", r"got 'adults' \(did you mean 'adult'\?\)"),
        ("{schema: 1, dataset: synthetic, seeds: []}", "seeds"),
        ("{schema: 1, dataset: synthetic, seeds: [1, 1]}", "seeds must be distinct"),
        ("{schema: 1, dataset: synthetic, seeds: [-1]}", "seeds.0"),
        ("{schema: 1, dataset: synthetic, seeds: [4294967296]}", "seeds.0"),
        ("{schema: 1, dataset: synthetic, model: {hidden: [1000000000]}}", "model.hidden.0"),
        ("{schema: 1, dataset: synthetic, model: {hidden: [16000, 16000]}}", "model: hidden must have at most"),
        (f"{{schema: 1, dataset: synthetic, model: {{hidden: {[8] * 1000}}}}}", "model.hidden"),
        ("{schema: 1, dataset: synthetic, training: {epochs: 10000000000}}", "training.epochs"),
        ("[" * 5000, "not YAML"),
        ("{schema: 1, dataset: synthetic, budgets: [0]}", "budgets.0"),
        ("{schema: 1, dataset: synthetic, actions: {norm: l3}}", "norm"),
        ("{schema: 1, dataset: synthetic, actions: {max_changes: 0}}", "max_changes"),
        ("{schema: 1, dataset: synthetic, actions: {bounds: {age: [1]}}}", "bounds.age"),
        ("{schema: 1, dataset: synthetic, training: {epochs: many}}", "training.epochs"),
        ("schema: 1\ndataset: synthetic\nseeds: [0]\nseeds: [1]\n", "line 4 repeats the key 'seeds'"),
        ("schema: 1\ndataset: synthetic\nactions:\n  bounds:\n    age: [1, 2]\n    age: [1, 3]\n", "line 6 repeats the key 'age'"),
        ("- schema\n- 1\n", "holds no keys"),
        ("", "holds no keys"),
        ("{schema: 1", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_recipe_that_makes_no_sense_says_where(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        Recipe.parse(text, name="mine.yaml")
    assert str(caught.value).startswith("mine.yaml")


def test_a_recipe_is_a_regular_file_of_a_small_size(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    for path, told in {
        Path("/dev/zero"): "regular file",
        tmp_path / "large.yaml": "at most 1048576 bytes",
        tmp_path: "regular file",
    }.items():
        with pytest.raises(RecipeError, match=told):
            Recipe.load(path)


def test_an_unknown_method_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "prepare", lambda *_, **__: pytest.fail("the work has begun"))
    recipe = Recipe.parse("{schema: 1, dataset: synthetic, methods: [faithfull]}")
    with pytest.raises(ConfigurationError, match="did you mean 'faithful'"):
        run_recipe(recipe, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="recipe must be"):
        run_recipe(5, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml"):
        Recipe.load(tmp_path / "nothing.yaml")


def test_a_feature_that_the_data_set_does_not_have_is_an_error() -> None:
    recipe = Recipe.parse("{schema: 1, dataset: synthetic, actions: {immutable: [gender]}}")
    with pytest.raises(ActionSetError, match="gender"):
        recipe.action_set(recipe.dataset())
