"""Reading of a fitted scikit-learn encoder, which gives the content of each of the model's columns.

Every column is traced symbolically through the encoder's steps. A step that cannot be traced exactly is an error that names it.
scikit-learn is imported inside functions, because it is slow to import and only encoders need it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfptq.actions.column_mapping import TracedColumn, map_to_columns
from cfptq.actions.curves import Scaling
from cfptq.actions.features import INFREQUENT, AnyFeature, Continuous
from cfptq.actions.optbinning import is_binning_process, trace_binning_process
from cfptq.actions.scikit_learn_curves import read_curves
from cfptq.actions.validation import Level, to_python_value
from cfptq.errors import ActionSetError
from cfptq.io.suggestions import did_you_mean

SUPPORTED_STEPS = (
    "StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PowerTransformer, QuantileTransformer, KBinsDiscretizer, Binarizer, "
    "FunctionTransformer with an inverse, OneHotEncoder, OrdinalEncoder, TargetEncoder, SimpleImputer, MissingIndicator, BinningProcess, "
    "'passthrough', 'drop', and Pipeline, FeatureUnion or ColumnTransformer of these"
)


def map_to_encoder(encoder: Any, features: Sequence[AnyFeature]) -> tuple[tuple[AnyFeature, ...], tuple[str, ...], tuple[str, ...]]:
    """Place features on the columns of a fitted encoder.

    Args:
        encoder: the fitted encoder.
        features: the raw features.

    Returns:
        The features on the columns, the names of the columns, and the names of features that the encoder does not pass on.

    Raises:
        ActionSetError: the encoder is not fitted, has an unsupported step, or does not fit the features.
    """
    by_name = {feature.name: feature for feature in features}
    _, traced = trace_encoder(encoder)
    for name in dict.fromkeys(column.feature for column in traced):
        if name not in by_name:
            raise ActionSetError(
                f"The encoder reads column {name!r}, which is no feature of the action set{did_you_mean(name, by_name)}. "
                "Build the action set from a frame that has it."
            )
    if not traced:
        raise ActionSetError("The encoder passes no column on to the model.")
    _refuse_numbers_as_levels(traced, by_name)
    seen = []
    for feature in features:
        own = [(place, column) for place, column in enumerate(traced) if column.feature == feature.name]
        if own:
            seen.append(map_to_columns(feature, own))
    names = _get_output_names(encoder, traced)
    present = {feature.name for feature in seen}
    return tuple(seen), names, tuple(feature.name for feature in features if feature.name not in present)


def trace_encoder(encoder: Any) -> tuple[list[str], list[TracedColumn]]:
    """Return the names of a fitted encoder's input columns, and the content of each of its output columns.

    Raises:
        ActionSetError: the encoder is not fitted, or has an unsupported step.
    """
    _check_fitted(encoder)
    names = _get_input_names(encoder)
    return names, _trace_step(encoder, [TracedColumn(name) for name in names])


def _refuse_numbers_as_levels(traced: Sequence[TracedColumn], by_name: dict[str, AnyFeature]) -> None:
    numbers = [c.feature for c in traced if c.base in ("code", "slot") and c.edges is None and isinstance(by_name[c.feature], Continuous)]
    if numbers:
        names = list(dict.fromkeys(numbers))
        raise ActionSetError(
            f"The encoder treats {', '.join(names)} as categories, but the action set treats them as numbers. "
            f"Call from_frame(…, categorical={names!r}), or give their order with ordinal={{…}}."
        )


def _check_fitted(encoder: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        if not (is_binning_process(encoder) and encoder._is_fitted):  # It does not tell scikit-learn that it is fitted.
            check_is_fitted(encoder)
    except NotFittedError:
        raise ActionSetError(f"The {type(encoder).__name__} is not fitted. Fit it on the training frame first.") from None
    except TypeError:
        raise ActionSetError(
            f"encoder must be a fitted scikit-learn encoder, got {type(encoder).__name__}. Supported are {SUPPORTED_STEPS}."
        ) from None


def _get_input_names(encoder: Any) -> list[str]:
    first = encoder.steps[0][1] if getattr(encoder, "steps", None) else encoder
    names = first.variable_names if is_binning_process(first) else getattr(encoder, "feature_names_in_", None)
    if names is None:
        raise ActionSetError(f"The {type(encoder).__name__} was fitted on an array, so it knows no feature names. Fit it on a DataFrame.")
    return [str(name) for name in names]


def _get_output_names(encoder: Any, traced: Sequence[TracedColumn]) -> tuple[str, ...]:
    try:
        steps = getattr(encoder, "steps", None)
        reader = encoder[:-1] if steps and _is_predictor(steps[-1][1]) else encoder
        names = tuple(str(name) for name in reader.get_feature_names_out())
    except (AttributeError, ValueError):
        names = ()
    if len(names) != len(traced):
        names = tuple(f"{c.feature}_{c.categories[c.place]}" if c.base == "slot" else c.feature for c in traced)
    return names


def _is_predictor(step: Any) -> bool:
    return hasattr(step, "predict") and not hasattr(step, "transform")


def _trace_step(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    """Return the columns after one step of any kind."""
    from sklearn import compose, impute, pipeline, preprocessing

    if step is None or (isinstance(step, str) and step == "passthrough"):
        return columns
    if isinstance(step, str) and step == "drop":
        return []
    if isinstance(step, pipeline.Pipeline):
        for place, (_, part) in enumerate(step.steps):
            if place == len(step.steps) - 1 and _is_predictor(part):
                break
            columns = _trace_step(part, columns)
        return columns
    if isinstance(step, compose.ColumnTransformer):
        return _trace_column_transformer(step, columns)
    if isinstance(step, pipeline.FeatureUnion):
        return [column for _, part in step.transformer_list for column in _trace_step(part, columns)]
    if isinstance(step, impute.MissingIndicator):
        return _trace_indicator(step, columns)
    if isinstance(step, preprocessing.TargetEncoder):
        return _trace_target(step, columns)
    if is_binning_process(step):
        return trace_binning_process(step, columns, _require_raw)
    if isinstance(step, preprocessing.StandardScaler):
        return _trace_scaler(columns, step.mean_ if step.with_mean else None, step.scale_)
    if isinstance(step, preprocessing.RobustScaler):
        return _trace_scaler(columns, step.center_, step.scale_)
    if isinstance(step, preprocessing.MaxAbsScaler) and not getattr(step, "clip", False):
        return _trace_scaler(columns, None, step.scale_)
    if isinstance(step, preprocessing.MinMaxScaler):
        if step.clip:
            raise ActionSetError("MinMaxScaler(clip=True) maps different people to the same column value. Use clip=False.")
        return _trace_scaler(columns, -step.min_ / step.scale_, 1 / step.scale_)
    if isinstance(step, impute.SimpleImputer):
        return _trace_imputer(step, columns)
    if isinstance(step, preprocessing.OneHotEncoder):
        return _trace_one_hot(step, columns)
    if isinstance(step, preprocessing.OrdinalEncoder):
        return _trace_ordinal(step, columns)
    if isinstance(step, preprocessing.FunctionTransformer) and step.func is None:
        return columns
    if isinstance(step, preprocessing.KBinsDiscretizer | preprocessing.Binarizer):
        return _trace_bins(step, columns)
    curves = read_curves(step, columns)
    if curves is not None:
        for column in columns:
            if column.base != "raw":
                raise ActionSetError(f"{type(step).__name__} follows another encoder on {column.feature!r}. Encode the raw column.")
        bent = []
        for column, parts in zip(columns, curves, strict=True):
            for part in parts:
                column = column.rescale(part.offset, part.scale) if isinstance(part, Scaling) else column.bend(part)
            bent.append(column)
        return bent
    names = ", ".join(dict.fromkeys(column.feature for column in columns))
    raise ActionSetError(
        f"{type(step).__name__} (on {names}) is not supported. Supported are {SUPPORTED_STEPS}. "
        "A step of your own needs the methods encode and decode of cfptq.actions.NumberEncoder."
    )


def _trace_column_transformer(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    known = getattr(step, "feature_names_in_", None)
    names = [str(name) for name in known] if known is not None else []
    result: list[TracedColumn] = []
    for name, part, chosen in step.transformers_:
        places = _resolve_positions(chosen, names, len(columns))
        passed = _trace_step(part, [columns[place] for place in places]) if places else []
        expected = getattr(step, "output_indices_", {}).get(name)
        if expected is not None and expected.stop - expected.start != len(passed):
            width = expected.stop - expected.start
            raise ActionSetError(f"Step {name!r} of the ColumnTransformer gives {width} columns, but {len(passed)} were traced.")
        result.extend(passed)
    return result


def _resolve_positions(chosen: Any, names: list[str], count: int) -> list[int]:
    """Return the positions that a ColumnTransformer's column specification chooses."""
    if isinstance(chosen, str | int):
        chosen = [chosen]
    if isinstance(chosen, slice):
        ends = [names.index(end) if isinstance(end, str) else end for end in (chosen.start, chosen.stop)]
        stop = ends[1] + 1 if isinstance(chosen.stop, str) else ends[1]
        return list(range(count))[slice(ends[0], stop, chosen.step)]
    listed = list(chosen)
    if listed and all(isinstance(item, bool | np.bool_) for item in listed):
        return [place for place, wanted in enumerate(listed) if wanted]
    return [names.index(item) if isinstance(item, str) else range(count)[int(item)] for item in listed]


def _trace_scaler(columns: list[TracedColumn], offsets: Any, scales: Any) -> list[TracedColumn]:
    return [
        column.rescale(0.0 if offsets is None else float(offsets[place]), 1.0 if scales is None else float(scales[place]))
        for place, column in enumerate(columns)
    ]


def _trace_imputer(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    if len(step.statistics_) != len(columns) or any(to_python_value(value) is None for value in step.statistics_):
        raise ActionSetError("SimpleImputer dropped a column without any value. Drop it from the frame too.")
    marker = to_python_value(step.missing_values)
    if marker is not None:
        names = ", ".join(column.feature for column in columns)
        raise ActionSetError(
            f"SimpleImputer on {names}: missing_values must be NaN, got {marker!r}. Replace {marker!r} by NaN in the frame first."
        )
    result: list[TracedColumn] = []
    for column, statistic in zip(columns, step.statistics_, strict=True):
        value = to_python_value(statistic)
        if column.base == "slot" or column.fill is not None or (column.base == "code" and column.missing_code is not None):
            result.append(column)  # An earlier step has filled or coded the missing values.
        elif column.base == "code":
            result.append(dataclasses.replace(column, missing_code=float(value) * column.scale + column.offset))
        elif column.curve:
            raise ActionSetError(f"SimpleImputer follows a curve on {column.feature!r}. Impute the raw column first.")
        elif (column.offset, column.scale) == (0.0, 1.0):
            result.append(dataclasses.replace(column, fill=value))
        else:
            result.append(dataclasses.replace(column, fill=float(value) * column.scale + column.offset))
    return [*result, *_trace_indicator(step.indicator_, columns)] if step.add_indicator else result


def _trace_indicator(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    """Return the columns of a ``MissingIndicator``, of which a raw column without missing values may have none."""
    result = []
    for place in step.features_.tolist():
        column = columns[place]
        _require_raw(step, column)
        if to_python_value(step.missing_values) is not None:
            raise ActionSetError(
                f"MissingIndicator on {column.feature}: missing_values must be NaN, got {step.missing_values!r}. "
                f"Replace {step.missing_values!r} by NaN in the frame first."
            )
        if column.fill is not None:
            raise ActionSetError(f"MissingIndicator follows an imputer on {column.feature!r}, so that nothing is missing. Put it beside.")
        result.append(dataclasses.replace(column, base="missing"))
    return result


def _trace_target(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    """Return the columns of a ``TargetEncoder``, which shows each category as one number."""
    if step.target_type_ == "multiclass":
        names = ", ".join(dict.fromkeys(column.feature for column in columns))
        raise ActionSetError(
            f"TargetEncoder on {names} must have a binary or continuous target, because several classes give each category several "
            "columns. Fit it on one class against the rest."
        )
    result = []
    for place, column in enumerate(columns):
        categories = _list_categories(step, place, column)
        values = tuple(map(float, step.encodings_[place]))
        result.append(
            dataclasses.replace(
                column,
                base="code",
                categories=categories,
                values=values,
                unknown=float(step.target_mean_),
                missing_as=_get_missing_marker(step.categories_[place]),
                missing_code=values[categories.index(None)] if None in categories else None,
            )
        )
    return result


def _trace_bins(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    from sklearn.preprocessing import Binarizer

    result: list[TracedColumn] = []
    for place, column in enumerate(columns):
        _require_raw(step, column)
        is_binarizer = isinstance(step, Binarizer)
        # scikit-learn's Binarizer is on above its threshold, and its bins hold their lower edge.
        edges = (math.nextafter(float(step.threshold), math.inf),) if is_binarizer else tuple(map(float, step.bin_edges_[place][1:-1]))
        if len(set(edges)) < len(edges):
            raise ActionSetError(f"{type(step).__name__} has empty bins of {column.feature!r}. Use fewer bins.")
        count = len(edges) + 1
        is_coded = is_binarizer or step.encode == "ordinal"
        common = dataclasses.replace(
            column, base="code" if is_coded else "slot", categories=tuple(range(count)), group=id(step), edges=edges, missing_as="nan"
        )
        result.extend([common] if is_coded else [dataclasses.replace(common, place=slot) for slot in range(count)])
    return result


def _require_raw(step: Any, column: TracedColumn) -> None:
    if column.base == "missing":
        raise ActionSetError(
            f"{type(step).__name__} follows the indicator of a missing value of {column.feature!r}. "
            "Leave the indicator as it is, or scale it."
        )
    if column.base != "raw" or column.curve or (column.offset, column.scale) != (0.0, 1.0):
        raise ActionSetError(f"{type(step).__name__} follows another encoder or a scaler on {column.feature!r}. Encode the raw column.")


def _trace_one_hot(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    result: list[TracedColumn] = []
    for place, column in enumerate(columns):
        levels = _list_categories(step, place, column)
        can_be_unknown = step.handle_unknown in ("infrequent_if_exist", "warn")
        categories, merged, blocked = _merge_infrequent(step, place, levels, can_be_unknown)
        drop = step.drop_idx_
        dropped = None
        if drop is not None and drop[place] is not None:
            level = levels[int(drop[place])]
            dropped = categories.index(dict(merged).get(level, level))
        unknown = "error" if step.handle_unknown == "error" else "zeros"
        common = dataclasses.replace(
            column,
            base="slot",
            categories=categories,
            group=id(step),
            unknown="merged" if INFREQUENT in categories else unknown,
            merged=merged,
            blocked=blocked,
            missing_as=_get_missing_marker(step.categories_[place]),
        )
        result.extend(dataclasses.replace(common, place=slot) for slot in range(len(categories)) if slot != dropped)
    return result


def _trace_ordinal(step: Any, columns: list[TracedColumn]) -> list[TracedColumn]:
    result = []
    for place, column in enumerate(columns):
        levels = _list_categories(step, place, column)
        categories, merged, blocked = _merge_infrequent(step, place, levels, False)
        missing = to_python_value(step.encoded_missing_value)
        if None not in categories:
            missing = None
        elif _get_missing_marker(step.categories_[place]) == "none":
            missing = categories.index(None)  # To scikit-learn, None is a category like any other.
        unknown: str | float = "error"
        if step.handle_unknown == "use_encoded_value":
            given = to_python_value(step.unknown_value)
            if given is not None:
                unknown = float(given)
        result.append(
            dataclasses.replace(
                column,
                base="code",
                categories=categories,
                unknown=unknown,
                merged=merged,
                blocked=blocked,
                missing_as=_get_missing_marker(step.categories_[place]),
                missing_code=None if missing is None else float(missing),
            )
        )
    return result


def _get_missing_marker(categories: Any) -> str:
    """Return the form in which an encoder knows a missing value, ``"none"`` or ``"nan"``."""
    return "none" if any(category is None for category in categories) else "nan"


def _merge_infrequent(
    step: Any, place: int, levels: tuple[Level, ...], can_be_unknown: bool
) -> tuple[tuple[Level, ...], tuple[tuple[Level, Level], ...], Level]:
    """Return the categories in the order of the encoder, those that it merges, and the category that no action leads to.

    All infrequent categories are the last one. It is ``INFREQUENT`` where the encoder reads any unknown text as one of them. Elsewhere
    one of them stands for all, and no action leads there, because it would have to name one.
    """
    listed = None
    if getattr(step, "min_frequency", None) is not None or getattr(step, "max_categories", None) is not None:
        listed = step.infrequent_categories_[place]
    if listed is None:
        return levels, (), None
    infrequent: list[Level] = [to_python_value(level) for level in listed]
    usual = [level for level in levels if level not in infrequent]
    is_named = can_be_unknown and all(isinstance(level, str) for level in levels if level is not None) and INFREQUENT not in levels
    if None in infrequent and is_named:
        infrequent.remove(None)  # It is read like any other unknown value.
    if None in infrequent:
        raise ActionSetError(
            f"{type(step).__name__} merges missing values with infrequent categories. Impute them first, or leave min_frequency and "
            "max_categories out."
        )
    if is_named:
        return (*usual, INFREQUENT), tuple((level, INFREQUENT) for level in infrequent), None
    first = infrequent[0]
    return (*usual, first), tuple((level, first) for level in infrequent[1:]), first


def _list_categories(step: Any, place: int, column: TracedColumn) -> tuple[Level, ...]:
    """Return the categories of an encoder for its input ``place``, refusing what cannot be traced."""
    _require_raw(step, column)
    categories = tuple(to_python_value(category) for category in step.categories_[place])
    if categories.count(None) > 1:
        raise ActionSetError(
            f"The {type(step).__name__} knows both None and NaN as categories of {column.feature!r}. Replace None by NaN first."
        )
    if column.fill is not None and column.fill not in categories:
        raise ActionSetError(
            f"{column.feature!r}: missing values are filled with {column.fill!r}, which the {type(step).__name__} does not know. "
            "Fit both on rows that have missing values, or list the category."
        )
    return categories
