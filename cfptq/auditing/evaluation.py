"""All recourse metrics of a quantized model, with intervals and by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.inputs import parse_labels, split_by_group
from cfptq.auditing.last_steps import build_boundary_statistics, collect_crossing_shift
from cfptq.auditing.protocol import PLAIN, Protocol, ReferenceRecourse, solve_rows
from cfptq.errors import ModelError
from cfptq.io.json import canonicalize
from cfptq.metrics import (
    Disparity,
    Interval,
    Mean,
    Median,
    Proportion,
    RatioOfSums,
    Statistic,
    action_jaccards,
    bootstrap_intervals,
    correct_decisions,
    direction_cosines,
    disparity,
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

#: Metrics of each group. Table 8 shows some of them, and the others show at what price Validity Drop is low.
GROUP_METRICS = (
    "accuracy",
    "boundary_disagreement",
    "premature_validity",
    "validity_drop",
    "recourse_gap",
    "recourse_gap_of_sums",
    "feasible_recourse_rate",
    "factual_flip_rate",
    "favourable_rate_drift",
)


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of one group (eqs. 37, 38).

    Attributes:
        rows: Number of rows of the group.
        people: Number of rejected people among them who are measured.
        with_recourse: Number of measured people with recourse on the full-precision model. Validity Drop is a share of these.
        values: Value of each of ``GROUP_METRICS``, NaN where it is undefined.
        ci95: Interval of each of ``GROUP_METRICS``.
    """

    rows: int
    people: int
    with_recourse: int
    values: Mapping[str, float]
    ci95: Mapping[str, Interval]

    @property
    def validity_drop(self) -> float:
        """VD_g, eq. 37."""
        return self.values["validity_drop"]

    @property
    def recourse_gap(self) -> float:
        """CRG_g, eq. 38."""
        return self.values["recourse_gap"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"rows": self.rows, "people": self.people, "with_recourse": self.with_recourse}
        result: dict[str, Any] = canonicalize({**counts, **self.values, "ci95": self.ci95})
        return result


@dataclass(frozen=True)
class Grouping:
    """Groups of one attribute, with the worst of them and the gaps between them (Table 9).

    Attributes:
        groups: Metrics by the name of the group, sorted by name.
        validity_drop: Worst group by Validity Drop, and the gap between the largest and the smallest value.
        boundary_disagreement: The same for boundary disagreement.
        recourse_gap: The same for the recourse gap.
        too_small: Names of groups with too few people with recourse to count for the worst group and the gap.
    """

    groups: Mapping[str, GroupMetrics]
    validity_drop: Disparity
    boundary_disagreement: Disparity
    recourse_gap: Disparity
    too_small: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        result: dict[str, Any] = canonicalize(
            {
                "groups": {name: group.to_dict() for name, group in self.groups.items()},
                "validity_drop": vars(self.validity_drop),
                "boundary_disagreement": vars(self.boundary_disagreement),
                "recourse_gap": vars(self.recourse_gap),
                "too_small": self.too_small,
            }
        )
        return result


@dataclass(frozen=True)
class RecourseMetrics:
    """Metrics of one quantized model f_q, its entry of results.json.

    Rates are shares within [0, 1]. An undefined metric is NaN.

    Attributes:
        accuracy: Accuracy of f_q on rows with a known label.
        boundary_disagreement: BD = (VD + PV) / 2, which tables are ordered by.
        premature_validity: PV, the share of the people with projected-gradient recourse on f whom f_q accepts already at the last
            iterate of their path that f refuses.
        validity_drop: VD, target failure. Share of the people with projected-gradient recourse on f whose recourse f_q rejects.
        validity_drop_at_equal_rate: VD with an offset on the target's logit of f_q that makes its favourable rate that of f. The
            interval takes the offset as given.
        crossing_shift: Distance between the two models' boundaries on the line through each person's last step, in steps. ``mean_abs``
            is the mean distance, ``mean`` is positive where f_q asks for more, ``p95`` is the 95th percentile of the distance. People
            without a crossing of f_q within four steps count as four.
        validity_mismatch: VD, mismatch. Share of all rejected people for whom f and f_q differ at the solver's final iterate.
        validity_drop_at: VD of minimal-cost recourse by the confidence at which it is issued ("0.50", "0.55", "0.60").
        recourse_gap: CRG of minimal-cost recourse, the mean relative change of its cost.
        recourse_gap_median: Median relative change of the cost.
        recourse_gap_abs_median: Median absolute relative change of the cost.
        recourse_gap_of_sums: Relative change of the summed cost, Σ(c_q - c_f) / Σ c_f.
        recourse_lost_rate: Share of the people with minimal-cost recourse on f who have none on f_q.
        direction_similarity: DirSim, the mean cosine of the two minimal-cost actions.
        action_overlap: ActOverlap, the mean Jaccard index of the columns that the two minimal-cost actions change.
        feasible_recourse_rate: FRR, the share of rejected people with projected-gradient recourse on f.
        factual_flip_rate: Share of all rows that f and f_q decide differently without any action.
        favourable_rate_drift: Signed change of the favourable rate over all rows.
        ci95: Interval of each metric at the protocol's level. An entry of ``validity_drop_at`` has a key like
            ``validity_drop_at_0.55``, one of ``crossing_shift`` a key like ``crossing_shift_p95``.
        groups: Groups by the name of the attribute.
        counts: Number of rows and people behind the metrics.
        broken: Row numbers of the people whose projected-gradient recourse f_q rejects.
        notes: One sentence for each metric that is undefined, and why.
    """

    accuracy: float
    boundary_disagreement: float
    premature_validity: float
    validity_drop: float
    validity_drop_at_equal_rate: float
    crossing_shift: Mapping[str, float]
    validity_mismatch: float
    validity_drop_at: Mapping[str, float]
    recourse_gap: float
    recourse_gap_median: float
    recourse_gap_abs_median: float
    recourse_gap_of_sums: float
    recourse_lost_rate: float
    direction_similarity: float
    action_overlap: float
    feasible_recourse_rate: float
    factual_flip_rate: float
    favourable_rate_drift: float
    ci95: Mapping[str, Interval]
    groups: Mapping[str, Grouping]
    counts: Mapping[str, int]
    broken: tuple[int, ...]
    notes: tuple[str, ...]

    def to_dict(self, **deployed: Any) -> dict[str, Any]:
        """Return the entry for JSON, with rounded floats and None for NaN.

        The row numbers in ``broken`` are left out. An audit's report holds them.

        Args:
            deployed: Facts about the artefact, such as ``average_bits=4.0, activation_bits=8, stored_bytes=9120``.
        """
        entry: dict[str, Any] = {"accuracy": self.accuracy, **deployed}
        for name in (field.name for field in fields(self)):
            if name == "groups":
                entry[name] = {attribute: grouping.to_dict() for attribute, grouping in self.groups.items()}
            elif name not in ("accuracy", "broken"):
                entry[name] = getattr(self, name)
        result: dict[str, Any] = canonicalize(entry)
        return result


#: Metrics of ``RecourseMetrics`` that are one number.
_SINGLE_METRICS = frozenset(field.name for field in fields(RecourseMetrics) if field.type == "float")


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
        **_compute_intervals(row_statistics, protocol, reference.seed),
        **_compute_intervals(people_statistics, protocol, reference.seed),
    }
    cosines = _first_column(people_statistics["direction_similarity"])
    gaps = _first_column(people_statistics["recourse_gap"])
    person = {int(row): position for position, row in enumerate(reference.people.tolist())}
    metrics = RecourseMetrics(
        **{name: values[name] for name in values if name in _SINGLE_METRICS},
        crossing_shift=collect_crossing_shift(values),
        validity_drop_at={key: values[f"validity_drop_at_{key}"] for key in reference.minimal},
        ci95=intervals,
        groups={
            attribute: _evaluate_groups(groups_of, person, row_statistics, people_statistics, protocol, reference.seed)
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


def _compute_intervals(statistics: Mapping[str, Statistic], protocol: Protocol, seed: int) -> dict[str, Interval]:
    return bootstrap_intervals(statistics, resamples=protocol.resamples, seed=seed, level=protocol.level)


def _evaluate_groups(
    groups: Mapping[str, NDArray[np.int64]],
    person: Mapping[int, int],
    row_statistics: Mapping[str, Statistic],
    people_statistics: Mapping[str, Statistic],
    protocol: Protocol,
    seed: int,
) -> Grouping:
    found = {}
    for name, members in groups.items():
        people = np.array([person[row] for row in members.tolist() if row in person], dtype=np.int64)
        of_rows = {metric: row_statistics[metric].take(members) for metric in GROUP_METRICS if metric in row_statistics}
        of_people = {metric: people_statistics[metric].take(people) for metric in GROUP_METRICS if metric in people_statistics}
        statistics = {**of_rows, **of_people}
        intervals = {**_compute_intervals(of_rows, protocol, seed), **_compute_intervals(of_people, protocol, seed)}
        found[name] = GroupMetrics(
            rows=len(members),
            people=len(people),
            with_recourse=int((~np.isnan(_first_column(of_people["validity_drop"]))).sum()),
            values={metric: evaluate_statistic(statistics[metric]) for metric in GROUP_METRICS},
            ci95={metric: intervals[metric] for metric in GROUP_METRICS},
        )
    counted = {name: group for name, group in found.items() if group.with_recourse >= protocol.smallest_group}
    return Grouping(
        groups=found,
        validity_drop=disparity({name: group.validity_drop for name, group in counted.items()}),
        boundary_disagreement=disparity({name: group.values["boundary_disagreement"] for name, group in counted.items()}),
        recourse_gap=disparity({name: group.recourse_gap for name, group in counted.items()}),
        too_small=tuple(name for name in found if name not in counted),
    )


def _first_column(statistic: Statistic) -> NDArray[np.float64]:
    return statistic.columns[0]


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
