"""A fitted scikit-learn encoder, read: which of the model's columns shows which feature, and how.

Every column is followed symbolically through the encoder's steps. What cannot be followed exactly is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfptq.actions.column_mapping import Followed, placed
from cfptq.actions.features import AnyFeature, Continuous
from cfptq.actions.suggestions import did_you_mean
from cfptq.actions.validation import Level, plain
from cfptq.errors import ActionSetError

READ = (
    "StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, OneHotEncoder, OrdinalEncoder, SimpleImputer, "
    "'passthrough', 'drop', and Pipeline or ColumnTransformer of these"
)


def placed_by(encoder: Any, features: Sequence[AnyFeature]) -> tuple[tuple[AnyFeature, ...], tuple[str, ...], tuple[str, ...]]:
    """Features on the encoder's columns, the columns' names, and names of features that it does not pass on."""
    _check_fitted(encoder)
    inputs = [Followed(name) for name in _input_names(encoder)]
    by_name = {feature.name: feature for feature in features}
    followed = _through(encoder, inputs)
    for name in dict.fromkeys(column.feature for column in followed):
        if name not in by_name:
            raise ActionSetError(
                f"the encoder reads column {name!r}, which the action set does not know{did_you_mean(name, by_name)}; "
                "build the action set from a frame that has it"
            )
    if not followed:
        raise ActionSetError("the encoder passes no column on to the model")
    _refuse_numbers_as_levels(followed, by_name)
    seen = []
    for feature in features:
        own = [(place, column) for place, column in enumerate(followed) if column.feature == feature.name]
        if own:
            seen.append(placed(feature, own))
    names = _output_names(encoder, followed)
    present = {feature.name for feature in seen}
    return tuple(seen), names, tuple(feature.name for feature in features if feature.name not in present)


def _refuse_numbers_as_levels(followed: Sequence[Followed], by_name: dict[str, AnyFeature]) -> None:
    numbers = [c.feature for c in followed if c.base != "raw" and isinstance(by_name[c.feature], Continuous)]
    if numbers:
        names = list(dict.fromkeys(numbers))
        raise ActionSetError(
            f"the encoder treats {', '.join(names)} as categories, the action set as numbers; "
            f"say from_frame(…, categorical={names!r}), or give their order with ordinal={{…}}"
        )


def _check_fitted(encoder: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(encoder)
    except NotFittedError:
        raise ActionSetError(f"the {type(encoder).__name__} is not fitted; fit it on the training frame first") from None
    except TypeError:
        raise ActionSetError(f"encoded_by takes a fitted scikit-learn encoder, not {type(encoder).__name__}; read are {READ}") from None


def _input_names(encoder: Any) -> list[str]:
    names = getattr(encoder, "feature_names_in_", None)
    if names is None:
        raise ActionSetError(f"the {type(encoder).__name__} was fitted on an array, so it knows no feature names; fit it on a DataFrame")
    return [str(name) for name in names]


def _output_names(encoder: Any, followed: Sequence[Followed]) -> tuple[str, ...]:
    try:
        steps = getattr(encoder, "steps", None)
        reader = encoder[:-1] if steps and _is_predictor(steps[-1][1]) else encoder
        names = tuple(str(name) for name in reader.get_feature_names_out())
    except (AttributeError, ValueError):
        names = ()
    if len(names) != len(followed):
        names = tuple(f"{c.feature}_{c.categories[c.place]}" if c.base == "slot" else c.feature for c in followed)
    return names


def _is_predictor(step: Any) -> bool:
    return hasattr(step, "predict") and not hasattr(step, "transform")


def _through(step: Any, columns: list[Followed]) -> list[Followed]:
    """The columns after one step of any kind."""
    from sklearn import compose, impute, pipeline, preprocessing

    if step is None or (isinstance(step, str) and step == "passthrough"):
        return columns
    if isinstance(step, str) and step == "drop":
        return []
    if isinstance(step, pipeline.Pipeline):
        for place, (_, part) in enumerate(step.steps):
            if place == len(step.steps) - 1 and _is_predictor(part):
                break
            columns = _through(part, columns)
        return columns
    if isinstance(step, compose.ColumnTransformer):
        return _through_each(step, columns)
    if isinstance(step, preprocessing.StandardScaler):
        return _scaled(columns, step.mean_ if step.with_mean else None, step.scale_)
    if isinstance(step, preprocessing.RobustScaler):
        return _scaled(columns, step.center_, step.scale_)
    if isinstance(step, preprocessing.MaxAbsScaler) and not getattr(step, "clip", False):
        return _scaled(columns, None, step.scale_)
    if isinstance(step, preprocessing.MinMaxScaler):
        if step.clip:
            raise ActionSetError("MinMaxScaler(clip=True) maps different people to the same column value; use clip=False")
        return _scaled(columns, -step.min_ / step.scale_, 1 / step.scale_)
    if isinstance(step, impute.SimpleImputer):
        return _imputed(step, columns)
    if isinstance(step, preprocessing.OneHotEncoder):
        return _one_hot(step, columns)
    if isinstance(step, preprocessing.OrdinalEncoder):
        return _coded(step, columns)
    if isinstance(step, preprocessing.FunctionTransformer) and step.func is None:
        return columns
    names = ", ".join(dict.fromkeys(column.feature for column in columns))
    raise ActionSetError(f"{type(step).__name__} (on {names}) cannot be read; what can: {READ}")


def _through_each(step: Any, columns: list[Followed]) -> list[Followed]:
    known = getattr(step, "feature_names_in_", None)
    names = [str(name) for name in known] if known is not None else []
    result: list[Followed] = []
    for name, part, chosen in step.transformers_:
        places = _positions(chosen, names, len(columns))
        passed = _through(part, [columns[place] for place in places]) if places else []
        expected = getattr(step, "output_indices_", {}).get(name)
        if expected is not None and expected.stop - expected.start != len(passed):
            width = expected.stop - expected.start
            raise ActionSetError(f"step {name!r} of the ColumnTransformer gives {width} columns, {len(passed)} were read")
        result.extend(passed)
    return result


def _positions(chosen: Any, names: list[str], count: int) -> list[int]:
    """A ColumnTransformer's column specification as positions."""
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


def _scaled(columns: list[Followed], offsets: Any, scales: Any) -> list[Followed]:
    return [
        column.rescaled(0.0 if offsets is None else float(offsets[place]), 1.0 if scales is None else float(scales[place]))
        for place, column in enumerate(columns)
    ]


def _imputed(step: Any, columns: list[Followed]) -> list[Followed]:
    if step.add_indicator:
        raise ActionSetError("SimpleImputer(add_indicator=True) shows one feature in two columns; impute without the indicator")
    if len(step.statistics_) != len(columns) or any(plain(value) is None for value in step.statistics_):
        raise ActionSetError("SimpleImputer met a column without any value and dropped it; drop it from the frame too")
    marker = plain(step.missing_values)
    if marker is not None:
        names = ", ".join(column.feature for column in columns)
        raise ActionSetError(f"SimpleImputer(missing_values={marker!r}) on {names}: replace {marker!r} by NaN in the frame first")
    result: list[Followed] = []
    for column, statistic in zip(columns, step.statistics_, strict=True):
        value = plain(statistic)
        if column.base == "slot" or column.fill is not None or (column.base == "code" and column.missing_code is not None):
            result.append(column)  # nothing is missing any more
        elif column.base == "code":
            result.append(dataclasses.replace(column, missing_code=float(value) * column.scale + column.offset))
        elif (column.offset, column.scale) == (0.0, 1.0):
            result.append(dataclasses.replace(column, fill=value))
        else:
            result.append(dataclasses.replace(column, fill=float(value) * column.scale + column.offset))
    return result


def _require_raw(step: Any, column: Followed) -> None:
    if column.base != "raw" or (column.offset, column.scale) != (0.0, 1.0):
        raise ActionSetError(f"{type(step).__name__} stands after another encoder or a scaler on {column.feature!r}; encode the raw column")


def _one_hot(step: Any, columns: list[Followed]) -> list[Followed]:
    rare = getattr(step, "infrequent_categories_", None) if step.min_frequency is not None or step.max_categories is not None else None
    result: list[Followed] = []
    for place, column in enumerate(columns):
        _require_raw(step, column)
        if rare is not None and rare[place] is not None:
            raise ActionSetError(
                f"OneHotEncoder lumps {len(rare[place])} infrequent categories of {column.feature!r} into one column, so no action "
                "could name where it leads; fit without min_frequency and max_categories, or merge the categories in the frame first"
            )
        categories = tuple(plain(category) for category in step.categories_[place])
        drop = step.drop_idx_
        dropped = None if drop is None or drop[place] is None else int(drop[place])
        _require_known_fill(step, column, categories)
        common = dataclasses.replace(
            column,
            base="slot",
            categories=categories,
            dropped=dropped,
            group=id(step),
            unknown="error" if step.handle_unknown == "error" else "zeros",
        )
        result.extend(dataclasses.replace(common, place=slot) for slot in range(len(categories)) if slot != dropped)
    return result


def _coded(step: Any, columns: list[Followed]) -> list[Followed]:
    rare = getattr(step, "infrequent_categories_", None) if step.min_frequency is not None or step.max_categories is not None else None
    result = []
    for place, column in enumerate(columns):
        _require_raw(step, column)
        if rare is not None and rare[place] is not None:
            raise ActionSetError(
                f"OrdinalEncoder lumps {len(rare[place])} infrequent categories of {column.feature!r} into one code; "
                "fit without min_frequency and max_categories, or merge the categories in the frame first"
            )
        categories = tuple(plain(category) for category in step.categories_[place])
        _require_known_fill(step, column, categories)
        missing = plain(step.encoded_missing_value)
        if None not in categories:
            missing = None
        unknown: str | float = "error"
        if step.handle_unknown == "use_encoded_value":
            given = plain(step.unknown_value)
            if given is not None:
                unknown = float(given)
        result.append(
            dataclasses.replace(
                column,
                base="code",
                categories=categories,
                unknown=unknown,
                missing_code=None if missing is None else float(missing),
            )
        )
    return result


def _require_known_fill(step: Any, column: Followed, categories: Sequence[Level]) -> None:
    if column.fill is not None and column.fill not in categories:
        raise ActionSetError(
            f"{column.feature!r}: missing values are filled with {column.fill!r}, which the {type(step).__name__} does not know; "
            "fit both on rows that have missing values, or list the category"
        )
