"""The protocol through which the rest of cfptq uses actions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ActionSpace(Protocol):
    """Feasible changes of a row and their cost, 𝒜(x) and c(δ) of the paper's eq. 3.

    ``x`` is a float32 tensor ``(N, ...)`` of model inputs, such as columns ``(N, d)`` or images ``(N, 1, 28, 28)``. An action ``δ`` is a
    float32 tensor ``(N, k)``. For an ``cfptq.actions.ActionSet``, rows are ``(N, d)`` and ``k`` equals ``d``. For a
    ``cfptq.actions.LatentActionSet``, ``k`` is the size of the code, and for a ``cfptq.actions.SemanticActionSet``, the number of
    attributes. Code outside an action space never adds δ to x.

    A space may have an attribute ``couples_columns``. Where it is true, a change of one column limits the others, and minimal-cost
    recourse is searched along gradients of all columns. Elsewhere it is searched by columns.
    """

    @property
    def max_changes(self) -> int | None:
        """Largest number of features that one action may change, or ``None`` for no limit."""
        ...

    @property
    def feature_columns(self) -> tuple[tuple[int, ...], ...]:
        """Columns of δ that belong to each feature. Sparsity counts features, and reverting one zeroes its columns."""
        ...

    def zero(self, x: Tensor) -> Tensor:
        """Return the action that changes nothing, ``(N, k)``."""
        ...

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Project each action onto the feasible set (Π of Algorithm 1). Projecting twice equals projecting once."""
        ...

    def apply(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the counterfactual point x′, ``(N, ...)``, differentiable with respect to ``delta``."""
        ...

    def cost(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the cost of each row's action, ``(N,)``, differentiable with respect to ``delta``."""
        ...

    def describe(self, x: Tensor, delta: Tensor) -> list[str]:
        """Describe each row's action in words."""
        ...

    def check(self, x: Tensor) -> None:
        """Raise ``DataError`` or ``ActionSetError`` if a row of ``x`` is invalid. The message names rows and rules."""
        ...
