"""Heads of classifiers and class logits.

Class logits are ``(N, C)`` with ``C >= 2``. The decision threshold is subtracted already, so that the decision is the argmax for
every head and threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from cfptq.errors import ModelError, name_rows

#: Deviation of a row's sum from 1 above which non-negative outputs are logits.
SUM_TOLERANCE = 1e-3


class Head(StrEnum):
    """The four kinds of raw output that a classifier may have."""

    LOGITS = "logits"
    """One unnormalized score or log-probability per class, ``(N, C)``."""
    LOGIT = "logit"
    """Log-odds of class 1, ``(N,)`` or ``(N, 1)``."""
    PROBABILITY = "probability"
    """Probability of class 1, ``(N,)`` or ``(N, 1)``."""
    PROBABILITIES = "probabilities"
    """One probability per class, ``(N, C)``. Each row sums to 1."""


#: Phrase for each head in reports.
_PHRASES = {
    Head.LOGITS: "one logit per class",
    Head.LOGIT: "one logit of class 1",
    Head.PROBABILITY: "one probability of class 1",
    Head.PROBABILITIES: "one probability per class",
}


def as_head(head: Head | str | None) -> Head | None:
    """Convert a name to a head.

    Args:
        head: a head, its name, or ``None`` for a head that will be inferred.

    Raises:
        ModelError: no head has that name.
    """
    if head is None:
        return None
    try:
        return Head(head)
    except ValueError as error:
        raise ModelError(f"head must be one of {', '.join(h.value for h in Head)}, got {head!r}.") from error


def infer_head(output: Tensor) -> Head:
    """Infer the head from the shape and the values of a raw output.

    One column holds probabilities if all values lie in [0, 1], and logits otherwise. Several columns hold probabilities if all values
    are at least 0 and each row sums to 1 (within ``SUM_TOLERANCE``), and logits otherwise. A few small logits can look like
    probabilities. Give many rows or name the head.

    Args:
        output: ``(N,)``, ``(N, 1)`` or ``(N, C)``, N ≥ 1.

    Raises:
        ModelError: the output has another shape, or no rows.
    """
    if output.dim() not in (1, 2) or output.numel() == 0:
        raise ModelError(
            f"The model's output must have shape (N,), (N, 1) or (N, classes), got {tuple(output.shape)}. Wrap the model accordingly."
        )
    values = output.detach().double()
    if values.dim() == 1 or values.shape[1] == 1:
        return Head.PROBABILITY if bool(((values >= 0) & (values <= 1)).all()) else Head.LOGIT
    # Half-precision softmax rounds each term.
    normalized = bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() <= SUM_TOLERANCE).all())
    return Head.PROBABILITIES if normalized else Head.LOGITS


def compute_threshold_logit(threshold: float | None, n_classes: int = 2) -> float:
    """Compute the log-odds of a decision threshold.

    Args:
        threshold: probability of class 1 above which class 1 is decided. ``None`` means 0.5.
        n_classes: number of classes. A threshold needs two.

    Raises:
        ModelError: the threshold is outside (0, 1), or there are more than two classes.
    """
    if threshold is None:
        return 0.0
    if n_classes != 2:
        raise ModelError(f"A decision threshold needs two classes, got {n_classes}. Leave threshold out.")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ModelError(f"threshold must lie between 0 and 1, got {threshold!r}.")
    return math.log(threshold) - math.log1p(-threshold)


def class_logits(output: Tensor, head: Head, threshold: float | None = None) -> Tensor:
    """Convert a raw output to class logits ``(N, C)``, differentiably.

    A threshold t subtracts logit(t) from the logit of class 1, so that the argmax is 1 exactly where the probability of class 1 is
    above t. A single logit z becomes the pair (0, z).

    Args:
        output: ``(N,)`` or ``(N, 1)`` for the heads of one column, ``(N, C)`` for the others.
        head: the kind of output.
        threshold: probability of class 1 above which class 1 is decided; two classes only. ``None`` means 0.5.

    Raises:
        ModelError: the output's shape does not fit the head, or the threshold is outside (0, 1) or given for more than two classes.
    """
    tiny = torch.finfo(output.dtype).tiny
    if head in (Head.LOGIT, Head.PROBABILITY):
        column = output.squeeze(1) if output.dim() == 2 and output.shape[1] == 1 else output
        if column.dim() != 1:
            raise ModelError(f"Head {head.value!r} needs an output of shape (N,) or (N, 1), got {tuple(output.shape)}. Name another head.")
        if head is Head.PROBABILITY:
            rounding = torch.finfo(output.dtype).eps / 2
            column = column.clamp(tiny, 1 - rounding)
            column = column.log() - torch.log1p(-column)
        shift = compute_threshold_logit(threshold)
        return torch.stack((torch.zeros_like(column), column - shift if shift else column), dim=1)
    if output.dim() != 2 or output.shape[1] < 2:
        raise ModelError(f"Head {head.value!r} needs an output of shape (N, classes), got {tuple(output.shape)}. Name another head.")
    logits = output.clamp_min(tiny).log() if head is Head.PROBABILITIES else output
    shift = compute_threshold_logit(threshold, output.shape[1])
    if not shift:
        return logits
    return torch.stack((logits[:, 0], logits[:, 1] - shift), dim=1)


def decide(logits: Tensor) -> Tensor:
    """Return the class with the largest logit of each row, ``(N,)`` int64, and the first one in a tie."""
    return logits.argmax(dim=1)


@dataclass(frozen=True)
class DecisionRule:
    """A head and a decision threshold, which together turn raw outputs into decisions.

    Attributes:
        head: kind of raw output.
        threshold: probability of class 1 above which class 1 is decided; two classes only. ``None`` means 0.5.

    Raises:
        ModelError: the threshold is outside (0, 1).
    """

    head: Head
    threshold: float | None = None

    def __post_init__(self) -> None:
        compute_threshold_logit(self.threshold)

    def __str__(self) -> str:
        rule = "the largest decides" if self.threshold is None else f"class 1 is decided above {self.threshold:g}"
        if self.threshold is None and self.head in (Head.LOGIT, Head.PROBABILITY):
            rule = "class 1 is decided above 0.5"
        return f'{_PHRASES[self.head]} (head="{self.head.value}"), {rule}'

    def class_logits(self, output: Tensor) -> Tensor:
        """Convert a raw output to class logits ``(N, C)``, differentiably. See ``class_logits``."""
        return class_logits(output, self.head, self.threshold)

    def decide(self, output: Tensor) -> Tensor:
        """Return the class that is decided for each row of a raw output, ``(N,)`` int64."""
        return decide(self.class_logits(output))


def target_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the margin ``m(u; y) = z_y - max over y' != y of z_y'`` of each row.

    It is above 0 exactly where y is decided without a tie.

    Args:
        logits: ``(N, C)`` class logits.
        target: ``(N,)`` int64, classes in 0..C-1.

    Returns:
        Margins ``(N,)``.

    Raises:
        ModelError: the shapes do not fit, or a target is not a class.
    """
    if target.shape != logits.shape[:1]:
        raise ModelError(
            f"target must have shape ({logits.shape[0]},) for logits of shape {tuple(logits.shape)}, got {tuple(target.shape)}."
        )
    outside = (target < 0) | (target >= logits.shape[1])
    if bool(outside.any()):
        rows = name_rows(outside.nonzero().flatten().tolist())
        raise ModelError(f"target must hold classes 0 to {logits.shape[1] - 1}, but does not in rows {rows}.")
    chosen = target.unsqueeze(1)
    others = logits.scatter(1, chosen, -math.inf).amax(dim=1)
    return logits.gather(1, chosen).squeeze(1) - others
