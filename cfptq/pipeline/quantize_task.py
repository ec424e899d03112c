"""Quantize a task by a method within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cfptq.allocation import BitAllocation, Budget, LayerScores, Widths, assign_lowest_bits
from cfptq.io.progress import track
from cfptq.pipeline.examination import describe_bounded_work, describe_reserve, examine_decisions, examine_rows
from cfptq.pipeline.group_weighting import ROUNDS, GroupTrial, WorstGroup, build_group_problem, choose_trial, label_rows
from cfptq.pipeline.method import Method
from cfptq.pipeline.result import Result
from cfptq.pipeline.task import QuantizationTask
from cfptq.quantize import CalibrationSet, QuantizationPlan, hold_out_people, keep_first_points
from cfptq.quantize.repair import repair_last_layer
from cfptq.quantize.ties import keep_tied_decisions


def quantize_with(
    task: QuantizationTask,
    method: Method,
    budget: Budget | float,
    *,
    pinned: Mapping[str, int] | None = None,
    portable: bool = True,
    widths: Widths | None = None,
    progress: bool = True,
) -> Result:
    """Score the layers, allocate bits within ``budget``, and quantize at that allocation.

    Args:
        task: the model and its calibration rows.
        method: the quantization method.
        budget: average bits per weight, or a ``cfptq.Budget``.
        pinned: layer name -> bits that it must have.
        portable: keep weights behind integer inputs within ±63.
        widths: candidate widths that replace the layers' own.
        progress: whether a progress bar may be shown.

    Raises:
        BudgetError: the budget cannot be met. It is raised before any recourse is computed.
        DataError: the method's groups do not fit the rows. It is raised before any recourse is computed.
        ModelError: the network's numbers are too far from each other for the plan to keep its decisions.
    """
    sizes = {layer.name: layer.parameters for layer in task.network.layers}
    candidates = widths or method.find_candidate_widths(task.network, portable)
    assign_lowest_bits(tuple(sizes), tuple(sizes.values()), Budget.of(budget), candidates, pinned)
    if method.groups is not None:
        label_rows(method.groups, task.rows, task.space)
    seen, remarks = examine_rows(task, method)
    scores = seen.score_layers(method, progress)
    allocation = method.allocate(scores, budget, candidates, pinned)
    result = quantize_at(seen, method, scores, allocation, Budget.of(budget), pinned=pinned, portable=portable, progress=progress)
    found = (*describe_bounded_work(seen, method), *describe_reserve(seen, method, result.plan), *examine_decisions(seen, result.plan))
    return replace(result, remarks=(*remarks, *found))


def quantize_at(
    task: QuantizationTask,
    method: Method,
    scores: LayerScores,
    allocation: BitAllocation,
    budget: Budget,
    *,
    pinned: Mapping[str, int] | None,
    portable: bool,
    progress: bool,
) -> Result:
    """Round at a given allocation, reweighting groups and repairing the last layer where the method asks for it.

    Args:
        task: the model and its calibration rows.
        method: the quantization method.
        scores: the layer scores that the allocation was made from.
        allocation: bits of each layer.
        budget: what the allocation was made for.
        pinned: layer name -> bits that it must have.
        portable: keep weights behind integer inputs within ±63.
        progress: whether a progress bar may be shown.
    """
    calibration, recourse = task.choose_calibration(method)
    groups = repair = None
    if method.groups is None:
        plan = _round(task, method, allocation, calibration, portable, progress)
    else:
        chosen, groups = _reweight_groups(task, method, allocation, calibration, portable, progress)
        calibration, plan = chosen.calibration, chosen.plan
    plan = keep_tied_decisions(task.network, plan, task.rows, task.decision)
    if method.repair:
        trial = _round(task, method, allocation, hold_out_people(calibration)[0], portable, progress)
        plan, repair = repair_last_layer(task.network, plan, trial, _judged_points(task, method), decision=task.decision)
    return Result(
        network=task.network,
        plan=plan,
        allocation=allocation,
        sensitivity=scores,
        head=task.decision.head,
        threshold=task.decision.threshold,
        calibration=calibration,
        teacher=recourse,
        method=method,
        budget=budget,
        pinned=dict(pinned or {}),
        repair=repair,
        worst_group=groups,
    )


def _round(
    task: QuantizationTask, method: Method, allocation: BitAllocation, rows: CalibrationSet, portable: bool, progress: bool
) -> QuantizationPlan:
    """Round the task's network on ``rows`` at the widths of ``allocation``."""
    has_channels, own = method.granularity == "channel", task.choose_calibration(method)[0]
    return method.plan(
        task.network,
        rows,
        allocation,
        decision=task.decision,
        equalized=task.equalize_network(method) if has_channels and rows is own else None,
        seed=task.seed,
        portable=portable,
        progress=progress,
    )


def _reweight_groups(
    task: QuantizationTask, method: Method, allocation: BitAllocation, calibration: CalibrationSet, portable: bool, progress: bool
) -> tuple[GroupTrial, WorstGroup]:
    """Round with a few weights of the groups, and return the trial with the best worst group and the report."""
    assert method.groups is not None
    labels = label_rows(method.groups, task.rows, task.space)
    problem = build_group_problem(task.network, _judged_points(task, method), labels, decision=task.decision)
    trials: list[GroupTrial] = []
    for _ in track(range(ROUNDS + 1), "weighing groups", enabled=progress):
        factors = problem.next_factors(trials)
        if factors is None:
            break
        weighted = problem.weigh(calibration, factors)
        plan = _round(task, method, allocation, weighted, portable, progress)
        trials.append(problem.judge(task.network, weighted, plan, factors))
    kept = choose_trial(trials)
    return trials[kept], problem.report(trials, kept)


def _judged_points(task: QuantizationTask, method: Method) -> CalibrationSet:
    """Return the factual rows and the projected-gradient recourse points, which groups and repair are judged at."""
    points, recourse = task.boundary_set(method)
    return keep_first_points(points, len(recourse))
