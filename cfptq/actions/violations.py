"""Which rows break which declared rule, on raw frames and on the model's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Ordinal
from cfptq.errors import ActionSetError, DataError, name_rows

NO_RULE = "a value is missing and the encoder has no rule for it"
_TOLERANCE = 1e-5  # of a one-hot value or a code that a float32 scaler wrote


def refuse_columns(features: Sequence[AnyFeature], rows: Tensor, names: Sequence[str]) -> None:
    """Raise if any row ``(N, d)`` is not finite (``DataError``) or breaks a rule (``ActionSetError``), naming rows and rules."""
    bad = ~torch.isfinite(rows)
    if bad.any():
        column = int(bad.any(0).nonzero()[0])
        where = bad[:, column].nonzero().squeeze(1).tolist()
        label = names[column] if column < len(names) else str(column)
        raise DataError(f"NaN or infinity in column {column} ({label}), rows {name_rows(where)}; impute or drop them")
    found = found_in_columns(features, rows)
    if len(found):
        raise ActionSetError(summary(found))


def summary(found: pd.DataFrame) -> str:
    """Violations in one message: each rule once, with its rows."""
    parts = []
    for (feature, rule), rows in found.groupby(["feature", "rule"], sort=False):
        values = rows["value"].tolist()
        parts.append(f"{feature}: {rule}, broken by rows {name_rows(rows['row'].tolist())} (row {rows['row'].iloc[0]}: {values[0]})")
    shown = "; ".join(parts[:5]) + (f"; and {len(parts) - 5} rules more" if len(parts) > 5 else "")
    return f"{shown}. Mend or drop the rows, or widen the declaration; validate() lists them all"


def found_in_columns(features: Sequence[AnyFeature], rows: Tensor) -> pd.DataFrame:
    """Violations among the model's columns ``(N, d)``: ``row``, ``feature``, ``rule``, ``value``."""
    found = []
    for feature in features:
        if isinstance(feature, Continuous):
            if feature.column is None:
                continue
            values = rows[:, feature.column].to(torch.float64).numpy()
            raw = values * feature.scale + feature.offset
            found.append(_out_of_bounds(feature, raw, slack=1e-6 * (np.abs(values) * feature.scale + abs(feature.offset))))
        else:
            found.append(_off_level(feature, rows))
    return _joined(found)


def found_in_frame(features: Sequence[AnyFeature], frame: pd.DataFrame) -> pd.DataFrame:
    """Violations among raw rows: missing and unknown values besides."""
    from cfptq.actions.encoding import feature_series
    from cfptq.actions.infer_features import numbers_of, places_of

    found = []
    for feature in features:
        series = feature_series(frame, feature.name, [f.name for f in features])
        missing = series.isna().to_numpy(dtype=bool)
        if isinstance(feature, Continuous):
            raw = numbers_of(series)
            if feature.fill is None and feature.placed:
                found.append(_table(feature, NO_RULE, missing, series.to_numpy(dtype=object)))
            found.append(_out_of_bounds(feature, raw, slack=np.zeros(len(raw))))
            continue
        places = places_of(series, feature.states)
        values = series.to_numpy(dtype=object)
        if feature.unknown == "error":
            found.append(_table(feature, f"the value is none of {list(feature.states)}", (places < 0) & ~missing, values))
            if feature.fill is None and None not in feature.states and feature.placed:
                found.append(_table(feature, NO_RULE, missing, values))
        found.append(_out_of_span(feature, places))
    return _joined(found)


def columns_as_places(feature: Ordinal | Categorical, rows: Tensor) -> npt.NDArray[np.int64]:
    """The number of each row's level ``(N,)``; -1 where its columns show none."""
    if feature.columns is None:
        assert feature.codes is not None and feature.column is not None
        codes = torch.tensor(feature.codes, dtype=torch.float64)
        apart = (rows[:, [feature.column]].to(torch.float64) - codes).abs()
        least, place = apart.min(1)
        near = least <= _TOLERANCE * (1 + codes.abs()[place])
        return torch.where(near, place, -1).numpy()
    return _places_of_slots(feature, *_slots(feature, rows))


def _places_of_slots(feature: Ordinal | Categorical, set_: Tensor, valid: Tensor) -> npt.NDArray[np.int64]:
    """The number of each row's level from its slots, as :func:`_slots` gives them."""
    assert feature.columns is not None
    seen = torch.tensor([place for place, column in enumerate(feature.columns) if column is not None])
    empty = feature.columns.index(None) if None in feature.columns else -1
    return torch.where(valid & set_.any(1), seen[set_.to(torch.int8).argmax(1)], torch.where(valid, empty, -1)).numpy()


def _slots(feature: Ordinal | Categorical, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which slots are set ``(N, L)``, and in which rows each is at one of its two values and at most one is set ``(N,)``."""
    assert feature.columns is not None and feature.off is not None and feature.on is not None
    seen = [place for place, column in enumerate(feature.columns) if column is not None]
    group = rows[:, list(feature.placed)].to(torch.float64)
    off = torch.tensor([feature.off[place] for place in seen], dtype=torch.float64)
    on = torch.tensor([feature.on[place] for place in seen], dtype=torch.float64)
    share = (group - off) / (on - off)
    set_ = share > 0.5
    exact = (share - set_.to(torch.float64)).abs() <= _TOLERANCE * (1 + off.abs() / (on - off))
    if all(value == 0 for value in off.tolist()) and all(value == 1 for value in on.tolist()):
        exact = share == set_.to(torch.float64)
    return set_, exact.all(1) & (set_.sum(1) <= 1)


def _off_level(feature: Ordinal | Categorical, rows: Tensor) -> pd.DataFrame:
    group = rows[:, list(feature.placed)]
    if feature.columns is None:
        places = columns_as_places(feature, rows)
        allowed = places >= 0
        spare = [value for value in (feature.unknown, feature.fill) if isinstance(value, float)]
        for value in spare:
            allowed |= (group[:, 0].to(torch.float64) - value).abs().numpy() <= _TOLERANCE * (1 + abs(value))
        assert feature.codes is not None
        shown = [round(code, 6) for code in feature.codes]
        bad = _table(feature, f"column {feature.column} holds none of the codes {shown}", ~allowed, group[:, 0].numpy())
    else:
        set_, valid = _slots(feature, rows)
        places = _places_of_slots(feature, set_, valid)
        may_be_empty = None in feature.columns or feature.unknown == "zeros"
        wrong = ~valid if may_be_empty else ~(valid & set_.any(1))
        count = "at most one" if may_be_empty else "exactly one"
        shown_rows = np.empty(len(rows), dtype=object)
        for row in wrong.nonzero().squeeze(1).tolist():
            shown_rows[row] = [round(value, 6) for value in group[row].tolist()][:12]
        bad = _table(feature, f"{count} of columns {list(feature.placed)[:12]} is on and the rest off", wrong.numpy(), shown_rows)
    return _joined([bad, _out_of_span(feature, places)])


def _out_of_bounds(feature: Continuous, raw: npt.NDArray[np.float64], slack: npt.NDArray[np.float64]) -> pd.DataFrame:
    low, high = feature.declared
    with np.errstate(invalid="ignore"):
        bad = (raw < low - slack) | (raw > high + slack)
    if feature.fill is not None and isinstance(feature.fill, int | float):
        bad &= np.abs(raw - feature.fill) > 1e-6 * (1 + abs(feature.fill))
    return _table(feature, f"lies between {low:g} and {high:g}", bad, raw, digits=6)


def _out_of_span(feature: Ordinal | Categorical, places: npt.NDArray[np.int64]) -> pd.DataFrame:
    if not isinstance(feature, Ordinal) or feature.bounds == (None, None):
        return _joined([])
    # Rows without a value, and rows at no level (-1, the last entry), break other rules than this one.
    outside = [not allowed and state is not None for allowed, state in zip(feature.destinations, feature.states, strict=True)]
    low, high = feature.bounds
    first, last = (feature.domain[0] if low is None else low, feature.domain[-1] if high is None else high)
    values = np.array([*feature.states, None], dtype=object)[places]
    return _table(feature, f"lies between {first} and {last}", np.array([*outside, False])[places], values)


def _table(feature: AnyFeature, rule: str, bad: npt.NDArray[np.bool_], values: Any, digits: int | None = None) -> pd.DataFrame:
    rows = np.flatnonzero(bad)
    if len(rows) == 0:  # as a rule; hundreds of features make a frame each too slow
        return _NOTHING
    shown = [values[row] if digits is None else float(f"{values[row]:.{digits}g}") for row in rows]
    return pd.DataFrame({"row": rows, "feature": feature.name, "rule": rule, "value": shown})


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    if not filled:
        return _NOTHING.copy()
    return pd.concat([table.astype({"value": object}) for table in filled], ignore_index=True)


_NOTHING = pd.DataFrame({"row": pd.Series(dtype=int), "feature": pd.Series(dtype=str), "rule": pd.Series(dtype=str), "value": []})
