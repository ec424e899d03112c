"""Metrics of one quantized model as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cfptq.auditing.group_metrics import Grouping
from cfptq.io.json import canonicalize
from cfptq.metrics import Interval


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
SINGLE_METRICS = frozenset(field.name for field in fields(RecourseMetrics) if field.type == "float")
