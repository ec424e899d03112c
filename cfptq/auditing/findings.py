"""Findings of an audit, and their comparison with limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cfptq.actions import Remark
from cfptq.auditing.affected import Consequences
from cfptq.auditing.gate import Finding, Gate, judge
from cfptq.auditing.group_metrics import Grouping
from cfptq.auditing.issued import IssuedAdvice
from cfptq.auditing.protocol import Protocol
from cfptq.auditing.recourse_metrics import RecourseMetrics
from cfptq.auditing.robustness import Robustness
from cfptq.errors import ConfigurationError
from cfptq.io.printable import escape_unprintable
from cfptq.metrics import Interval


@dataclass(frozen=True)
class AuditedModel:
    """Name and digest of an audited model.

    Attributes:
        name: Name for tables.
        sha256: SHA-256 digest of its file in hexadecimal. None for a model that is not a file. Files of weights beside it have their own.
        reading: How its output was read, with head and threshold. Empty for a predictor of the user's own.
    """

    name: str
    sha256: str | None = None
    reading: str = ""

    def __str__(self) -> str:
        return f"{self.name} puts out {self.reading}." if self.reading else self.name


@dataclass(frozen=True)
class AuditFindings:
    """Findings of an audit, from which every form of its report is written.

    Attributes:
        full_precision: Name and digest of the full-precision model.
        quantized: Name and digest of the quantized model.
        fp32: Metrics of the full-precision model alone, as in results.json.
        metrics: All metrics of the quantized model. Each is also an attribute of the report.
        issued: Outcome of advice already given. None if none was given.
        protocol: Settings of the evaluation.
        seed: Seed of the shuffle, the solvers and the intervals.
        runtime: Processor, version of ONNX Runtime and session option that the metrics were computed with.
        remarks: How columns of people were read, where their owner may have meant something else.
        consequences: The people affected, what they were told and what it costs them now. JSON leaves them out.
        digests: SHA-256 digests of people, letters, action set and files of weights beside a model's file, by name.
        readings: How the files of tables were read, one sentence each.
        robustness: Estimates and proofs of whether recourse holds, also for deviations from it. None if they were not asked for.
    """

    full_precision: AuditedModel
    quantized: AuditedModel
    fp32: Mapping[str, Any]
    metrics: RecourseMetrics
    issued: IssuedAdvice | None
    protocol: Protocol
    seed: int
    runtime: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    consequences: Consequences = field(default_factory=Consequences)
    digests: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[str, ...] = ()
    robustness: Robustness | None = None

    @property
    def accuracy(self) -> float:
        """Accuracy of the quantized model, NaN without labels."""
        return self.metrics.accuracy

    @property
    def boundary_disagreement(self) -> float:
        """BD = (VD + PV) / 2 of the solver's recourse, which a model that accepts more people does not lower."""
        return self.metrics.boundary_disagreement

    @property
    def premature_validity(self) -> float:
        """PV, the share of people with recourse whom the quantized model accepts before the full-precision model does."""
        return self.metrics.premature_validity

    @property
    def validity_drop_at_equal_rate(self) -> float:
        """VD with an offset that makes the two favourable rates equal."""
        return self.metrics.validity_drop_at_equal_rate

    @property
    def crossing_shift(self) -> Mapping[str, float]:
        """Distance between the two models' boundaries on each person's last step, in steps, by ``mean_abs``, ``mean`` and ``p95``."""
        return self.metrics.crossing_shift

    @property
    def validity_drop(self) -> float:
        """VD, target failure, of the solver's recourse. ``issued.validity_drop`` is that of advice already given."""
        return self.metrics.validity_drop

    @property
    def validity_mismatch(self) -> float:
        """VD, mismatch."""
        return self.metrics.validity_mismatch

    @property
    def validity_drop_at(self) -> Mapping[str, float]:
        """VD of minimal-cost recourse by the confidence at which it was issued."""
        return self.metrics.validity_drop_at

    @property
    def recourse_gap(self) -> float:
        """CRG, the mean relative gap."""
        return self.metrics.recourse_gap

    @property
    def recourse_gap_median(self) -> float:
        """Median relative gap."""
        return self.metrics.recourse_gap_median

    @property
    def recourse_gap_abs_median(self) -> float:
        """Median absolute relative gap."""
        return self.metrics.recourse_gap_abs_median

    @property
    def recourse_gap_of_sums(self) -> float:
        """Relative change of the summed costs."""
        return self.metrics.recourse_gap_of_sums

    @property
    def recourse_lost_rate(self) -> float:
        """Share of the people with recourse who have none on the quantized model."""
        return self.metrics.recourse_lost_rate

    @property
    def direction_similarity(self) -> float:
        """DirSim."""
        return self.metrics.direction_similarity

    @property
    def action_overlap(self) -> float:
        """ActOverlap."""
        return self.metrics.action_overlap

    @property
    def feasible_recourse_rate(self) -> float:
        """FRR of the full-precision model."""
        return self.metrics.feasible_recourse_rate

    @property
    def factual_flip_rate(self) -> float:
        """Share of all rows on which the two models decide differently."""
        return self.metrics.factual_flip_rate

    @property
    def favourable_rate_drift(self) -> float:
        """Signed change of the favourable rate, a share of all rows."""
        return self.metrics.favourable_rate_drift

    @property
    def ci95(self) -> Mapping[str, Interval]:
        """Intervals by metric."""
        return self.metrics.ci95

    @property
    def groups(self) -> Mapping[str, Grouping]:
        """Groups by attribute, with the worst of them and the gaps."""
        return self.metrics.groups

    @property
    def broken(self) -> tuple[int, ...]:
        """Row numbers of the people whose projected-gradient recourse the quantized model rejects."""
        return self.metrics.broken

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on metrics that are undefined or were left out, and on how outputs and people were read."""
        readings = [str(model) for model in (self.full_precision, self.quantized) if model.reading]
        if self.full_precision.reading == self.quantized.reading != "":
            readings = [f"Both models put out {self.quantized.reading}."]
        return (*self.metrics.notes, *readings, *map(str, self.remarks))

    def gate(
        self,
        max_vd: float | None = None,
        max_drift: float | None = None,
        *,
        max_disagreement: float | None = None,
        max_crg: float | None = None,
        max_group_gap: float | None = None,
        level: float | None = None,
    ) -> Gate:
        """Compare the report with limits.

        The Validity Drop of issued advice is judged if there is any, and else that of projected-gradient recourse. Minimal-cost
        recourse ends on the boundary at 0.5 and breaks far more often. It is judged only where the full-precision model has no
        gradient. An undefined value cannot be judged, so that its limit does not hold.

        Args:
            max_vd: Largest Validity Drop allowed, a share within [0, 1]. None sets no limit.
            max_drift: Largest absolute drift of the favourable rate allowed, a share within [0, 1]. None sets no limit.
            max_disagreement: Largest boundary disagreement of projected-gradient recourse allowed, a share within [0, 1]. None sets no
                limit.
            max_crg: Largest absolute recourse gap allowed, a share within [0, 1]. None sets no limit.
            max_group_gap: Largest gap between groups allowed, in Validity Drop (that of issued advice if there is any) and in boundary
                disagreement. None sets no limit.
            level: Confidence level of the intervals, whose farther end is judged. None judges the estimates.

        Raises:
            ConfigurationError: A limit is outside [0, 1], intervals have another level, or a gap is limited without groups.
        """
        if level is not None and level != self.protocol.level:
            raise ConfigurationError(
                f"level must be that of the intervals, {self.protocol.level:g}, got {level:g}. Set it in the protocol."
            )
        if max_group_gap is not None and not self.groups:
            raise ConfigurationError("max_group_gap needs groups, and none were given. Give groups= or --group.")
        if self.issued is None:
            method = self.fp32.get("recourse_method", "projected-gradient")
            meaning = "share of people whom the second model refuses where the first accepts them"
            validity = self._find(f"Validity Drop of {method} recourse", "validity_drop", meaning)
        else:
            meaning = "share of people whom the second model refuses after they did what their letter says"
            validity = Finding("Validity Drop of the letters", self.issued.validity_drop, self.issued.ci95["validity_drop"], meaning)
        limits = [
            (validity, max_vd, "max_vd"),
            (
                self._find("Boundary disagreement", "boundary_disagreement", "how often the models disagree where refusal ends"),
                max_disagreement,
                "max_disagreement",
            ),
            (self._find("Recourse gap", "recourse_gap", "how much more the cheapest way to acceptance costs"), max_crg, "max_crg"),
            (self._find("Drift of the favourable rate", "favourable_rate_drift", "change of the share accepted"), max_drift, "max_drift"),
        ]
        if max_group_gap is not None:
            limits += [(finding, max_group_gap, "max_group_gap") for finding in self._find_gaps()]
        return judge(limits, level)

    def _find(self, name: str, metric: str, meaning: str) -> Finding:
        return Finding(name, getattr(self, metric), self.ci95[metric], meaning)

    def _find_gaps(self) -> list[Finding]:
        """Return the largest gap between groups of each attribute, of Validity Drop or boundary disagreement."""
        meaning = "largest difference between two groups"
        found = []
        for attribute, grouping in self.groups.items():
            counted = [group for name, group in grouping.groups.items() if name not in grouping.too_small]
            gaps = [("boundary disagreement", grouping.boundary_disagreement, [group.ci95["boundary_disagreement"] for group in counted])]
            if self.issued is None:
                gaps.insert(0, ("Validity Drop", grouping.validity_drop, [group.ci95["validity_drop"] for group in counted]))
            else:
                letters = self.issued.groups[attribute]
                ends = [group.ci95 for name, group in letters.groups.items() if name not in letters.too_small]
                gaps.insert(0, ("the Validity Drop of letters", letters.validity_drop, ends))
            candidates = [
                Finding(f"Gap between groups of {attribute} in {words}", disparity.gap, (0.0, _measure_reach(ends)), meaning)
                for words, disparity, ends in gaps
            ]
            defined = [finding for finding in candidates if not math.isnan(finding.value)]
            found.append(max(defined, key=lambda finding: finding.value) if defined else candidates[0])
        return found

    @property
    def title(self) -> str:
        """Title of the report."""
        first, second = self.model_names
        return f"{second} against {first}"

    @property
    def model_names(self) -> tuple[str, str]:
        """Names of the two models for sentences, which differ and are safe to show."""
        first, second = escape_unprintable(self.full_precision.name), escape_unprintable(self.quantized.name)
        return (first, second) if first != second else (f"the first {first}", f"the second {second}")


def _measure_reach(ends: Sequence[Interval]) -> float:
    """Return the distance between the lowest and the highest end of intervals, NaN for none."""
    return max((high for _, high in ends), default=math.nan) - min((low for low, _ in ends), default=math.nan)
