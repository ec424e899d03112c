"""Quantize a task by training, from the training-free start to the plan."""

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
from cfptq.network import as_predictor, decide
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import as_method
from cfptq.pipeline.quantize_task import quantize_with
from cfptq.pipeline.result import Result
from cfptq.pipeline.task import PROBE_ROWS, QuantizationTask
from cfptq.quantize import Activations, Bits, equalize_on_calibration, layer_widths
from cfptq.training import (
    BitCost,
    BitPolicy,
    History,
    PolicySearch,
    RunFiles,
    Start,
    Student,
    Supervision,
    TeacherSettings,
    Trainer,
    supervise,
)
from cfptq.training.hessian_allocation import score_by_task_hessian
from cfptq.training.presets import QatMethod
from cfptq.training.pretraining import pretrain_for_robust_recourse

#: Rows that training draws from a loader by default, which is all of them.
ALL_ROWS = sys.maxsize

#: Rows that the training-free start is calibrated on by default. Where the loader has more, a seeded sample is drawn.
CALIBRATION_ROWS = 4096


def train_with(
    task: QuantizationTask,
    method: QatMethod,
    budget: Budget | float,
    *,
    groups: Sequence[Any] | None = None,
    pinned: Mapping[str, int] | None = None,
    activations: Activations | None = None,
    calibration_rows: int = CALIBRATION_ROWS,
    portable: bool = True,
    files: RunFiles | None = None,
    fit: Callable[[Trainer], History] | None = None,
    progress: bool = True,
) -> Result:
    """Quantize the task's model by training within ``budget``.

    Args:
        task: the model and its training rows.
        method: the training method.
        budget: average bits per weight, or a ``cfptq.Budget``.
        groups: one value per training row, for objectives on the worst group; None trains on all people alike.
        pinned: layer name -> bits that it must have.
        activations: activation formats; by default 8 bits, with the input chosen by cost.
        calibration_rows: most rows that the training-free start is calibrated on.
        portable: keep weights behind integer inputs within ±63.
        files: checkpoint and log of the training; None writes neither.
        fit: runs the prepared training; by default the package's own loop.
        progress: whether a progress bar may be shown.

    Raises:
        DataError: the groups do not fit the rows, or a sweep over η and λ is asked to keep a checkpoint.
        BudgetError: the budget cannot be met.
        FileError: the checkpoint is another run's.
        ModelError: training diverges.
    """
    limit = Budget.of(budget)
    numbers = None if groups is None else _number_groups(groups, len(task.rows))

    def build_supervision(module: nn.Module, settings: TeacherSettings) -> Supervision:
        predictor = as_predictor(module, example=task.rows[:PROBE_ROWS], head=task.decision.head, threshold=task.decision.threshold)
        return supervise(
            task.rows, task.labels, predictor, task.space, target=task.target, settings=settings, groups=numbers,
            seed=task.seed, progress=progress,
        )  # fmt: skip

    if method.pretraining is not None:
        plain = quantize_with(_sample_rows(task, calibration_rows), as_method("ptq"), 8.0, portable=False, progress=False)
        start = Start(task.network, plain.plan, {})
        network = pretrain_for_robust_recourse(
            method.pretraining, task.network, start, lambda module: build_supervision(module, replace(method.teacher, share=1.0)),
            method.schedule.pretraining, task.decision, task.seed, method.keep,
        )  # fmt: skip
        example, decision = task.rows[:PROBE_ROWS], task.decision
        predictor = as_predictor(network.graph, example=example, head=decision.head, threshold=decision.threshold, name="fp32")
        task = replace(task, network=network, predictor=predictor)
    rule = _choose_start(method, activations)
    # A start that is fitted to rows must not see those that choose the epoch.
    fitted = method.schedule.split(len(task.rows), task.seed)[0] if rule.sequential else None
    calibrating = _sample_rows(task, calibration_rows, fitted)
    # A policy chooses among the same widths in every layer. Training moves all weights, so that it drops no channel.
    widths = layer_widths(True, portable, rule.granularity) if method.bits == "learned" else ()
    allowed = {name: widths or own for name, own in rule.find_candidate_widths(task.network, portable).items()}
    first = quantize_with(calibrating, rule, limit, pinned=pinned, portable=portable, widths=allowed, progress=progress)
    start = _build_start(calibrating, rule, first, widths, portable)
    settings = method.teacher
    if not method.objective.needs_recourse:
        settings = replace(settings, cached=False, solvers=settings.solvers[:1])
    supervision = build_supervision(task.network.graph, settings)
    if not method.objective.needs_recourse:
        supervision = supervision.without_actions()
    candidates = [(eta, weight) for eta in method.etas or (method.objective.eta,) for weight in method.bit_weights or (method.bit_weight,)]
    if len(candidates) > 1 and files is not None and files.checkpoint is not None:
        raise DataError("checkpoint must be None for a sweep over η and λ. Give one value of each, or leave checkpoint out.")
    runs = [
        _train_once(task, method, start, first, supervision, limit, eta, weight, pinned, files, fit, progress) for eta, weight in candidates
    ]
    # The paper chooses by validation accuracy. Every run meets the budget. Ties go to the earlier pair.
    return max(runs, key=lambda run: run[0])[1]


def _train_once(
    task: QuantizationTask,
    method: QatMethod,
    start: Start,
    first: Result,
    supervision: Supervision,
    budget: Budget,
    eta: float,
    weight: float,
    pinned: Mapping[str, int] | None,
    files: RunFiles | None,
    fit: Callable[[Trainer], History] | None,
    progress: bool,
) -> tuple[float, Result]:
    """Train once, and return the accuracy on held-out rows and the result."""
    student = Student(start, learned_clips=method.learned_clips, per_channel=method.per_channel, keep=method.keep)
    student.prune(method.sparsity)
    search = None
    if method.bits == "learned":
        granularity = start.plan.granularity
        preferred = [bits for layer in start.plan.layers for bits in ((layer.bits,) if isinstance(layer.bits, int) else layer.bits)]
        policy = BitPolicy(len(preferred), student.widths, preferred, method.start_log_odds)
        formats = {form.tensor: form.bits for form in start.plan.activations}
        widths = [formats[layer.input] for layer in start.network.layers]
        cost = BitCost.of(start.network, budget, widths, method.resource, method.hinge, granularity)
        search = PolicySearch(policy, cost, weight, budget, start.network, dict(pinned or {}), granularity)
    trainer = Trainer(
        student, supervision, method.objective.with_eta(eta), method.schedule, student.bits, task.decision,
        search=search, seed=task.seed,
    )  # fmt: skip
    history = trainer.fit(files, progress) if fit is None else fit(trainer)
    plan = student.to_plan(method.name)
    names, sizes = [layer.name for layer in plan.layers], [layer.parameters for layer in plan.layers]
    allocation = BitAllocation(tuple(names), tuple(sizes), history.bits)
    held = trainer.held_out
    with torch.no_grad():
        accuracy = float((decide(trainer.logits(held.rows)) == held.labels).double().mean())
    result = replace(
        first,
        network=task.network,
        plan=plan,
        allocation=allocation,
        method=None,
        budget=budget,
        pinned=dict(pinned or {}),
        training=history,
    )
    return accuracy, result


def _choose_start(method: QatMethod, activations: Activations | None) -> Method:
    """Return the training-free method that training starts from, with the training's activation formats and one step for each channel."""
    own = as_method(method.start)
    formats = activations or Activations(input_bits=None, clip=False, margin_ranges=own.activations.margin_ranges)
    rule = replace(own, activations=formats, keep=method.keep, split_inputs=False, drops_channels=False)
    return replace(rule, score=score_by_task_hessian, allocator=allocate_exactly) if method.bits == "trace" else rule


def _build_start(task: QuantizationTask, rule: Method, first: Result, widths: Sequence[int], portable: bool) -> Start:
    """Return the network that training starts from, its plan, and its plans with every layer at each of ``widths``."""
    calibration = first.calibration
    assert calibration is not None
    bits = first.plan.bits
    source = task.network
    if rule.equalize:
        source = equalize_on_calibration(task.network, calibration, bits, rule.activations, rule.equalization_exponent, task.decision)
    names, sizes = tuple(bits), tuple(layer.parameters for layer in source.layers)

    def spread(width: int) -> tuple[Bits, ...]:
        is_channel = rule.granularity == "channel"
        return tuple((width,) * layer.weight_shape[0] if is_channel else width for layer in source.layers)

    # Every width's first steps are for the weights that training starts from, so these are not equalized again.
    uniform = {
        width: replace(rule, equalize=False).plan(
            source, calibration, BitAllocation(names, sizes, spread(width)), decision=task.decision,
            seed=task.seed, portable=portable, progress=False,
        )
        for width in widths
    }  # fmt: skip
    return Start(source, first.plan, uniform)


def _sample_rows(task: QuantizationTask, most: int, rows: torch.Tensor | None = None) -> QuantizationTask:
    """Return the task on at most ``most`` of its rows, or of those at positions ``rows``, drawn evenly."""
    rows = torch.arange(len(task.rows)) if rows is None else rows
    if len(rows) > most:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(task.seed))
        rows = rows[order[:most].sort().values]
    return task if len(rows) == len(task.rows) else task.keep_rows(rows)


def _number_groups(groups: Sequence[Any], rows: int) -> torch.Tensor:
    """Return the group of each row as a number, in the order of the groups' names."""
    if np.ndim(groups) == 0:
        raise DataError(f"groups must hold one value per training row, got a {type(groups).__name__}. Give them in the loader's order.")
    if len(groups) != rows:
        raise DataError(f"groups must hold one value for each of {rows} training rows, got {len(groups)}. Give them in the loader's order.")
    names = {name: number for number, name in enumerate(sorted({str(value) for value in groups}))}
    return torch.tensor([names[str(value)] for value in groups])
