"""Reference classifiers that map rows (N, d) to class logits (N, C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cfptq.errors import ModelError


class LogisticRegression(nn.Module):
    """Logistic regression with one linear layer, ``head``.

    Args:
        inputs: number of columns d of a row.
        classes: number of classes C, at least 2.
        seed: seed of the initial weights. The global random state is not changed.
    """

    def __init__(self, inputs: int, classes: int = 2, *, seed: int = 0) -> None:
        super().__init__()
        _check_sizes(inputs, classes, ())
        self.head = _make_linear(inputs, classes, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, C) of rows (N, d)."""
        logits: Tensor = self.head(x)
        return logits


class MLP(nn.Module):
    """ReLU network with layers ``hidden.0``, ``hidden.1``, … and ``head``.

    Args:
        inputs: number of columns d of a row.
        classes: number of classes C, at least 2.
        hidden: width of each hidden layer.
        batch_norm: put BatchNorm (``norm.0``, …) between each hidden layer and its ReLU.
        residual: add the input of each hidden layer that keeps the width to its output.
        dropout: share of the hidden activations dropped in training, in [0, 1).
        seed: seed of the initial weights. The global random state is not changed.

    Raises:
        ModelError: a size is below 1, there are fewer than two classes, or ``dropout`` is outside [0, 1).
    """

    def __init__(
        self, inputs: int, classes: int = 2, *, hidden: Sequence[int] = (64, 64), batch_norm: bool = False, residual: bool = False,
        dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_sizes(inputs, classes, hidden)
        if not 0 <= dropout < 1:
            raise ModelError(f"dropout must lie in [0, 1), got {dropout}.")
        generator = torch.Generator().manual_seed(seed)
        widths = (inputs, *hidden)
        self.hidden = nn.ModuleList(_make_linear(below, above, generator) for below, above in pairwise(widths))
        self.norm = nn.ModuleList(nn.BatchNorm1d(width) if batch_norm else nn.Identity() for width in hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = _make_linear(widths[-1], classes, generator)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, C) of rows (N, d)."""
        for layer, norm in zip(self.hidden, self.norm, strict=True):
            above: Tensor = self.dropout(torch.relu(norm(layer(x))))
            x = x + above if self.residual and above.shape[-1] == x.shape[-1] else above
        logits: Tensor = self.head(x)
        return logits


def _check_sizes(inputs: int, classes: int, hidden: Sequence[int]) -> None:
    if inputs < 1 or classes < 2 or any(width < 1 for width in hidden):
        raise ModelError(
            "A model must have at least one input, two classes and one unit per layer, "
            f"got inputs={inputs}, classes={classes}, hidden={list(hidden)}."
        )


def _make_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Build a linear layer with PyTorch's default initialization, drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # The constructor would draw from the global generator.
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
