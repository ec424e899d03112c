"""Edits of attributes within a weighted budget (eq. 41)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.describe import NO_CHANGE
from cfptq.actions.image_coder import (
    BOUND_TOLERANCE,
    ImageCoder,
    NetworkSource,
    check_bounds,
    check_favourable,
    check_positive,
)
from cfptq.actions.network_files import load_fields, save_fields
from cfptq.errors import ActionSetError, DataError, name_rows
from cfptq.io.arguments import is_finite_number
from cfptq.io.suggestions import did_you_mean

#: Halvings in search of the threshold by which an edit is shrunk to the budget.
HALVINGS = 60
#: Share by which an edit may exceed the budget through float rounding.
ROUNDING = 1e-5

FORMAT = "cfptq-semantic-action-set"


@dataclass(frozen=True, eq=False)
class SemanticActionSet:
    """Edits δ of attributes with ‖Wδ‖₁ ≤ ρ, in which protected attributes stay fixed (eq. 41).

    An edit costs ‖Wδ‖₁. Rows are of one of two kinds.

    - Rows that hold the attributes themselves, (N, k). The edit is added to them, and they stay within ``bounds``.
    - Images, (N, *row_shape), with an encoder E, a decoder D and a direction of the code for each attribute. The edited image is
      x′ = D(E(x) + Σ δ_j · direction_j), and its values stay within ``bounds``. The zero edit leaves the image as it is.

    Attributes:
        names: name of each attribute.
        budget: largest ‖Wδ‖₁, ρ.
        fixed: attributes that nobody may change, such as protected ones.
        costs: cost of one unit of each attribute, the diagonal of W, or None for 1 each.
        edit_bounds: least and largest change of one attribute.
        bounds: least and largest value of an attribute, or of a pixel of an image.
        encoder: E for images, a module or an ONNX file, or None.
        decoder: D for images, a module or an ONNX file, or None.
        row_shape: shape of one image, or None.
        directions: for images, one direction of the code for each attribute, (k, code).
        favourable: class that recourse leads to by default, or None.

    Raises:
        ActionSetError: a value is not allowed, or the parts do not fit each other.
        ModelError: a network cannot be captured or read.
    """

    names: tuple[str, ...]
    budget: float
    fixed: tuple[str, ...] = ()
    costs: tuple[float, ...] | None = None
    edit_bounds: tuple[float, float] = (-1.0, 1.0)
    bounds: tuple[float, float] = (0.0, 1.0)
    encoder: NetworkSource | None = None
    decoder: NetworkSource | None = None
    row_shape: tuple[int, ...] | None = None
    directions: tuple[tuple[float, ...], ...] | None = None
    favourable: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", _check_names("names", self.names))
        if not self.names:
            raise ActionSetError("names must hold the name of at least one attribute, got none.")
        object.__setattr__(self, "fixed", _check_names("fixed", self.fixed))
        for name in self.fixed:
            if name not in self.names:
                raise ActionSetError(f"fixed must hold attributes of names, got {name!r}{did_you_mean(name, self.names)}.")
        check_positive("budget", self.budget)
        costs = self.costs
        if costs is not None:
            if not isinstance(costs, Sequence) or len(costs) != len(self.names):
                raise ActionSetError(f"costs must hold one number for each of the {len(self.names)} attributes, got {costs!r}.")
            object.__setattr__(self, "costs", tuple(check_positive(f"cost of {n!r}", c) for n, c in zip(self.names, costs, strict=True)))
        low, high = check_bounds("edit_bounds", self.edit_bounds)
        if low > 0 or high < 0:
            raise ActionSetError(f"edit_bounds must hold 0, which is no edit, got {self.edit_bounds!r}.")
        object.__setattr__(self, "edit_bounds", (low, high))
        object.__setattr__(self, "bounds", check_bounds("bounds", self.bounds))
        check_favourable(self.favourable)
        self._check_images()

    def _check_images(self) -> None:
        """Check the parts that images need, which come together or not at all."""
        parts = {name: getattr(self, name) for name in ("encoder", "decoder", "row_shape", "directions")}
        missing = [name for name, value in parts.items() if value is None]
        if len(missing) == len(parts):
            return
        if missing:
            raise ActionSetError(f"Images need encoder, decoder, row_shape and directions, and {' and '.join(missing)} are missing.")
        coder = self.coder
        assert coder is not None
        directions = self.directions.tolist() if isinstance(self.directions, Tensor) else self.directions
        is_table = isinstance(directions, Sequence) and len(directions) == len(self.names)
        if not is_table or not all(
            isinstance(row, Sequence) and len(row) == coder.code_size and all(map(is_finite_number, row)) for row in directions or ()
        ):
            raise ActionSetError(
                f"directions must hold one direction of {coder.code_size} finite numbers for each of the {len(self.names)} attributes."
            )
        object.__setattr__(self, "directions", tuple(tuple(map(float, row)) for row in directions or ()))
        object.__setattr__(self, "row_shape", coder.row_shape)

    @cached_property
    def coder(self) -> ImageCoder | None:
        """Encoder and decoder of images, or None where rows hold the attributes."""
        if self.encoder is None or self.decoder is None or self.row_shape is None:
            return None
        return ImageCoder(self.encoder, self.decoder, self.row_shape, self.bounds)

    @property
    def max_changes(self) -> None:
        """None, because the budget alone limits how many attributes change."""
        return None

    @property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """Each attribute by itself."""
        return tuple((column,) for column in range(len(self.names)))

    @property
    def couples_columns(self) -> bool:
        """True, because the budget limits all attributes together."""
        return True

    @cached_property
    def _costs(self) -> Tensor:
        return torch.tensor(self.costs if self.costs is not None else [1.0] * len(self.names))

    @cached_property
    def _free(self) -> Tensor:
        return torch.tensor([name not in self.fixed for name in self.names])

    @cached_property
    def _directions(self) -> Tensor:
        return torch.tensor(self.directions)

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Return the attributes of a table as rows, (N, k). Other columns are left out.

        Raises:
            ActionSetError: the action set speaks of images.
            DataError: an attribute has no column, or a column holds something else than finite numbers.
        """
        if self.coder is not None:
            raise ActionSetError("This action set speaks of images, which a table does not hold. Give the images as a tensor.")
        missing = [name for name in self.names if name not in frame.columns]
        if missing:
            raise DataError(f"The table must have a column for each attribute, and has none for {', '.join(missing)}.")
        try:
            values = np.array(frame[list(self.names)].to_numpy(dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise DataError(f"Attributes must be numbers ({error}).") from error
        bad = (~np.isfinite(values).all(1)).nonzero()[0].tolist()
        if bad:
            raise DataError(f"Attributes must be finite, and those of rows {name_rows(bad)} are not.")
        return torch.from_numpy(values)

    def zero(self, x: Tensor) -> Tensor:
        """Return the edit that changes nothing, (N, k)."""
        return torch.zeros(len(x), len(self.names))

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the nearest edit in ℓ2 that keeps fixed attributes, bounds and budget. A feasible edit stays as it is."""
        low = torch.full_like(delta, self.edit_bounds[0])
        high = torch.full_like(delta, self.edit_bounds[1])
        if self.coder is None:
            low, high = torch.maximum(low, self.bounds[0] - x).clamp_max(0), torch.minimum(high, self.bounds[1] - x).clamp_min(0)
        boxed = torch.where(self._free, torch.minimum(torch.maximum(delta, low), high), torch.zeros_like(delta))
        over = ((boxed.abs() * self._costs).sum(1) > self.budget * (1 + ROUNDING)).nonzero()[:, 0]
        if len(over) == 0:
            return boxed
        # The nearest edit is the given one, shrunk by τ times the costs and clipped. The least such τ is bracketed.
        edit, lowest, highest = torch.where(self._free, delta[over], 0.0), low[over], high[over]
        least, most = torch.zeros(len(over)), (edit.abs() / self._costs).amax(1)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            fits = (_shrink(edit, middle, self._costs, lowest, highest).abs() * self._costs).sum(1) <= self.budget
            least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
        result = boxed.clone()
        result[over] = _shrink(edit, most, self._costs, lowest, highest)
        return result

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the edited rows, differentiable with respect to ``delta``."""
        return x + delta if self.coder is None else self.coder.move(x, delta @ self._directions)

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return ‖Wδ‖₁, (N,), differentiable with respect to ``delta``."""
        return (delta.abs() * self._costs).sum(1)

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        """Describe each edit in words. ``cfptq.auditing.draw_changes`` draws edited images."""
        values = x if self.coder is None else None
        return [
            ", ".join(
                f"{self.names[column]} by {edit[column]:+.3g}"
                if values is None
                else f"{self.names[column]} from {float(values[row, column]):.3g} to {float(values[row, column]) + edit[column]:.3g}"
                for column in range(len(self.names))
                if edit[column] != 0
            )
            or NO_CHANGE
            for row, edit in enumerate(delta.tolist())
        ]

    def check(self, x: Tensor) -> None:
        """Raise ``ActionSetError`` if rows have another shape or leave the bounds."""
        if self.coder is not None:
            self.coder.check(x)
            return
        if x.dim() != 2 or x.shape[1] != len(self.names):
            raise ActionSetError(f"rows must have the shape (N, {len(self.names)}), one value an attribute, got {tuple(x.shape)}.")
        low, high = self.bounds
        slack = BOUND_TOLERANCE * (high - low)
        bad = ((x < low - slack) | (x > high + slack)).any(1).nonzero()[:, 0].tolist()
        if bad:
            raise ActionSetError(
                f"rows must lie between {low:g} and {high:g}, and rows {name_rows(bad)} do not. Give the action set other bounds."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the action set as YAML, and encoder and decoder as ONNX files beside it."""
        save_fields(path, FORMAT, self, {} if self.coder is None else self.coder.contents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SemanticActionSet:
        """Read an action set that ``save`` wrote.

        Raises:
            FileError: a file does not exist, is not of this kind, or holds other bytes than those that were saved.
            ActionSetError: the action set contradicts itself.
        """
        return load_fields(path, FORMAT, cls)

    def __str__(self) -> str:
        held = f" {', '.join(self.fixed)} stay{'s' if len(self.fixed) == 1 else ''} fixed." if self.fixed else ""
        kind = "" if self.coder is None else f" of images of shape {self.row_shape}"
        wanted = "" if self.favourable is None else f" Class {self.favourable} is favourable."
        low, high = self.edit_bounds
        return (
            f"Edits of {len(self.names)} attributes{kind}, each from {low:g} to {high:g}.{held} An edit costs the weighted sum of its "
            f"changes, at most {self.budget:g}.{wanted}"
        )

    def __repr__(self) -> str:
        return f"<SemanticActionSet {self}{'' if self.coder is None else f' {self.coder.digest}'}>"


def _shrink(edit: Tensor, amount: Tensor, costs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the edits moved towards zero by ``amount`` times the costs, and clipped."""
    moved = edit.sign() * (edit.abs() - amount[:, None] * costs).clamp_min(0)
    return torch.minimum(torch.maximum(moved, low), high)


def _check_names(what: str, names: Any) -> tuple[str, ...]:
    """Return names, checked to be different texts."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ActionSetError(f"{what} must be a list of attribute names, got {names!r}.")
    repeated = [name for name in names if list(names).count(name) > 1]
    if repeated:
        raise ActionSetError(f"{what} must hold each attribute once, and {repeated[0]!r} stands in it {names.count(repeated[0])} times.")
    return tuple(names)
