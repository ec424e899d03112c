"""The reference classifiers of the benchmarks. Each gives class logits (N, C) for rows (N, d)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cfptq.errors import ModelError


class LogisticRegression(nn.Module):
    """One linear layer, ``head``.

    Args:
        inputs: columns d of a row.
        classes: classes C, at least 2.
        seed: fixes the initial weights; the global random state is not touched.
    """

    def __init__(self, inputs: int, classes: int = 2, *, seed: int = 0) -> None:
        super().__init__()
        _check_sizes(inputs, classes, ())
        self.head = _linear(inputs, classes, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of rows (N, d)."""
        logits: Tensor = self.head(x)
        return logits


class MLP(nn.Module):
    """A ReLU network: ``hidden.0``, ``hidden.1``, ... and ``head``.

    Args:
        inputs: columns d of a row.
        classes: classes C, at least 2.
        hidden: width of each hidden layer.
        batch_norm: BatchNorm (``norm.0``, ...) between each hidden layer and its ReLU.
        residual: add its input to the output of every hidden layer that keeps the width.
        dropout: share of the hidden activations dropped in training.
        seed: fixes the initial weights; the global random state is not touched.

    Raises:
        ModelError: a size below 1, fewer than two classes, or a dropout outside [0, 1).
    """

    def __init__(
        self, inputs: int, classes: int = 2, *, hidden: Sequence[int] = (64, 64), batch_norm: bool = False, residual: bool = False,
        dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_sizes(inputs, classes, hidden)
        if not 0 <= dropout < 1:
            raise ModelError(f"an MLP's dropout is {dropout}; it must lie in [0, 1)")
        generator = torch.Generator().manual_seed(seed)
        widths = (inputs, *hidden)
        self.hidden = nn.ModuleList(_linear(below, above, generator) for below, above in pairwise(widths))
        self.norm = nn.ModuleList(nn.BatchNorm1d(width) if batch_norm else nn.Identity() for width in hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = _linear(widths[-1], classes, generator)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of rows (N, d)."""
        for layer, norm in zip(self.hidden, self.norm, strict=True):
            above: Tensor = self.dropout(torch.relu(norm(layer(x))))
            x = x + above if self.residual and above.shape[-1] == x.shape[-1] else above
        logits: Tensor = self.head(x)
        return logits


def _check_sizes(inputs: int, classes: int, hidden: Sequence[int]) -> None:
    if inputs < 1 or classes < 2 or any(width < 1 for width in hidden):
        raise ModelError(
            "a model needs at least one input, two classes and one unit a layer; "
            f"it was given inputs={inputs}, classes={classes}, hidden={list(hidden)}"
        )


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """PyTorch's default initialisation, drawn from ``generator`` rather than from the global one."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # the constructor would draw from the global generator
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
