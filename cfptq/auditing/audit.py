"""Two models, people and an action set: the whole audit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.evaluation import evaluate
from cfptq.auditing.inputs import known_labels, rows_by_group
from cfptq.auditing.issued import check_issued
from cfptq.auditing.protocol import Protocol, reference_recourse
from cfptq.auditing.report import AuditedModel, AuditReport
from cfptq.errors import ActionSetError, DataError, FileError
from cfptq.network.head import Head, decide
from cfptq.network.onnx.session import describe_runtime
from cfptq.network.predictor import Model, as_predictor
from cfptq.recourse import Target, resolve_target


def run_audit(
    f: Model,
    f_q: Model,
    rows: Tensor | pd.DataFrame | np.ndarray[Any, Any],
    space: ActionSpace,
    *,
    target: Target | None = None,
    labels: Any = None,
    groups: Mapping[str, Any] | None = None,
    issued: Any = None,
    head: Head | str | None = None,
    threshold: float | None = None,
    protocol: Protocol | None = None,
    seed: int = 0,
    threads: int | None = 1,
    progress: bool = True,
) -> AuditReport:
    """Measure what quantization did to recourse.

    Args:
        f, f_q: full-precision and quantized model: predictors, modules, ONNX files or functions. A number about an ONNX file
            comes from running that file.
        rows: everyone, accepted and rejected: columns (N, ...), or a DataFrame of raw features that ``space`` encodes.
        space: what people can do.
        target: the class people want, one class per row, or a rule; by default the action set's ``favourable`` class.
        labels: (N,) true classes, NaN or -1 where unknown.
        groups: attribute → (N,) labels.
        issued: advice already given, points in columns or a DataFrame of raw features; checked first and reported apart (see
            :func:`~cfptq.auditing.check_issued`).
        head, threshold: what both models' output is, and the probability of class 1 above which it is decided; for models that
            are not predictors yet.
        protocol, seed, threads, progress: see :func:`~cfptq.auditing.reference_recourse`.

    Raises:
        ActionSetError, DataError, FileError, ModelError: inputs that cannot be used; nothing has been written then.
    """
    protocol = protocol or Protocol()
    columns = _columns(rows, space)
    wanted = _target(target, space)
    before = as_predictor(f, example=columns, head=head, threshold=threshold)
    after = as_predictor(f_q, example=columns, head=head, threshold=threshold)
    if labels is not None:
        labels = known_labels(labels, columns, before.n_classes)
    rows_by_group(groups, columns)  # refused before the long part, not after it
    advice = None
    if issued is not None:
        logits = before.logits(columns)
        classes = resolve_target(wanted, columns, logits)
        accepted = decide(logits) == classes
        advice = check_issued(before, after, issued, columns, classes, accepted, space, protocol, seed)
        if not before.differentiable:
            protocol = replace(protocol, max_people=0)
    teacher = reference_recourse(before, columns, space, wanted, protocol, seed, threads=threads, progress=progress)
    metrics = evaluate(before, after, teacher, columns, labels, space, groups, threads=threads, progress=progress)
    return AuditReport(
        full_precision=AuditedModel(before.name, _digest(f)),
        quantized=AuditedModel(after.name, _digest(f_q)),
        fp32=teacher.to_dict(labels),
        metrics=metrics,
        issued=advice,
        protocol=protocol,
        seed=seed,
        runtime=describe_runtime(),
    )


def _columns(rows: Any, space: ActionSpace) -> Tensor:
    if isinstance(rows, pd.DataFrame):
        encode = getattr(space, "encode", None)
        if encode is None:
            raise ActionSetError("this action space cannot encode a DataFrame; give the rows in the model's columns")
        encoded: Tensor = encode(rows)
        return encoded
    columns = torch.as_tensor(rows)
    if not columns.is_floating_point() or columns.dim() < 2 or len(columns) == 0:
        raise DataError(f"rows must be floats of shape (N, columns) with N > 0, but are {columns.dtype} of shape {tuple(columns.shape)}")
    return columns.detach().to(device="cpu", dtype=torch.float32)


def _target(target: Target | None, space: ActionSpace) -> Target:
    if target is not None:
        return target
    favourable = getattr(space, "favourable", None)
    if favourable is None:
        raise ActionSetError("the target class is unknown: give target=, or favourable= in the action set")
    wanted: int = favourable
    return wanted


def _digest(model: Model) -> str | None:
    if not isinstance(model, str | os.PathLike):
        return None
    try:
        with open(model, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {os.fspath(model)}: {error.strerror}") from error
