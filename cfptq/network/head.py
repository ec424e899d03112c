"""What a classifier's raw output means, and the class logits that everything else works with.

Class logits are ``(N, C)`` with ``C >= 2`` and the decision threshold already taken off, so that the decision is the
argmax whatever the model's head and threshold.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from cfptq.errors import ModelError, name_rows

#: Largest deviation of a row's sum from 1 at which a row of non-negative numbers still counts as probabilities.
SUM_TOLERANCE = 1e-3


class Head(StrEnum):
    """The four raw outputs a classifier may have."""

    LOGITS = "logits"
    """``(N, C)``: one unnormalized score per class (log-probabilities too)."""
    LOGIT = "logit"
    """``(N,)`` or ``(N, 1)``: the log-odds of class 1."""
    PROBABILITY = "probability"
    """``(N,)`` or ``(N, 1)``: the probability of class 1, in [0, 1]."""
    PROBABILITIES = "probabilities"
    """``(N, C)``: one probability per class, rows sum to 1."""


def as_head(head: Head | str | None) -> Head | None:
    """The head of that name; ``None`` stays ``None``, for a head that is to be inferred.

    Raises:
        ModelError: no head has that name.
    """
    if head is None:
        return None
    try:
        return Head(head)
    except ValueError as error:
        raise ModelError(f"there is no head {head!r}; the heads are {', '.join(h.value for h in Head)}") from error


def infer_head(output: Tensor) -> Head:
    """The head that a raw output shows, by its shape and then by its values.

    One column: a probability where every value lies in [0, 1], a logit otherwise. Several columns: probabilities where
    every value is at least 0 and every row sums to 1 (within 1e-3), logits otherwise. A few small logits can look like
    probabilities; give many rows, or name the head.

    Args:
        output: ``(N,)``, ``(N, 1)`` or ``(N, C)``, N at least 1.

    Raises:
        ModelError: another shape, or no rows.
    """
    if output.dim() not in (1, 2) or output.numel() == 0:
        raise ModelError(
            f"the model's output has shape {tuple(output.shape)}; a classifier gives (N,), (N, 1) or (N, classes): wrap it so that it does"
        )
    values = output.detach().double()
    if values.dim() == 1 or values.shape[1] == 1:
        return Head.PROBABILITY if bool(((values >= 0) & (values <= 1)).all()) else Head.LOGIT
    # Half-precision softmax rounds each of C terms, hence a tolerance and not equality.
    normalized = bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() <= SUM_TOLERANCE).all())
    return Head.PROBABILITIES if normalized else Head.LOGITS


def check_threshold(threshold: float | None, n_classes: int = 2) -> float:
    """The log-odds of a decision threshold: 0 for ``None``.

    Raises:
        ModelError: a threshold outside (0, 1), or any threshold with more than two classes.
    """
    if threshold is None:
        return 0.0
    if n_classes != 2:
        raise ModelError(f"a decision threshold needs two classes, this model has {n_classes}: leave threshold out")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ModelError(f"the decision threshold is {threshold!r}; give a probability strictly between 0 and 1")
    return math.log(threshold) - math.log1p(-threshold)


def class_logits(output: Tensor, head: Head, threshold: float | None = None) -> Tensor:
    """Class logits ``(N, C)`` of a raw output; differentiable.

    A threshold t (two classes only) subtracts logit(t) from class 1, so that argmax says 1 exactly where the probability of
    class 1 is above t. A single logit z becomes the pair (0, z).

    Args:
        output: raw output; ``(N,)`` or ``(N, 1)`` for the heads of one column, ``(N, C)`` for the others.
        head: what the output is.
        threshold: probability of class 1 above which class 1 is decided; ``None`` means 0.5.

    Raises:
        ModelError: the output's shape does not fit the head; a threshold outside (0, 1) or with more than two classes.
    """
    tiny = torch.finfo(output.dtype).tiny
    if head in (Head.LOGIT, Head.PROBABILITY):
        column = output.squeeze(1) if output.dim() == 2 and output.shape[1] == 1 else output
        if column.dim() != 1:
            raise ModelError(f"head {head.value!r} needs an output of (N,) or (N, 1), this one is {tuple(output.shape)}: name another head")
        if head is Head.PROBABILITY:
            rounding = torch.finfo(output.dtype).eps / 2
            column = column.clamp(tiny, 1 - rounding)
            column = column.log() - torch.log1p(-column)
        shift = check_threshold(threshold)
        return torch.stack((torch.zeros_like(column), column - shift if shift else column), dim=1)
    if output.dim() != 2 or output.shape[1] < 2:
        raise ModelError(f"head {head.value!r} needs an output of (N, classes), this one is {tuple(output.shape)}: name another head")
    logits = output.clamp_min(tiny).log() if head is Head.PROBABILITIES else output
    shift = check_threshold(threshold, output.shape[1])
    if not shift:
        return logits
    return torch.stack((logits[:, 0], logits[:, 1] - shift), dim=1)


def decisions(logits: Tensor) -> Tensor:
    """Decided class of each row, ``(N,)`` int64: the largest class logit, the earlier class in a tie."""
    return logits.argmax(dim=1)


def target_margin(logits: Tensor, target: Tensor) -> Tensor:
    """``m(u; y) = z_y - max over y' != y of z_y'`` for each row, ``(N,)``; above 0 exactly where y is decided for certain.

    Args:
        logits: ``(N, C)`` class logits.
        target: ``(N,)`` int64, classes in 0..C-1.

    Raises:
        ModelError: shapes that do not fit, or a target that is no class.
    """
    if target.shape != logits.shape[:1]:
        raise ModelError(f"{tuple(target.shape)} targets for {tuple(logits.shape)} logits; give one target class per row")
    outside = (target < 0) | (target >= logits.shape[1])
    if bool(outside.any()):
        rows = name_rows(outside.nonzero().flatten().tolist())
        raise ModelError(f"targets in rows {rows} are not classes 0..{logits.shape[1] - 1}")
    chosen = target.unsqueeze(1)
    others = logits.scatter(1, chosen, -math.inf).amax(dim=1)
    return logits.gather(1, chosen).squeeze(1) - others
