"""All recourse metrics of a quantized model, with intervals and by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.group_metrics import compute_intervals, evaluate_groups, first_column
from cfptq.auditing.inputs import parse_labels, split_by_group
from cfptq.auditing.last_steps import build_boundary_statistics, collect_crossing_shift
from cfptq.auditing.protocol import PLAIN, Protocol, ReferenceRecourse, solve_rows
from cfptq.auditing.recourse_metrics import SINGLE_METRICS, RecourseMetrics
from cfptq.errors import ModelError
from cfptq.metrics import (
    Mean,
    Median,
    Proportion,
    RatioOfSums,
    Statistic,
    action_jaccards,
    correct_decisions,
    direction_cosines,
    equalize_rate,
    evaluate_statistic,
    factual_flips,
    favourable_changes,
    label_mismatches,
    lost_recourse,
    pair_costs,
    relative_gaps,
    target_failures,
    target_failures_at_equal_rate,
)
from cfptq.network.head import decide, target_margin
from cfptq.network.onnx.session import describe_saturation
from cfptq.network.predictor import Predictor, count_saturated_decisions
from cfptq.recourse import RecourseBatch


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of a quantized model, and what they were computed from.

    Attributes:
        metrics: All metrics.
        own: Minimal-cost recourse on the quantized model of the people measured. None if it was not computed.
        margins: Margins of the target at the projected-gradient recourse of these people on the quantized model, in logits.
    """

    metrics: RecourseMetrics
    own: RecourseBatch | None
    margins: Tensor


def evaluate(
    f: Predictor,
    f_q: Predictor,
    reference: ReferenceRecourse,
    rows: Tensor,
    labels: Any,
    space: ActionSpace,
    groups: Mapping[str, Any] | None = None,
    *,
    threads: int | None = 1,
    progress: bool = True,
) -> RecourseMetrics:
    """Compute all metrics of the quantized model ``f_q`` under the protocol and seed of ``reference``.

    Args:
        f: Full-precision model that ``reference`` was computed with.
        f_q: Quantized model as it is deployed. If it has no gradient, costs compare the gradient-free recourse of both models.
        reference: Recourse of f, from ``cfptq.auditing.reference_recourse`` for the same rows and action space.
        rows: Columns of everyone, (N, ...) float32.
        labels: True classes (N,), NaN or -1 where unknown. None leaves accuracy undefined.
        space: Action space, which says what people can change.
        groups: Labels (N,) by the name of the attribute.
        threads: Torch threads while solving. None leaves the number as it is.
        progress: Show progress where solving takes long.

    Raises:
        DataError: Labels, groups or ``reference`` belong to other rows.
        ModelError: The two models have different classes, or one fails on the rows.
    """
    return evaluate_in_detail(f, f_q, reference, rows, labels, space, groups, threads=threads, progress=progress).metrics


def evaluate_in_detail(
    f: Predictor,
    f_q: Predictor,
    reference: ReferenceRecourse,
    rows: Tensor,
    labels: Any,
    space: ActionSpace,
    groups: Mapping[str, Any] | None = None,
    *,
    threads: int | None = 1,
    progress: bool = True,
) -> Evaluation:
    """Compute all metrics as ``evaluate`` does, and keep what they were computed from."""
    reference.check_rows(rows)
    if f.n_classes != f_q.n_classes:
        raise ModelError(f"Both models must have the same classes, got {f.n_classes} of {f.name} and {f_q.n_classes} of {f_q.name}.")
    true = np.full(len(rows), np.nan) if labels is None else parse_labels(labels, rows, f.n_classes)
    members = split_by_group(groups, rows)
    protocol = reference.protocol

    logits = f_q.logits(rows)
    after = decide(logits)
    saturated = count_saturated_decisions(f_q, rows, after)
    row_statistics: dict[str, Statistic] = {
        "accuracy": Proportion(correct_decisions(after, true)),
        "factual_flip_rate": Proportion(factual_flips(reference.decisions, after)),
        "favourable_rate_drift": Mean(favourable_changes(reference.decisions, after, reference.target)),
    }
    projected = reference.projected
    # Models do not run on no rows, which is what is left where nobody is rejected.
    recourse_logits = f_q.logits(projected.points) if len(projected) else logits[:0]
    at_recourse, margins = decide(recourse_logits), target_margin(recourse_logits, projected.target)
    failures = target_failures(at_recourse, projected.target, projected.found)
    equal_rate = equalize_rate(target_margin(logits, reference.target), int((reference.decisions == reference.target).sum()))
    boundary_statistics, uncrossed = build_boundary_statistics(reference.last_steps, reference.crossings, f_q, failures)
    people_statistics: dict[str, Statistic] = {
        "validity_drop": Proportion(failures),
        "validity_drop_at_equal_rate": Proportion(target_failures_at_equal_rate(margins, equal_rate, projected.found)),
        **boundary_statistics,
        "validity_mismatch": Proportion(label_mismatches(decide_points(f, projected.points), at_recourse)),
        "feasible_recourse_rate": Proportion(projected.found.double().numpy()),
    }
    for key, batch in reference.minimal.items():
        people_statistics[f"validity_drop_at_{key}"] = Proportion(
            target_failures(decide_points(f_q, batch.points), batch.target, batch.found)
        )

    before, own = _solve_alike(f, f_q, reference, rows, space, threads, progress)
    people_statistics |= _compare_actions(before, own, protocol)

    statistics = {**row_statistics, **people_statistics}
    values = {name: evaluate_statistic(statistic) for name, statistic in statistics.items()}
    intervals = {
        **compute_intervals(row_statistics, protocol, reference.seed),
        **compute_intervals(people_statistics, protocol, reference.seed),
    }
    cosines = first_column(people_statistics["direction_similarity"])
    gaps = first_column(people_statistics["recourse_gap"])
    person = {int(row): position for position, row in enumerate(reference.people.tolist())}
    metrics = RecourseMetrics(
        **{name: values[name] for name in values if name in SINGLE_METRICS},
        crossing_shift=collect_crossing_shift(values),
        validity_drop_at={key: values[f"validity_drop_at_{key}"] for key in reference.minimal},
        ci95=intervals,
        groups={
            attribute: evaluate_groups(groups_of, person, row_statistics, people_statistics, protocol, reference.seed)
            for attribute, groups_of in members.items()
        },
        counts={
            "rows": len(rows),
            "labelled": int((~np.isnan(true)).sum()),
            "rejected": reference.n_rejected,
            "people": len(reference.people),
            "with_recourse": int(projected.found.sum()),
            "without_crossing": uncrossed,
            "with_minimal_cost_recourse": int(reference.plain.found.sum()),
            "with_both_recourses": int((~np.isnan(gaps)).sum()),
            "direction_undefined": int((np.isnan(cosines) & ~np.isnan(gaps)).sum()),
            "decided_otherwise_by_default_session": saturated,
        },
        broken=tuple(reference.people[torch.from_numpy(failures == 1)].tolist()),
        notes=_write_notes(reference, own, f_q, saturated),
    )
    return Evaluation(metrics, own, margins)


def decide_points(predictor: Predictor, points: Tensor) -> Tensor:
    """Return the class that ``predictor`` decides at each of N points, (N,) int64. N may be 0."""
    return decide(predictor.logits(points)) if len(points) else torch.zeros(0, dtype=torch.int64)


def _solve_alike(
    f: Predictor, f_q: Predictor, reference: ReferenceRecourse, rows: Tensor, space: ActionSpace, threads: int | None, progress: bool
) -> tuple[RecourseBatch, RecourseBatch]:
    """Return minimal-cost recourse of f and f_q, by the gradient-free search on both where one of them has no gradient."""
    people = reference.people
    plain = replace(reference.protocol.minimal_cost, confidence=PLAIN)
    method = plain if f_q.is_differentiable and reference.plain.method == "minimal-cost" else plain.without_gradient()

    def solve_on(model: Predictor) -> RecourseBatch:
        target = reference.target[people]
        return solve_rows(model, rows[people], space, target, method, seed=reference.seed, threads=threads, progress=progress)

    own = solve_on(f_q)
    return reference.plain if reference.plain.method == own.method else solve_on(f), own


def _compare_actions(before: RecourseBatch, after: RecourseBatch, protocol: Protocol) -> dict[str, Statistic]:
    """Compare the two models' minimal-cost actions of each person."""
    kept = before.found & after.found
    cost_f, cost_q = pair_costs(before.cost, after.cost, kept)
    gaps = relative_gaps(before.cost, after.cost, kept, protocol.epsilon)
    cosines = direction_cosines(before.delta, after.delta, kept, protocol.epsilon)
    overlaps = action_jaccards(before.delta, after.delta, kept, protocol.support_tolerance, protocol.epsilon)
    return {
        "recourse_gap": Mean(gaps),
        "recourse_gap_median": Median(gaps),
        "recourse_gap_abs_median": Median(np.abs(gaps)),
        "recourse_gap_of_sums": RatioOfSums(cost_q - cost_f, cost_f, protocol.epsilon),
        "recourse_lost_rate": Proportion(lost_recourse(before.found, after.found)),
        "direction_similarity": Mean(cosines),
        "action_overlap": Mean(overlaps),
    }


def _write_notes(reference: ReferenceRecourse, own: RecourseBatch, f_q: Predictor, saturated: int) -> tuple[str, ...]:
    notes = []
    if reference.n_rejected == 0:
        notes.append(
            f"{reference.name} rejects none of the {len(reference.decisions)} rows. Nobody needs recourse, so Validity Drop and the other "
            "recourse metrics are undefined. Check the target class if you expected rejected people."
        )
    elif len(reference.people) == 0:
        notes.append("Recourse was not computed, so Validity Drop and the other recourse metrics are undefined.")
    elif not bool(reference.projected.found.any()):
        notes.append(
            f"No recourse was found on {reference.name} for any of {len(reference.people)} rejected people, so Validity Drop is undefined. "
            + (reference.projected.note or "Check that the action set leaves them something to change.")
        )
    elif reference.projected.note:
        notes.append(reference.projected.note)
    if len(reference.people) and reference.last_steps is None:
        notes.append(_explain_missing_steps(reference))
    notes += _describe_search(reference, own, f_q)
    if saturated:
        notes.append(describe_saturation(f_q.name, saturated, len(reference.decisions)))
    if len(reference.people) and len(reference.people) < reference.n_rejected:
        notes.append(f"{len(reference.people)} of {reference.n_rejected} rejected people were measured, drawn with seed {reference.seed}.")
    return tuple(notes)


def _describe_search(reference: ReferenceRecourse, own: RecourseBatch, f_q: Predictor) -> list[str]:
    """Return sentences about models whose recourse was searched without a gradient."""
    if len(reference.people) == 0 or own.method != "gradient-free":
        return []
    if reference.projected.method == own.method:
        return [
            f"{reference.name} has no gradient, so the recourse of both models was searched without one. Validity Drop is that of "
            "minimal-cost recourse at 0.50, which ends on the boundary and breaks more often than projected-gradient recourse."
        ]
    return [
        f"{f_q.name} has no gradient, so the recourse gap, direction similarity, action overlap and the rate of lost recourse compare "
        "recourse that was searched without one on both models."
    ]


def _explain_missing_steps(reference: ReferenceRecourse) -> str:
    """Return a sentence on the metrics of the last step, which no step of the reference's solver defines."""
    undefined = "so boundary disagreement, premature validity and the crossing shift are undefined."
    if reference.projected.method == "gradient-free":
        return f"The gradient-free search takes no steps, {undefined}"
    return f"The solver does not decide at every step, {undefined} Use ProjectedGradient with early_stop=True in the protocol."
