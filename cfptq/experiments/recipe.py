"""Recipes, which are experiment files in YAML.

A recipe names a data set, the action set, the model, and the methods, budgets and seeds to run. An unknown or repeated key is an error.
Keys that are left out have the values of the standard protocol.
"""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sklearn.compose import ColumnTransformer
from torch import nn

from cfptq import datasets, models
from cfptq.actions import ActionSet
from cfptq.datasets import Columns, Dataset
from cfptq.errors import FileError, RecipeError
from cfptq.experiments.stored_networks import NetworkDescription, NetworkOrigin, compute_sha256, read_network, serialize_network
from cfptq.io.files import as_path, read_text
from cfptq.io.suggestions import did_you_mean
from cfptq.io.yaml import RepeatedKeyError, UniqueKeyLoader
from cfptq.models import TrainingLog, TrainingSettings

MAX_FILE_BYTES = 2**20  # Larger recipes are refused. Those of this repository have some 3 kB.
MAX_ENTRIES = 10_000  # Longer lists are refused.
MAX_HIDDEN_LAYERS = 100
MAX_NEURONS = 2**14  # Neurons of one hidden layer.
MAX_HIDDEN_WEIGHTS = 2**27  # Weights between hidden layers. Their training takes 2 GiB.

Names = Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=MAX_ENTRIES)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Side = float | None
#: A level of an ordinal or categorical feature, as YAML reads it.
Value = int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mix(_Part):
    """Weights of the mixed cost λ₁‖·‖₁ + λ₂‖·‖₂ (Table 7)."""

    l1: NotNegative
    l2: NotNegative


class Actions(_Part):
    """Declaration of an action set, with the keys of ``cfptq.ActionSet.from_frame``.

    The kinds of the features and the favourable class come from the data set.
    """

    immutable: Names = ()
    increase_only: Names = ()
    decrease_only: Names = ()
    bounds: dict[str, tuple[Side, Side]] = {}
    bounds_share: dict[str, tuple[float, float]] = {}
    reachable: dict[str, tuple[Value, ...]] = {}
    effort: dict[str, Positive] = {}
    max_changes: Count | None = None
    norm: Literal["l1", "l2"] | Mix = "l1"
    weights: Literal["std", "uniform", "mad"] = "std"


class Backbone(_Part):
    """Classifier of kind ``mlp``, with hidden layers, or ``logistic-regression``, without."""

    kind: Literal["mlp", "logistic-regression"] = "mlp"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_NEURONS)], ...], Field(max_length=MAX_HIDDEN_LAYERS)] = (64, 64)
    batch_norm: bool = False
    residual: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _logistic_regression_has_no_layers(self) -> Self:
        if self.kind == "logistic-regression" and (stray := sorted(self.model_fields_set - {"kind"})):
            raise ValueError(f"logistic-regression has no {', '.join(stray)}. Leave it out, or use kind mlp.")
        return self

    @model_validator(mode="after")
    def _weights_fit_into_memory(self) -> Self:
        weights = sum(first * second for first, second in pairwise(self.hidden))
        if weights > MAX_HIDDEN_WEIGHTS:
            raise ValueError(f"hidden must have at most {MAX_HIDDEN_WEIGHTS:,} weights between its layers, got {weights:,}.")
        return self

    def build(self, inputs: int, classes: int, seed: int) -> nn.Module:
        """Build an untrained classifier.

        Args:
            inputs: Number of columns.
            classes: Number of classes.
            seed: Seed of the initial weights.
        """
        if self.kind == "logistic-regression":
            return models.LogisticRegression(inputs, classes, seed=seed)
        return models.MLP(
            inputs,
            classes,
            hidden=self.hidden,
            batch_norm=self.batch_norm,
            residual=self.residual,
            dropout=self.dropout,
            seed=seed,
        )


class Training(_Part):
    """Settings of the classifier's training, see ``cfptq.models.TrainingSettings``."""

    epochs: Count = TrainingSettings.epochs
    batch_size: Count = TrainingSettings.batch_size
    learning_rate: Positive = TrainingSettings.learning_rate
    weight_decay: NotNegative = TrainingSettings.weight_decay
    validation_share: Annotated[float, Field(gt=0, lt=1)] = TrainingSettings.validation_share
    patience: Count = TrainingSettings.patience

    @property
    def settings(self) -> TrainingSettings:
        """The same settings as ``cfptq.models.train`` takes them."""
        return TrainingSettings(**self.model_dump())


class Calibration(_Part):
    """Number of training rows that every method is calibrated on, drawn by the seed."""

    rows: Count = 1024


class Recipe(_Part):
    """Experiment on one data set.

    The keys of the file are ``schema`` (1), ``dataset``, ``actions``, ``model``, ``training``, ``networks``, ``calibration``, ``budgets``,
    ``methods`` and ``seeds``. Budgets are average bits, the headline first. Without ``methods``, those of ``cfptq.compare`` are compared.

    ``networks`` is a folder of stored networks, relative to the recipe's file. The network of a seed is read from there if there is one
    and trained otherwise. Without ``networks``, every network is trained.
    """

    schema_version: Literal[1] = Field(alias="schema")
    dataset_name: str = Field(alias="dataset")
    actions: Actions = Actions()
    backbone: Backbone = Field(default=Backbone(), alias="model")
    training: Training = Training()
    networks: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    calibration: Calibration = Calibration()
    budgets: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MAX_ENTRIES)] = (4.0,)
    methods: Annotated[Names, Field(min_length=1)] | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=MAX_ENTRIES)] = (0, 1, 2)

    @model_validator(mode="after")
    def _names_are_known_and_once(self) -> Self:
        if self.dataset_name not in datasets.NAMES:
            raise ValueError(
                f"dataset must be one of {', '.join(datasets.NAMES)}, got {reprlib.repr(self.dataset_name)}"
                f"{did_you_mean(self.dataset_name[:100], datasets.NAMES)}"
            )
        for key in ("budgets", "seeds", "methods"):
            values = getattr(self, key) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{key} must be distinct, got {list(values)}")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe file.

        Args:
            path: YAML file.

        Raises:
            RecipeError: The file cannot be read, is not YAML, or has an unknown or repeated key or a wrong value. The message names the
                place.
        """
        try:
            text = read_text(path, MAX_FILE_BYTES)
        except FileError as error:
            raise RecipeError(f"Cannot read the recipe: {error} Give the path of a YAML file.") from error
        recipe = cls.parse(text, name=str(path))
        if recipe.networks is None:
            return recipe
        return recipe.model_copy(update={"networks": str(as_path(path).parent / as_path(recipe.networks, "networks"))})

    @classmethod
    def parse(cls, text: str, *, name: str = "the recipe") -> Self:
        """Read a recipe from text.

        Args:
            text: YAML text.
            name: Name of the recipe in messages.

        Raises:
            RecipeError: The text is not YAML, or has an unknown or repeated key or a wrong value.
        """
        try:
            content: Any = yaml.load(text, Loader=UniqueKeyLoader)
        except RepeatedKeyError as error:
            raise RecipeError(f"{name}: {error}. Keep one of them.") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{name} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{name} holds no keys. A recipe starts with 'schema: 1' and 'dataset: ...'.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{name}: {'. '.join(_describe_problem(one) for one in error.errors())}.") from error

    def dataset(self, seed: int = 0, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
        """Load the data set, see ``cfptq.datasets.load``.

        Args:
            seed: Split of german. Other data sets have one split.
            data_dir: Folder of data sets. ``CFPTQ_DATA_DIR`` by default.
            download: Download files that are missing.

        Raises:
            FileError: A file is missing, cannot be downloaded, or does not hold the published bytes.
        """
        return datasets.load(self.dataset_name, seed=seed, data_dir=data_dir, download=download)

    def action_set(self, dataset: Dataset, encoder: ColumnTransformer | None = None) -> ActionSet:
        """Build the action set on the columns of ``dataset``, with ranges and weights from its training rows.

        Args:
            dataset: Data set of the recipe.
            encoder: Encoder fitted on its training rows. A new one is fitted by default.

        Raises:
            ActionSetError: The recipe names a feature that the data set does not have, or contradicts itself.
        """
        declared = self.actions
        action_set = ActionSet.from_frame(
            dataset.train,
            immutable=declared.immutable,
            increase_only=declared.increase_only,
            decrease_only=declared.decrease_only,
            bounds=declared.bounds,
            bounds_share=declared.bounds_share,
            reachable=declared.reachable,
            effort=declared.effort,
            continuous=dataset.continuous,
            integer=dataset.integer,
            ordinal=dataset.ordinal,
            categorical=dataset.categorical,
            max_changes=declared.max_changes,
            favourable=dataset.favourable,
            norm=("mix", declared.norm.l1, declared.norm.l2) if isinstance(declared.norm, Mix) else declared.norm,
            weights=declared.weights,
        )
        return action_set.encoded_by(encoder if encoder is not None else datasets.fit_encoder(dataset))

    def train(
        self,
        seed: int = 0,
        *,
        columns: Columns | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
        progress: bool = True,
    ) -> nn.Module:
        """Train the classifier and return it in eval mode.

        Args:
            seed: Seed of the initial weights and of training, and split of german.
            columns: Encoded data set, which is loaded by default.
            data_dir: Folder of data sets. ``CFPTQ_DATA_DIR`` by default.
            download: Download files that are missing.
            progress: Show progress of training.
        """
        columns = columns if columns is not None else datasets.encode(self.dataset(seed, data_dir=data_dir, download=download))
        return self._train(columns, seed, progress)[0]

    def prepare(
        self,
        seed: int = 0,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
        train: bool = False,
        progress: bool = True,
    ) -> Experiment:
        """Load the data, build the action set, and read or train the network of one seed.

        Args:
            seed: Seed of the initial weights and of training, and split of german.
            data_dir: Folder of data sets. ``CFPTQ_DATA_DIR`` by default.
            download: Download files that are missing.
            train: Train the network although there is a stored one.
            progress: Show progress of training.

        Raises:
            FileError: A file of the data set is missing, cannot be downloaded, or does not hold the published bytes. Or a stored network
                is damaged, or belongs to another data set, seed, architecture, training or other columns.
            ActionSetError: The recipe names a feature that the data set does not have, or contradicts itself.
            ModelError: Training diverged.
        """
        dataset = self.dataset(seed, data_dir=data_dir, download=download)
        columns = datasets.encode(dataset)
        action_set = self.action_set(dataset, columns.encoder)
        description = self.describe_network(columns, seed)
        model = self.backbone.build(columns.train.shape[1], columns.classes, seed)
        note = None
        if self.networks is not None and not train:
            folder = as_path(self.networks, "networks")
            if (stored := read_network(folder, description, model)) is not None:
                return Experiment(seed, dataset, columns, action_set, model, stored[0], NetworkOrigin("read", stored[1]))
            note = (
                f"{folder} holds no network of {self.dataset_name} for seed {seed}, so that it was trained here. "
                "Its figures differ between processors."
            )
        model, log = self._train(columns, seed, progress)
        origin = NetworkOrigin("trained", compute_sha256(serialize_network(model, description, log)), note)
        return Experiment(seed, dataset, columns, action_set, model, log, origin)

    def describe_network(self, columns: Columns, seed: int) -> NetworkDescription:
        """Describe the network of one seed by what it is trained on and how.

        Args:
            columns: Encoded data set.
            seed: Seed of the initial weights and of training, and split of german.
        """
        return NetworkDescription(
            dataset=self.dataset_name,
            seed=seed,
            backbone=self.backbone.model_dump(mode="json"),
            training=self.training.model_dump(mode="json"),
            columns=columns.describe(),
        )

    def _train(self, columns: Columns, seed: int, progress: bool) -> tuple[nn.Module, TrainingLog]:
        model = self.backbone.build(columns.train.shape[1], columns.classes, seed)
        log = models.train(model, columns.train, columns.train_labels, seed=seed, settings=self.training.settings, progress=progress)
        return model, log


@dataclass(frozen=True)
class Experiment:
    """Data, action set and trained model of one seed.

    Attributes:
        seed: Seed of the experiment.
        dataset: Raw features and labels.
        columns: The same, encoded.
        action_set: Action set on the encoded columns.
        model: Trained classifier, in eval mode.
        training: Log of its training.
        network: Origin of the classifier, which was read or trained.
    """

    seed: int
    dataset: Dataset
    columns: Columns
    action_set: ActionSet
    model: nn.Module
    training: TrainingLog
    network: NetworkOrigin

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group of every test person by the name of the attribute, "missing" where it is unknown."""
        test = self.dataset.test
        return {
            name: [str(value) for value in test[name].astype(object).where(test[name].notna(), "missing")] for name in self.dataset.groups
        }


def _list_keys(part: type[BaseModel]) -> list[str]:
    """Return all keys of a part of a recipe, and of the parts in it."""
    keys = []
    for name, field in part.model_fields.items():
        keys.append(field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _list_keys(field.annotation)
    return keys


def _describe_problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        # The keys beside it are those of the part that it stands in, which the error does not name.
        return f"unknown key {where!r}{did_you_mean(error['loc'][-1], _list_keys(Recipe))}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
