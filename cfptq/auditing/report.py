"""The report of an audit, with tables, JSON and a gate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cfptq.actions import Remark
from cfptq.auditing.evaluation import Grouping, RecourseMetrics
from cfptq.auditing.gate import Finding, Gate, judge
from cfptq.auditing.issued import IssuedAdvice
from cfptq.auditing.protocol import Protocol
from cfptq.auditing.tables import build_groups_table, build_metrics_table
from cfptq.io.atomic import write_text
from cfptq.io.json import canonicalize, to_canonical_json
from cfptq.io.tables import as_html, as_text
from cfptq.metrics import Interval

#: Version of the JSON form.
SCHEMA = 1


@dataclass(frozen=True)
class AuditedModel:
    """Name and digest of an audited model.

    Attributes:
        name: Name for tables.
        sha256: SHA-256 digest of its file in hexadecimal. None for a model that is not a file.
        reading: How its output was read, with head and threshold. Empty for a predictor of the user's own.
    """

    name: str
    sha256: str | None = None
    reading: str = ""

    def __str__(self) -> str:
        return f"{self.name} puts out {self.reading}." if self.reading else self.name


@dataclass(frozen=True)
class AuditReport:
    """Report of what replacing one model by another does to recourse.

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

    def gate(self, max_vd: float | None = None, max_drift: float | None = None, *, max_disagreement: float | None = None) -> Gate:
        """Compare the report with limits.

        The Validity Drop of issued advice is judged if there is any, and else that of projected-gradient recourse. Minimal-cost
        recourse ends on the boundary at 0.5 and breaks far more often. It is judged only where the full-precision model has no
        gradient. An undefined value breaks its limit.

        Args:
            max_vd: Largest Validity Drop allowed, a share within [0, 1]. None sets no limit.
            max_drift: Largest absolute drift of the favourable rate allowed, a share within [0, 1]. None sets no limit.
            max_disagreement: Largest boundary disagreement of projected-gradient recourse allowed, a share within [0, 1]. None sets no
                limit.

        Raises:
            ConfigurationError: A limit is outside [0, 1].
        """
        if self.issued is None:
            method = self.fp32.get("recourse_method", "projected-gradient")
            validity = Finding(f"Validity Drop of {method} recourse", self.validity_drop, self.ci95["validity_drop"])
        else:
            validity = Finding("Validity Drop of the issued advice", self.issued.validity_drop, self.issued.ci95["validity_drop"])
        drift = Finding("Drift of the favourable rate", self.favourable_rate_drift, self.ci95["favourable_rate_drift"])
        disagreement = Finding("Boundary disagreement", self.boundary_disagreement, self.ci95["boundary_disagreement"])
        limits = (
            (validity, max_vd, "max_vd"),
            (disagreement, max_disagreement, "max_disagreement"),
            (drift, max_drift, "max_drift"),
        )
        return judge(limits)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values.

        The same inputs and seed give the same values on the same machine with the same versions.
        """
        result: dict[str, Any] = canonicalize(
            {
                "schema": SCHEMA,
                "models": {"fp32": vars(self.full_precision), "quantized": vars(self.quantized)},
                "seed": self.seed,
                "protocol": asdict(self.protocol),
                "runtime": self.runtime,
                "remarks": [remark.to_dict() for remark in self.remarks],
                "issued": None if self.issued is None else self.issued.to_dict(),
                "fp32": self.fp32,
                "quantized": {**self.metrics.to_dict(), "broken": self.broken},
            }
        )
        return result

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` as JSON by an atomic write.

        The same inputs and seed give the same bytes on the same machine with the same versions.

        Args:
            path: File to write. An existing file is replaced.

        Raises:
            FileError: The folder does not exist or cannot be written.
        """
        write_text(path, to_canonical_json(self.to_dict()))

    def table(self) -> Table:
        """Return the metrics as a Rich table."""
        title = f"{self.quantized.name} against {self.full_precision.name}"
        return build_metrics_table(self.metrics, self.fp32, self.issued, self.protocol.level, title)

    def __rich__(self) -> Group:
        sentences = [Text(sentence) for sentence in ([self.issued.describe()] if self.issued else []) + list(self.notes)]
        tables = [build_groups_table(attribute, grouping) for attribute, grouping in self.groups.items()]
        return Group(self.table(), *tables, *sentences)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    __repr__ = __str__
