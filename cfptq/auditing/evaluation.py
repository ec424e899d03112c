"""One quantized model against the full-precision model: all recourse metrics, with intervals and by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cfptq.actions.action_space import ActionSpace
from cfptq.auditing.inputs import known_labels, rows_by_group
from cfptq.auditing.protocol import PLAIN, Protocol, ReferenceRecourse, recourse_of
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
    evaluate_statistic,
    factual_flips,
    favourable_changes,
    label_mismatches,
    lost_recourse,
    pair_costs,
    relative_gaps,
    target_failures,
)
from cfptq.network.head import decisions
from cfptq.network.onnx.session import describe_saturation
from cfptq.network.predictor import Predictor, decided_otherwise_by_default
from cfptq.recourse import RecourseBatch

#: Metrics reported for each group: what Table 8 shows, and what keeps Validity Drop honest.
GROUP_METRICS = (
    "accuracy",
    "validity_drop",
    "recourse_gap",
    "recourse_gap_of_sums",
    "feasible_recourse_rate",
    "factual_flip_rate",
    "favourable_rate_drift",
)


@dataclass(frozen=True)
class GroupMetrics:
    """One group's people and the metrics of :data:`GROUP_METRICS` (eqs. 37, 38); NaN where undefined.

    Attributes:
        rows: rows of the group.
        people: of them, rejected people who are measured.
        with_recourse: of those, people for whom the full-precision model has recourse, whom Validity Drop is about.
        values, ci95: by metric.
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
        """Plain values, for JSON."""
        counts = {"rows": self.rows, "people": self.people, "with_recourse": self.with_recourse}
        result: dict[str, Any] = canonicalize({**counts, **self.values, "ci95": self.ci95})
        return result


@dataclass(frozen=True)
class Grouping:
    """The groups of one attribute, the worst of them and the gaps between them (Table 9).

    Attributes:
        groups: by name, in the order of their names.
        validity_drop, recourse_gap: worst group and max - min.
        too_small: groups listed, but with too few people with recourse to count for worst and gap.
    """

    groups: Mapping[str, GroupMetrics]
    validity_drop: Disparity
    recourse_gap: Disparity
    too_small: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        result: dict[str, Any] = canonicalize(
            {
                "groups": {name: group.to_dict() for name, group in self.groups.items()},
                "validity_drop": vars(self.validity_drop),
                "recourse_gap": vars(self.recourse_gap),
                "too_small": self.too_small,
            }
        )
        return result


@dataclass(frozen=True)
class RecourseMetrics:
    """One method's entry of results.json. Rates are shares within [0, 1]; NaN where undefined.

    Attributes:
        accuracy: on rows with a known label.
        validity_drop: VD, target failure: of the people with projected-gradient recourse on f, the share whom f_q refuses.
        validity_mismatch: VD, mismatch: over all rejected people at the solver's final iterate, the share with f ≠ f_q.
        validity_drop_at: the same failure for minimal-cost recourse issued at confidence "0.50", "0.55", "0.60".
        recourse_gap, recourse_gap_median, recourse_gap_abs_median, recourse_gap_of_sums: CRG of minimal-cost recourse, its
            median, the median of its size, and Σ(c_q - c_f) / Σ c_f.
        recourse_lost_rate: of the people with minimal-cost recourse on f, the share without any on f_q.
        direction_similarity, action_overlap: DirSim and ActOverlap of the two minimal-cost actions.
        feasible_recourse_rate: share of the rejected with projected-gradient recourse on f.
        factual_flip_rate, favourable_rate_drift: over all rows, without any action; the drift is signed.
        ci95: intervals by metric, at the protocol's level; ``validity_drop_at_0.55`` for an entry of ``validity_drop_at``.
        groups: by attribute.
        counts: how many people stand behind the numbers.
        broken: row numbers of the people whose projected-gradient recourse f_q refuses.
        notes: a sentence for whatever is undefined, and why.
    """

    accuracy: float
    validity_drop: float
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
        """The entry, ready for JSON: floats rounded, undefined is None. Who broke is in an audit's report, not here.

        Args:
            deployed: what the artefact is, such as ``average_bits=4.0, activation_bits=8, stored_bytes=9120``.
        """
        entry: dict[str, Any] = {"accuracy": self.accuracy, **deployed}
        for name in (field.name for field in fields(self)):
            if name == "groups":
                entry[name] = {attribute: grouping.to_dict() for attribute, grouping in self.groups.items()}
            elif name not in ("accuracy", "broken"):
                entry[name] = getattr(self, name)
        result: dict[str, Any] = canonicalize(entry)
        return result


def evaluate(
    f: Predictor,
    f_q: Predictor,
    teacher: ReferenceRecourse,
    rows: Tensor,
    labels: Any,
    space: ActionSpace,
    groups: Mapping[str, Any] | None = None,
    *,
    threads: int | None = 1,
    progress: bool = True,
) -> RecourseMetrics:
    """All metrics of the quantized model ``f_q`` under the teacher's protocol and seed.

    Args:
        f: the full-precision model that ``teacher`` was computed with.
        f_q: the artefact as deployed; where it has no gradient, metrics that need recourse on it are undefined.
        teacher: from :func:`~cfptq.auditing.reference_recourse`, for the same rows and action space.
        rows: (N, ...) float32.
        labels: (N,) classes, NaN or -1 where unknown; None leaves accuracy undefined.
        space: what people can do.
        groups: attribute → (N,) labels.
        threads: torch threads while solving; None leaves them.
        progress: draw a bar where solving takes long.

    Raises:
        DataError: labels, groups or the teacher belong to other rows.
        ModelError: the two models have different classes, or one fails on the rows.
    """
    teacher.check_rows(rows)
    if f.n_classes != f_q.n_classes:
        raise ModelError(f"{f.name} has {f.n_classes} classes and {f_q.name} has {f_q.n_classes}; compare two versions of one model")
    true = np.full(len(rows), np.nan) if labels is None else known_labels(labels, rows, f.n_classes)
    members = rows_by_group(groups, rows)
    protocol = teacher.protocol

    after = decisions(f_q.logits(rows))
    saturated = decided_otherwise_by_default(f_q, rows, after)
    row_statistics: dict[str, Statistic] = {
        "accuracy": Proportion(correct_decisions(after, true)),
        "factual_flip_rate": Proportion(factual_flips(teacher.decisions, after)),
        "favourable_rate_drift": Mean(favourable_changes(teacher.decisions, after, teacher.target)),
    }
    at_recourse = decided(f_q, teacher.projected.points)
    failures = target_failures(at_recourse, teacher.projected.target, teacher.projected.found)
    people_statistics: dict[str, Statistic] = {
        "validity_drop": Proportion(failures),
        "validity_mismatch": Proportion(label_mismatches(decided(f, teacher.projected.points), at_recourse)),
        "feasible_recourse_rate": Proportion(teacher.projected.found.double().numpy()),
    }
    for key, batch in teacher.minimal.items():
        people_statistics[f"validity_drop_at_{key}"] = Proportion(target_failures(decided(f_q, batch.points), batch.target, batch.found))

    own, unsolved = _own_recourse(f_q, teacher, rows, space, threads, progress)
    people_statistics |= _action_statistics(teacher.plain, own, protocol)

    statistics = {**row_statistics, **people_statistics}
    values = {name: evaluate_statistic(statistic) for name, statistic in statistics.items()}
    intervals = {**_intervals(row_statistics, protocol, teacher.seed), **_intervals(people_statistics, protocol, teacher.seed)}
    cosines = _values_of(people_statistics["direction_similarity"])
    gaps = _values_of(people_statistics["recourse_gap"])
    person = {int(row): position for position, row in enumerate(teacher.people.tolist())}
    return RecourseMetrics(
        **{name: values[name] for name in values if not name.startswith("validity_drop_at_")},
        validity_drop_at={key: values[f"validity_drop_at_{key}"] for key in teacher.minimal},
        ci95=intervals,
        groups={
            attribute: _grouping(groups_of, person, row_statistics, people_statistics, protocol, teacher.seed)
            for attribute, groups_of in members.items()
        },
        counts={
            "rows": len(rows),
            "labelled": int((~np.isnan(true)).sum()),
            "rejected": teacher.rejected,
            "people": len(teacher.people),
            "with_recourse": int(teacher.projected.found.sum()),
            "with_minimal_cost_recourse": int(teacher.plain.found.sum()),
            "with_both_recourses": int((~np.isnan(gaps)).sum()),
            "direction_undefined": int((np.isnan(cosines) & ~np.isnan(gaps)).sum()),
            "decided_otherwise_by_default_session": saturated,
        },
        broken=tuple(teacher.people[torch.from_numpy(failures == 1)].tolist()),
        notes=_notes(teacher, unsolved, f_q.name, saturated),
    )


def decided(predictor: Predictor, points: Tensor) -> Tensor:
    """The artefact's class at each point, (N,) int64; none for no points."""
    return decisions(predictor.logits(points)) if len(points) else torch.zeros(0, dtype=torch.int64)


def _own_recourse(
    f_q: Predictor, teacher: ReferenceRecourse, rows: Tensor, space: ActionSpace, threads: int | None, progress: bool
) -> tuple[RecourseBatch | None, str]:
    """Minimal-cost recourse on the quantized model, with the teacher's settings; or None and why not."""
    if len(teacher.people) and not f_q.differentiable:
        return None, (
            f"{f_q.name} has no gradient, so its own recourse was not computed: recourse gap, direction similarity, action overlap "
            "and the rate of lost recourse are undefined; give a differentiable twin of it"
        )
    method = replace(teacher.protocol.minimal_cost, confidence=PLAIN)
    people = teacher.people
    return (
        recourse_of(f_q, rows[people], space, teacher.target[people], method, seed=teacher.seed, threads=threads, progress=progress),
        "",
    )


def _action_statistics(before: RecourseBatch, after: RecourseBatch | None, protocol: Protocol) -> dict[str, Statistic]:
    """What compares the two models' minimal-cost actions, person by person."""
    if after is None:
        undefined = np.full(len(before), np.nan)
        cost_f, cost_q, gaps, cosines, overlaps, lost = (undefined,) * 6
    else:
        kept = before.found & after.found
        cost_f, cost_q = pair_costs(before.cost, after.cost, kept)
        gaps = relative_gaps(before.cost, after.cost, kept, protocol.epsilon)
        cosines = direction_cosines(before.delta, after.delta, kept, protocol.epsilon)
        overlaps = action_jaccards(before.delta, after.delta, kept, protocol.support_tolerance, protocol.epsilon)
        lost = lost_recourse(before.found, after.found)
    return {
        "recourse_gap": Mean(gaps),
        "recourse_gap_median": Median(gaps),
        "recourse_gap_abs_median": Median(np.abs(gaps)),
        "recourse_gap_of_sums": RatioOfSums(cost_q - cost_f, cost_f, protocol.epsilon),
        "recourse_lost_rate": Proportion(lost),
        "direction_similarity": Mean(cosines),
        "action_overlap": Mean(overlaps),
    }


def _intervals(statistics: Mapping[str, Statistic], protocol: Protocol, seed: int) -> dict[str, Interval]:
    return bootstrap_intervals(statistics, resamples=protocol.resamples, seed=seed, level=protocol.level)


def _grouping(
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
        intervals = {**_intervals(of_rows, protocol, seed), **_intervals(of_people, protocol, seed)}
        found[name] = GroupMetrics(
            rows=len(members),
            people=len(people),
            with_recourse=int((~np.isnan(_values_of(of_people["validity_drop"]))).sum()),
            values={metric: evaluate_statistic(statistics[metric]) for metric in GROUP_METRICS},
            ci95={metric: intervals[metric] for metric in GROUP_METRICS},
        )
    counted = {name: group for name, group in found.items() if group.with_recourse >= protocol.smallest_group}
    return Grouping(
        groups=found,
        validity_drop=disparity({name: group.validity_drop for name, group in counted.items()}),
        recourse_gap=disparity({name: group.recourse_gap for name, group in counted.items()}),
        too_small=tuple(name for name in found if name not in counted),
    )


def _values_of(statistic: Statistic) -> NDArray[np.float64]:
    return statistic.columns[0]


def _notes(teacher: ReferenceRecourse, unsolved: str, name: str, saturated: int) -> tuple[str, ...]:
    notes = []
    if teacher.rejected == 0:
        notes.append(
            f"{teacher.name} rejects none of the {len(teacher.decisions)} rows: nobody needs recourse, so Validity Drop and the other "
            "recourse metrics are undefined; check the target class if that is a surprise"
        )
    elif len(teacher.people) == 0:
        notes.append("recourse was not computed, so Validity Drop and the other recourse metrics are undefined")
    elif not bool(teacher.projected.found.any()):
        notes.append(
            f"no recourse was found on {teacher.name} for any of {len(teacher.people)} rejected people, so Validity Drop is undefined; "
            "check whether the action set leaves them anything to change"
        )
    if unsolved:
        notes.append(unsolved)
    if saturated:
        notes.append(describe_saturation(name, saturated, len(teacher.decisions)))
    if len(teacher.people) and len(teacher.people) < teacher.rejected:
        notes.append(f"{len(teacher.people)} of {teacher.rejected} rejected people were measured, drawn with seed {teacher.seed}")
    return tuple(notes)
