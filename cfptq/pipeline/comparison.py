"""Compare methods in one table and one ``results.json``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import nn

from cfptq.actions import ActionSpace
from cfptq.allocation import Budget
from cfptq.auditing import Protocol, evaluate, reference_recourse, split_by_group
from cfptq.backends.latency import find_slower, measure_latency
from cfptq.backends.toolchains import TOOLCHAINS
from cfptq.calibration import draw_rows
from cfptq.errors import ConfigurationError
from cfptq.io.atomic import write_text
from cfptq.io.suggestions import did_you_mean
from cfptq.io.tables import as_html, as_text
from cfptq.network import Predictor, to_onnx_model
from cfptq.network.onnx.session import describe_runtime, describe_saturation
from cfptq.pipeline.deploy import deploy_all
from cfptq.pipeline.method import Method
from cfptq.pipeline.method_presets import METHODS
from cfptq.pipeline.task import TaskSettings, build_task
from cfptq.training import QAT_METHODS, QatMethod

#: A method of ``compare``: the name of a preset or a toolchain, or a method object.
ComparedMethod = str | Method | QatMethod

#: Methods that ``compare`` compares by default.
COMPARED = (
    "ort-int8",
    "ort-int4",
    "pt2e-int8",
    "fx-int8",
    "inc-int8",
    "mixed-ptq",
    "cf-ptq-calibration",
    "cf-ptq-allocation",
    "cf-ptq",
    "faithful",
)

#: Version of ``results.json``, which readers check.
SCHEMA = 1

#: Heading, key in a method's entry, and decimals of each column. In a narrow terminal the last ones are left out.
COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("bits", "average_bits", 2),
    ("KiB", "stored_bytes", 1),
    ("accuracy", "accuracy", 3),
    ("BD", "boundary_disagreement", 3),
    ("VD", "validity_drop", 3),
    ("drift", "favourable_rate_drift", 4),
    ("PV", "premature_validity", 3),
    ("VD=rate", "validity_drop_at_equal_rate", 3),
    ("shift", "crossing_shift.mean_abs", 3),
    ("CRG", "recourse_gap_of_sums", 3),
    ("DirSim", "direction_similarity", 3),
    ("VD@.55", "validity_drop_at.0.55", 3),
    ("flips", "factual_flip_rate", 4),
    ("mean CRG", "recourse_gap", 3),
    ("median CRG", "recourse_gap_median", 3),
    ("lost", "recourse_lost_rate", 3),
)

#: Caption of the table.
CAPTION = (
    "Ordered by BD, the mean of VD (recourse that fails) and PV (accepted a step too early). VD=rate: VD at equal "
    "favourable rate. shift: distance between the boundaries, in steps. CRG: change of cost (ratio of sums). Best: 0, DirSim 1."
)

#: Sentence of the caption about intervals.
INTERVALS = " In brackets: 95 % intervals over people."

#: Characters that the method column and one further column take, with their borders.
METHOD_WIDTH, COLUMN_WIDTH = 22, 11

#: Columns with a 95 % interval over people, first those that keep it in a narrow terminal, and the characters that one takes.
WITH_INTERVALS, INTERVAL_WIDTH = ("boundary_disagreement", "validity_drop", "premature_validity", "favourable_rate_drift"), 14

#: Columns that the narrowest table has.
LEAST_COLUMNS = 6


@dataclass(frozen=True)
class Comparison:
    """Accuracy and recourse of each method's model, on the same rows.

    Attributes:
        dataset: name of the data in tables.
        seed: seed of the calibration draw and of the population's shuffle.
        fp32: the full-precision model's own entry.
        budgets: average bits as text ("4.0") -> method -> its entry in ``results.json``.
        headline: the budget of ``methods``.
        unavailable: method -> reason, for methods that could not run here.
        seconds: wall time of each method in seconds, written to ``timings.json``.
        latency: method -> rows a call -> median microseconds on one thread, written to ``timings.json``.
        warnings: sentences for the reader.
        runtime: the processor, ONNX Runtime's version and its session option that the figures were computed with.
        network: the SHA-256 of the full-precision network's file and whether it was read or trained, where a recipe gave it.
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
    network: Mapping[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """Entries at the headline budget."""
        return self.budgets[self.headline]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``results.json``, which inputs and seed determine on one machine with the same versions."""
        entries: dict[str, Any] = {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "seed": self.seed,
            "runtime": dict(self.runtime),
            "fp32": dict(self.fp32),
            "methods": {name: dict(entry) for name, entry in self.methods.items()},
            "budgets": {budget: {name: dict(entry) for name, entry in methods.items()} for budget, methods in self.budgets.items()},
        }
        if self.network:
            entries["network"] = dict(self.network)
        if self.unavailable:
            entries["unavailable"] = dict(self.unavailable)
        return entries

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``results.json`` to ``path``, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n")

    def timings_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``timings.json`` to ``path``, with the seconds of each method and the latency of its file."""
        latency = {name: {str(batch): taken for batch, taken in times.items()} for name, times in self.latency.items()}
        entries = {"schema": SCHEMA, "seconds": dict(self.seconds), "latency_us": latency}
        write_text(path, json.dumps(entries, indent=1, sort_keys=True) + "\n")

    def table(self, budget: str | None = None, width: int | None = None) -> Table:
        """Return a Rich table of the methods at one budget, ordered by boundary disagreement.

        Args:
            budget: average bits as text; by default the headline budget.
            width: characters that the columns must fit into; None shows all.
        """
        chosen = budget or self.headline
        columns, with_intervals = _choose_columns(width)
        table = Table(
            title=Text(f"{self.dataset}: recourse after quantization to {chosen} bits on average, seed {self.seed}"),
            caption=Text(f"{CAPTION}{INTERVALS if with_intervals else ''}{_describe_kept(self.budgets[chosen])}"),
        )
        table.add_column("method", no_wrap=True)
        for heading, _, _ in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        ordered = sorted(self.budgets[chosen].items(), key=lambda item: _rank(item[1]))
        for name, entry in (("fp32", self.fp32), *ordered):
            cells = (_format_cell(entry, key, decimals, key in with_intervals) for _, key, decimals in columns)
            table.add_row(Text(name), *map(Text, cells))
        for name in self.unavailable:
            table.add_row(Text(name), "not run")
        return table

    def latency_table(self) -> Table:
        """Return a Rich table of the files' latencies, also as multiples of fp32's."""
        batches = list(next(iter(self.latency.values())))
        table = Table(title="microseconds a call, one thread, and as a multiple of fp32's", caption="measured in turns on this machine")
        table.add_column("file", no_wrap=True)
        for batch in batches:
            table.add_column(f"batch {batch}", justify="right", no_wrap=True)
        for name, times in self.latency.items():
            table.add_row(Text(name), *(f"{times[batch]:.0f} ({times[batch] / self.latency['fp32'][batch]:.2f})" for batch in batches))
        return table

    def _describe_slower_files(self) -> Iterator[str]:
        """Yield one sentence for each file that is slower than fp32."""
        for name, batches in find_slower("fp32", self.latency).items():
            yield f"{name} is slower than fp32 on this machine at batch {', '.join(map(str, batches))}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for budget in self.budgets:
            yield self.table(budget, options.max_width)
        yield from (Text(f"note: {name} was not run: {why}") for name, why in self.unavailable.items())
        if self.latency:
            yield self.latency_table()
            yield from (Text(f"note: {sentence}") for sentence in self._describe_slower_files())
        for warning in self.warnings:
            yield Text(f"note: {warning}")

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    __repr__ = __str__


def check_methods(methods: ComparedMethod | Sequence[ComparedMethod]) -> Sequence[ComparedMethod]:
    """Return the methods to compare as a sequence, checked to be known and distinct.

    Raises:
        ConfigurationError: a method is unknown or given twice.
    """
    listed = (methods,) if isinstance(methods, str | Method | QatMethod) else methods
    known = (*TOOLCHAINS, *METHODS, *QAT_METHODS)
    for entry in listed:
        if isinstance(entry, str) and entry not in known:
            raise ConfigurationError(
                f"methods must be presets, toolchains or method objects, got {entry!r}{did_you_mean(entry, known)}. Choose from "
                f"{', '.join(known)}."
            )
    names = [entry if isinstance(entry, str) else entry.name for entry in listed]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"methods must be distinct, got {', '.join(names)}.")
    return listed


def check_budgets(budgets: float | Sequence[float]) -> list[float]:
    """Return the budgets as a list of average bits, checked.

    Raises:
        BudgetError: a budget is not a positive number.
        ConfigurationError: there is none.
    """
    limits = [float(Budget.average(bits).amount) for bits in (budgets if isinstance(budgets, Iterable) else (budgets,))]
    if not limits:
        raise ConfigurationError("budgets must hold at least one number of average bits, got none.")
    return limits


def compare_methods(
    module: nn.Module,
    calib_loader: Iterable[Any],
    test_loader: Iterable[Any],
    space: ActionSpace,
    methods: Sequence[ComparedMethod],
    budgets: Sequence[float],
    settings: TaskSettings,
    *,
    groups: Mapping[str, Sequence[Any]] | None,
    portable: bool,
    protocol: Protocol,
    dataset: str,
    keep: str | os.PathLike[str] | None,
) -> Comparison:
    """Quantize by each method, write each file, and measure accuracy and recourse on the same test rows.

    The arguments are those of ``cfptq.compare``, checked.
    """
    seed, progress = settings.seed, settings.progress
    with contextlib.ExitStack() as stack:
        if keep is not None:
            Path(keep).mkdir(parents=True, exist_ok=True)
        folder = Path(keep) if keep is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = time.perf_counter()
        task = build_task(module, calib_loader, space, settings)
        rows, labels = draw_rows(test_loader, max_rows=sys.maxsize, seed=seed, encode=getattr(space, "encode", None), progress=progress)
        space.check(rows)
        split_by_group(groups, rows)  # Groups that do not fit are refused before the work.
        people = reference_recourse(task.predictor, rows, space, task.target, protocol, seed, progress=progress)
        preparation = time.perf_counter() - started

        def judge(student: Predictor, path: Path, **formats: Any) -> dict[str, Any]:
            metrics = evaluate(task.predictor, student, people, rows, labels, space, groups, progress=False)
            return metrics.to_dict(**formats, stored_bytes=path.stat().st_size)

        done = deploy_all(task, methods, budgets, folder, judge, portable, progress)
        fp32 = to_onnx_model(task.network).SerializeToString(deterministic=True)
        latency = measure_latency({"fp32": fp32, **done.runs}, rows)
    eager = ", ".join(name for name, run in done.runs.items() if callable(run))
    slow = [f"{eager}: timed in eager mode, as the toolchain returns it. torch.compile makes it faster."] if eager else []
    return Comparison(
        dataset,
        seed,
        people.to_dict(labels),
        done.budgets,
        str(budgets[0]),
        unavailable=done.unavailable,
        seconds={"teacher": preparation, **done.seconds},
        latency=latency,
        warnings=(*_describe_saturated_files(done.budgets), *slow),
        runtime=describe_runtime(),
    )


def _describe_saturated_files(budgets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield one sentence for each file whose decisions change in a default session on this processor."""
    for budget, methods in budgets.items():
        for name, entry in methods.items():
            rows = entry["counts"]["decided_otherwise_by_default_session"]
            if rows:
                yield describe_saturation(f"{name} at {budget} bits", rows, entry["counts"]["rows"])


def _rank(entry: Mapping[str, Any]) -> float:
    """Return the boundary disagreement by which tables are ordered, or infinity where it is undefined."""
    value = entry.get("boundary_disagreement")
    return math.inf if value is None else float(value)


def _describe_kept(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence on the structure of the weights that each method keeps, or "" for toolchains alone."""
    by_structure: dict[str, list[str]] = {}
    for name, entry in methods.items():
        if "keep" in entry:
            by_structure.setdefault(" and ".join(entry["keep"]) or "nothing", []).append(name)
    listed = "; ".join(f"{structure} by {', '.join(names)}" for structure, names in by_structure.items())
    return f" Kept of the weights: {listed}." if listed else ""


def _choose_columns(width: int | None) -> tuple[Sequence[tuple[str, str, int]], Sequence[str]]:
    """Choose the columns that fit into a width, and those of them that show an interval. None has room for all."""
    if width is None:
        return COLUMNS, WITH_INTERVALS
    room = width - METHOD_WIDTH - LEAST_COLUMNS * COLUMN_WIDTH
    with_intervals = WITH_INTERVALS[: min(2, max(0, room // INTERVAL_WIDTH))]
    room -= INTERVAL_WIDTH * len(with_intervals)
    return COLUMNS[: LEAST_COLUMNS + max(0, room // COLUMN_WIDTH)], with_intervals


def _format_cell(entry: Mapping[str, Any], key: str, decimals: int, with_interval: bool = False) -> str:
    """Format one value of a method's entry, with its interval if asked for, or a dash where it has none."""
    value: Any = entry
    for part in (key,) if key in entry else key.split(".", 1):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if key == "stored_bytes":
        return f"{value / 1024:.1f}"
    low, high = entry.get("ci95", {}).get(key) or (None, None)
    interval = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if with_interval and low is not None and high is not None else ""
    return f"{value:.{decimals}f}{interval}"
