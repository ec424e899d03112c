"""The one protocol through which everything else in cfptq talks about actions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ActionSpace(Protocol):
    """What may be changed about a row, and what a change costs: 𝒜(x) and c(δ) of the paper's eq. 3.

    ``x`` is a float32 tensor ``(N, d)`` of model inputs. An action ``δ`` is a float32 tensor ``(N, k)``; ``k`` equals ``d`` where
    actions live on the model's own columns (:class:`~cfptq.actions.ActionSet`) and is the size of the latent or semantic code where they
    do not. Nothing outside an action space adds δ to x.
    """

    @property
    def max_changes(self) -> int | None:
        """k, the number of features that one action may change; None where any number may."""
        ...

    @property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """For every feature the δ-columns that belong to it; sparsity counts these, and reverting a feature zeroes them."""
        ...

    def zero(self, x: Tensor) -> Tensor:
        """The action that changes nothing, ``(N, k)``."""
        ...

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Π of Algorithm 1: a feasible action near ``delta``, for every row. Idempotent."""
        ...

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """The counterfactual point x′, ``(N, d)``; differentiable with respect to ``delta``."""
        ...

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """The effort of each row's action, ``(N,)``; differentiable with respect to ``delta``."""
        ...

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        """Each row's action in words."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise ``DataError`` or ``ActionSetError``, naming rows and rules, where ``x`` cannot be acted upon."""
        ...
