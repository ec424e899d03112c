"""The action set, which declares the changes a person can make, their cost and their encoding."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.bounds import compute_column_bounds
from cfptq.actions.columns import require_one_feature_per_column, require_shape, resolve_column_names, to_columns
from cfptq.actions.compiled import CompiledFeatures, compile_features
from cfptq.actions.constraints.base import Constraint
from cfptq.actions.constraints.enforcement import CompiledConstraints, compile_constraints
from cfptq.actions.constraints.limits import SpecialCodes, split_reachable
from cfptq.actions.constraints.people import KnownPeople, PerPerson, build_known_people
from cfptq.actions.constraints.relations import require_consistent
from cfptq.actions.constraints.tables import find_broken_in_columns, find_broken_in_frame, hide_codes, read_person_columns
from cfptq.actions.cost import Norm, Weights, compute_column_weights, compute_row_costs, parse_norm, parse_weights
from cfptq.actions.describe import describe_actions, format_table
from cfptq.actions.encoding import compute_float32_rounding, decode_columns, encode_frame, encode_people
from cfptq.actions.features import AnyFeature, Categorical, Continuous, Mutability, Ordinal
from cfptq.actions.infer_features import infer_from_columns, infer_from_frame
from cfptq.actions.projection import compute_counterfactual_points, compute_gradient_mask, project_rows
from cfptq.actions.remarks import Remark, examine_columns, examine_frame, warn_of
from cfptq.actions.scikit_learn import map_to_encoder
from cfptq.actions.straight_through import straight_through
from cfptq.actions.validation import parse_column_number, to_python_value
from cfptq.actions.violations import find_violations_in_columns, find_violations_in_frame, require_valid_columns
from cfptq.actions.yaml_format import construct, format_yaml, read_yaml
from cfptq.errors import ActionSetError, DataWarning
from cfptq.io.atomic import write_text
from cfptq.io.suggestions import did_you_mean


@dataclass(frozen=True)
class ActionSet:
    """Actions that a person can take, 𝒜(x) of the paper's eq. 5, with their cost (eq. 4).

    An action set implements ``cfptq.actions.ActionSpace`` and is declared on features. Build it with ``from_frame`` and
    ``encoded_by``, with ``from_columns``, or with ``load``.

    The action that changes nothing is always feasible. An observed range never makes a row invalid, and the row's own value always
    counts as within bounds. ``validate`` lists rows outside declared bounds. Their actions keep the value or move it towards the
    bounds. Codes outside a domain and torn one-hot groups make a row invalid, which ``check`` refuses.

    Attributes:
        features: the features in the order of the frame. Ties in sparsity go to the earlier feature.
        width: number d of the model's columns; ``None`` before encoding.
        column_names: one name for each column; ``None`` before encoding.
        unseen: features of the frame that the encoder does not pass to the model.
        max_changes: k, the largest number of features that one action changes; ``None`` for no limit.
        favourable: index of the class that people want.
        norm: ``"l1"``, ``"l2"`` or ``("mix", λ1, λ2)``. Default: ``"l1"``.
        weights: rule for the cost of one unit of each column, ``"std"``, ``"uniform"`` or ``"mad"``. Default: ``"std"``.
        epsilon: ε of eq. 13, which is added to σ. Default: 1e-6.
        constraints: rules between features and about each person, of ``cfptq.actions.constraints``.
        people: columns of the people's frame that ``PerPerson`` reads, which ``for_people`` sets. They are not saved.
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
    constraints: tuple[Constraint, ...] = ()
    people: KnownPeople | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.features, str) or not isinstance(self.features, Iterable):
            raise ActionSetError(f"features must be a list of features, got {self.features!r}.")
        features = tuple(self.features)
        if not features:
            raise ActionSetError("An action set must have at least one feature, got none.")
        for feature in features:
            if not isinstance(feature, Continuous | Ordinal | Categorical):
                raise ActionSetError(f"Features must be Continuous, Integer, Ordinal or Categorical, got {feature!r}.")
        names = [feature.name for feature in features]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ActionSetError(f"Feature names must differ, got {', '.join(repeated)} more than once.")
        object.__setattr__(self, "features", features)
        for name, least in (("max_changes", 1), ("favourable", 0)):
            value = to_python_value(getattr(self, name))
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ActionSetError(f"{name} must be None or a whole number of at least {least}, got {value!r}.")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "norm", parse_norm(self.norm))
        object.__setattr__(self, "weights", parse_weights(self.weights))
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, int | float) or not 0 < self.epsilon < 1:
            raise ActionSetError(f"epsilon must lie between 0 and 1, both excluded, got {self.epsilon!r}.")
        if isinstance(self.unseen, str) or not isinstance(self.unseen, Iterable):
            raise ActionSetError(f"unseen must be a list of names, got {self.unseen!r}.")
        object.__setattr__(self, "unseen", tuple(map(str, self.unseen)))
        if isinstance(self.constraints, str) or not isinstance(self.constraints, Iterable):
            raise ActionSetError(f"constraints must be a list of constraints, got {self.constraints!r}.")
        object.__setattr__(self, "constraints", tuple(self.constraints))
        for constraint in self.constraints:
            if not isinstance(constraint, Constraint):
                raise ActionSetError(f"constraints must be a list of constraints such as StepLimit(...), got {constraint!r}.")
        require_consistent(self.constraints, {feature.name: feature for feature in features})
        if self.width is None:
            object.__setattr__(self, "column_names", None)
        else:
            object.__setattr__(self, "width", parse_column_number(self.width, "width"))
            require_one_feature_per_column(features, self.width)
            object.__setattr__(self, "column_names", resolve_column_names(self.width, self.column_names))

    # Construction -----------------------------------------------------------------------------------------------------------------------

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
        constraints: Sequence[Constraint] = (),
    ) -> ActionSet:
        """Infer features from raw training rows, refined by the keywords.

        Types follow from the dtypes. Whole numbers become ``Integer``, other numbers ``Continuous``, and an ordered ``category``
        dtype ``Ordinal``. Strings, booleans and other categories become ``Categorical``. Ranges and frequencies follow from
        the values.

        A column whose values are all different and seem to number the rows becomes immutable, with a warning. Columns that a keyword
        names stay as declared. Numbers that look like codes for a missing value, and dates as text, are warned of.

        Args:
            frame: training rows with raw features, one person a row. Ranges and σ are computed from them.
            immutable: names of features that an action may not change.
            increase_only: names of features that an action may only increase.
            decrease_only: names of features that an action may only decrease.
            bounds: ``(lowest, highest)`` in raw units by name. ``None`` keeps the observed range on a side, and ±inf leaves it open.
                Bounds of an ordinal feature are members of its domain. A row outside them may stay or move towards them.
            bounds_share: bounds as shares of the observed range, by name. ``(0.0, 0.9)`` ends at 90 % of the way to the maximum.
            reachable: levels that an action may lead to from any level, by name of a categorical feature. Default: all levels. A mapping
                from levels to lists of levels is read as ``Transitions``.
            effort: factor on the cost of a change, by name. Default: 1.
            continuous: names of features that are real numbers, whatever their dtype.
            integer: names of features that are whole numbers, whatever their dtype.
            ordinal: values in order, lowest first, by name of an ordinal feature.
            categorical: names of features that have levels without an order, whatever their dtype.
            max_changes: largest number of features that one action changes. Default: no limit.
            favourable: index of the class that people want. Default: not declared.
            norm: norm of the cost, ``"l1"``, ``"l2"`` or ``("mix", λ1, λ2)``. Default: ``"l1"``.
            weights: rule for the cost of one unit, ``"std"``, ``"uniform"`` or ``"mad"``. Default: ``"std"``.
            constraints: rules between features and about each person, of ``cfptq.actions.constraints``.

        Raises:
            ActionSetError: a name is unknown, declarations contradict one another, bounds leave no value or hold no training row, or
                mutable columns are one one-hot group.
            DataError: the frame is empty, repeats a column name, holds infinity, or has a dtype that is none of the above.
        """
        if isinstance(constraints, str) or not isinstance(constraints, Iterable):
            raise ActionSetError(f"constraints must be a list of constraints, got {constraints!r}.")
        anywhere, by_level = split_reachable({} if reachable is None else reachable)
        constraints = (*constraints, *by_level)
        features, remarks = infer_from_frame(
            hide_codes(frame, [one for one in constraints if isinstance(one, SpecialCodes)]),
            immutable=immutable,
            increase_only=increase_only,
            decrease_only=decrease_only,
            bounds={} if bounds is None else bounds,
            bounds_share={} if bounds_share is None else bounds_share,
            reachable=anywhere,
            effort={} if effort is None else effort,
            continuous=continuous,
            integer=integer,
            ordinal={} if ordinal is None else ordinal,
            categorical=categorical,
        )
        warn_of(remarks)
        return cls(
            features=features, max_changes=max_changes, favourable=favourable, norm=norm, weights=weights, constraints=tuple(constraints)
        )

    @classmethod
    def from_columns(
        cls,
        columns: Tensor | npt.NDArray[Any] | pd.DataFrame,
        features: Sequence[AnyFeature],
        *,
        means: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        column_names: Sequence[str] | None = None,
        max_changes: int | None = None,
        favourable: int | None = None,
        norm: Norm = "l1",
        weights: Weights = "std",
        constraints: Sequence[Constraint] = (),
    ) -> ActionSet:
        """Declare features directly on the model's columns.

        Example features are ``Continuous("hours", column=3)`` and ``Categorical("job", levels=("a", "b"), columns=(4, 5))``.

        Args:
            columns: training rows as the model sees them, ``(N, d)``. Statistics are computed from them. A DataFrame of columns
                gives their names too.
            features: features with their ``column`` or ``columns``. Each remaining column becomes an immutable feature.
            means: mean of each column before standardization, ``(d,)``, so that raw = column · scale + mean. Default: 0.
                Numeric features with an ``offset`` or ``scale`` of their own ignore ``means`` and ``scales``.
            scales: scale of each column before standardization, ``(d,)``. Default: 1. Bounds and whole numbers are in raw units.
            column_names: names of the columns for messages and tables. Default: ``column_0``, ``column_1``, and so on.
            max_changes: largest number of features that one action changes. Default: no limit.
            favourable: index of the class that people want. Default: not declared.
            norm: norm of the cost, ``"l1"``, ``"l2"`` or ``("mix", λ1, λ2)``. Default: ``"l1"``.
            weights: rule for the cost of one unit, ``"std"``, ``"uniform"`` or ``"mad"``. Default: ``"std"``.
            constraints: rules between features and about each person, of ``cfptq.actions.constraints``.

        Raises:
            ActionSetError: a column is out of range or belongs to two features, or an integer feature holds another number.
            DataError: ``columns`` is not ``(N, d)``, or holds NaN or infinity.
        """
        complete, names = infer_from_columns(columns, features, means=means, scales=scales, column_names=column_names)
        return cls(
            features=complete,
            width=len(names),
            column_names=names,
            max_changes=max_changes,
            favourable=favourable,
            norm=norm,
            weights=weights,
            constraints=tuple(constraints),
        )

    def encoded_by(self, encoder: Any) -> ActionSet:
        """Place the action set on the columns of a fitted scikit-learn ``ColumnTransformer`` or ``Pipeline``.

        The encoder is read and not kept. Supported are ``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``,
        ``PowerTransformer``, ``QuantileTransformer``, ``KBinsDiscretizer``, ``Binarizer``, ``FunctionTransformer`` with an inverse,
        ``OneHotEncoder``, ``OrdinalEncoder``, ``TargetEncoder``, ``SimpleImputer``, ``MissingIndicator``, optbinning's
        ``BinningProcess``, steps with the methods of ``cfptq.actions.NumberEncoder``, ``"passthrough"``, ``"drop"``, and pipelines,
        unions and column transformers of these.

        Infrequent categories that the encoder merges are one choice. Actions lead there only where the encoder reads any unknown text
        as one of them, and then name none of them. A missing value that an indicator column shows stays missing.

        Args:
            encoder: the fitted encoder. The predictor at the end of a pipeline is ignored.

        Returns:
            A new action set.

        Raises:
            ActionSetError: the encoder is not fitted, has an unsupported step, or reads a column that is no feature of the action set.
        """
        features, names, unseen = map_to_encoder(encoder, self.features)
        return dataclasses.replace(self, features=features, width=len(names), column_names=names, unseen=unseen, people=None)

    def for_people(self, people: pd.DataFrame) -> ActionSet:
        """Return a copy that knows what columns of the people's frame say for each person, which ``PerPerson`` reads.

        ``cfptq.recourse.solve`` and ``cfptq.audit`` do this with the frame that they are given. Without ``PerPerson``, the action set is
        returned as it is.

        Args:
            people: raw rows with the features and with the columns that ``PerPerson`` names.

        Raises:
            DataError: a column is missing from the frame, or holds no numbers.

        Warns:
            DataWarning: people whom the model cannot tell apart have different limits.
        """
        rules = tuple(one for one in self.constraints if isinstance(one, PerPerson))
        if not rules:
            return self
        columns = read_person_columns(rules, people)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # Whoever encodes the people is warned of how they are read.
            rows = encode_frame(self.features, self._encoded_width(), people)
        return dataclasses.replace(self, people=build_known_people(rows, columns, rules))

    def refine(self, name: str, **changes: Any) -> ActionSet:
        """Return a copy with one feature changed, as in ``refine("hours", bounds=(1, 80), effort=2.0)``.

        Args:
            name: the feature.
            **changes: new values of its attributes.

        Raises:
            ActionSetError: the feature or an attribute is unknown, or the new values contradict one another.
        """
        feature = self[name]
        known = [field.name for field in dataclasses.fields(feature) if field.name != "name"]
        for attribute in changes:
            if attribute not in known:
                meant = did_you_mean(attribute, known)
                raise ActionSetError(
                    f"{name}: a feature of kind {feature.kind} has no attribute {attribute!r}{meant}. It has {', '.join(known)}."
                )
        changed = dataclasses.replace(feature, **changes)
        return dataclasses.replace(self, features=tuple(changed if other.name == name else other for other in self.features))

    def replace(self, **changes: Any) -> ActionSet:
        """Return a copy with settings of the whole set changed, as in ``replace(max_changes=3, norm="l2")``."""
        known = [field.name for field in dataclasses.fields(self)]
        for attribute in changes:
            if attribute not in known:
                meant = did_you_mean(attribute, known)
                raise ActionSetError(f"An action set has no attribute {attribute!r}{meant}. It has {', '.join(known)}.")
        return dataclasses.replace(self, **changes)

    def scale_bounds(self, factor: float) -> ActionSet:
        """Return a copy whose numbers may be moved within an interval of ``factor`` times the width.

        Each interval of a continuous or whole-number feature is scaled around the training mean, or around its middle where the mean is
        unknown or outside. An interval that starts at 0 or above never reaches below 0. Sides without bounds, immutable features,
        ordinal features and categories stay as they are. A person outside the interval may stay or move towards it.

        Args:
            factor: γ, above 0. 0.5 halves each interval, 1.5 widens it by half.

        Raises:
            ActionSetError: the factor is not a finite number above 0, or leaves no whole number to a feature.
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise ActionSetError(f"factor must be a finite number above 0, got {factor!r}.")
        return dataclasses.replace(self, features=tuple(_scale_feature_bounds(feature, factor) for feature in self.features))

    # Inspection ------------------------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features in order."""
        return tuple(feature.name for feature in self.features)

    def __getitem__(self, name: str) -> AnyFeature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise ActionSetError(f"The action set has no feature {name!r}{did_you_mean(name, self.names)}. It has {', '.join(self.names)}.")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[AnyFeature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def is_encoded(self) -> bool:
        """True if the features are placed on a model's columns."""
        return self.width is not None

    @cached_property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """Columns of each feature's value in order. Together they are all columns but the indicators of missing values."""
        self._encoded_width()
        return tuple(feature.model_columns for feature in self.features)

    @cached_property
    def column_groups(self) -> tuple[tuple[int, ...], ...]:
        """Columns of each feature in order, with the indicators of missing values. Together they are all columns."""
        self._encoded_width()
        return tuple(feature.all_columns for feature in self.features)

    @cached_property
    def mutable_columns(self) -> Tensor:
        """Mask of the columns that an action may change, ``(d,)`` booleans."""
        mask = torch.zeros(self._encoded_width(), dtype=torch.bool)
        mask[self._tensors.columns] = True
        return mask

    @property
    def column_weights(self) -> Tensor:
        """Weights w of eq. 4 multiplied by the efforts, ``(d,)``."""
        return self._tensors.weights.clone()

    def zero(self, x: Tensor) -> Tensor:
        """Return the action that changes nothing, ``(N, d)``."""
        self._check_shape(x)
        return torch.zeros_like(x)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Project actions onto the feasible set (Π of Algorithm 1). Projecting twice equals projecting once.

        The gradient passes straight through where a column is free to move. It is zero on immutable, clamped and reverted columns
        (Appendix B).

        Args:
            x: rows, float32 ``(N, d)``.
            delta: actions, float32 ``(N, d)``. NaN counts as no change.

        Returns:
            Feasible actions, ``(N, d)``.
        """
        self._check_shape(x, delta)
        with torch.no_grad():
            rules = self._rules
            result = project_rows(self._tensors, x, delta, self.max_changes if rules is None else None, self.norm)
            if rules is not None:
                result = rules.project(x.detach(), result, self._tensors.weights)
        if torch.is_grad_enabled() and delta.requires_grad:
            with torch.no_grad():
                mask = compute_gradient_mask(self._tensors, x, delta, result)
            return straight_through(delta, result, mask)
        return result

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the counterfactual points x′ = x + δ, ``(N, d)``.

        One-hot groups, whole numbers and ordinals are exactly at values that the encoder gives. The gradient is that of x + δ.

        Args:
            x: rows, float32 ``(N, d)``.
            delta: actions, float32 ``(N, d)``.
        """
        self._check_shape(x, delta)
        with torch.no_grad():
            point = compute_counterfactual_points(self._tensors, x, delta)
            if self._rules is not None:
                point = self._rules.snap(x.detach(), delta.detach(), point)
        if torch.is_grad_enabled() and (delta.requires_grad or x.requires_grad):
            moved = delta if self._rules is None else self._rules.follow(x.detach(), delta)
            return straight_through(x + moved, point)
        return point

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the cost of each row's action, c(δ) = ‖Wδ‖ of eq. 4, ``(N,)``."""
        self._check_shape(x, delta)
        return compute_row_costs(delta * self._tensors.weights, self.norm)

    def column_bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest value of each column that an action may lead to, two tensors ``(N, d)``.

        Columns of immutable features keep the row's own value. So do the columns of unreachable levels.
        """
        self._check_shape(x)
        return compute_column_bounds(self.features, x)

    def describe(self, x: Tensor, delta: Tensor, people: pd.DataFrame | None = None) -> list[str]:
        """Describe each row's action in words, as in ``"hours-per-week 40 → 46; occupation Sales → Tech-support"``.

        Args:
            x: rows, float32 ``(N, d)``.
            delta: actions, float32 ``(N, d)``.
            people: raw rows that ``x`` was encoded from, which tell what is missing. Without them, a value that the encoder also fills in
                for a missing one is marked ``(assumed if missing)``.

        Raises:
            DataError: shapes do not fit, or ``people`` are other rows.
        """
        self._check_shape(x, delta)
        if people is not None:
            encode_people(self.features, x, people)
        return describe_actions(self.features, x, self.apply(x, delta.detach()), delta.detach(), people)

    # Rows ---------------------------------------------------------------------------------------------------------------------------

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Return the columns that the scikit-learn encoder gives for raw rows, float32 ``(N, d)``.

        Args:
            frame: raw rows with a column for each feature.

        Raises:
            DataError: a feature is missing from the frame, a category is unknown, or a value is missing without a rule for it.

        Warns:
            DataWarning: rows are read in a way that their owner may not have meant. ``examine`` lists these and more.
        """
        columns = encode_frame(self.features, self._encoded_width(), frame)
        warn_of(examine_frame(self.features, frame))
        return columns

    def examine(self, rows: pd.DataFrame | Tensor) -> tuple[Remark, ...]:
        """Return remarks on how rows are read, by column and number of rows.

        They tell of unknown and missing categories, imputed values, codes for missing values, other units, rows outside declared
        bounds, numbers that are not whole, digits that float32 loses, features that hold dates as text or number the rows, and curves
        behind which costs are measured.

        Args:
            rows: raw rows (a DataFrame), or the model's columns (float32 ``(N, d)``), which tell less.

        Raises:
            DataError: a feature or column is missing, or a number cannot be read.
        """
        if isinstance(rows, pd.DataFrame):
            return examine_frame(self.features, rows)
        return examine_columns(self.features, to_columns(self._encoded_width(), rows))

    def decode(self, columns: Tensor, people: pd.DataFrame | None = None) -> pd.DataFrame:
        """Return raw rows for the model's columns ``(N, d)``, which the encoder encodes as these columns.

        A value that the encoder imputed remains imputed, unless ``people`` tells that it is missing. A fill that is no value of the
        feature, such as 31.5 of a whole number, is missing again.

        Args:
            columns: the model's columns, float32 ``(N, d)``.
            people: raw rows that the columns come from. Each cell that is unchanged keeps its raw value, missing ones too.

        Raises:
            DataError: the width differs, or ``people`` are other rows.
        """
        self._check_shape(columns)
        return decode_columns(self.features, columns, people)

    def rounding(self, x: Tensor) -> Tensor:
        """Return the largest change of each column that raw values rounded to float32 cause, like ``x`` ``(N, d)``."""
        self._check_shape(x)
        return compute_float32_rounding(self.features, x)

    def validate(
        self,
        rows: pd.DataFrame | Tensor | npt.NDArray[Any],
        before: pd.DataFrame | Tensor | npt.NDArray[Any] | None = None,
    ) -> pd.DataFrame:
        """List each violation of a declared rule. Observed ranges are no rule.

        Args:
            rows: raw rows (a DataFrame), or the model's columns (float32 ``(N, d)``).
            before: the same people before the action, in the same form. With them, the actions that lead to ``rows`` are compared with
                the constraints. Without, rows that break a constraint by themselves are listed.

        Returns:
            A frame with the columns ``row`` (counted from 0), ``feature``, ``rule`` and ``value``, empty if no rule is broken.

        Raises:
            DataError: a feature or column is missing, or the width or dtype is wrong.
        """
        if isinstance(rows, pd.DataFrame):
            own = find_violations_in_frame(self.features, rows)
            return find_broken_in_frame(self.constraints, self.features, rows, before, own)
        columns = to_columns(self._encoded_width(), rows)
        past = None if before is None else to_columns(self._encoded_width(), before)
        own = find_violations_in_columns(self.features, columns)
        return find_broken_in_columns(self.constraints, self.features, columns, past, own, self.people)

    def check(self, x: Tensor) -> None:
        """Raise unless every row of ``x`` ``(N, d)`` is one that the encoder gives.

        A row outside declared bounds passes. Its actions keep the value or move it towards the bounds, and ``validate`` lists it.

        Raises:
            DataError: the width or dtype is wrong, or a value is NaN or infinite.
            ActionSetError: a code is in no domain, or a one-hot group is not one-hot.
        """
        require_valid_columns(self.features, to_columns(self._encoded_width(), x), self.column_names or ())

    # Files --------------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the action set as YAML with features, encoding, statistics and cost."""
        settings = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name not in ("features", "people") and (value := getattr(self, field.name)) != field.default
        }
        write_text(path, format_yaml(self.features, settings))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ActionSet:
        """Read an action set that ``save`` wrote.

        Raises:
            FileError: the file does not exist, is not YAML, is not an action set, or has another version.
            ActionSetError: the action set contradicts itself.
        """
        return construct(cls, read_yaml(path, [field.name for field in dataclasses.fields(cls) if field.name != "people"]), str(path))

    def __str__(self) -> str:
        return format_table(
            self.features,
            width=self.width,
            unseen=self.unseen,
            max_changes=self.max_changes,
            favourable=self.favourable,
            norm=self.norm,
            weights=self.weights,
            constraints=[constraint.describe() for constraint in self.constraints],
        )

    @cached_property
    def _rules(self) -> CompiledConstraints | None:
        if self.people is None and any(isinstance(one, PerPerson) for one in self.constraints):
            names = ", ".join(one.feature for one in self.constraints if isinstance(one, PerPerson))
            warnings.warn(
                f"Nothing is known about each person, because the rows came as columns. Actions leave {names} unchanged. Give a DataFrame "
                "where a function takes one, or use action_set.for_people(frame).",
                DataWarning,
                stacklevel=4,
            )
        return compile_constraints(self.constraints, self.features, self.max_changes, self.people)

    @cached_property
    def _tensors(self) -> CompiledFeatures:
        width = self._encoded_width()
        weights = compute_column_weights(self.features, width, self.weights, self.epsilon)
        rules = self._rules
        if rules is None:
            return compile_features(self.features, width, weights)
        for name in rules.uncounted:
            weights[list(self[name].model_columns)] = 0.0
        # What follows from other features moves for nothing else.
        own = [dataclasses.replace(one, mutability=Mutability.IMMUTABLE) if one.name in rules.targets else one for one in self.features]
        return compile_features(own, width, weights)

    def _encoded_width(self) -> int:
        if self.width is None:
            raise ActionSetError(
                "The action set must be placed on the model's columns, but it is on raw features. "
                "Call action_set.encoded_by(column_transformer)."
            )
        return self.width

    def _check_shape(self, x: Tensor, delta: Tensor | None = None) -> None:
        require_shape(self._encoded_width(), x, delta)


def _scale_feature_bounds(feature: AnyFeature, factor: float) -> AnyFeature:
    """Return a feature with the interval of its actions scaled, or the feature itself where it has none."""
    if not isinstance(feature, Continuous) or feature.is_immutable:
        return feature
    low, high = feature.reachable_bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        return feature
    mean = (low + high) / 2 if feature.statistics is None else feature.statistics.mean
    centre = mean if low <= mean <= high else (low + high) / 2
    least = centre - factor * (centre - low)
    bounds = (max(least, 0.0) if low >= 0 else least, centre + factor * (high - centre))
    return dataclasses.replace(feature, bounds=bounds, bounds_share=None)
