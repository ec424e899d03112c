"""The experiment file: one data set, what people can change in it, the model, and what is run with which seeds.

A recipe is YAML. Every key is known (an unknown or repeated one is an error), and only the keys that differ from the standard
protocol need to be written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sklearn.compose import ColumnTransformer
from torch import nn

from cfptq import datasets, models
from cfptq.actions import ActionSet
from cfptq.datasets import Columns, Dataset
from cfptq.errors import RecipeError
from cfptq.io.yaml import RepeatedKeyError, UniqueKeyLoader
from cfptq.models import TrainingLog, TrainingSettings

Names = tuple[str, ...]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Side = float | None
#: A level of an ordinal or categorical feature, as YAML reads it.
Value = int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mix(_Part):
    """λ₁‖·‖₁ + λ₂‖·‖₂ (Table 7)."""

    l1: NotNegative
    l2: NotNegative


class Actions(_Part):
    """What people can change, and what it costs; each key as in :meth:`cfptq.ActionSet.from_frame`.

    The kinds of the columns and the favourable class come from the data set.
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
    """The classifier: ``kind: mlp`` with its hidden layers, or ``kind: logistic-regression``, which has none."""

    kind: Literal["mlp", "logistic-regression"] = "mlp"
    hidden: tuple[Count, ...] = (64, 64)
    batch_norm: bool = False
    residual: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _logistic_regression_has_no_layers(self) -> Self:
        if self.kind == "logistic-regression" and (stray := sorted(self.model_fields_set - {"kind"})):
            raise ValueError(f"logistic-regression has no {', '.join(stray)}; leave it out, or use kind: mlp")
        return self

    def build(self, inputs: int, classes: int, seed: int) -> nn.Module:
        """An untrained classifier of rows (N, inputs) with initial weights fixed by ``seed``."""
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
    """How the classifier is trained; see :class:`cfptq.models.TrainingSettings`."""

    epochs: Count = TrainingSettings.epochs
    batch_size: Count = TrainingSettings.batch_size
    learning_rate: Positive = TrainingSettings.learning_rate
    weight_decay: NotNegative = TrainingSettings.weight_decay
    validation_share: Annotated[float, Field(gt=0, lt=1)] = TrainingSettings.validation_share
    patience: Count = TrainingSettings.patience

    @property
    def settings(self) -> TrainingSettings:
        return TrainingSettings(**self.model_dump())


class Calibration(_Part):
    """``rows`` training rows, drawn by the seed, the same for every method."""

    rows: Count = 1024


class Recipe(_Part):
    """One experiment.

    Keys of the file: ``schema`` (1), ``dataset``, ``actions``, ``model``, ``training``, ``calibration``, ``budgets`` (average bits, the
    headline first), ``methods`` (left out: the standard comparison), ``seeds``.
    """

    schema_version: Literal[1] = Field(alias="schema")
    dataset_name: str = Field(alias="dataset")
    actions: Actions = Actions()
    backbone: Backbone = Field(default=Backbone(), alias="model")
    training: Training = Training()
    calibration: Calibration = Calibration()
    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)] = (4.0,)
    methods: Annotated[Names, Field(min_length=1)] | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)

    @model_validator(mode="after")
    def _names_are_known_and_once(self) -> Self:
        if self.dataset_name not in datasets.NAMES:
            raise ValueError(f"there is no data set {self.dataset_name!r}; cfptq has {', '.join(datasets.NAMES)}")
        for key in ("budgets", "seeds", "methods"):
            values = getattr(self, key) or ()
            if len(set(values)) != len(values):
                raise ValueError(f"{key} names the same value twice: {list(values)}")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe file.

        Raises:
            RecipeError: no such file, no YAML, an unknown or repeated key, or a value that makes no sense; the message says where.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from error
        return cls.parse(text, name=str(path))

    @classmethod
    def parse(cls, text: str, *, name: str = "the recipe") -> Self:
        """Read a recipe from YAML ``text``; ``name`` stands in the messages.

        Raises:
            RecipeError: as :meth:`load`.
        """
        try:
            content: Any = yaml.load(text, Loader=UniqueKeyLoader)
        except RepeatedKeyError as error:
            raise RecipeError(f"{name}: {error}; keep one of them") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{name} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{name} holds no keys; a recipe starts with 'schema: 1' and 'dataset: ...'")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{name}: {'; '.join(_problem(one) for one in error.errors())}") from error

    def dataset(self, seed: int = 0, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Dataset:
        """The data set; ``seed`` picks german's split. See :func:`cfptq.datasets.load`.

        Raises:
            FileError: a file is missing, cannot be downloaded, or does not hold the published bytes.
        """
        return datasets.load(self.dataset_name, seed=seed, data_dir=data_dir, download=download)

    def action_set(self, dataset: Dataset, encoder: ColumnTransformer | None = None) -> ActionSet:
        """The action set on the columns of ``dataset``, ranges and weights from its training rows.

        Raises:
            ActionSetError: the recipe names a feature that the data set does not have, or contradicts itself.
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
        """The trained classifier, in eval mode; ``columns`` saves loading the data set again. See :meth:`prepare` for all at once."""
        columns = columns if columns is not None else datasets.encode(self.dataset(seed, data_dir=data_dir, download=download))
        return self._trained(columns, seed, progress)[0]

    def prepare(
        self, seed: int = 0, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True, progress: bool = True
    ) -> Experiment:
        """Everything that a run of one seed starts from: data, action set, trained model.

        Raises:
            FileError: as :meth:`dataset`.
            ActionSetError: as :meth:`action_set`.
            ModelError: training diverged.
        """
        dataset = self.dataset(seed, data_dir=data_dir, download=download)
        columns = datasets.encode(dataset)
        action_set = self.action_set(dataset, columns.encoder)
        model, log = self._trained(columns, seed, progress)
        return Experiment(seed=seed, dataset=dataset, columns=columns, action_set=action_set, model=model, training=log)

    def _trained(self, columns: Columns, seed: int, progress: bool) -> tuple[nn.Module, TrainingLog]:
        model = self.backbone.build(columns.train.shape[1], columns.classes, seed)
        log = models.train(model, columns.train, columns.train_labels, seed=seed, settings=self.training.settings, progress=progress)
        return model, log


@dataclass(frozen=True)
class Experiment:
    """What a run of one seed starts from."""

    seed: int
    dataset: Dataset
    columns: Columns
    action_set: ActionSet
    model: nn.Module
    training: TrainingLog

    @property
    def groups(self) -> dict[str, list[str]]:
        """For each column that the subgroup report looks at, the group of every test person; "missing" where it is not known."""
        test = self.dataset.test
        return {
            name: [str(value) for value in test[name].astype(object).where(test[name].notna(), "missing")] for name in self.dataset.groups
        }


#: The first steps: no file, no network, seconds. Nobody can change her age or sex, and education and years of work are not lost again.
QUICKSTART = """\
schema: 1
dataset: synthetic  # generated by cfptq: nobody in it is real
actions:
  immutable: [age, sex]
  increase_only: [education, employment-years]
  bounds: {late-payments: [0, null], savings: [0, null]}
  max_changes: 4
calibration: {rows: 1024}
budgets: [4]
seeds: [0]
"""


def quickstart() -> Recipe:
    """The recipe of the first steps, on the synthetic data set."""
    return Recipe.parse(QUICKSTART, name="the quickstart recipe")


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if error["type"] == "missing":
        return f"the key {where!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
