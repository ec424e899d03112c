"""Why people have no recourse, as far as it can be proven cheaply."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cfptq.actions import ActionSet
from cfptq.errors import DataError
from cfptq.network.predictor import Model, Predictor, as_predictor
from cfptq.network.state import preserved_state
from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.confidence import level_of
from cfptq.recourse.exact import missing_status

_EXAMPLE_ROWS = 256


def prove_missing(model: Model, batch: RecourseBatch, action_set: ActionSet, *, threads: int | None = 1) -> RecourseBatch:
    """The same batch, its ``status`` saying for everyone without recourse whether that is proven.

    Bounds of the network over everything that a person may do (a few milliseconds each) either prove that the target is out of reach, or
    leave the matter open: ``method="exact"`` then settles it. ``batch.reasons()`` gives the words.

    Args:
        model: what the recourse was solved on: a module of Linear, BatchNorm and ReLU, or such an ONNX file, quantized or not.
        action_set: that of the recourse.

    Raises:
        DataError: the action space is no :class:`~cfptq.actions.ActionSet`.
        ModelError: the model shows no weights, or holds an operation that is not read (named).
    """
    if not isinstance(action_set, ActionSet):
        raise DataError(f"a proof needs the cfptq.ActionSet that the recourse was found with, not {type(action_set).__name__}")
    status = torch.tensor([int(one) for one in batch.statuses()], dtype=torch.int8)
    bound = torch.zeros(len(batch)) if batch.bound is None else batch.bound.clone()
    lost = (~batch.found).nonzero()[:, 0]
    if len(lost):
        modules = (model,) if isinstance(model, nn.Module) else ()
        with preserved_state(*modules, threads=threads):
            example = batch.factual[:_EXAMPLE_ROWS]
            predictor = as_predictor(model, example=example) if not isinstance(model, Predictor) or modules else model
            level = level_of(batch.confidence)
            codes, bounds = missing_status(predictor, action_set, batch.factual[lost], batch.target[lost], level)
        unproven = status[lost] == int(Status.NOT_FOUND)
        status[lost] = torch.where(unproven, codes, status[lost])
        bound[lost] = torch.maximum(bound[lost], bounds)
    return replace(batch, status=status, bound=bound)
