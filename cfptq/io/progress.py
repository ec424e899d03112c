"""Progress of long loops in a terminal, a notebook or a log."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
#: Called with the number of finished items and the seconds since the start.
Report: TypeAlias = Callable[[int, float], None]

#: Loops that end earlier show nothing.
PATIENCE_SECONDS = 2.0
#: A log gets at most one line in this time from one loop, and one at its end.
LINE_INTERVAL_SECONDS = 10.0
#: A notebook's bar is redrawn at most once in this time.
REDRAW_INTERVAL_SECONDS = 0.2

#: False inside a public function that was called with ``progress=False``, whatever the functions that it calls ask for.
_is_allowed: ContextVar[bool] = ContextVar("is_progress_allowed", default=True)

logger = logging.getLogger("cfptq")
logger.addHandler(logging.NullHandler())


@contextmanager
def allow_progress(is_allowed: bool) -> Iterator[None]:
    """Let the loops of a block show their progress, or none of them at any depth.

    Args:
        is_allowed: False shows nothing. True leaves it to each loop, and to the blocks around this one.
    """
    token = _is_allowed.set(_is_allowed.get() and is_allowed)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Yield ``items`` and show the progress of a loop that takes longer than two seconds.

    A terminal and a notebook show a Rich progress bar. Where standard error is a pipe or a file, a plain line is written to it at
    most every ten seconds, and one at the end. Every loop that ends is logged to the logger ``cfptq`` at level INFO.

    Args:
        items: what the loop runs over.
        description: the work in progress, such as "rounding layers".
        total: number of items; taken from ``items`` by default, and unknown if they have no length.
        enabled: show progress, unless ``allow_progress(False)`` is around the loop. False still logs.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    started = time.monotonic()
    done = 0
    try:
        with _open_display(description, total) if enabled and _is_allowed.get() else nullcontext(_ignore) as report:
            for item in items:
                yield item
                done += 1
                report(done, time.monotonic() - started)
    finally:
        logger.info("%s", format_progress(description, done, total, time.monotonic() - started))


def format_progress(description: str, done: int, total: int | None, seconds: float) -> str:
    """Return the progress of a loop as one line.

    An example is "rounding layers: 12 of 48, 25 s, about 75 s left".
    """
    line = f"{description}: {done}{'' if total is None else f' of {total}'}, {_format_seconds(seconds)}"
    if total is None or not 0 < done < total:
        return line
    return f"{line}, about {_format_seconds(seconds * (total - done) / done)} left"


def _format_seconds(seconds: float) -> str:
    """Return a duration as text, such as "0.3 s", "75 s", "12 min" or "3.4 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _ignore(done: int, seconds: float) -> None:
    """Report nothing."""


def _open_display(description: str, total: int | None) -> AbstractContextManager[Report]:
    """Choose the display that fits where the program runs."""
    if Console().is_jupyter:
        return _notebook_bar(description, total)
    if sys.stderr is None:
        return nullcontext(_ignore)
    return _terminal_bar(description, total) if sys.stderr.isatty() else _log_lines(description, total)


def _make_bar(**options: object) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, **options)  # type: ignore[arg-type]


@contextmanager
def _terminal_bar(description: str, total: int | None) -> Iterator[Report]:
    with _make_bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, visible=False)
        yield lambda done, seconds: bar.update(task, completed=done, visible=seconds > PATIENCE_SECONDS)


@contextmanager
def _notebook_bar(description: str, total: int | None) -> Iterator[Report]:
    """Draw the bar through IPython's own display, because Rich's live display needs ipywidgets in a notebook."""
    # A kernel is running, so IPython is there.
    display = importlib.import_module("IPython.display").display
    bar = _make_bar(auto_refresh=False)
    task = bar.add_task(description, total=total)
    handle = None
    drawn_at = 0.0

    def draw(seconds: float) -> None:
        nonlocal handle, drawn_at
        drawn_at = seconds
        table = bar.make_tasks_table(bar.tasks)
        if handle is None:
            handle = display(table, display_id=True)
        else:
            handle.update(table)

    def report(done: int, seconds: float) -> None:
        bar.update(task, completed=done)
        if seconds > PATIENCE_SECONDS and (seconds - drawn_at >= REDRAW_INTERVAL_SECONDS or done == total):
            draw(seconds)

    try:
        yield report
    finally:
        bar.stop_task(task)
        if handle is not None:
            draw(drawn_at)


@contextmanager
def _log_lines(description: str, total: int | None) -> Iterator[Report]:
    last = (0, 0.0)
    written = (0, 0.0)

    def write() -> None:
        nonlocal written
        written = last
        print(format_progress(description, last[0], total, last[1]), file=sys.stderr, flush=True)

    def report(done: int, seconds: float) -> None:
        nonlocal last
        last = done, seconds
        due = PATIENCE_SECONDS if written[0] == 0 else written[1] + LINE_INTERVAL_SECONDS
        if seconds > due and done != total:
            write()

    try:
        yield report
    finally:
        if last[1] > PATIENCE_SECONDS and last != written:
            write()
