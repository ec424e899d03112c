"""Placement of features on the columns of an encoder, given what each column shows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cfptq.actions.bins import choose_within
from cfptq.actions.curves import NumberEncoder, Scaling
from cfptq.actions.features import INFREQUENT, AnyFeature, Categorical, Continuous, Integer, Ordinal
from cfptq.actions.validation import Level, to_float32
from cfptq.errors import ActionSetError

_NO_COLUMNS: dict[str, Any] = dict.fromkeys(("column", "codes", "columns", "off", "on"))
_CURVE_POINTS = 257  # A curve is checked at this many raw values.
_CURVE_SLACK = 1e-12  # A fall by this share of the largest value is rounding.


@dataclass(frozen=True)
class TracedColumn:
    """A column traced through the encoder, whose value is ``(base - offset) / scale``.

    Attributes:
        feature: the raw feature that the column comes from.
        base: ``"raw"`` for the raw value, ``"code"`` for the category's number among ``values``, ``"slot"`` for 1 at category ``place`` and
            else 0, ``"missing"`` for 1 where the value is missing and else 0.
        offset: offset of the column, in units of the base.
        scale: scale of the column, in units of the base, above 0.
        categories: categories of the encoder, for a code or slot.
        place: index of the slot's category.
        group: identifies the one-hot step, so that slots of different steps are told apart.
        fill: raw value that an imputer puts in place of a missing one.
        missing_code: code of a missing value.
        unknown: treatment of an unlisted value, as in ``cfptq.actions.Categorical``. A code is in units of the base.
        missing_as: category for a missing value, as in ``cfptq.actions.Categorical``.
        curve: functions before offset and scale.
        edges: inner edges of the bins that are the categories. A value at an edge is in the bin above.
        values: number of each category, for a code. Default: its index.
        merged: pairs of a further raw value and the category that the encoder shows it as.
        blocked: category that no action leads to, because its name would tell one of several merged values.
    """

    feature: str
    base: Literal["raw", "code", "slot", "missing"] = "raw"
    offset: float = 0.0
    scale: float = 1.0
    categories: tuple[Level, ...] = ()
    place: int = 0
    group: int = 0
    fill: Level = None
    missing_code: float | None = None
    unknown: str | float = "error"
    missing_as: str = "none"
    curve: tuple[NumberEncoder, ...] = ()
    edges: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    merged: tuple[tuple[Level, Level], ...] = ()
    blocked: Level = None

    def get_code(self, level: Level) -> float:
        """Return the number of a category."""
        place = self.categories.index(level)
        return float(place) if self.values is None else self.values[place]

    def bend(self, curve: NumberEncoder) -> TracedColumn:
        """Return the column after a further increasing function."""
        before = () if (self.offset, self.scale) == (0.0, 1.0) else (Scaling(self.offset, self.scale),)
        return dataclasses.replace(self, offset=0.0, scale=1.0, curve=(*self.curve, *before, curve))

    def rescale(self, offset: float, scale: float) -> TracedColumn:
        """Return the column after a further step ``(value - offset) / scale``."""
        if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
            raise ActionSetError(f"The encoder's scale of {self.feature!r} must be finite and above 0, got {scale}.")
        return dataclasses.replace(self, offset=self.offset + offset * self.scale, scale=self.scale * scale)

    def encode_base(self, base: float) -> float:
        """Return the column's value for a value of the base."""
        return (base - self.offset) / self.scale


def map_to_columns(feature: AnyFeature, own: list[tuple[int, TracedColumn]]) -> AnyFeature:
    """Place a feature on its columns.

    Args:
        feature: the feature.
        own: index and content of each column that shows the feature.

    Raises:
        ActionSetError: the columns come from several steps, or do not fit the feature.
    """
    indicators = [(number, column) for number, column in own if column.base == "missing"]
    own = [(number, column) for number, column in own if column.base != "missing"]
    if indicators:
        feature = _map_indicator(feature, indicators, own)
    number, first = own[0]
    if any(column.base != "slot" or column.group != first.group for _, column in own) and len(own) > 1:
        numbers = ", ".join(str(number) for number, _ in own)
        raise ActionSetError(
            f"{feature.name!r} reaches the model through several steps (columns {numbers}), which an action would have to change together. "
            "Encode it once."
        )
    if len({column.place for _, column in own}) != len(own):
        raise ActionSetError(f"{feature.name!r} is one-hot encoded twice. Encode it once.")
    if isinstance(feature, Continuous) and first.edges is not None:
        return _map_bins(feature, own)
    if isinstance(feature, Continuous):
        placed = dataclasses.replace(feature, column=number, offset=first.offset, scale=first.scale, fill=first.fill, curve=first.curve)
        if placed.curve:
            _require_rise(placed)
        return placed
    if first.curve or first.edges is not None:
        raise ActionSetError(
            f"{feature.name}: the encoder treats it as a number, but the action set lists its values. "
            "Declare it continuous or whole: leave it out of categorical= and ordinal=."
        )
    if first.base == "raw":
        return _map_numbers(feature, number, first)
    merged = (*first.merged, *_find_equal_codes(feature, first)) if first.base == "code" else first.merged
    if merged and isinstance(feature, Ordinal):
        raise ActionSetError(
            f"{feature.name}: its encoder shows {merged[0][0]!r} and {merged[0][1]!r} alike, so that its values have no order. "
            "Declare it categorical, or merge these values in the frame first."
        )
    levels = tuple(level for level in _merge_levels(feature, first) if level not in [value for value, _ in merged])
    fill = next((state for value, state in merged if value == first.fill and first.fill is not None), first.fill)
    common: dict[str, Any] = {
        **_NO_COLUMNS,
        "fill": fill,
        "unknown": first.unknown,
        "missing_as": first.missing_as,
        "frequencies": None,
        "merged": merged,
    }
    if feature.frequencies is not None:
        frequency_of: dict[Level, float] = {}
        state_of = dict(merged)
        for level, share in zip(feature.states, feature.frequencies, strict=True):
            state = state_of.get(level, level)
            frequency_of[state] = frequency_of.get(state, 0.0) + share
        common["frequencies"] = tuple(frequency_of.get(level, 0.0) for level in levels)
    common |= _map_slots(levels, own) if first.base == "slot" else _map_codes(levels, number, first)
    return _set_levels(feature, levels, common, first.blocked)


def _map_indicator(feature: AnyFeature, indicators: list[tuple[int, TracedColumn]], own: list[tuple[int, TracedColumn]]) -> AnyFeature:
    """Place the column that tells whether the feature's value is missing."""
    if len(indicators) > 1 or not own:
        numbers = ", ".join(str(number) for number, _ in indicators)
        raise ActionSetError(
            f"{feature.name!r} must reach the model by its value and at most one indicator of a missing value, "
            f"got {'no value' if not own else 'several indicators'} (columns {numbers}). Pass both on once."
        )
    (number, column), first = indicators[0], own[0][1]
    if column.curve:
        raise ActionSetError(f"The indicator of a missing value of {feature.name!r} passes through a curve. Only scale it.")
    if first.fill is None and first.missing_code is None:
        raise ActionSetError(f"{feature.name!r} has an indicator of a missing value, but no fill in its place. Impute it too.")
    return dataclasses.replace(feature, indicator=number, indicator_values=(column.encode_base(0.0), column.encode_base(1.0)))


def _find_equal_codes(feature: Ordinal | Categorical, column: TracedColumn) -> list[tuple[Level, Level]]:
    """Return pairs of a level and the most frequent reachable level with the same float32 code, which stands for it."""
    share_of = dict(zip(feature.states, feature.frequencies or (), strict=False))
    chosen = set(feature.levels if feature.reachable is None else feature.reachable) if isinstance(feature, Categorical) else set()
    by_code: dict[float, list[Level]] = {}
    for level in column.categories:
        if level is not None and level != column.blocked:
            by_code.setdefault(to_float32(column.encode_base(column.get_code(level))), []).append(level)
    result: list[tuple[Level, Level]] = []
    for alike in by_code.values():
        state = max(alike, key=lambda level: (level in chosen, share_of.get(level, 0.0)))
        result.extend((level, state) for level in alike if level != state)
    return result


def _require_rise(feature: Continuous) -> None:
    """Refuse a curve that falls somewhere in the observed range, or within finite bounds where none was observed."""
    seen = feature.statistics
    low, high = feature.reachable_bounds if seen is None else (seen.minimum, seen.maximum)
    low, high = (side if math.isfinite(side) else default for side, default in ((low, min(0.0, high - 1)), (high, max(1.0, low + 1))))
    raw = np.linspace(low, high, _CURVE_POINTS)
    column = feature.encode_numbers(raw)
    is_finite = np.isfinite(column)
    raw, column = raw[is_finite], column[is_finite]
    falls = np.flatnonzero(np.diff(column) < -_CURVE_SLACK * np.abs(column).max(initial=0.0))
    if len(falls):
        start = int(falls[0])
        raise ActionSetError(
            f"{feature.name}: its encoder must not fall where the raw value rises, but it falls between {raw[start]:g} and "
            f"{raw[start + 1]:g}. One-way changes would point the wrong way. Use an increasing function, such as its negative."
        )


def _map_bins(feature: Continuous, own: list[tuple[int, TracedColumn]]) -> Ordinal:
    """Turn a number that the encoder bins into an ordinal feature with one admissible value of each bin."""
    number, first = own[0]
    assert first.edges is not None
    edges = np.array(first.edges)
    low, high = feature.reachable_bounds
    ends = [min(low, edges[0]) if len(edges) else low, *first.edges, max(high, edges[-1]) if len(edges) else high]
    inside = [place for place in range(len(edges) + 1) if ends[place] <= high and (place == len(edges) or low < ends[place + 1])]
    domain = []
    for place in range(len(edges) + 1):
        within = (max(low, ends[place]), min(high, ends[place + 1])) if place in inside else (ends[place], ends[place + 1])
        domain.append(choose_within(within, whole=isinstance(feature, Integer), edges=edges, bin_number=place, name=feature.name))
    levels: tuple[Level, ...] = tuple(domain)
    fill = None
    if isinstance(first.fill, int | float):
        fill = levels[int(np.searchsorted(edges, float(first.fill), side="right"))]
    placed = dataclasses.replace(first, categories=levels)
    slots = [(column, dataclasses.replace(traced, categories=levels)) for column, traced in own]
    where = _map_slots(levels, slots) if first.base == "slot" else _map_codes(levels, number, placed)
    return Ordinal(
        feature.name,
        mutability=feature.mutability,
        effort=feature.effort,
        fill=fill,
        domain=levels,
        bounds=(levels[inside[0]], levels[inside[-1]]),
        frequencies=(1 / len(levels),) * len(levels),
        edges=first.edges,
        **where,
    )


def _map_slots(levels: tuple[Level, ...], own: list[tuple[int, TracedColumn]]) -> dict[str, Any]:
    """Return the one-hot column of each level and its values for off and on."""
    categories = own[0][1].categories
    column_of = {categories[column.place]: (number, column) for number, column in own}
    shown = [column_of.get(level) for level in levels]
    return {
        "columns": tuple(None if pair is None else pair[0] for pair in shown),
        "off": tuple(0.0 if pair is None else pair[1].encode_base(0.0) for pair in shown),
        "on": tuple(1.0 if pair is None else pair[1].encode_base(1.0) for pair in shown),
    }


def _map_codes(levels: tuple[Level, ...], number: int, column: TracedColumn) -> dict[str, Any]:
    """Return the column, the code of each level, and the codes of missing and unknown values where they differ from the default."""
    missing = column.missing_code
    codes: list[float] = []
    for level in levels:
        if level is None:
            assert missing is not None
            codes.append(column.encode_base(missing))
        else:
            codes.append(column.encode_base(column.get_code(level)))
    result: dict[str, Any] = {"column": number, "codes": tuple(codes)}
    alike = [level for level in levels if level is not None and column.get_code(level) == missing]
    if missing is not None and alike:
        result["fill"] = alike[0]
    if not isinstance(column.unknown, str):
        result["unknown"] = column.encode_base(column.unknown)
    return result


def _merge_levels(feature: Ordinal | Categorical, column: TracedColumn) -> tuple[Level, ...]:
    """Return the levels that the encoder knows, in the feature's own order if it is ordinal."""
    known = [level for level in column.categories if level is not None]
    own = [level for level in feature.states if level is not None]
    if isinstance(feature, Ordinal):
        beyond = [level for level in own if level not in known]
        if beyond:
            raise ActionSetError(
                f"{feature.name}: the encoder does not know {beyond} of its domain. Fit the encoder on these too, or leave them out."
            )
        lacking = [level for level in known if level not in own]
        if lacking:
            raise ActionSetError(f"{feature.name}: the encoder knows {lacking}, which its domain {own} lacks. Add them in order.")
        levels = own
    else:
        levels = known
    if column.base == "slot":
        return (*levels, None) if None in column.categories else tuple(levels)
    missing_code = column.missing_code
    codes = [column.get_code(level) for level in levels]
    return (*levels, None) if missing_code is not None and missing_code not in codes else tuple(levels)


def _set_levels(feature: Ordinal | Categorical, levels: tuple[Level, ...], common: dict[str, Any], blocked: Level) -> AnyFeature:
    if isinstance(feature, Ordinal):
        return dataclasses.replace(feature, domain=levels, **common)
    reachable = feature.reachable
    # A level that only the imputer gives means "unknown", which no action can lead to.
    if reachable is None and common["fill"] is not None and common["fill"] not in feature.levels:
        reachable = tuple(level for level in levels if level is not None and level != common["fill"])
    if common["merged"]:
        reachable = _find_reachable_states(feature.reachable if reachable is None else reachable, levels, common["merged"], blocked)
    return dataclasses.replace(feature, levels=levels, reachable=reachable, **common)


def _find_reachable_states(
    reachable: tuple[Level, ...] | None, levels: tuple[Level, ...], merged: tuple[tuple[Level, Level], ...], blocked: Level
) -> tuple[Level, ...]:
    """Return the states that actions may lead to. A state for any infrequent value needs all of its values to be reachable."""
    result = []
    for level in levels:
        within = [value for value, state in merged if state == level] if level == INFREQUENT else [level]
        if level is not None and level != blocked and (reachable is None or level in reachable or all(v in reachable for v in within)):
            result.append(level)
    return tuple(result)


def _map_numbers(feature: Ordinal | Categorical, number: int, column: TracedColumn) -> AnyFeature:
    """Place a feature whose levels are numbers that the encoder passes on, possibly scaled."""
    levels = [level for level in feature.states if level is not None]
    words = [level for level in levels if isinstance(level, str)]
    if words:
        raise ActionSetError(f"{feature.name}: levels that the encoder passes on must be numbers, got {words[0]!r}. Encode them.")
    fill = column.fill
    extra: tuple[Level, ...] = ()
    codes = [column.encode_base(float(level)) for level in levels if level is not None]
    shares = dict(zip(feature.states, feature.frequencies or (), strict=False))
    if isinstance(fill, int | float) and fill not in levels:
        # The fill, such as a mean, is no level. Filled rows are then at a state of their own that no action leads to.
        extra, fill = (None,), None
        codes.append(column.encode_base(float(column.fill)))  # type: ignore[arg-type]
        shares[None] = max(0.0, 1.0 - sum(shares.values()))
    states = (*levels, *extra)
    common = {
        **_NO_COLUMNS,
        "column": number,
        "codes": tuple(codes),
        "fill": fill,
        "frequencies": None if feature.frequencies is None else tuple(shares.get(level, 0.0) for level in states),
    }
    if isinstance(feature, Ordinal):
        return dataclasses.replace(feature, domain=states, **common)
    return dataclasses.replace(feature, levels=states, **common)
