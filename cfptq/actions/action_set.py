"""The action set: which features a person may change, how far, at what cost, and how the model sees them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.columns import as_columns, checked_column_names, require_shape
from cfptq.actions.compiled import Compiled, compile_features
from cfptq.actions.cost import Norm, Weights, checked_norm, checked_weights, column_weights, row_costs
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Ordinal
from cfptq.actions.projection import active, arrived, projected
from cfptq.actions.straight_through import straight_through
from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import plain
from cfptq.errors import ActionSetError


@dataclass(frozen=True)
class ActionSet:
    """𝒜(x) of the paper's eq. 5 with its cost (eq. 4), declared on features. Implements :class:`~cfptq.actions.ActionSpace`.

    Build it with :meth:`from_frame` and :meth:`encoded_by`, with :meth:`from_columns`, or load it with :meth:`load`; refine it by name.
    A person may always stay where she is: an observed range never makes a row invalid, and her own value always counts as within bounds.
    Declared bounds and domains do refuse a row that breaks them: :meth:`check`, :meth:`validate`.

    Attributes:
        features: in the order of the frame. Ties in sparsity go to the earlier one.
        width: number of the model's columns d; ``None`` until encoded.
        column_names: one for each column.
        unseen: features of the frame that the encoder does not pass to the model.
        max_changes: k, the most features that one action changes; ``None`` for no limit.
        favourable: index of the class that people want.
        norm, weights, epsilon: the cost; see :mod:`cfptq.actions.cost`.
    """

    features: tuple[AnyFeature, ...]
    width: int | None = None
    column_names: tuple[str, ...] | None = None
    unseen: tuple[str, ...] = ()
    max_changes: int | None = None
    favourable: int | None = None
    norm: Norm = "l1"
    weights: Weights = "std"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        features = tuple(self.features)
        if not features:
            raise ActionSetError("an action set without features; give at least one")
        for feature in features:
            if not isinstance(feature, Continuous | Ordinal | Categorical):
                raise ActionSetError(f"features are Continuous, Integer, Ordinal or Categorical, not {feature!r}")
        names = [feature.name for feature in features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ActionSetError(f"features named twice: {', '.join(twice)}; names must differ")
        object.__setattr__(self, "features", features)
        for name, least in (("max_changes", 1), ("favourable", 0)):
            value = plain(getattr(self, name))
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ActionSetError(f"{name} is a whole number from {least}, or None; not {value!r}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "norm", checked_norm(self.norm))
        object.__setattr__(self, "weights", checked_weights(self.weights))
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float) or not 0 < self.epsilon < 1:
            raise ActionSetError(f"epsilon lies between 0 and 1, not {self.epsilon!r}")
        object.__setattr__(self, "unseen", tuple(self.unseen))
        if self.width is None:
            object.__setattr__(self, "column_names", None)
        else:
            object.__setattr__(self, "column_names", checked_column_names(features, self.width, self.column_names))

    # Building -----------------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        immutable: Iterable[str] = (),
        increase_only: Iterable[str] = (),
        decrease_only: Iterable[str] = (),
        bounds: Mapping[str, tuple[Any, Any]] | None = None,
        bounds_share: Mapping[str, tuple[float, float]] | None = None,
        reachable: Mapping[str, Sequence[Any]] | None = None,
        effort: Mapping[str, float] | None = None,
        continuous: Iterable[str] = (),
        integer: Iterable[str] = (),
        ordinal: Mapping[str, Sequence[Any]] | None = None,
        categorical: Iterable[str] = (),
        max_changes: int | None = None,
        favourable: int | None = None,
        norm: Norm = "l1",
        weights: Weights = "std",
    ) -> ActionSet:
        """Infer features from raw rows: types from dtypes, ranges and level frequencies from values; keywords refine by name.

        Whole numbers become :class:`Integer`; other numbers :class:`Continuous`; an ordered ``category`` dtype :class:`Ordinal`; strings,
        booleans and other categories :class:`Categorical`.

        Args:
            frame: people, one a row, raw features; the training rows, since ranges and σ are taken from them.
            immutable, increase_only, decrease_only: names of features that may not move, or only one way.
            bounds: raw ``(lowest, highest)`` by name; ``None`` leaves a side to the observed range, ±inf opens it. Of an ordinal feature:
                members of its domain. A row outside declared bounds is refused.
            bounds_share: the same as shares of the observed range.
            reachable: for categorical features, the levels that an action may lead to.
            effort: factors on the cost, by name.
            continuous, integer, categorical: names whose inferred type is overruled.
            ordinal: names with their ordered domains.
            max_changes, favourable, norm, weights: see the class.

        Raises:
            ActionSetError: an unknown name (with the nearest known one), contradictory declarations, bounds that leave nothing.
            DataError: an empty frame, repeated column names, infinite values, a dtype that is none of the above.
        """
        from cfptq.actions.infer_features import inferred_features

        features = inferred_features(
            frame,
            immutable=immutable,
            increase_only=increase_only,
            decrease_only=decrease_only,
            bounds=bounds or {},
            bounds_share=bounds_share or {},
            reachable=reachable or {},
            effort=effort or {},
            continuous=continuous,
            integer=integer,
            ordinal=ordinal or {},
            categorical=categorical,
        )
        return cls(features=features, max_changes=max_changes, favourable=favourable, norm=norm, weights=weights)

    @classmethod
    def from_columns(
        cls,
        columns: Tensor | npt.NDArray[Any],
        features: Sequence[AnyFeature],
        *,
        means: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        column_names: Sequence[str] | None = None,
        max_changes: int | None = None,
        favourable: int | None = None,
        norm: Norm = "l1",
        weights: Weights = "std",
    ) -> ActionSet:
        """Declare features directly on the model's columns: ``Continuous("hours", column=3)``, ``Categorical("job", columns=(4, 5), …)``.

        Args:
            columns: training rows as the model sees them, ``(N, d)``; statistics are taken from them.
            features: each with its ``column`` or ``columns``. Columns that no feature claims become immutable features of their own.
            means, scales: by column, where the columns are standardized: raw = column · scale + mean. Numeric features that give no
                ``offset`` or ``scale`` of their own take these, so that bounds and whole numbers are meant in raw units.
            column_names: for messages and tables.
            max_changes, favourable, norm, weights: see the class.

        Raises:
            ActionSetError: columns claimed twice or out of range, whole numbers that are not whole.
            DataError: not ``(N, d)``, NaN, one-hot groups that are not one-hot.
        """
        from cfptq.actions.infer_features import features_on_columns

        placed, width, names = features_on_columns(columns, features, means=means, scales=scales, column_names=column_names)
        return cls(
            features=placed, width=width, column_names=names, max_changes=max_changes, favourable=favourable, norm=norm, weights=weights
        )

    def encoded_by(self, encoder: Any) -> ActionSet:
        """The same action set on the columns of a fitted scikit-learn ``ColumnTransformer`` or ``Pipeline``, which is read, not kept.

        Read are ``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``, ``OneHotEncoder`` (with ``drop`` and
        ``handle_unknown``), ``OrdinalEncoder``, ``SimpleImputer``, ``"passthrough"``, ``"drop"``, and pipelines of these.

        Raises:
            ActionSetError: the encoder is not fitted, uses a step that is not read, or reads a column that the action set does not know.
        """
        from cfptq.actions.scikit_learn import placed_by

        features, names, unseen = placed_by(encoder, self.features)
        return dataclasses.replace(self, features=features, width=len(names), column_names=names, unseen=unseen)

    def refine(self, name: str, **changes: Any) -> ActionSet:
        """A copy with one feature changed: ``refine("hours", bounds=(1, 80), effort=2.0)``.

        Raises:
            ActionSetError: no such feature or no such attribute (the nearest is named), or a contradiction.
        """
        feature = self[name]
        known = [field.name for field in dataclasses.fields(feature) if field.name != "name"]
        for attribute in changes:
            if attribute not in known:
                meant = did_you_mean(attribute, known)
                raise ActionSetError(f"{name}: a feature of kind {feature.kind} has no {attribute!r}{meant}; it has {', '.join(known)}")
        new = dataclasses.replace(feature, **changes)
        return dataclasses.replace(self, features=tuple(new if one.name == name else one for one in self.features))

    def replace(self, **changes: Any) -> ActionSet:
        """A copy with settings of the whole set changed: ``replace(max_changes=3, norm="l2")``."""
        known = [field.name for field in dataclasses.fields(self)]
        for attribute in changes:
            if attribute not in known:
                raise ActionSetError(f"an action set has no {attribute!r}{did_you_mean(attribute, known)}; it has {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    # Looking ------------------------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    def __getitem__(self, name: str) -> AnyFeature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise ActionSetError(f"no feature {name!r}{did_you_mean(name, self.names)}; there are {', '.join(self.names)}")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[AnyFeature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def is_encoded(self) -> bool:
        """Whether the features are placed on a model's columns."""
        return self.width is not None

    @cached_property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """For every feature, in order, the columns that show it; together they are all columns."""
        self._encoded_width()
        return tuple(feature.placed for feature in self.features)

    @cached_property
    def mutable_columns(self) -> Tensor:
        """Columns that an action may move, ``(d,)`` booleans."""
        mask = torch.zeros(self._encoded_width(), dtype=torch.bool)
        mask[self._tensors.columns] = True
        return mask

    @property
    def column_weights(self) -> Tensor:
        """w of eq. 4 (with efforts), ``(d,)``."""
        return self._tensors.weights.clone()

    def zero(self, x: Tensor) -> Tensor:
        """The action that changes nothing, ``(N, d)``."""
        self._check_shape(x)
        return torch.zeros_like(x)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Π of Algorithm 1 for every row: ``(N, d)`` → ``(N, d)``; always feasible, idempotent.

        The gradient passes straight through where a coordinate stays active and is zero on immutable, clamped and reverted ones
        (Appendix B). NaN in ``delta`` counts as no change.
        """
        self._check_shape(x, delta)
        with torch.no_grad():
            result = projected(self._tensors, x, delta, self.max_changes, self.norm)
        if torch.is_grad_enabled() and delta.requires_grad:
            with torch.no_grad():
                passing = active(self._tensors, x, delta, result)
            return straight_through(delta, result, passing)
        return result

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """x′ = x + δ, ``(N, d)``, with one-hot groups, whole numbers and ordinals exactly on values the encoder would give.

        The gradient is that of x + δ.
        """
        self._check_shape(x, delta)
        with torch.no_grad():
            point = arrived(self._tensors, x, delta)
        if torch.is_grad_enabled() and (delta.requires_grad or x.requires_grad):
            return straight_through(x + delta, point)
        return point

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """c(δ) = ‖Wδ‖ (eq. 4), ``(N,)``."""
        self._check_shape(x, delta)
        return row_costs(delta * self._tensors.weights, self.norm)

    def column_bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For each row the least and greatest value of every column that an action may lead to, two ``(N, d)``.

        Columns of immutable features, and the slots of a one-hot group that cannot be reached, keep the row's own value.
        """
        self._check_shape(x)
        from cfptq.actions.bounds import column_reach

        return column_reach(self.features, x)

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        """Each row's action in words: ``"hours-per-week 40 → 46; occupation Sales → Tech-support"``."""
        self._check_shape(x, delta)
        from cfptq.actions.describe import described

        return described(self.features, x, self.apply(x, delta.detach()), delta.detach())

    # Rows ---------------------------------------------------------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Raw rows as the model's columns, float32 ``(N, d)``: what the scikit-learn encoder would give.

        Raises:
            DataError: a feature is missing from the frame, a value is missing and the encoder has no rule for it, an unknown category.
        """
        from cfptq.actions.encoding import encoded

        return encoded(self.features, self._encoded_width(), frame)

    def decode(self, columns: Tensor) -> pd.DataFrame:
        """The model's columns ``(N, d)`` as raw rows. What the encoder filled in for a missing value stays filled in."""
        self._check_shape(columns)
        from cfptq.actions.encoding import decoded

        return decoded(self.features, columns)

    def validate(self, rows: pd.DataFrame | Tensor | npt.NDArray[Any]) -> pd.DataFrame:
        """Which rows break which rule: a frame with ``row`` (counted from 0), ``feature``, ``rule`` and ``value``; empty if none does.

        Takes raw rows (a DataFrame) or the model's columns. Observed ranges are no rule.

        Raises:
            DataError: not rows of this action set at all: a feature or column missing, a wrong width or dtype.
        """
        from cfptq.actions.violations import found_in_columns, found_in_frame

        if isinstance(rows, pd.DataFrame):
            return found_in_frame(self.features, rows)
        return found_in_columns(self.features, as_columns(self._encoded_width(), rows))

    def check(self, x: Tensor) -> None:
        """Raise unless every row can be acted upon.

        Raises:
            DataError: a wrong width or dtype, NaN or infinity.
            ActionSetError: rows that break declared bounds or domains, or whose one-hot groups are not one-hot.
        """
        from cfptq.actions.violations import refuse_columns

        refuse_columns(self.features, as_columns(self._encoded_width(), x), self.column_names or ())

    # Files --------------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write YAML that carries everything: features, encoding, statistics, cost."""
        from cfptq.actions.yaml_format import to_text
        from cfptq.io.atomic import write_text

        write_text(path, to_text(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ActionSet:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: no such file, not YAML, not an action set, or from a newer cfptq.
            ActionSetError: it contradicts itself.
        """
        from cfptq.actions.yaml_format import from_file

        return from_file(path)

    def __str__(self) -> str:
        from cfptq.actions.describe import as_table

        return as_table(self)

    @cached_property
    def _tensors(self) -> Compiled:
        width = self._encoded_width()
        return compile_features(self.features, width, column_weights(self.features, width, self.weights, self.epsilon))

    def _encoded_width(self) -> int:
        if self.width is None:
            raise ActionSetError(
                "this action set is on raw features; place it on the model's columns first: action_set.encoded_by(column_transformer)"
            )
        return self.width

    def _check_shape(self, x: Tensor, delta: Tensor | None = None) -> None:
        require_shape(self._encoded_width(), x, delta)
