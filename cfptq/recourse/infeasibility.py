"""Proofs by cheap bounds that rows have no recourse."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cfptq.actions import ActionSet
from cfptq.errors import DataError
from cfptq.network.predictor import Model, Predictor, as_predictor
from cfptq.network.state import preserved_state
from cfptq.recourse.batch import RecourseBatch, Status
from cfptq.recourse.confidence import margin_at_confidence
from cfptq.recourse.exact import compute_infeasibility_status
from cfptq.recourse.solver import EXAMPLE_ROWS


def prove_infeasibility(model: Model, batch: RecourseBatch, action_set: ActionSet, *, threads: int | None = 1) -> RecourseBatch:
    """Return the batch with a ``status`` that tells which rows without recourse are proven to have none.

    Bounds of the network over all admissible actions take a few milliseconds for each row. They either prove that the target is out of
    reach or leave the row ``NOT_FOUND``. ``method="exact"`` decides such rows. ``batch.reasons`` holds the result in words.

    Args:
        model: Model that the recourse was solved on. It must be a module of Linear, BatchNorm and ReLU layers or such an ONNX file,
            quantized or not.
        batch: Recourse for N rows.
        action_set: Action set that the recourse was found with.
        threads: PyTorch threads, default 1. ``None`` keeps the current number.

    Raises:
        DataError: ``action_set`` is not an ``cfptq.actions.ActionSet``.
        ModelError: The model has no readable weights, or holds an unsupported operation.
    """
    if not isinstance(action_set, ActionSet):
        raise DataError(f"action_set must be a cfptq.ActionSet, got {type(action_set).__name__}. Give the one the recourse was found with.")
    status = torch.tensor([int(one) for one in batch.statuses], dtype=torch.int8)
    bound = torch.zeros(len(batch)) if batch.bound is None else batch.bound.clone()
    lost = (~batch.found).nonzero()[:, 0]
    if len(lost):
        modules = (model,) if isinstance(model, nn.Module) else ()
        with preserved_state(*modules, threads=threads):
            example = batch.factual[:EXAMPLE_ROWS]
            predictor = as_predictor(model, example=example) if not isinstance(model, Predictor) or modules else model
            required = margin_at_confidence(batch.confidence)
            codes, bounds = compute_infeasibility_status(predictor, action_set, batch.factual[lost], batch.target[lost], required)
        unproven = status[lost] == int(Status.NOT_FOUND)
        status[lost] = torch.where(unproven, codes, status[lost])
        bound[lost] = torch.maximum(bound[lost], bounds)
    return replace(batch, status=status, bound=bound)
