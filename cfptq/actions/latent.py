"""Actions in the latent space of an autoencoder (eqs. 39 and 40)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cfptq.actions.describe import NO_CHANGE
from cfptq.actions.image_coder import ImageCoder, NetworkSource, check_favourable, check_positive
from cfptq.actions.network_files import load_fields, save_fields

#: Share of the bounds' width from which a changed value counts in ``describe``.
VISIBLE_CHANGE = 0.1
#: Halvings that shorten an action until its image is near enough.
HALVINGS = 16
#: Share by which a shortened action aims below its limit, so that float rounding does not undo it.
AIM = 1e-4

FORMAT = "cfptq-latent-action-set"


@dataclass(frozen=True, eq=False)
class LatentActionSet:
    """Actions δ on the code of an image, x′ = D(E(x) + δ) (eqs. 39 and 40).

    An action is feasible if ‖δ‖₂ is at most ``radius`` and ‖x′ − x‖₁ is at most ``max_change``. It costs ‖δ‖₂ + λ ‖x′ − x‖₁ with λ =
    ``pixel_cost``. Decoded values are clipped to ``bounds``. The zero action leaves the image as it is and does not replace it by its
    reconstruction. Minimal-cost recourse is searched along gradients and by bisection.

    Attributes:
        encoder: E, a module or an ONNX file from rows (N, *row_shape) to codes (N, k).
        decoder: D, a module or an ONNX file from codes (N, k) to rows (N, *row_shape).
        row_shape: shape of one row, such as (1, 28, 28).
        radius: largest ‖δ‖₂, ρ.
        max_change: largest ‖x′ − x‖₁, κ, or None for no limit.
        pixel_cost: cost of one unit of ‖x′ − x‖₁, λ.
        bounds: least and largest value of a pixel.
        favourable: class that recourse leads to by default, or None.

    Raises:
        ActionSetError: a value is not allowed, or the networks do not fit each other or the shape.
        ModelError: a network cannot be captured or read.
    """

    encoder: NetworkSource
    decoder: NetworkSource
    row_shape: tuple[int, ...]
    radius: float
    max_change: float | None = None
    pixel_cost: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)
    favourable: int | None = None

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)
        check_positive("pixel_cost", self.pixel_cost, zero=True)
        if self.max_change is not None:
            check_positive("max_change", self.max_change)
        check_favourable(self.favourable)
        coder = self.coder
        object.__setattr__(self, "row_shape", coder.row_shape)
        object.__setattr__(self, "bounds", coder.bounds)

    @cached_property
    def coder(self) -> ImageCoder:
        """Encoder and decoder as differentiable networks."""
        return ImageCoder(self.encoder, self.decoder, self.row_shape, self.bounds)

    @property
    def max_changes(self) -> None:
        """None, because an action may change every value of a code."""
        return None

    @property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """Each value of the code by itself."""
        return tuple((column,) for column in range(self.coder.code_size))

    @property
    def couples_columns(self) -> bool:
        """True, because the radius limits all values of a code together."""
        return True

    def zero(self, x: Tensor) -> Tensor:
        """Return the action that changes nothing, (N, k)."""
        return torch.zeros(len(x), self.coder.code_size)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Scale each action to the radius, then shorten it until its image is near enough.

        An action stays as it is if it is feasible. Where even the shortest one that is tried is too far away, the action becomes zero.
        """
        length = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
        inside = torch.where(length > self.radius * (1 + 1e-6), delta * (self.radius / length.clamp_min(1e-30)), delta)
        if self.max_change is None:
            return inside
        with torch.no_grad():
            far = (self._measure_change(x, inside) > self.max_change).nonzero()[:, 0]
            if len(far) == 0:
                return inside
            rows, action = x[far], inside[far]
            low, high = torch.zeros(len(far)), torch.ones(len(far))
            for _ in range(HALVINGS):
                share = (low + high) / 2
                is_near = self._measure_change(rows, share[:, None] * action) <= self.max_change * (1 - AIM)
                low, high = torch.where(is_near, share, low), torch.where(is_near, high, share)
        result = inside.clone()
        result[far] = low[:, None] * action
        return result

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return D(E(x) + δ), and x itself where δ is zero, differentiable with respect to ``delta``."""
        return self.coder.move(x, delta)

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return ‖δ‖₂ + λ ‖x′ − x‖₁, (N,), differentiable with respect to ``delta``."""
        length: Tensor = torch.linalg.vector_norm(delta, dim=1)
        return length if self.pixel_cost == 0 else length + self.pixel_cost * self._measure_change(x, delta)

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        """Describe how far each action moves the code and how many values it changes. ``cfptq.auditing.draw_changes`` draws it."""
        with torch.no_grad():
            change = (self.apply(x, delta) - x).flatten(1).abs()
        visible = (change > VISIBLE_CHANGE * (self.bounds[1] - self.bounds[0])).sum(1).tolist()
        lengths, totals = torch.linalg.vector_norm(delta, dim=1).tolist(), change.sum(1).tolist()
        return [
            f"the code moves by {length:.3g}, and {count} of {change.shape[1]} values change visibly, by {total:.3g} in total"
            if length > 0
            else NO_CHANGE
            for length, count, total in zip(lengths, visible, totals, strict=True)
        ]

    def check(self, x: Tensor) -> None:
        """Raise ``ActionSetError`` if rows have another shape or leave the bounds."""
        self.coder.check(x)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the action set as YAML, and encoder and decoder as ONNX files beside it."""
        save_fields(path, FORMAT, self, self.coder.contents)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatentActionSet:
        """Read an action set that ``save`` wrote.

        Raises:
            FileError: a file does not exist, is not of this kind, or holds other bytes than those that were saved.
            ActionSetError: the action set contradicts itself.
        """
        return load_fields(path, FORMAT, cls)

    def __str__(self) -> str:
        low, high = self.bounds
        near = "" if self.max_change is None else f" The image may change by at most {self.max_change:g} in the sum over its values."
        pixels = f" plus {self.pixel_cost:g} times the sum of the image's changes" if self.pixel_cost else ""
        wanted = "" if self.favourable is None else f" Class {self.favourable} is favourable."
        return (
            f"Actions on codes of {self.coder.code_size} values of images of shape {self.row_shape}. A code may move by at most "
            f"{self.radius:g}.{near} Images stay between {low:g} and {high:g}. An action costs the length of its move{pixels}.{wanted}"
        )

    def __repr__(self) -> str:
        return f"<LatentActionSet {self} {self.coder.digest}>"

    def _measure_change(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return ‖x′ − x‖₁, (N,)."""
        return (self.apply(x, delta) - x).flatten(1).abs().sum(1)
