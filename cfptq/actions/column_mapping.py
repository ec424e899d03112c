"""Features put on the columns of an encoder, once it is known what each column shows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from cfptq.actions.features import AnyFeature, Categorical, Continuous, Ordinal
from cfptq.actions.validation import Level
from cfptq.errors import ActionSetError


@dataclass(frozen=True)
class Followed:
    """One column on its way through the encoder: ``(base - offset) / scale``.

    Attributes:
        feature: the raw feature that it comes from.
        base: ``"raw"`` value, ``"code"`` (place among ``categories``) or ``"slot"`` (1 at category ``place``, else 0).
        group: names the one-hot step, so that slots of different steps are told apart.
        fill: raw value put in place of a missing one.
        missing_code: code of a missing value, where the base is a code.
        unknown: as :attr:`cfptq.actions.features.Categorical.unknown`, in base units where it is a code.
    """

    feature: str
    base: Literal["raw", "code", "slot"] = "raw"
    offset: float = 0.0
    scale: float = 1.0
    categories: tuple[Level, ...] = ()
    place: int = 0
    dropped: int | None = None
    group: int = 0
    fill: Level = None
    missing_code: float | None = None
    unknown: str | float = "error"

    def rescaled(self, offset: float, scale: float) -> Followed:
        """After a further ``(value - offset) / scale``."""
        if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
            raise ActionSetError(f"the encoder scales {self.feature!r} by {scale}; a scale is finite and above 0")
        return dataclasses.replace(self, offset=self.offset + offset * self.scale, scale=self.scale * scale)

    def value(self, base: float) -> float:
        return (base - self.offset) / self.scale


def placed(feature: AnyFeature, own: list[tuple[int, Followed]]) -> AnyFeature:
    """The feature on its columns ``own``: pairs of column number and what it shows."""
    first = own[0][1]
    if any(column.base != "slot" or column.group != first.group for _, column in own) and len(own) > 1:
        places = ", ".join(str(place) for place, _ in own)
        raise ActionSetError(
            f"{feature.name!r} reaches the model through several steps (columns {places}); an action would have to move them together: "
            "encode it once"
        )
    if len({column.place for _, column in own}) != len(own):
        raise ActionSetError(f"{feature.name!r} is one-hot encoded twice; encode it once")
    if isinstance(feature, Continuous):
        return dataclasses.replace(feature, column=own[0][0], offset=first.offset, scale=first.scale, fill=first.fill)
    blank = {"column": None, "codes": None, "columns": None, "off": None, "on": None}
    if first.base == "raw":
        return _placed_numbers(feature, own[0][0], first, blank)
    levels = _levels(feature, first)
    shares = None
    if feature.frequencies is not None:
        before = dict(zip(feature.states, feature.frequencies, strict=True))
        shares = tuple(before.get(level, 0.0) for level in levels)
    common: dict[str, Any] = {**blank, "frequencies": shares, "fill": first.fill, "unknown": first.unknown}
    place_of = {level: place for place, level in enumerate(first.categories)}
    if first.base == "slot":
        column_of = {column.place: (number, column) for number, column in own}
        shown = [column_of.get(place_of[level]) for level in levels]
        common["columns"] = tuple(None if pair is None else pair[0] for pair in shown)
        common["off"] = tuple(0.0 if pair is None else pair[1].value(0.0) for pair in shown)
        common["on"] = tuple(1.0 if pair is None else pair[1].value(1.0) for pair in shown)
    else:
        common["column"] = own[0][0]
        missing = first.missing_code
        if missing is not None and missing in [place_of[level] for level in levels if level is not None]:
            common["fill"] = first.categories[int(missing)]
        codes = []
        for level in levels:
            if level is None:
                assert missing is not None
                codes.append(first.value(missing))
            else:
                codes.append(first.value(float(place_of[level])))
        common["codes"] = tuple(codes)
        if not isinstance(first.unknown, str):
            common["unknown"] = first.value(first.unknown)
    return _with_levels(feature, levels, first, common)


def _levels(feature: Ordinal | Categorical, column: Followed) -> tuple[Level, ...]:
    """The feature's values in its own order, as far as the encoder knows them; for a categorical those of the encoder too."""
    known = [level for level in column.categories if level is not None]
    own = [level for level in feature.states if level is not None]
    if isinstance(feature, Ordinal):
        beyond = [level for level in own if level not in known]
        if beyond:
            raise ActionSetError(
                f"{feature.name}: the encoder does not know {beyond} of its domain; fit it on these too, or leave them out"
            )
        lacking = [level for level in known if level not in own]
        if lacking:
            raise ActionSetError(f"{feature.name}: the encoder knows {lacking}, which its domain {own} lacks; add them in order")
        levels = own
    else:
        levels = known
    if column.base == "slot":
        return (*levels, None) if None in column.categories else tuple(levels)
    missing_code = column.missing_code
    codes = [float(column.categories.index(level)) for level in levels]
    return (*levels, None) if missing_code is not None and missing_code not in codes else tuple(levels)


def _with_levels(feature: Ordinal | Categorical, levels: tuple[Level, ...], column: Followed, common: dict[str, Any]) -> AnyFeature:
    if isinstance(feature, Ordinal):
        return dataclasses.replace(feature, domain=levels, **common)
    reachable = feature.reachable
    # A level that only the imputer gives says "we do not know", and nobody can act to become unknown.
    if reachable is None and common["fill"] is not None and common["fill"] not in feature.levels:
        reachable = tuple(level for level in levels if level is not None and level != common["fill"])
    return dataclasses.replace(feature, levels=levels, reachable=reachable, **common)


def _placed_numbers(feature: Ordinal | Categorical, number: int, column: Followed, blank: dict[str, Any]) -> AnyFeature:
    """A feature whose levels are numbers that the encoder passes on, perhaps scaled."""
    levels = [level for level in feature.states if level is not None]
    words = [level for level in levels if isinstance(level, str)]
    if words:
        raise ActionSetError(f"{feature.name}: the encoder passes its levels on as they are, and {words[0]!r} is no number; encode them")
    fill = column.fill
    extra: tuple[Level, ...] = ()
    codes = [column.value(float(level)) for level in levels if level is not None]
    shares = dict(zip(feature.states, feature.frequencies or (), strict=False))
    if isinstance(fill, int | float) and fill not in levels:
        # Filled with a number between levels (a mean): such rows stand at a state of their own that nothing leads to.
        extra, fill = (None,), None
        codes.append(column.value(float(column.fill)))  # type: ignore[arg-type]
        shares[None] = max(0.0, 1.0 - sum(shares.values()))
    states = (*levels, *extra)
    common = {
        **blank,
        "column": number,
        "codes": tuple(codes),
        "fill": fill,
        "frequencies": None if feature.frequencies is None else tuple(shares.get(level, 0.0) for level in states),
    }
    if isinstance(feature, Ordinal):
        return dataclasses.replace(feature, domain=states, **common)
    return dataclasses.replace(feature, levels=states, **common)
