"""Search for the fewest bits whose Validity Drop on held-out people stays within a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real

import torch

from cfptq.allocation import Budget, allocation_path
from cfptq.errors import BudgetError, DataError
from cfptq.io.progress import track
from cfptq.network import as_predictor, decide
from cfptq.pipeline.examination import describe_bounded_work, examine_decisions, examine_rows
from cfptq.pipeline.fewest_bits import FewestBits
from cfptq.pipeline.method import Method
from cfptq.pipeline.quantize_task import quantize_at
from cfptq.pipeline.result import Result
from cfptq.pipeline.task import QuantizationTask
from cfptq.quantize import COUNTERFACTUAL, HOLD_OUT_EVERY
from cfptq.recourse import RecourseBatch


def find_fewest_bits(
    task: QuantizationTask,
    method: Method,
    max_validity_drop: float,
    *,
    pinned: Mapping[str, int] | None = None,
    portable: bool = True,
    progress: bool = True,
) -> Result:
    """Quantize with the fewest bits whose Validity Drop on held-out rejected rows is at most ``max_validity_drop``.

    Every fourth rejected row with recourse is kept out of calibration, and its recourse point is judged on the fake-quantized module.

    Args:
        task: the model and its calibration rows.
        method: the quantization method.
        max_validity_drop: the limit, a share from 0 to 1.
        pinned: layer name -> bits that it must have.
        portable: keep weights behind integer inputs within ±63.
        progress: whether a progress bar may be shown.

    Raises:
        BudgetError: not even the widest widths stay within the limit. The message says what the best allocation reaches.
        DataError: no rejected row has recourse, so that nobody can be held out.
    """
    if not (isinstance(max_validity_drop, Real) and 0 <= max_validity_drop <= 1):
        raise BudgetError(f"max_validity_drop must be a share of people between 0 and 1, got {max_validity_drop!r}.")
    seen, remarks = examine_rows(task, method)
    rest, held_out = _hold_out_recourse(seen, method)
    scores = rest.score_layers(method, progress)
    widths = method.find_candidate_widths(task.network, portable)
    lowest = 1.0
    for allocation in track(allocation_path(method.allocate, scores, pinned, widths), "looking for the fewest bits", enabled=progress):
        budget = Budget.total(allocation.total_bits)
        result = quantize_at(rest, method, scores, allocation, budget, pinned=pinned, portable=portable, progress=False)
        student = as_predictor(result.module(), example=held_out.points, head=task.decision.head, threshold=task.decision.threshold)
        broken = int((decide(student.logits(held_out.points)) != held_out.target).sum())
        found = FewestBits(float(max_validity_drop), len(held_out), broken)
        if found.validity_drop <= max_validity_drop:
            remarks = (*remarks, *describe_bounded_work(rest, method), *examine_decisions(seen, result.plan))
            return replace(result, fewest_bits=found, remarks=remarks)
        lowest = min(lowest, found.validity_drop)
    raise BudgetError(
        f"max_validity_drop must be at least {lowest:.3f}, the least that any allocation reached on {len(held_out)} held-out people, got "
        f"{max_validity_drop}. Allow more, or leave activations wider (activation_bits=16)."
    )


def _hold_out_recourse(task: QuantizationTask, method: Method) -> tuple[QuantizationTask, RecourseBatch]:
    """Return the task without every fourth rejected row that has recourse, and the recourse of those rows."""
    points, recourse = task.boundary_set(method)
    chosen = torch.arange(0, len(recourse), HOLD_OUT_EVERY)
    if len(chosen) == 0:
        why = recourse.note and f" {recourse.note}"
        raise DataError(
            f"max_validity_drop needs rejected calibration rows that have recourse, and there are none.{why} Give a budget instead."
        )
    kept = torch.ones(len(task.rows), dtype=torch.bool)
    kept[points.source[points.origin == COUNTERFACTUAL][chosen]] = False
    return task.keep_rows(kept.nonzero()[:, 0]), recourse[chosen]
