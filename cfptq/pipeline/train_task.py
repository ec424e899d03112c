"""From a teacher and a training method to a result: the training-free start, supervision, training, the plan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cfptq.allocation import BitAllocation, Budget, allocate_exactly
from cfptq.errors import DataError
from cfptq.network import Network, as_predictor, decisions
from cfptq.pipeline.method import Method, as_method
from cfptq.pipeline.result import Result
from cfptq.pipeline.task import PROBE_ROWS, Teacher
from cfptq.quantize import PORTABLE_WIDTHS, WIDTHS, Activations, equalize_on_calibration
from cfptq.training import BitCost, BitPolicy, Files, History, Search, Start, Student, Supervision, TeacherSettings, Trainer, supervise
from cfptq.training.hessian_allocation import task_trace
from cfptq.training.presets import QatMethod
from cfptq.training.pretraining import pretrained

#: Rows that the training-free start is calibrated on.
CALIBRATION_ROWS = 4096


def learn(
    teacher: Teacher,
    method: QatMethod,
    budget: Budget | float,
    *,
    groups: Sequence[Any] | None = None,
    pinned: Mapping[str, int] | None = None,
    activations: Activations | None = None,
    calibration_rows: int = CALIBRATION_ROWS,
    portable: bool = True,
    files: Files | None = None,
    fit: Callable[[Trainer], History] | None = None,
    progress: bool = True,
) -> Result:
    """The teacher's model quantized by training within ``budget``; arguments as in :func:`cfptq.qat`."""
    limit = Budget.of(budget)
    numbers = None if groups is None else _numbered(groups, len(teacher.rows))

    def supervised(module: nn.Module, settings: TeacherSettings) -> Supervision:
        predictor = as_predictor(module, example=teacher.rows[:PROBE_ROWS], head=teacher.head, threshold=teacher.threshold)
        return supervise(
            teacher.rows, teacher.labels, predictor, teacher.space, target=teacher.target, settings=settings, groups=numbers,
            seed=teacher.seed, progress=progress,
        )  # fmt: skip

    if method.pretraining is not None:
        plain = _calibrating(teacher, calibration_rows).quantized(as_method("ptq"), 8.0, portable=False, progress=False)
        start = Start(teacher.network, plain.plan, {})
        network = pretrained(
            method.pretraining, teacher.network, start, lambda module: supervised(module, replace(method.teacher, share=1.0)),
            method.schedule.pretraining, teacher.head, teacher.threshold, teacher.seed,
        )  # fmt: skip
        predictor = as_predictor(
            network.graph, example=teacher.rows[:PROBE_ROWS], head=teacher.head, threshold=teacher.threshold, name="fp32"
        )
        teacher = replace(teacher, network=network, predictor=predictor)
    rule = _starting_method(method, activations)
    # A start whose integers are fitted to rows would be judged by rows it has seen, if those that choose the epoch were among them.
    fitted = method.schedule.split(len(teacher.rows), teacher.seed)[0] if rule.sequential else None
    calibrating = _calibrating(teacher, calibration_rows, fitted)
    # A policy chooses among the same widths in every layer.
    widths = (PORTABLE_WIDTHS if portable else WIDTHS) if method.bits == "learned" else None
    first = calibrating.quantized(rule, limit, pinned=pinned, portable=portable, widths=widths, progress=progress)
    start = _start(calibrating, rule, first, widths or (), portable)
    settings = method.teacher if method.objective.uses_points else replace(method.teacher, cached=False, solvers=method.teacher.solvers[:1])
    supervision = supervised(teacher.network.graph, settings)
    if not method.objective.uses_points:
        supervision = supervision.without_actions()
    candidates = [(eta, weight) for eta in method.etas or (method.objective.eta,) for weight in method.bit_weights or (method.bit_weight,)]
    if len(candidates) > 1 and files is not None and files.checkpoint is not None:
        raise DataError("a sweep over η and λ keeps no checkpoint; give one value of each, or leave checkpoint out")
    runs = [
        _run(teacher, method, start, first, supervision, limit, eta, weight, pinned, files, fit, progress) for eta, weight in candidates
    ]
    # The paper's rule: the best validation accuracy; every run meets the budget. Ties go to the earlier pair.
    return max(runs, key=lambda run: run[0])[1]


def _run(
    teacher: Teacher,
    method: QatMethod,
    start: Start,
    first: Result,
    supervision: Supervision,
    budget: Budget,
    eta: float,
    weight: float,
    pinned: Mapping[str, int] | None,
    files: Files | None,
    fit: Callable[[Trainer], History] | None,
    progress: bool,
) -> tuple[float, Result]:
    """Validation accuracy and result of one training."""
    student = Student(start, learned_clips=method.learned_clips, per_channel=method.per_channel)
    student.prune(method.sparsity)
    search = None
    if method.bits == "learned":
        policy = BitPolicy(len(start.network.layers), student.widths, list(start.plan.bits.values()), method.lean)
        formats = {form.tensor: form.bits for form in start.plan.activations}
        widths = [formats[layer.input] for layer in start.network.layers]
        cost = BitCost.of(start.network, budget, widths, method.resource, method.hinge)
        search = Search(policy, cost, weight, budget, start.network, dict(pinned or {}))
    trainer = Trainer(
        student, supervision, method.objective.with_eta(eta), method.schedule, student.bits, teacher.head, teacher.threshold,
        search=search, seed=teacher.seed,
    )  # fmt: skip
    history = trainer.fit(files, progress) if fit is None else fit(trainer)
    plan = student.plan(method.name)
    names, sizes = [layer.name for layer in plan.layers], [layer.parameters for layer in plan.layers]
    allocation = BitAllocation(tuple(names), tuple(sizes), history.bits)
    held = trainer.held_out
    with torch.no_grad():
        accuracy = float((decisions(trainer.logits(held.rows)) == held.labels).double().mean())
    result = replace(
        first,
        network=teacher.network,
        plan=plan,
        allocation=allocation,
        method=None,
        budget=budget,
        pinned=dict(pinned or {}),
        training=history,
    )
    return accuracy, result


def _starting_method(method: QatMethod, activations: Activations | None) -> Method:
    """The training-free method that training starts from, with the activation formats that all training methods share."""
    rule = replace(as_method(method.start), activations=activations or Activations(input_bits=None, clip=False))
    return replace(rule, score=task_trace, allocator=allocate_exactly) if method.bits == "trace" else rule


def _start(teacher: Teacher, rule: Method, first: Result, widths: Sequence[int], portable: bool) -> Start:
    calibration = first.calibration
    assert calibration is not None
    bits = first.plan.bits
    source: Network = equalize_on_calibration(teacher.network, calibration, bits, rule.activations) if rule.equalize else teacher.network
    names, sizes = tuple(bits), tuple(layer.parameters for layer in source.layers)
    # Every width's first steps are for the weights that training starts from, so these are not equalized again.
    uniform = {
        width: replace(rule, equalize=False).plan(
            source, calibration, BitAllocation(names, sizes, (width,) * len(names)), head=teacher.head, threshold=teacher.threshold,
            seed=teacher.seed, portable=portable, progress=False,
        )
        for width in widths
    }  # fmt: skip
    return Start(source, first.plan, uniform)


def _calibrating(teacher: Teacher, most: int, rows: torch.Tensor | None = None) -> Teacher:
    """The same teacher on at most ``most`` of its rows, or of those at positions ``rows``, drawn evenly."""
    rows = torch.arange(len(teacher.rows)) if rows is None else rows
    if len(rows) > most:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(teacher.seed))
        rows = rows[order[:most].sort().values]
    return teacher if len(rows) == len(teacher.rows) else teacher.among(rows)


def _numbered(groups: Sequence[Any], rows: int) -> torch.Tensor:
    if np.ndim(groups) == 0:
        raise DataError(f"training takes groups as one value per training row, in the loader's order, not as a {type(groups).__name__}")
    if len(groups) != rows:
        raise DataError(f"groups hold {len(groups)} values for {rows} training rows; give one a row, in the loader's order")
    names = {name: number for number, name in enumerate(sorted({str(value) for value in groups}))}
    return torch.tensor([names[str(value)] for value in groups])


#: Rows that training draws from a loader unless told otherwise: all of them.
ALL_ROWS = sys.maxsize
