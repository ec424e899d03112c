"""The whole audit of two models."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfptq import __version__
from cfptq.actions import ActionSet, Remark
from cfptq.actions.action_space import ActionSpace
from cfptq.actions.columns import as_matrix
from cfptq.auditing.affected import Consequences, cost_by_person, describe_consequences
from cfptq.auditing.evaluation import Evaluation, evaluate_in_detail
from cfptq.auditing.inputs import parse_labels, split_by_group
from cfptq.auditing.issued import IssuedAdvice, check_issued
from cfptq.auditing.letters import Letters, read_letters
from cfptq.auditing.protocol import PLAIN, Protocol, ReferenceRecourse, reference_recourse, solve_rows
from cfptq.auditing.raw_files import read_raw_files
from cfptq.auditing.report import AuditedModel, AuditReport
from cfptq.auditing.robustness import examine_robustness
from cfptq.errors import ActionSetError, DataError
from cfptq.io.files import compute_file_sha256
from cfptq.network.head import Head, decide, target_margin
from cfptq.network.onnx.session import describe_runtime
from cfptq.network.onnx.sizes import list_external_files
from cfptq.network.predictor import Model, Predictor, as_predictor, choose_outputs, describe_reading, find_recorded_threshold
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
    id: str | None = None,
    strict: bool = False,
    head: Head | str | None = None,
    threshold: float | None = None,
    output: str | None = None,
    protocol: Protocol | None = None,
    prove_within: float | None = None,
    seed: int = 0,
    threads: int | None = 1,
    progress: bool = True,
) -> AuditReport:
    """Measure what quantization did to recourse.

    Recourse of a model without gradient is searched without one, and the report says so.

    Args:
        f: Full-precision model, as a predictor, a module, an ONNX file or a function. An ONNX file is run by ONNX Runtime.
        f_q: Quantized model, in any of the same forms.
        rows: Everyone, accepted and rejected. Columns (N, ...), or a DataFrame of raw features that ``space`` encodes.
        space: Action space, which says what people can change.
        target: Class that recourse leads to, one class a row (N,), or a rule. The action set's ``favourable`` class by default.
        labels: True classes (N,), NaN or -1 where unknown. None leaves accuracy undefined.
        groups: Labels (N,) by the name of the attribute.
        issued: Advice already given, as points in columns or a DataFrame of raw features, whose empty cells mean no change. It is
            checked first and reported apart, see ``cfptq.auditing.letters``.
        id: Column, or name of the index, by which ``issued`` is joined to ``rows``. By default the index, where there is one.
        strict: Refuse every table that the report would have a remark on.
        head: Form of the output of models that are not predictors yet. Inferred by default.
        threshold: Probability of class 1 above which class 1 is decided, for models that are not predictors yet. By default what
            ONNX files record, or else 0.5.
        output: Name of the output with the class scores, for ONNX files with several. A file without it is read as it is.
        protocol: Settings of the evaluation. The standard protocol by default.
        prove_within: Radius of deviations from the advice, in columns, within which recourse is estimated and proven to hold. None
            leaves estimates and proofs out.
        seed: Seed of the shuffle, the solvers and the intervals.
        threads: Torch threads while solving. None leaves the number as it is.
        progress: Show progress where solving takes long.

    Raises:
        ActionSetError: The target class is unknown, or rows break the action set's rules.
        DataError: Rows, labels, groups or advice do not fit.
        FileError: A model's file is missing or cannot be read.
        ModelError: A model cannot be run, or the two models have different classes.
    """
    protocol = protocol or Protocol()
    if prove_within is not None and not (math.isfinite(prove_within) and prove_within >= 0):
        raise DataError(f"prove_within must be a finite radius of at least 0, got {prove_within}.")
    columns = _encode(rows, space)
    if isinstance(rows, pd.DataFrame) and isinstance(space, ActionSet):
        space = space.for_people(rows)
    models, own_encodings = read_raw_files((f, f_q), rows, columns)
    remarks = (*_examine(rows, columns, space), *own_encodings)
    if strict and remarks:
        raise DataError(f"People must give no cause for a remark, because strict is set. {' '.join(map(str, remarks))}")
    wanted = _choose_target(target, space)
    threshold = find_recorded_threshold(f, f_q) if threshold is None else threshold
    before, after = (
        as_predictor(model, example=columns, head=head, threshold=threshold, output=name)
        for model, name in zip(models, choose_outputs(output, f, f_q), strict=True)
    )
    if labels is not None:
        labels = parse_labels(labels, columns, before.n_classes)
    members = split_by_group(groups, columns)  # Groups that do not fit are refused before the long part.
    advice, letters = None, None
    if issued is not None:
        logits = before.logits(columns)
        classes = resolve_target(wanted, columns, logits)
        accepted = decide(logits) == classes
        letters = read_letters(issued, rows, columns, space, id)
        advice = check_issued(before, after, letters, columns, classes, accepted, space, protocol, seed, members)
        if strict:
            _refuse_letters(advice)
    teacher = reference_recourse(before, columns, space, wanted, protocol, seed, threads=threads, progress=progress)
    evaluation = evaluate_in_detail(before, after, teacher, columns, labels, space, groups, threads=threads, progress=progress)
    frame = rows if isinstance(rows, pd.DataFrame) else None
    if advice is None or letters is None:
        consequences = _follow_recourse(teacher, evaluation, columns, space, frame)
    else:
        consequences = _follow_letters(before, after, letters, advice, columns, classes, space, frame, protocol, seed, threads)
    robustness = None
    if prove_within is not None:
        if advice is None or letters is None:
            about, points, classes = f"{teacher.projected.method} actions", teacher.projected.points, teacher.projected.target
            points, classes = points[teacher.projected.found], classes[teacher.projected.found]
        else:
            about, (points, classes) = "letters", _list_granted_letters(letters, advice, classes)
        robustness = examine_robustness(
            before, after, points, classes, example=columns, about=about, radius=prove_within, seed=seed, progress=progress
        )
    return AuditReport(
        full_precision=AuditedModel(before.name, _hash_file(f), describe_reading(before)),
        quantized=AuditedModel(after.name, _hash_file(f_q), describe_reading(after)),
        fp32=teacher.to_dict(labels),
        metrics=evaluation.metrics,
        issued=advice,
        protocol=protocol,
        seed=seed,
        runtime={**describe_runtime(), "cfptq": __version__, "torch": torch.__version__, "python": platform.python_version()},
        remarks=remarks,
        robustness=robustness,
        consequences=consequences,
        digests={
            **_hash_inputs(columns, letters, space),
            **_hash_weights("First model", f),
            **_hash_weights("Second model", f_q),
        },
    )


def _follow_recourse(
    teacher: ReferenceRecourse, evaluation: Evaluation, columns: Tensor, space: ActionSpace, frame: pd.DataFrame | None
) -> Consequences:
    """Describe what the people with projected-gradient recourse were told, and who is affected."""
    projected = teacher.projected
    found = projected.found
    broken = torch.isin(teacher.people, torch.tensor(evaluation.metrics.broken, dtype=torch.int64))
    costs = cost_by_person(evaluation.own, teacher.people)
    margins = projected.margin[found], evaluation.margins[found]
    return describe_consequences(columns, projected.points[found], teacher.people[found], broken[found], space, frame, None, costs, margins)


def _follow_letters(
    before: Predictor, after: Predictor, letters: Letters, advice: IssuedAdvice, columns: Tensor, classes: Tensor, space: ActionSpace,
    frame: pd.DataFrame | None, protocol: Protocol, seed: int, threads: int | None,
) -> Consequences:  # fmt: skip
    """Describe what people were told by their first letter that held, and who is affected."""
    place_of = {int(number): place for place, number in enumerate(letters.number)}
    first: dict[int, int] = {}
    for outcome in sorted(advice.letters, key=lambda letter: not letter.held_before):
        first.setdefault(outcome.person, place_of[outcome.letter])
    persons, places = torch.tensor(list(first)), torch.tensor(list(first.values()))
    broken = torch.tensor(advice.broken, dtype=torch.int64)
    costs = {}
    if len(broken) and protocol.max_people != 0:
        plain = replace(protocol.minimal_cost, confidence=PLAIN)
        method = plain if after.is_differentiable else plain.without_gradient()
        own = solve_rows(after, columns[broken], space, classes[broken], method, seed=seed, threads=threads, progress=False)
        costs = cost_by_person(own, broken)
    points = letters.points[places]
    margins = target_margin(before.logits(points), classes[persons]), target_margin(after.logits(points), classes[persons])
    is_broken = torch.isin(persons, broken)
    return describe_consequences(columns, points, persons, is_broken, space, frame, letters.keys, costs, margins)


def _list_granted_letters(letters: Letters, advice: IssuedAdvice, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points and targets of the letters that the full-precision model grants."""
    place_of = {int(number): place for place, number in enumerate(letters.number)}
    granted = [letter for letter in advice.letters if letter.held_before]
    places = torch.tensor([place_of[letter.letter] for letter in granted], dtype=torch.int64)
    return letters.points[places], classes[torch.tensor([letter.person for letter in granted], dtype=torch.int64)]


def _hash_inputs(columns: Tensor, letters: Letters | None, space: ActionSpace) -> dict[str, str]:
    """Return the digests of what was audited, by name."""
    digests = {"people": _hash_tensor(columns)}
    if letters is not None:
        digests["letters"] = _hash_tensor(letters.points)
    if isinstance(space, ActionSet):
        digests["action set"] = _hash_text(repr(space))
    return digests


def _hash_weights(label: str, model: Model) -> dict[str, str]:
    """Return the digests of the files of weights beside an ONNX file, none for other models."""
    if not isinstance(model, str | os.PathLike):
        return {}
    return {f"{label}, weights in {name}": compute_file_sha256(path) for name, path in list_external_files(Path(model)).items()}


def _hash_tensor(columns: Tensor) -> str:
    return hashlib.sha256(columns.contiguous().numpy().tobytes()).hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _encode(rows: Any, space: ActionSpace) -> Tensor:
    if isinstance(rows, pd.DataFrame):
        encode = getattr(space, "encode", None)
        if encode is None:
            raise ActionSetError(
                "rows must be columns, because this action space cannot encode a DataFrame. Give the rows in the model's columns."
            )
        encoded: Tensor = encode(rows)
        return encoded
    columns = as_matrix(rows, "people")
    if not columns.is_floating_point() or columns.dim() < 2 or len(columns) == 0:
        raise DataError(f"rows must be floats of shape (N, columns) with N > 0, got {columns.dtype} of shape {tuple(columns.shape)}.")
    return columns.detach().to(device="cpu", dtype=torch.float32)


def _examine(rows: Any, columns: Tensor, space: ActionSpace) -> tuple[Remark, ...]:
    """Return remarks on how people are read."""
    if not isinstance(space, ActionSet):
        return ()
    return space.examine(rows if isinstance(rows, pd.DataFrame) else columns)


def _refuse_letters(advice: IssuedAdvice) -> None:
    """Raise if the table of letters gives cause for a remark. Which letters hold is no remark."""
    if advice.forbidden or advice.unmatched or advice.without_key or advice.remarks or advice.notes:
        raise DataError(f"Letters must give no cause for a remark, because strict is set. {' '.join(advice.findings())}")


def _choose_target(target: Target | None, space: ActionSpace) -> Target:
    if target is not None:
        return target
    favourable = getattr(space, "favourable", None)
    if favourable is None:
        raise ActionSetError("The target class is unknown. Give target=, or favourable= in the action set.")
    wanted: int = favourable
    return wanted


def _hash_file(model: Model) -> str | None:
    if not isinstance(model, str | os.PathLike):
        return None
    return compute_file_sha256(model)
