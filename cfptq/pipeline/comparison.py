"""Methods side by side: one table, one ``results.json``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from cfptq.backends.latency import slower_than
from cfptq.io.atomic import write_text
from cfptq.io.tables import as_text

#: Version of ``results.json``.
SCHEMA = 1

#: Columns of the table: heading, key in a method's entry, decimals. The last ones go first where the terminal is narrow.
COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("bits", "average_bits", 2),
    ("KiB", "stored_bytes", 1),
    ("accuracy", "accuracy", 3),
    ("VD", "validity_drop", 3),
    ("CRG", "recourse_gap_of_sums", 3),
    ("drift", "favourable_rate_drift", 4),
    ("DirSim", "direction_similarity", 3),
    ("VD@.55", "validity_drop_at.0.55", 3),
    ("flips", "factual_flip_rate", 4),
    ("mean CRG", "recourse_gap", 3),
    ("median CRG", "recourse_gap_median", 3),
    ("lost", "recourse_lost_rate", 3),
)

#: Characters that the method column and one further column take, borders included.
METHOD_WIDTH, COLUMN_WIDTH = 22, 11


@dataclass(frozen=True)
class Comparison:
    """What each method did to accuracy and recourse, on the same rows.

    Attributes:
        dataset: a word for tables.
        seed: of the calibration draw and the population's shuffle.
        fp32: the full-precision model's own entry.
        budgets: by average bits as text ("4.0"), by method, its entry as in ``results.json``.
        headline: the budget that ``methods`` shows.
        unavailable: methods that could not run here, and why.
        seconds: wall time of each method; kept apart, in ``timings.json``.
        latency: by method, by rows a call: median microseconds on one thread, taken in turns; kept apart too.
        warnings: sentences that the reader should see.
        runtime: the processor, ONNX Runtime's version and its session option that the figures were computed with.
    """

    dataset: str
    seed: int
    fp32: Mapping[str, Any]
    budgets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    headline: str
    unavailable: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """Entries at the headline budget."""
        return self.budgets[self.headline]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``results.json``; fixed by inputs and seed."""
        entries: dict[str, Any] = {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "seed": self.seed,
            "runtime": dict(self.runtime),
            "fp32": dict(self.fp32),
            "methods": {name: dict(entry) for name, entry in self.methods.items()},
            "budgets": {budget: {name: dict(entry) for name, entry in methods.items()} for budget, methods in self.budgets.items()},
        }
        if self.unavailable:
            entries["unavailable"] = dict(self.unavailable)
        return entries

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``results.json``, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n")

    def timings_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``timings.json``: seconds of each method and latency of its file, which no two runs share."""
        latency = {name: {str(batch): taken for batch, taken in times.items()} for name, times in self.latency.items()}
        entries = {"schema": SCHEMA, "seconds": dict(self.seconds), "latency_us": latency}
        write_text(path, json.dumps(entries, indent=1, sort_keys=True) + "\n")

    def table(self, budget: str | None = None, width: int | None = None) -> Table:
        """A Rich table of the methods at ``budget`` (the headline one by default), with the columns that fit ``width`` characters."""
        chosen = budget or self.headline
        columns = COLUMNS if width is None else COLUMNS[: max(6, (width - METHOD_WIDTH) // COLUMN_WIDTH)]
        table = Table(
            title=f"{self.dataset}: recourse after quantization to {chosen} bits on average, seed {self.seed}",
            caption="VD: share whose recourse fails. CRG: change of its cost (ratio of sums). VD, CRG, drift, flips: 0 is best. DirSim: 1.",
        )
        table.add_column("method", no_wrap=True)
        for heading, _, _ in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, entry in {"fp32": self.fp32, **self.budgets[chosen]}.items():
            table.add_row(name, *(_cell(entry, key, decimals) for _, key, decimals in columns))
        for name in self.unavailable:
            table.add_row(name, "not run")
        return table

    def latency_table(self) -> Table:
        """A Rich table of the files' latencies, with fp32's as the measure."""
        batches = list(next(iter(self.latency.values())))
        table = Table(title="microseconds a call, one thread, and as a multiple of fp32's", caption="measured in turns on this machine")
        table.add_column("file", no_wrap=True)
        for batch in batches:
            table.add_column(f"batch {batch}", justify="right", no_wrap=True)
        for name, times in self.latency.items():
            table.add_row(name, *(f"{times[batch]:.0f} ({times[batch] / self.latency['fp32'][batch]:.2f})" for batch in batches))
        return table

    def _where_fp32_is_faster(self) -> Iterator[str]:
        for name, batches in slower_than("fp32", self.latency).items():
            yield f"{name} is slower than fp32 on this machine at batch {', '.join(map(str, batches))}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for budget in self.budgets:
            yield self.table(budget, options.max_width)
        yield from (f"note: {name} was not run: {why}" for name, why in self.unavailable.items())
        if self.latency:
            yield self.latency_table()
            yield from (f"note: {sentence}" for sentence in self._where_fp32_is_faster())
        for warning in self.warnings:
            yield f"note: {warning}"

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__


def _cell(entry: Mapping[str, Any], key: str, decimals: int) -> str:
    value: Any = entry
    for part in (key,) if key in entry else key.split(".", 1):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value / 1024:.1f}" if key == "stored_bytes" else f"{value:.{decimals}f}"
